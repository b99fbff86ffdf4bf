"""Compact commit records into snapshots during a run, so that a plan of 400,000 units opens with few requests.

A snapshot is published before the files of its records are deleted. Sixteen snapshots of a level are merged into one of
the next, so every record is rewritten a few times and tens of files remain. After a kill a record may be stored twice,
which readers handle (tasks/units/snapshots.py), and the next run resumes.

Any number of drivers and erasures may run at once, by two rules. A process deletes a file only after publishing its
content elsewhere. A process that finds, after publishing, one of those files gone, or a new tombstone, removes
superseded rows (`purge`): a record may have been rewritten, and its earlier content must not return to the disk.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, islice
from types import TracebackType

import numpy as np

from schemas.ledger import CommitRecord, Row, commit_to_row
from tasks.units.plan import Plan
from tasks.units.snapshots import (
    Listing,
    Snapshot,
    list_commits,
    listed,
    open_snapshot,
    read_records,
    read_snapshot,
    stream_rows,
    write_snapshot,
)
from tasks.units.tombstones import latest_tombstone

BATCH = 1024  # records of a snapshot of the lowest level
FANOUT = 16  # snapshots of a level that make one of the next
KEEP = 64  # single records allowed at the end: a small dataset has no snapshot
LIMIT = 128 * 2**20  # bytes above which a snapshot is no longer merged: lists of files beside parts are long
# Minimum age in seconds of other runs' records that are compacted: their worker may still take one back (Withdrawn).
GRACE = 600.0


class Compactor:
    """Context manager that moves the records of a run into snapshots in a background thread, the last ones on exit.

    After an error the remaining records are left to the next run.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.waiting: list[tuple[CommitRecord, float]] = []
        self.pool = ThreadPoolExecutor(1)
        self.task: Future[None] | None = None
        self.stones = latest_tombstone(plan.store) if plan.compacts else 0

    def __enter__(self) -> Compactor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._wait()
                _finish(self.plan, self.waiting, self.stones)
        finally:
            self.pool.shutdown()

    def add(self, commit: CommitRecord) -> None:
        """Queue a record stored in `_commits/`. Raises the errors of earlier moves."""
        self.waiting.append((commit, time.time()))
        if len(self.waiting) >= BATCH:
            self._wait()
            if self.plan.compacts:
                self.task = self.pool.submit(_move, self.plan, self.waiting, self.stones)
            self.waiting = []

    def _wait(self) -> None:
        if self.task is not None:
            self.task.result()
            self.task = None


def _finish(plan: Plan, waiting: Sequence[tuple[CommitRecord, float]], stones: int) -> None:
    """Move the last records of a run and those left by killed runs, unless there are few."""
    if not plan.compacts:
        return
    listing, mine = list_commits(plan), {(commit.unit, commit.revision) for commit, _ in waiting}
    _delete_superseded(plan, listing)
    left = [
        record
        for record in listing.latest
        if (record.unit, record.revision) not in mine and record.modified and time.time() - record.modified > GRACE
    ]
    if len(left) + len(waiting) <= KEEP:
        return
    with suppress(FileNotFoundError):  # concurrently rewritten or moved: left to the next run
        _fold(plan, [*(commit_to_row(*one) for one in waiting), *read_records(plan, left)], stones=stones)
    merge(plan)


def _move(plan: Plan, waiting: Sequence[tuple[CommitRecord, float]], stones: int) -> None:
    _fold(plan, [commit_to_row(*one) for one in waiting], stones=stones)
    merge(plan)


def _fold(plan: Plan, rows: Sequence[Row], level: int = 0, stones: int = 0) -> None:
    """Move records into a snapshot. stones: number of the latest tombstone before they were written."""
    latest = {row["unit"]: row for row in sorted(rows, key=lambda row: (row["unit"], row["revision"]))}
    write_snapshot(plan, level, latest.values())
    there = {record.name for record in list_commits(plan).records}
    names = [plan.commit_name(row["unit"], row["revision"]) for row in rows]
    if not there.issuperset(names) or latest_tombstone(plan.store) != stones:
        purge(plan)
    plan.store.delete_many([name for name in names if name in there])


def merge(plan: Plan) -> None:
    """Merge sixteen snapshots of a level into one, as long as a level has so many."""
    while True:
        listing = list_commits(plan)
        level, some = next(((level, some) for level, some in _by_level(listing) if len(some) >= FANOUT), (0, []))
        if not some:
            return
        try:
            write_snapshot(plan, level + 1, stream_rows(plan, Listing((), tuple(some))))
        except FileNotFoundError:  # another driver is merging them
            return
        if not set(some) <= set(list_commits(plan).snapshots):
            purge(plan)
        plan.store.delete_many([snapshot.name for snapshot in some])


def _by_level(listing: Listing) -> list[tuple[int, list[Snapshot]]]:
    """Return the first FANOUT snapshots of each level that are small enough to be merged."""
    levels: dict[int, list[Snapshot]] = {}
    for snapshot in listing.snapshots:
        if snapshot.bytes <= LIMIT:
            levels.setdefault(snapshot.level, []).append(snapshot)
    return [(level, some[:FANOUT]) for level, some in sorted(levels.items())]


def compact(plan: Plan) -> int:
    """Move all records into snapshots while no run uses the plan; return how many. For `migrate`."""
    listing = list_commits(plan)
    _delete_superseded(plan, listing)
    records = listing.latest
    if len(records) <= KEEP:
        return 0
    source = iter(records)
    while some := list(islice(source, BATCH * FANOUT)):
        _fold(plan, list(read_records(plan, some)), 1, latest_tombstone(plan.store))
    merge(plan)
    return len(records)


# --- superseded records -----------------------------------------------------------------------------------------------


def _delete_superseded(plan: Plan, listing: Listing) -> None:
    """Delete records that a later file of their unit supersedes: its writer was killed before it could."""
    plan.store.delete_many([record.name for record in set(listing.records).difference(listing.latest)])


def purge(plan: Plan) -> None:
    """Delete superseded records and snapshot rows: erased content must not remain there either."""
    _delete_superseded(plan, list_commits(plan))
    while stale := listed(plan, lambda listing: _stale(plan, listing)):
        for snapshot, units in stale.items():
            with suppress(FileNotFoundError):  # concurrently merged: the loop lists again
                rows = (row for row in read_snapshot(plan, snapshot) if row["unit"] not in units)
                if (first := next(rows, None)) is not None:
                    write_snapshot(plan, snapshot.level, chain([first], rows))
                plan.store.delete(snapshot.name)


def _stale(plan: Plan, listing: Listing) -> dict[Snapshot, set[int]]:
    """Return, by snapshot, the units whose row is superseded by a higher revision in any file."""
    units = [np.array([record.unit for record in listing.latest], np.int64)]
    revisions = [np.array([record.revision for record in listing.latest], np.int64)]
    for snapshot in listing.snapshots:
        table = open_snapshot(plan, snapshot).read(columns=["unit", "revision"])
        units.append(table["unit"].to_numpy())
        revisions.append(table["revision"].to_numpy())
    numbers, place = np.unique(np.concatenate(units), return_inverse=True)
    highest = np.zeros(len(numbers), np.int64)
    np.maximum.at(highest, place, np.concatenate(revisions))
    found = {}
    for snapshot, own, theirs in zip(listing.snapshots, units[1:], revisions[1:], strict=True):
        if (old := own[theirs < highest[np.searchsorted(numbers, own)]]).size:
            found[snapshot] = set(old.tolist())
    return found
