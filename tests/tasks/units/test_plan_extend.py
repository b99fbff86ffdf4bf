"""Plans that grow with their source: what is planned again, what is refused, and rounds of both kinds in turn."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.engine import FIRST_EXTENSIONS, RayConfig, SourceConfig, UnitsConfig
from tasks.store.storage import Store
from tasks.units.commits import committed_parts, pending, standing_quarantine
from tasks.units.engine import run_units
from tasks.units.plan import Plan, PlanConflict, PlanError, load_plan
from tasks.units.rounds import open_or_build, plan_retry
from tasks.units.verify import status, verify
from tests.tasks.conftest import HashWorker, committed_bytes

FOUR = UnitsConfig(items_per_unit=4)


def run(plan: Plan, calm: Path | str = "/nonexistent") -> int:
    return run_units(plan, partial(HashWorker, str(calm)), RayConfig(workers=0)).units_run


def extend(dest: str, source: Path | str, **settings: Any) -> Plan:
    return open_or_build(dest, str(source), **{"units": FOUR, "mode": "extend", **settings})


def add(folder: Path, *names: str, data: bytes = b"") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data or name.encode())


@pytest.fixture(params=["local", "s3"])
def dest(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return request.getfixturevalue("s3").uri(f"extend/{tmp_path.name}")
    return str(tmp_path / "out")


def sources(dest: str) -> list[str]:
    tables = [pq.read_table(uri, columns=["source_uri"]) for uri in committed_parts(dest)]
    return [Path(uri).name for table in tables for uri in table.column("source_uri").to_pylist()]


def test_only_what_is_new_is_worked(photos: Callable[..., Path], dest: str) -> None:
    source = photos(10)
    run(extend(dest, source))  # the first night: an ordinary plan
    first = load_plan(dest)
    assert (first.rounds, first.units) == ((), 3)
    assert extend(dest, source) == first  # nothing new: no round, no unit
    add(source, "000-new.jpg", "sub/x.jpg", "zz.jpg", "zzz.jpg", "zzzz.jpg")
    with pytest.raises(PlanConflict, match=r"inputs: 5 added, 0 removed, 0 changed.*--extend"):
        open_or_build(dest, str(source), units=FOUR)
    plan = extend(dest, source)
    assert pending(plan) == [3, 4]
    assert [[item.index for item in unit.items] for unit in plan.iter_units([3, 4])] == [[10, 11, 12, 13], [14]]
    assert next(plan.iter_units([3])).items[0].root == str(source)
    assert (plan.count_items([3]), plan.count_items([4]), plan.count_items(range(5))) == (4, 1, 15)
    assert run(plan) == 2
    assert sources(dest)[10:] == ["000-new.jpg", "x.jpg", "zz.jpg", "zzz.jpg", "zzzz.jpg"]
    now = status(dest)
    assert (now.items, now.units, now.rows, now.complete) == (15, 5, 15, True)
    assert verify(dest).ok
    assert verify(dest).leftovers == []
    # Every way to go on finds the plan as it is now.
    assert open_or_build(dest, str(source), units=FOUR) == extend(dest, source) == load_plan(dest) == plan
    add(source, "zzzzz.jpg")
    assert run(extend(dest, source)) == 1
    assert [later.round for later in load_plan(dest).rounds] == [1, 2]
    assert len(sources(dest)) == len(set(sources(dest))) == 16


def test_what_is_there_keeps_its_bytes(photos: Callable[..., Path], tmp_path: Path) -> None:
    source, dest = photos(10, {2: b"bad"}), tmp_path / "out"
    run(extend(str(dest), source))
    before = committed_bytes(dest)
    add(source, "new.jpg")
    run(extend(str(dest), source))
    after = committed_bytes(dest)
    assert before.items() < after.items()
    assert len(after) == len(before) + 1


def test_inputs_that_are_gone_keep_their_rows(
    photos: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, dest = photos(6), str(tmp_path / "out")
    run(extend(dest, source))
    (source / "001.jpg").unlink()
    with caplog.at_level("INFO", "deca"):
        plan = extend(dest, source)
    assert "0 inputs are new, 0 changed, 1 gone (their rows stay)" in caplog.text
    assert [(later.removed, later.units, later.files) for later in plan.rounds] == [(1, 0, [])]
    assert run(plan) == 0
    assert open_or_build(dest, str(source), units=FOUR) == plan  # the plan knows this source now
    assert extend(dest, source) == plan
    assert "001.jpg" in sources(dest)
    assert status(dest).complete
    add(source, "new.jpg")
    assert run(extend(dest, source)) == 1


def test_changed_inputs_are_planned_again_and_their_old_rows_go(photos: Callable[..., Path], dest: str) -> None:
    source = photos(10, {4: b"bad", 5: b"bad"})
    run(extend(dest, source))
    untouched = Path(committed_parts(dest)[2]).name
    ids = {row["source_uri"]: row["face_id"] for row in rows(dest)}
    for number in (1, 2, 4):  # two rows of unit 0, a quarantined one of unit 1
        (source / f"{number:03d}.jpg").write_bytes(b"other content")
    add(source, "new.jpg")
    plan = extend(dest, source)
    assert plan.replaced == {1, 2, 4}
    assert [item.index for unit in plan.iter_units([3]) for item in unit.items] == [10, 11, 12, 13]
    assert sources(dest) == [f"{number:03d}.jpg" for number in (0, 3, 6, 7, 8, 9)]  # never old beside new
    assert [row.index for row in standing_quarantine(dest)] == [5]
    assert run(plan) == 1
    assert {row["source_uri"]: row["face_id"] for row in rows(dest)}.items() >= ids.items()  # the same ids
    assert [row["size"] for row in rows(dest) if row["source_uri"].endswith(("001.jpg", "004.jpg"))] == [13, 13]
    assert untouched in {Path(uri).name for uri in committed_parts(dest)}
    assert (status(dest).items, status(dest).rows) == (11, 10)
    assert (verify(dest).problems, verify(dest).leftovers) == ([], [])
    assert {name for name in Store(dest).list() if name.startswith("part-")} == {
        Path(uri).name for uri in committed_parts(dest)
    }
    assert extend(dest, source) == open_or_build(dest, str(source), units=FOUR) == plan
    metadata = pq.read_schema(pa.BufferReader(Store(dest).read(Path(committed_parts(dest)[0]).name))).metadata
    assert metadata[b"fingerprint"].decode() == plan.fingerprint


def test_content_that_comes_back_is_a_change_too(photos: Callable[..., Path], tmp_path: Path) -> None:
    source, dest = photos(3), str(tmp_path / "out")
    run(extend(dest, source))
    for content in (b"other one", b"picture 0"):
        (source / "000.jpg").write_bytes(content)
        os.utime(source / "000.jpg", ns=(10**18 + (content == b"other one"), 10**18 + (content == b"other one")))
        assert run(extend(dest, source)) == 1
        (row,) = (row for row in rows(dest) if row["source_uri"].endswith("000.jpg"))
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
    assert len(rows(dest)) == status(dest).items == 3
    assert load_plan(dest).replaced == {0, 3}


def test_a_change_before_the_unit_was_worked(photos: Callable[..., Path], tmp_path: Path) -> None:
    """The pending unit leaves the old content out, so nothing of it is in quarantine or doubled."""
    source, dest = photos(6), str(tmp_path / "out")
    extend(dest, source)
    (source / "001.jpg").write_bytes(b"other content")
    plan = extend(dest, source)
    assert [len(unit.items) for unit in plan.iter_units()] == [3, 2, 1]
    assert run(plan) == 3
    assert sorted(sources(dest)) == [f"{number:03d}.jpg" for number in range(6)]
    assert status(dest).complete
    assert verify(dest).ok


def test_an_end_between_the_steps_of_a_change_loses_nothing(
    photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, dest = photos(6), str(tmp_path / "out")
    run(extend(dest, source))
    (source / "001.jpg").write_bytes(b"other content")

    def dies(self: Store, name: str, *rest: Any) -> None:
        raise KeyboardInterrupt

    for step in ("delete", "create"):
        with monkeypatch.context() as patch:
            patch.setattr(Store, step, dies)
            with pytest.raises(KeyboardInterrupt):
                open_or_build_without_write_test(dest, source, patch)
        assert verify(dest).ok
    run(extend(dest, source))
    assert verify(dest).leftovers == []
    assert sorted(sources(dest)) == [f"{number:03d}.jpg" for number in range(6)]
    assert verify(dest).ok


def open_or_build_without_write_test(dest: str, source: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Store, "check_writable", lambda self: None)  # it deletes, too
    extend(dest, source)


def rows(dest: str) -> list[dict[str, Any]]:
    return [row for uri in committed_parts(dest) for row in pq.read_table(uri).to_pylist()]


def test_all_but_the_inputs_must_be_equal(photos: Callable[..., Path], tmp_path: Path) -> None:
    source, dest = photos(3), str(tmp_path / "out")
    extend(dest, source, config={"size": 1})
    add(source, "new.jpg")
    with pytest.raises(PlanConflict, match="config size 1 -> 2"):
        extend(dest, source, config={"size": 2})
    with pytest.raises(PlanConflict, match="items per unit 4 -> 5"):
        extend(dest, source, config={"size": 1}, units=UnitsConfig(items_per_unit=5))
    other = str(tmp_path / "deduplicated")
    extend(other, source, source_config=SourceConfig(deduplicate=True))
    add(source, "newer.jpg")
    with pytest.raises(PlanError, match=r"does not go with inputs.deduplicate"):
        extend(other, source, source_config=SourceConfig(deduplicate=True))


def test_retry_and_extension_in_turn(photos: Callable[..., Path], tmp_path: Path) -> None:
    source, dest = photos(6, {1: b"bad"}), str(tmp_path / "out")
    run(extend(dest, source))
    add(source, "n1.jpg", data=b"bad too")
    extend(dest, source)  # unit 2, pending
    plan = plan_retry(dest)  # unit 3
    assert [later.kind for later in plan.rounds] == ["extend", "retry"]
    assert plan_retry(dest) == plan
    run(plan)
    assert status(dest).quarantined == {"decode": 2}
    plan = plan_retry(dest)
    add(source, "n2.jpg")
    plan = extend(dest, source)
    assert [[(item.index, item.attempts) for item in unit.items] for unit in plan.iter_units([4, 5])] == [
        [(1, 2), (6, 1)],
        [(7, 0)],
    ]
    (tmp_path / "calm").touch()
    run(plan, tmp_path / "calm")
    assert status(dest).complete
    assert status(dest).rows == 8
    assert verify(dest).ok
    assert sorted(sources(dest)) == [*(f"{number:03d}.jpg" for number in range(6)), "n1.jpg", "n2.jpg"]


def test_rounds_of_the_same_moment_do_not_mix(photos: Callable[..., Path], tmp_path: Path) -> None:
    """One of several runs wins; what it published is what its record names, whatever the others wrote."""
    source, dest = photos(6, {1: b"bad"}), str(tmp_path / "out")
    run(extend(dest, source))
    add(source, *(f"n{number}.jpg" for number in range(30)))

    def go(number: int) -> str:
        try:
            plan_retry(dest) if number % 2 else extend(dest, source)
        except PlanError as error:
            return str(error)
        return "planned"

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(go, range(6)))
    assert "planned" in answers
    assert all(answer == "planned" or "began at the same moment" in answer for answer in answers)
    plan = load_plan(dest)
    for file in plan.files:
        assert hashlib.sha256(Store(dest).read(file.file)).hexdigest() == file.sha256
    units = list(plan.iter_units())
    assert [unit.index for unit in units] == list(range(plan.units))
    run(extend(dest, source))
    names = sources(dest)
    assert len(names) == len(set(names)) == 35


def test_an_extension_that_dies_leaves_the_plan_as_it_was(
    photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, dest = photos(6), str(tmp_path / "out")
    plan = extend(dest, source)
    add(source, "new.jpg")

    def dies(self: Store, name: str, data: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "create", dies)
        with pytest.raises(KeyboardInterrupt):
            extend(dest, source)
    assert load_plan(dest) == plan
    assert extend(dest, source).units == 3
    assert verify(dest).leftovers == []


def test_members_of_the_same_name_are_counted_once(tmp_path: Path) -> None:
    """A tar may hold a name twice; the later addition of such a tar changes nothing."""
    source, dest = tmp_path / "photos", str(tmp_path / "out")
    add(source, "a.jpg")
    plan = extend(dest, source)
    with tarfile.open(source / "b.tar", "w") as tar:
        for data in (b"one", b"two"):
            entry = tarfile.TarInfo("x.jpg")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    with pytest.raises(PlanConflict, match="inputs: 1 added, 0 removed, 0 changed"):
        open_or_build(dest, str(source), units=FOUR)
    plan = extend(dest, source)
    assert [item.index for unit in plan.iter_units([1]) for item in unit.items] == [1, 2]
    assert plan.replaced == frozenset()


def test_a_longer_list_and_more_shards_extend_as_well(tmp_path: Path) -> None:
    source, dest = tmp_path / "tables", str(tmp_path / "out")
    source.mkdir()
    pq.write_table(pa.table({"image": [b"1", b"2"]}), source / "a.parquet")
    run(extend(dest, source))
    pq.write_table(pa.table({"image": [b"3"]}), source / "b.parquet")
    assert run(extend(dest, source)) == 1
    assert len(sources(dest)) == 3
    listed, dest = tmp_path / "photos.txt", str(tmp_path / "out of list")
    add(tmp_path, "1.jpg", "2.jpg")
    listed.write_text("1.jpg\n")
    run(extend(dest, listed))
    listed.write_text("2.jpg\n1.jpg\n")
    assert run(extend(dest, listed)) == 1
    assert sources(dest) == ["1.jpg", "2.jpg"]
    os.utime(listed)
    assert extend(dest, listed) == load_plan(dest)  # the list's own date does not matter


def record_of(dest: str) -> dict[str, Any]:
    return json.loads(Store(dest).read("_plan.json"))


def test_images_left_out_follow_the_last_look_at_the_source(photos: Callable[..., Path], tmp_path: Path) -> None:
    source, dest = photos(4), str(tmp_path / "out")
    plan = open_or_build(dest, str(source), units=FOUR)
    run(plan)
    assert "images_left_out" not in record_of(dest)  # as earlier versions write and read it
    assert status(dest).complete
    add(source, "a.heic", "b.HEIC", "c.cr2")
    again = open_or_build(dest, str(source), units=FOUR)
    assert again.fingerprint == plan.fingerprint == record_of(dest)["fingerprint"]
    assert again == load_plan(dest)
    assert run(again) == 0
    assert status(dest).images_left_out == {".cr2": 1, ".heic": 2}
    assert not status(dest).complete
    assert open_or_build(dest, mode="resume") == again  # which does not look
    assert verify(dest).ok
    (source / "c.cr2").unlink()
    add(source, "d.jfif")
    run(extend(dest, source))
    assert status(dest).images_left_out == {".heic": 2}
    for name in ("a.heic", "b.HEIC"):
        (source / name).unlink()
    assert extend(dest, source).units == 2
    assert status(dest).complete
    assert "images_left_out" not in record_of(dest)


def test_a_dataset_of_an_earlier_version_gains_the_endings_that_it_did_not_know(
    photos: Callable[..., Path], tmp_path: Path
) -> None:
    """The default has grown, and the plan that it was part of is the same plan."""
    source, dest = photos(4), str(tmp_path / "out")
    before = SourceConfig(extensions=FIRST_EXTENSIONS)  # what the earlier default was
    run(open_or_build(dest, str(source), units=FOUR, source_config=before))
    record = record_of(dest)
    del record["config"]["source"]["zip_encoding"]  # which that version did not know
    Store(dest).write("_plan.json", json.dumps(record).encode())
    ids = sources(dest)
    assert open_or_build(dest, str(source), units=FOUR) == load_plan(dest)
    add(source, "new.jfif", "new.ppm")
    with pytest.raises(PlanConflict, match="inputs: 2 added, 0 removed, 0 changed"):
        open_or_build(dest, str(source), units=FOUR)
    assert run(extend(dest, source)) == 1
    assert sources(dest) == [*ids, "new.jfif", "new.ppm"]
