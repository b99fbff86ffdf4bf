"""Snapshots while runs, erasures, other drivers and kills are at it: no record is lost, none comes back."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from schemas.engine import RayConfig
from schemas.ledger import CommitRecord, commit_to_row
from tasks.store.storage import Store
from tasks.trust.erase import Asked, erase
from tasks.trust.migrate import migrate
from tasks.units import compaction
from tasks.units.commits import pending, publish_commit, read_commits, replace_commit, standing_quarantine
from tasks.units.compaction import Compactor, compact, merge, purge
from tasks.units.engine import run_units
from tasks.units.plan import Plan, load_plan
from tasks.units.rounds import drop_plan, plan_retry
from tasks.units.snapshots import RECORD, list_commits, read_snapshot
from tasks.units.tombstones import tombstone_name
from tasks.units.verify import status, verify
from tests.tasks.ledgers import Rows, commit, make_plan, record

HERE = RayConfig(workers=0)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("BATCH", 3), ("FANOUT", 2), ("KEEP", 1), ("GRACE", -9.0)):
        monkeypatch.setattr(compaction, name, value)


def records_of(dest: str) -> list[dict[str, object]]:
    """All commit records without their seconds."""
    return [commit.model_dump(exclude={"seconds"}) for commit in read_commits(dest)]


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_leaves_few_files_and_the_same_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(str(tmp_path / "out"), 30)
    summary = run_units(plan, Rows, HERE)
    assert (summary.units_run, summary.rows, summary.quarantined) == (30, 24, {"decode": 6})
    listing = list_commits(plan)
    assert listing.records == ()
    assert sorted(snapshot.level for snapshot in listing.snapshots) == [1, 3]  # 10 batches: 8 of them merged thrice
    now = status(plan.dest)
    assert (now.committed, now.pending, now.rows, now.quarantined) == (30, 0, 24, {"decode": 6})
    assert (verify(plan.dest).problems, verify(plan.dest).leftovers) == ([], [])
    monkeypatch.setattr(compaction, "BATCH", 10**6)
    monkeypatch.setattr(compaction, "KEEP", 10**6)
    single = make_plan(str(tmp_path / "single"), 30)
    run_units(single, Rows, HERE)
    assert len(list_commits(single).records) == 30
    assert records_of(plan.dest) == records_of(single.dest)


class AtOnce(ThreadPoolExecutor):
    """Runs each call before `submit` returns, so that steps have an order."""

    def submit(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(call, *args, **kwargs)
        wait([future])
        return future


class Killed(BaseException):
    """An end of the process, as far as one process can play it."""


def dies_at(monkeypatch: pytest.MonkeyPatch, step: int) -> Iterator[int]:
    """Let the process end before the given one of all calls that change a store; counts them."""
    counter = count()

    def struck(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Store, *args: Any) -> Any:
            if next(counter) >= step:
                raise Killed
            return real(self, *args)

        return call

    for name in ("publish", "delete"):
        monkeypatch.setattr(Store, name, struck(getattr(Store, name)))
    return counter


def test_an_end_at_any_step_of_a_run_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "ThreadPoolExecutor", AtOnce)
    whole = make_plan(str(tmp_path / "whole"), 8)
    with monkeypatch.context() as patch:
        counter = dies_at(patch, 10**9)
        run_units(whole, Rows, HERE)
        steps = next(counter)
    assert steps > 30
    for step in range(2, steps):
        plan = make_plan(str(tmp_path / f"{step}"), 8)
        with monkeypatch.context() as patch:
            dies_at(patch, step)
            with pytest.raises(Killed):
                run_units(plan, Rows, HERE)
        assert verify(plan.dest).problems == []
        committed = len(records_of(plan.dest))
        assert status(plan.dest).committed == committed == 8 - len(pending(plan))
        assert run_units(plan, Rows, HERE).units_skipped == committed
        assert records_of(plan.dest) == records_of(whole.dest)
        assert (verify(plan.dest).problems, verify(plan.dest).leftovers) == ([], [])
        assert len(list_commits(plan).records) <= 1


def test_young_records_of_others_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "GRACE", 600.0)
    plan = make_plan(str(tmp_path / "out"), 10)
    commit(plan, range(4))  # as another driver's workers do at this moment: one may take its record back
    run_units(plan, Rows, HERE)
    assert [record.unit for record in list_commits(plan).records] == [0, 1, 2, 3]
    assert [one.unit for one in read_commits(plan.dest)] == list(range(10))


def test_a_small_dataset_keeps_its_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "KEEP", 64)
    plan = make_plan(str(tmp_path / "out"), 2)
    run_units(plan, Rows, HERE)
    assert len(list_commits(plan).records) == 2
    assert list_commits(plan).snapshots == ()


def test_a_storage_error_while_moving_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(plan: Plan, level: int, rows: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(compaction, "write_snapshot", full)
    plan = make_plan(str(tmp_path / "out"), 9)
    with pytest.raises(OSError, match="no space left"):
        run_units(plan, Rows, HERE)
    assert verify(plan.dest).problems == []


# --- what else is done to a dataset -----------------------------------------------------------------------------------


def test_retry_erase_and_drop(tmp_path: Path) -> None:
    plan = make_plan(str(tmp_path / "out"), 12)
    run_units(plan, Rows, HERE)
    retried = plan_retry(plan.dest)
    assert (retried.units, pending(retried)) == (14, [12, 13])
    run_units(retried, Rows, HERE)
    assert [(row.index, row.attempts) for row in standing_quarantine(plan.dest)] == [(4, 2), (9, 2)]
    assert status(plan.dest).quarantined == {"decode": 2}

    image = next(plan.iter_units([3])).items[0].image_id
    [outcome] = erase([plan.dest], Asked(images=frozenset({image})))
    assert outcome.record is not None
    assert [one.rows for one in read_commits(plan.dest)] == [1, 1, 1, 0, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0]
    assert (verify(plan.dest).problems, verify(plan.dest).leftovers) == ([], [])
    rows = [row for snapshot in list_commits(plan).snapshots for row in read_snapshot(plan, snapshot)]
    assert [row["unit"] for row in rows if row["unit"] == 3] == []  # its record is a rewritten file of its own
    assert [record.revision for record in list_commits(plan).records] == [1]

    drop_plan(plan.dest)
    assert list_commits(plan).snapshots == list_commits(plan).records == ()


def test_names_of_erased_files_do_not_stay_in_snapshots(tmp_path: Path) -> None:
    plan = make_plan(str(tmp_path / "out"), 4)
    run_units(plan, Rows, HERE)
    image = next(plan.iter_units([1])).items[0].image_id
    name = f"files/{image[:2]}/{image}-00.png"
    plan.store.write(name, b"a face")
    held = list(read_commits(plan.dest))[1]
    named = replace_commit(plan, held, held.model_copy(update={"files": [record(plan, 1, [name]).files[0]]}))
    compact(plan)
    purge(plan)
    assert list(read_commits(plan.dest))[1] == named

    def mentions() -> int:
        rows = [row for snapshot in list_commits(plan).snapshots for row in read_snapshot(plan, snapshot)]
        return sum(file["file"] == name for row in rows for file in row["files"])

    assert mentions() == 1
    erase([plan.dest], Asked(images=frozenset({image})))
    assert mentions() == 0
    assert not Path(plan.dest, name).exists()
    assert [one.unit for one in read_commits(plan.dest)] == [0, 1, 2, 3]


# --- datasets of schema 2 ---------------------------------------------------------------------------------------------


def as_of_schema_2(plan: Plan) -> Plan:
    """The dataset as the last program without snapshots wrote it."""
    for name in ("_plan.json", *plan.store.list("_commits")):
        stored = json.loads(plan.store.read(name))
        stored.pop("revision", None)
        plan.store.write(name, json.dumps(stored | {"schema_version": 2}).encode())
    return load_plan(plan.dest)


def test_schema_2_dataset_is_unchanged_until_migrated(tmp_path: Path) -> None:
    plan = as_of_schema_2(make_plan(str(tmp_path / "out"), 9))
    run_units(plan, Rows, HERE, only=range(6))
    plan = as_of_schema_2(plan)
    assert [one.unit for one in read_commits(plan.dest)] == list(range(6))
    run_units(plan, Rows, HERE)
    image = next(plan.iter_units([2])).items[0].image_id
    erase([plan.dest], Asked(images=frozenset({image})))
    listing = list_commits(plan)
    assert listing.snapshots == ()
    assert [(one.unit, one.revision) for one in listing.records] == [(unit, 0) for unit in range(9)]
    assert [one.rows for one in read_commits(plan.dest)] == [1, 1, 0, 1, 0, 1, 1, 1, 1]
    before = records_of(plan.dest)

    [done] = migrate(plan.dest)
    assert (done.before, done.after, done.records, done.moved) == (2, 3, 1, 9)
    listing = list_commits(load_plan(plan.dest))
    assert (listing.records, len(listing.snapshots)) == ((), 1)
    assert [{**one, "schema_version": 3} for one in before] == records_of(plan.dest)
    assert (verify(plan.dest).problems, verify(plan.dest).leftovers) == ([], [])
    assert [(one.records, one.moved) for one in migrate(plan.dest)] == [(0, 0)]


def test_a_killed_migration_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(8):
        plan = make_plan(str(tmp_path / f"{step}"), 5)
        run_units(as_of_schema_2(plan), Rows, HERE)
        as_of_schema_2(plan)
        before = [one.unit for one in read_commits(plan.dest)]
        with monkeypatch.context() as patch:
            dies_at(patch, step)
            with suppress(Killed):
                migrate(plan.dest)
        assert [one.unit for one in read_commits(plan.dest)] == before
        migrate(plan.dest)
        assert [one.unit for one in read_commits(plan.dest)] == before
        assert len(list_commits(plan).records) <= compaction.KEEP
        assert (verify(plan.dest).problems, verify(plan.dest).leftovers) == ([], [])


# --- several at once --------------------------------------------------------------------------------------------------


class World:
    """A plan of six units, what its records must say, and everything that drivers and erasures do to it."""

    def __init__(self, dest: str, seed: int) -> None:
        self.plan, self.random = make_plan(dest, 6), random.Random(seed)
        self.current: dict[int, CommitRecord] = {}
        self.memory: list[CommitRecord] = []  # of a driver: records that it has not moved yet
        self.erased: set[int] = set()
        self.inside = False

    def act(self) -> None:
        self.random.choice([self.work, self.work, self.erase, self.move, self.merge, self.compact])()

    def work(self) -> None:
        """Also where it is done already: another driver, or a worker thought dead."""
        unit = self.random.randrange(6)
        known = unit in self.erased
        made = record(self.plan, unit, [] if known else [f"files/{unit}-secret.png"])
        publish_commit(self.plan, made)
        if not known and unit in self.erased:
            made = replace_commit(self.plan, made, made.model_copy(update={"files": []}))
            purge(self.plan)
        self.memory.append(made)

    def published(self, name: str) -> None:
        if RECORD.fullmatch(name):
            made = CommitRecord.model_validate_json(self.plan.store.read(name))
            if made.unit not in self.current or made.revision >= self.current[made.unit].revision:
                self.current[made.unit] = made

    def erase(self) -> None:
        if self.current:
            unit = self.random.choice(sorted(self.current))
            self.plan.store.write(tombstone_name(len(self.erased) + 1), b"")
            self.erased.add(unit)
            before = next(one for one in read_commits(self.plan.dest) if one.unit == unit)
            if before.files:
                replace_commit(self.plan, before, before.model_copy(update={"files": []}))
            purge(self.plan)

    def move(self) -> None:
        mine, self.memory = self.memory, []
        if mine:
            compaction._fold(self.plan, [commit_to_row(one, 1.0) for one in mine])

    def merge(self) -> None:
        merge(self.plan)

    def compact(self) -> None:
        listing = list_commits(self.plan)
        try:
            rows = list(compaction.read_records(self.plan, listing.latest))
        except FileNotFoundError:  # moved at this moment
            return
        if rows:
            compaction._fold(self.plan, rows)

    def names(self) -> list[str]:
        """Names of files beside parts, in any snapshot."""
        snapshots = list_commits(self.plan).snapshots
        rows = [row for snapshot in snapshots for row in read_snapshot(self.plan, snapshot)]
        return [file["file"] for row in rows for file in row["files"]]

    def check(self) -> None:
        found = [(one.unit, one.revision, one.rows) for one in read_commits(self.plan.dest)]
        assert found == [(unit, held.revision, held.rows) for unit, held in sorted(self.current.items())]


@pytest.mark.parametrize("seed", range(40))
def test_whatever_comes_between_two_steps(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two steps of one, another acts, as a whole: every record is the one that was written last."""
    world = World(f"memory://worlds/{seed}", seed)

    def between(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Store, *args: Any) -> Any:
            if not world.inside and world.random.random() < 0.2:
                world.inside = True
                world.act()
                world.check()
                world.inside = False
            found = real(self, *args)
            if real.__name__ == "publish":
                world.published(args[1])
            return found

        return call

    for name in ("entries", "publish", "delete"):
        monkeypatch.setattr(Store, name, between(getattr(Store, name)))
    for _ in range(12):
        world.act()
        world.inside = True
        world.check()
        world.inside = False
    assert not [name for name in world.names() if int(name[6]) in world.erased]


def test_two_drivers_at_once(tmp_path: Path) -> None:
    plan = make_plan(str(tmp_path / "out"), 12)
    with Compactor(plan) as one, Compactor(plan) as other:
        for unit in range(12):
            for driver in (one, other):
                [made] = commit(plan, [unit])
                driver.add(made)
    assert [found.unit for found in read_commits(plan.dest)] == list(range(12))
    assert list_commits(plan).records == ()
