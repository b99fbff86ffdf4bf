"""Rows of an earlier result version recomputed in place: under limits, retries, new inputs, erasures and kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas import results
from schemas.engine import RayConfig, UnitsConfig
from tasks.trust.erase import Asked, erase
from tasks.units.commits import committed_parts, standing_quarantine
from tasks.units.engine import RunSummary, run_units
from tasks.units.plan import Plan, ResultsConflict, load_plan
from tasks.units.rounds import begin_upgrade, open_or_build, plan_retry
from tasks.units.verify import status, verify
from tests.tasks.conftest import VersionWorker

ROOT = Path(__file__).resolve().parents[3]
FOUR = UnitsConfig(items_per_unit=4)
FLOW = {"flow": "export"}
NO_CALM = "/nonexistent"


def plan_of(dest: Path, source: Path, **settings: Any) -> Plan:
    return open_or_build(str(dest), str(source), config=FLOW, units=FOUR, **settings)


def run(plan: Plan, version: int, limit: int | None = None, calm: str = NO_CALM) -> RunSummary:
    ray = RayConfig(workers=0, upgrade=True, upgrade_limit=limit)
    return run_units(plan, partial(VersionWorker, calm, version=version), ray)


def content(dest: Path) -> dict[int, bytes]:
    """The rows of every unit byte for byte; the plan's fingerprint, in the metadata of parts, is of the dataset."""
    found = {}
    for uri in committed_parts(str(dest)):
        table = pq.read_table(uri).replace_schema_metadata(None).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        found[int(Path(uri).name.split("-")[1])] = sink.getvalue().to_pybytes()
    return found


def versions(dest: Path) -> dict[str, int]:
    """The version of every row by the name of its image; each image has one row."""
    rows = [row for uri in committed_parts(str(dest)) for row in pq.read_table(uri).to_pylist()]
    names = [Path(row["source_uri"]).name for row in rows]
    assert len(names) == len(set(names))
    return {name: row["version"] for name, row in zip(names, rows, strict=True)}


