"""Commit records as one ledger, in single files or in snapshots."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from schemas.ledger import commit_to_row
from tasks.units import compaction, snapshots
from tasks.units.commits import (
    commit_table,
    committed_parts,
    committed_units,
    count_standing,
    pending,
    publish_commit,
    read_commits,
    read_parts,
    replace_commit,
)
from tasks.units.compaction import compact
from tasks.units.plan import PlanError
from tasks.units.snapshots import Listing, list_commits, open_snapshot, stream_rows, write_snapshot
from tests.tasks.ledgers import commit, make_plan, record


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "KEEP", 0)
    monkeypatch.setattr(snapshots, "ROW_GROUP", 4)
    monkeypatch.setattr(snapshots, "WINDOW", 3)


def test_records_are_the_same_in_files_and_snapshots(tmp_path: Path) -> None:
    plan = make_plan(str(tmp_path / "out"), 40)
    units = random.Random(1).sample(range(40), 30)
    made = {one.unit: one for one in commit(plan, units[:20])}
    compact(plan)
    made |= {one.unit: one for one in commit(plan, units[20:])}
    assert len(list_commits(plan).snapshots) == 1
    assert len(list_commits(plan).records) == 10
    assert list(read_commits(plan.dest)) == [made[unit] for unit in sorted(units)]
    assert committed_units(plan).tolist() == sorted(units)
    assert pending(plan) == sorted(set(range(40)) - set(units))
    with_part = [made[unit] for unit in sorted(units) if made[unit].part]
    assert committed_parts(plan.dest) == [f"{plan.dest}/{one.part}" for one in with_part]
    assert [(part.unit, part.rows, part.sha256, part.origin) for part in read_parts(plan)] == [
        (one.unit, one.rows, one.sha256, one.sha256) for one in with_part
    ]
    assert commit_table(plan, ["rows", "files_bytes"]).to_pylist() == [
        {"unit": unit, "rows": unit, "files_bytes": 0} for unit in sorted(units)
    ]
    assert count_standing(plan, commit_table(plan, ["stages"])["stages"]) == {"decode": sum(unit % 2 for unit in units)}


def test_files_beside_parts_come_along_and_cut_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "FILES_GROUP", 5)
    plan = make_plan(str(tmp_path / "out"), 8)
    made = [record(plan, unit, [f"files/{unit}-{number}.png" for number in range(unit)]) for unit in range(8)]
    for one in made:
        publish_commit(plan, one)
    compact(plan)
    assert list(read_commits(plan.dest)) == made
    assert sum(commit_table(plan, ["files_count"])["files_count"].to_pylist()) == 28
    [snapshot] = list_commits(plan).snapshots
    parquet = open_snapshot(plan, snapshot)
    groups = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
    assert groups == [4, 2, 1, 1]


def test_the_highest_revision_wins(tmp_path: Path) -> None:
    plan = make_plan(str(tmp_path / "out"), 6)
    made = commit(plan, range(6))
    compact(plan)
    now = replace_commit(plan, made[2], made[2].model_copy(update={"rows": 1}))
    assert now.revision == 1
    publish_commit(plan, made[2])  # a worker that was thought dead
    assert list(read_commits(plan.dest))[2] == now
    compact(plan)  # now in two snapshots
    assert len(list_commits(plan).snapshots) == 2
    assert list(read_commits(plan.dest)) == [*made[:2], now, *made[3:]]
    assert commit_table(plan, ["rows"])["rows"].to_pylist() == [0, 1, 1, 3, 4, 5]


def test_a_reader_survives_moved_files(tmp_path: Path) -> None:
    plan = make_plan(str(tmp_path / "out"), 20)
    made = commit(plan, range(20))
    reading = read_commits(plan.dest)
    begun = [next(reading) for _ in range(2)]  # it has listed twenty records, and read three
    compact(plan)
    assert [*begun, *reading] == made
    reading = read_commits(plan.dest)
    begun = [next(reading)]
    for snapshot in list_commits(plan).snapshots:  # as a merge ends: another file with the same rows
        write_snapshot(plan, 2, stream_rows(plan, Listing((), (snapshot,))))
        plan.store.delete(snapshot.name)
    assert [*begun, *reading] == made


def test_what_is_listed_and_missing_ends_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(str(tmp_path / "out"), 3)
    commit(plan, range(3))
    listing = list_commits(plan)
    plan.store.delete(listing.records[1].name)
    for module in (snapshots, "tasks.units.commits"):
        target = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(f"{target}.list_commits", lambda plan: listing)
    with pytest.raises(PlanError, match=r"00001-.*is listed and cannot be read. Run: deca verify"):
        list(read_commits(plan.dest))
    with pytest.raises(PlanError, match="is listed and cannot be read"):
        commit_table(plan, ["rows"])


@pytest.mark.parametrize("change", [lambda data: data[:-9], lambda data: data[:50] + b"?" + data[51:]])
def test_a_damaged_snapshot_is_named(tmp_path: Path, change) -> None:
    plan = make_plan(str(tmp_path / "out"), 9)
    commit(plan, range(9))
    compact(plan)
    path = Path(plan.dest, list_commits(plan).snapshots[0].name)
    path.write_bytes(change(path.read_bytes()))
    for read in (lambda: list(read_commits(plan.dest)), lambda: pending(plan), lambda: read_parts(plan)):
        with pytest.raises(PlanError, match=r"snapshot-.*is damaged .*of the units 0 to 8 is then done again"):
            read()


@pytest.mark.parametrize("name", ["../elsewhere/part.parquet", "/etc/passwd", "s3://other/part.parquet"])
def test_a_forged_snapshot_leads_nowhere(tmp_path: Path, name: str) -> None:
    plan = make_plan(str(tmp_path / "out"), 2)
    forged = commit_to_row(record(plan, 1), None)
    write_snapshot(plan, 0, [forged | {"part": name}])
    for read in (lambda: list(read_commits(plan.dest)), lambda: committed_parts(plan.dest)):
        with pytest.raises(PlanError, match="must be a name below the dataset"):
            read()
