"""Plans, conflicts, retry rounds, status and verification, on a folder and on a bucket."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from schemas import results
from schemas.engine import RayConfig, SourceConfig, UnitsConfig
from tasks.sources.discover import SourceError, discover
from tasks.store.storage import Store
from tasks.units import draft
from tasks.units.commits import committed_parts, pending, read_commits, standing_quarantine
from tasks.units.engine import run_units
from tasks.units.plan import Plan, PlanConflict, PlanError, ResultsConflict, load_plan
from tasks.units.rounds import open_or_build, plan_retry
from tasks.units.verify import status, verify
from tests.tasks.conftest import HashWorker

HERE = RayConfig(workers=0)
FOUR = UnitsConfig(items_per_unit=4)


def run(plan: Plan, calm: Path | str = "/nonexistent") -> None:
    run_units(plan, partial(HashWorker, str(calm)), HERE)


def faces(dest: Path | str) -> list[str]:
    """Names of the images that have a row."""
    tables = [pq.read_table(uri) for uri in committed_parts(str(dest))]
    return sorted(Path(uri).name for table in tables for uri in table.column("source_uri").to_pylist())


@pytest.fixture(params=["local", "s3", "memory"])
def dest(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return request.getfixturevalue("s3").uri(f"plans/{tmp_path.name}")
    return str(tmp_path / "out") if request.param == "local" else f"memory://{tmp_path.name}-out"


def test_plan_holds_the_source_in_frozen_units(photos: Callable[..., Path], dest: str) -> None:
    source = photos(300)
    plan = open_or_build(dest, str(source), units=FOUR, config={"size": 320}, weights={"hog": "abc"})
    units = list(plan.iter_units())
    assert [unit.index for unit in units] == list(range(75))
    assert [item for unit in units for item in unit.items] == list(discover(str(source)))
    assert {len(unit.items) for unit in units} == {4}
    assert [file.units for file in plan.record.files] == [64, 11]
    assert [unit.items[0].index for unit in plan.iter_units({74, 3})] == [12, 296]
    assert plan.count_items([0, 74]) == 8
    assert pending(plan) == list(range(75))
    assert load_plan(dest) == plan
    assert open_or_build(dest, str(source), units=FOUR, config={"size": 320}, weights={"hog": "abc"}) == plan


def test_plan_is_the_same_every_time(photos: Callable[..., Path], tmp_path: Path) -> None:
    source = photos(10)
    for name in ("a", "b"):
        open_or_build(tmp_path / name, str(source), units=FOUR)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 2
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_conflicts_name_what_differs(photos: Callable[..., Path], tmp_path: Path) -> None:
    source, dest = photos(10), str(tmp_path / "out")
    settings: dict[str, Any] = {
        "config": {"crop": {"size": 320}, "detector": "hog"},
        "weights": {"hog": "a", "cnn": "b"},
    }
    first = open_or_build(dest, str(source), units=FOUR, **settings)

    def refused(**change: Any) -> str:
        with pytest.raises(PlanConflict) as caught:
            open_or_build(dest, str(source), **{"units": FOUR, **settings, **change})
        assert caught.value.differences
        assert "--resume" in str(caught.value)
        assert "--new" in str(caught.value)
        return "; ".join(caught.value.differences)

    assert refused(config={"crop": {"size": 224}, "scale": 2}) == (
        'config crop.size 320 -> 224; config detector "hog" -> unset; config scale unset -> 2'
    )
    assert refused(weights={"hog": "A", "cnn": "b"}) == 'weights hog "a" -> "A"'
    assert refused(units=UnitsConfig(items_per_unit=5)) == "items per unit 4 -> 5"
    assert refused(source_config=SourceConfig(max_bytes=100)) == "config source.max_bytes 268435456 -> 100"
    (source / "new 1.jpg").write_bytes(b"")
    (source / "new 2.jpg").write_bytes(b"")
    (source / "000.jpg").unlink()
    (source / "001.jpg").write_bytes(b"changed")
    assert refused() == "inputs: 2 added, 1 removed, 1 changed"
    assert open_or_build(dest, mode="resume") == first


def test_another_code_version_resumes(
    photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, dest = str(photos(10)), str(tmp_path / "out")
    first = open_or_build(dest, source, units=FOUR)
    monkeypatch.setattr("tasks.units.rounds.code_version", lambda: "0.2.0+bbbbbbbbbbbb")
    assert open_or_build(dest, source, units=FOUR) == first
    # A plan of before result versions were counted: without the field, and with a fingerprint over its code.
    stored = json.loads(Store(dest).read("_plan.json"))
    del stored["result_version"]
    Store(dest).write("_plan.json", json.dumps({**stored, "fingerprint": "ab" * 32}).encode())
    assert open_or_build(dest, source, units=FOUR).fingerprint == "ab" * 32
    assert open_or_build(dest, source, units=FOUR, mode="extend").rounds == ()


def test_rows_of_another_meaning_are_refused(
    photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, dest = str(photos(10)), str(tmp_path / "out")
    of = {"config": {"flow": "export"}, "units": FOUR}
    open_or_build(dest, source, **of)
    monkeypatch.setitem(results.RESULT_VERSIONS, "export", 2)
    monkeypatch.setitem(results.RESULT_CHANGES, ("export", 2), "eyes are closed")
    for mode in ("auto", "extend", "resume"):
        with pytest.raises(ResultsConflict, match=r"export rows of version 1, .* version 2 \(eyes are closed\)"):
            open_or_build(dest, source, mode=mode, **of)
    newer = open_or_build(dest, source, mode="new", **of)
    assert newer.record.result_version == 2
    monkeypatch.setitem(results.RESULT_VERSIONS, "export", 1)
    with pytest.raises(ResultsConflict, match=r"this program makes version 1. Run: python -m pip install --upgrade"):
        open_or_build(dest, source, **of)


def test_a_setting_that_came_later_has_the_value_of_before(
    photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, dest = str(photos(10)), str(tmp_path / "out")
    first = open_or_build(dest, source, units=FOUR, config={"crop": {"size": 320}})
    monkeypatch.setitem(draft.LATER_VALUES, "crop.angle", "0")
    monkeypatch.setitem(draft.LATER_VALUES, "other.flow", "0")
    same = {"crop": {"size": 320, "angle": 0}}
    assert open_or_build(dest, source, units=FOUR, config=same) == first
    with pytest.raises(PlanConflict, match=r"config crop\.angle 0 -> 30"):
        open_or_build(dest, source, units=FOUR, config={"crop": {"size": 320, "angle": 30}})


def test_new_drops_the_plan_and_its_results_only(photos: Callable[..., Path], dest: str) -> None:
    source = photos(10, {3: b"bad"})
    plan = open_or_build(dest, str(source), units=FOUR)
    run(plan)
    store = Store(dest)
    store.write("part-of-something-else.parquet", b"")
    store.write("identities.parquet", b"")
    with pytest.raises(SourceError):
        open_or_build(dest, str(source) + "-gone", mode="new")
    assert not pending(load_plan(dest))  # a source that fails costs nothing
    new = open_or_build(dest, str(source), units=FOUR, config={"size": 1}, mode="new")
    assert new.fingerprint != plan.fingerprint
    assert pending(new) == [0, 1, 2]
    assert committed_parts(dest) == []
    assert store.list() == ["_plan.json", "identities.parquet", "part-of-something-else.parquet"]
    assert store.list("_commits") == store.list("_quarantine") == []


def test_half_a_plan_is_none(photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(self: Store, name: str, data: bytes) -> None:
        raise KeyboardInterrupt

    source = str(photos(10))
    with monkeypatch.context() as patch:
        patch.setattr(Store, "create", dies)
        with pytest.raises(KeyboardInterrupt):
            open_or_build(tmp_path / "out", source)
    assert os.listdir(tmp_path / "out") == ["_plan"]
    with pytest.raises(PlanError, match="no plan at"):
        load_plan(str(tmp_path / "out"))
    assert open_or_build(tmp_path / "out", str(tmp_path / "photos")).units == 1


def test_two_plans_at_the_same_moment(photos: Callable[..., Path], tmp_path: Path) -> None:
    source = str(photos(50))

    def build(number: int) -> str:
        try:
            return open_or_build(tmp_path / "out", source, config={"number": number % 2}).fingerprint
        except PlanConflict:
            return "refused"

    with ThreadPoolExecutor(6) as pool:
        prints = list(pool.map(build, range(6)))
    stored = load_plan(str(tmp_path / "out"))
    assert {*prints} == {stored.fingerprint, "refused"}
    assert sum(len(unit.items) for unit in stored.iter_units()) == 50


def test_damaged_records_are_refused_by_name(photos: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="needs a source"):
        open_or_build(tmp_path)
    plan = open_or_build(tmp_path / "out", str(photos(4)))
    run(plan)
    record = tmp_path / "out" / plan.commit_name(0)
    record.write_text("{")
    with pytest.raises(PlanError, match=rf"{plan.dest}/_commits/00000-.*json is damaged .* Delete it"):
        status(plan.dest)
    assert not verify(plan.dest).ok
    (tmp_path / "out" / "_plan.json").write_text('{"schema_version": 2, "items": 4}')
    with pytest.raises(PlanError, match=r"another version.*--new"):
        load_plan(plan.dest)
    assert open_or_build(plan.dest, str(tmp_path / "photos"), mode="new") == plan


def test_retry_that_succeeds_empties_the_quarantine(photos: Callable[..., Path], dest: str, tmp_path: Path) -> None:
    plan = open_or_build(dest, str(photos(10, {3: b"bad", 8: b"bad"})), units=FOUR)
    run(plan)
    assert [(row.index, row.stage, row.attempts) for row in standing_quarantine(dest)] == [
        (3, "decode", 1),
        (8, "decode", 1),
    ]
    assert status(dest).quarantined == {"decode": 2}
    plan = plan_retry(dest)
    assert pending(plan) == [3]
    assert plan_retry(dest) == plan  # all of it is under way
    assert [item.attempts for unit in plan.iter_units([3]) for item in unit.items] == [1, 1]
    assert len(standing_quarantine(dest)) == 2  # until the round is committed
    (tmp_path / "calm").touch()
    run(plan, tmp_path / "calm")
    assert standing_quarantine(dest) == []
    assert status(dest).complete
    assert status(dest).rows == 10
    assert verify(dest).ok
    assert plan_retry(dest) == plan


def test_retry_that_fails_again_then_a_second_round(photos: Callable[..., Path], tmp_path: Path) -> None:
    dest = str(tmp_path / "out")
    run(open_or_build(dest, str(photos(10, {3: b"bad", 8: b"bad"})), units=FOUR))
    run(plan_retry(dest))
    assert [(row.index, row.attempts) for row in standing_quarantine(dest)] == [(3, 2), (8, 2)]
    assert status(dest).quarantined == {"decode": 2}
    (tmp_path / "photos" / "003.jpg").unlink()  # now it fails at another stage
    run(plan_retry(dest))
    assert [(row.index, row.stage, row.attempts) for row in standing_quarantine(dest)] == [
        (3, "read", 3),
        (8, "decode", 3),
    ]
    assert [retry.round for retry in load_plan(dest).retries] == [1, 2]
    assert len(faces(dest)) == len(set(faces(dest))) == 8
    assert verify(dest).ok


def test_retry_of_a_unit_that_was_given_up_isolates_the_culprit(photos: Callable[..., Path], tmp_path: Path) -> None:
    dest = str(tmp_path / "out")
    run(open_or_build(dest, str(photos(40, {21: b"raise"})), units=UnitsConfig(items_per_unit=32)))
    assert status(dest).quarantined == {"unit": 32}
    assert len(faces(dest)) == 8
    first = plan_retry(dest)
    assert [len(unit.items) for unit in first.iter_units(pending(first))] == [2] * 16
    run(first)
    assert status(dest).quarantined == {"unit": 2}
    second = plan_retry(dest)
    assert [len(unit.items) for unit in second.iter_units(pending(second))] == [1, 1]
    run(second)
    (row,) = standing_quarantine(dest)
    assert (row.index, row.stage, row.error, row.attempts) == (21, "unit", "ValueError", 3)
    assert row.message == "a fault of the worker (unit 19 given up after 3 attempts)"
    assert len(faces(dest)) == 39
    assert verify(dest).ok


def test_retry_of_one_face_plans_that_face(photos: Callable[..., Path], tmp_path: Path) -> None:
    """Faces 0 and 2 of one image failed; the read of face 2's retry fails, reported without a face index."""
    from schemas.ledger import Quarantined
    from tasks.units.engine import UnitOutput
    from tests.tasks.conftest import SCHEMA

    class FaceWorker(HashWorker):
        def process(self, items: Any) -> UnitOutput:
            empty = SCHEMA.empty_table()
            (item,) = items[:1]
            if item.attempts == 0:
                return UnitOutput(empty, [Quarantined.of(item, "crop", "E", "", face_index=face) for face in (0, 2)])
            assert [item.face_index for item in items] == [0, 2]
            return UnitOutput(empty, [Quarantined(item.index, item.source_uri, None, "read", "E", "")])

    dest = str(tmp_path / "out")
    run_units(open_or_build(dest, str(photos(1))), FaceWorker, HERE)
    run_units(plan_retry(dest), FaceWorker, HERE)
    standing = [(row.face_index, row.stage, row.attempts) for row in standing_quarantine(dest)]
    assert standing == [(0, "read", 2), (2, "read", 2)]