@pytest.fixture
def raised(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`raised(2)`: from now on this program makes rows of version 2."""
    return lambda version: monkeypatch.setitem(results.RESULT_VERSIONS, "export", version)


def whole(dest: Path) -> bool:
    found = verify(str(dest))
    assert (found.problems, found.leftovers) == ([], [])
    return status(str(dest)).complete


def test_rows_are_recomputed_in_place(
    photos: Callable[..., Path], tmp_path: Path, raised: Callable[[int], None]
) -> None:
    source, dest, fresh = photos(10), tmp_path / "out", tmp_path / "fresh"
    run(plan_of(dest, source), 1)
    ids = {row["face_id"] for uri in committed_parts(str(dest)) for row in pq.read_table(uri).to_pylist()}
    raised(2)
    with pytest.raises(ResultsConflict, match=r"of version 1, this program makes version 2. Run again with --upgrade"):
        plan_of(dest, source)
    plan = plan_of(dest, source, upgrade=True)
    assert (plan.result_version, status(str(dest)).outdated, status(str(dest)).complete) == (2, 3, False)
    assert run(plan, 2).units_run == 3
    assert whole(dest)
    run(plan_of(fresh, source), 2)
    assert content(dest) == content(fresh)
    assert {row["face_id"] for uri in committed_parts(str(dest)) for row in pq.read_table(uri).to_pylist()} == ids
    assert run(plan_of(dest, source), 2).units_run == 0  # nothing is left to upgrade, so nothing needs to be asked for
    raised(3)
    assert run(plan_of(dest, source, upgrade=True), 3).units_run == 3
    assert set(versions(dest).values()) == {3}
    assert whole(dest)


def test_a_limited_run_renews_some_units_and_takes_what_is_new(
    photos: Callable[..., Path], tmp_path: Path, raised: Callable[[int], None]
) -> None:
    source, dest = photos(8), tmp_path / "out"
    run(plan_of(dest, source), 1)
    raised(2)
    (source / "new.jpg").write_bytes(b"new")
    plan = plan_of(dest, source, mode="extend", upgrade=True)
    assert run(plan, 2, limit=1).units_run == 2  # the new one first
    assert [versions(dest)[name] for name in ("000.jpg", "007.jpg", "new.jpg")] == [2, 1, 2]
    assert (status(str(dest)).outdated, status(str(dest)).complete) == (1, False)
    for settings in ({"mode": "extend"}, {"mode": "resume"}, {}):  # rows of two versions: not without being asked for
        with pytest.raises(ResultsConflict, match="of version 1, this program makes version 2"):
            plan_of(dest, source, **settings)
    assert run(plan_of(dest, source, mode="extend", upgrade=True), 2, limit=1).units_run == 1
    assert set(versions(dest).values()) == {2}
    assert whole(dest)


def test_rows_of_retries_are_renewed_where_they_are(
    photos: Callable[..., Path], tmp_path: Path, raised: Callable[[int], None]
) -> None:
    """Image 1 came by a retry, image 5 still fails: neither is there twice, nor lost."""
    source, dest, calm = photos(8, {1: b"bad", 5: b"bad"}), tmp_path / "out", tmp_path / "calm"
    run(plan_of(dest, source), 1)
    (source / "001.jpg").write_bytes(b"bxdpicture 1")  # of the same size and time: what was planned, mended
    os.utime(source / "001.jpg", ns=(10**18, 10**18))
    run(plan_retry(str(dest)), 1)
    assert [row.index for row in standing_quarantine(str(dest))] == [5]
    raised(2)
    plan = begin_upgrade(load_plan(str(dest)))
    assert run(plan, 2).units_run == 3
    assert versions(dest) == {f"{number:03d}.jpg": 2 for number in range(8) if number != 5}
    assert [row.index for row in standing_quarantine(str(dest))] == [5]
    calm.touch()
    run(plan_retry(str(dest)), 2, calm=str(calm))
    assert len(versions(dest)) == 8
    assert whole(dest)


def test_a_face_of_a_retry_stays_the_retrys(
    photos: Callable[..., Path], tmp_path: Path, raised: Callable[[int], None]
) -> None:
    """Two faces an image: that of image 1 which failed came by a retry; the unit now finds both."""
    source, dest, calm = photos(4, {1: b"half"}), tmp_path / "out", tmp_path / "calm"
    factory = partial(VersionWorker, str(calm), faces=2)
    ray = RayConfig(workers=0, upgrade=True)
    run_units(plan_of(dest, source), partial(factory, version=1), ray)
    assert [(row.index, row.face_index) for row in standing_quarantine(str(dest))] == [(1, 1)]
    calm.touch()
    run_units(plan_retry(str(dest)), partial(factory, version=1), ray)
    raised(2)
    run_units(begin_upgrade(load_plan(str(dest))), partial(factory, version=2), ray)
    rows = [row for uri in committed_parts(str(dest)) for row in pq.read_table(uri).to_pylist()]
    assert (len(rows), {row["version"] for row in rows}) == (8, {2})
    assert whole(dest)  # no face_id twice


def test_the_erased_stay_away(photos: Callable[..., Path], tmp_path: Path, raised: Callable[[int], None]) -> None:
    source, dest = photos(4), tmp_path / "out"
    run(plan_of(dest, source), 1)
    erase([str(dest)], Asked(images=frozenset({str(source / "002.jpg")})))
    raised(2)
    run(plan_of(dest, source, upgrade=True), 2)
    assert versions(dest) == {"000.jpg": 2, "001.jpg": 2, "003.jpg": 2}


def test_a_unit_that_cannot_be_renewed_keeps_its_rows(
    photos: Callable[..., Path], tmp_path: Path, raised: Callable[[int], None]
) -> None:
    source, dest, calm = photos(8, {5: b"raise"}), tmp_path / "out", tmp_path / "calm"
    calm.touch()
    run(plan_of(dest, source), 1, calm=str(calm))
    raised(2)
    assert run(plan_of(dest, source, upgrade=True), 2).units_run == 1
    assert sorted(versions(dest).values()) == [1] * 4 + [2] * 4
    assert status(str(dest)).outdated == 1
    assert run(plan_of(dest, source, upgrade=True), 2, calm=str(calm)).units_run == 1
    assert whole(dest)


SCRIPT = """
import os, signal, sys
from functools import partial
from schemas import results
from schemas.engine import RayConfig
from tasks.units.engine import run_units
from tasks.units.plan import load_plan
from tasks.units.rounds import begin_upgrade
from tasks.store.storage import Store
from tests.tasks.conftest import VersionWorker

dest, steps = sys.argv[1], int(sys.argv[2])
left = [steps]

def dying(real):
    def step(self, *arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *arguments, **options)
    return step

for name in ("write", "create", "publish", "delete", "delete_many"):
    setattr(Store, name, dying(getattr(Store, name)))
results.RESULT_VERSIONS["export"] = 2
ray = RayConfig(workers=0, upgrade=True)
run_units(begin_upgrade(load_plan(dest)), partial(VersionWorker, version=2), ray)
print("ended")
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_any_step_it_ends_as_a_fresh_run(
    photos: Callable[..., Path], tmp_path: Path, raised: Callable[[int], None]
) -> None:
    """Ten kills, at every second change of the store; what is killed leaves rows of each image at any time."""
    source, fresh = photos(12, {7: b"bad"}), tmp_path / "fresh"
    for seed in range(10):
        run(plan_of(tmp_path / f"out-{seed}", source), 1)
    killed = 0
    for seed in range(10):
        driver = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / f"out-{seed}"), str(2 * seed)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
        killed += driver.returncode == -signal.SIGKILL
        assert len(versions(tmp_path / f"out-{seed}")) == 11
    assert killed >= 7  # later ones may find the work done
    raised(2)
    run(plan_of(fresh, source), 2)
    for seed in range(10):
        dest = tmp_path / f"out-{seed}"
        run(plan_of(dest, source, upgrade=True), 2)
        assert content(dest) == content(fresh)
        assert [row.index for row in standing_quarantine(str(dest))] == [7]
        assert verify(str(dest)).problems == []