def test_verify_names_what_is_wrong(photos: Callable[..., Path], tmp_path: Path) -> None:
    dest = tmp_path / "out"
    plan = open_or_build(dest, str(photos(16, {3: b"bad"})), units=FOUR)
    run(plan)
    assert verify(plan.dest) == verify(plan.dest)
    assert verify(plan.dest).ok
    part = dest / plan.part_name(1)
    data = bytearray(part.read_bytes())
    data[40] ^= 1
    part.write_bytes(data)
    (dest / plan.part_name(2)).unlink()
    quarantine = len((dest / plan.quarantine_name(0)).read_bytes())
    (dest / plan.quarantine_name(0)).write_bytes(b"")
    (dest / plan.part_name(99)).write_bytes(b"never committed")
    report = verify(plan.dest)
    assert not report.ok
    assert sorted(report.problems) == [
        f"{plan.quarantine_name(0)}: changed since it was committed (0 bytes, {quarantine} committed)",
        f"{plan.part_name(1)}: changed since it was committed ({len(data)} bytes, {len(data)} committed)",
        f"{plan.part_name(2)}: missing",
    ]
    assert report.leftovers == [plan.part_name(99)]


def test_verify_finds_doubled_ids(photos: Callable[..., Path], tmp_path: Path) -> None:
    dest = tmp_path / "out"
    plan = open_or_build(dest, str(photos(8)), units=FOUR)
    run(plan)
    one, two = read_commits(plan.dest)
    (dest / plan.part_name(1)).write_bytes((dest / plan.part_name(0)).read_bytes())
    doubled = two.model_copy(update={"sha256": one.sha256, "bytes": one.bytes})
    (dest / plan.commit_name(1)).write_text(doubled.model_dump_json())
    assert len(verify(plan.dest).problems) == 4
    assert verify(plan.dest).problems[0].endswith(": 2 times")


def test_commit_records_say_what_design_promises(photos: Callable[..., Path], tmp_path: Path) -> None:
    plan = open_or_build(tmp_path / "out", str(photos(6, {1: b"bad"})), units=FOUR, weights={"hog": "abc"})
    run(plan)
    record = json.loads((tmp_path / "out" / plan.commit_name(0)).read_text())
    expected = {"unit": 0, "items": 4, "rows": 3, "quarantined": 1, "stages": {"decode": 1}, "schema_version": 3}
    assert expected.items() <= record.items()
    assert {"bytes", "sha256", "seconds", "versions"} <= record.keys()
    meta = pq.read_metadata(tmp_path / "out" / record["part"]).metadata
    assert meta[b"fingerprint"].decode() == plan.fingerprint
    assert (meta[b"weights.hog"], meta[b"schema_version"]) == (b"abc", b"1")
