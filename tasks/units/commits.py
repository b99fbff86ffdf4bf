"""Commit records of a plan, their parts, and the quarantined rows that are not superseded ("standing").

Supersede rule: once a retry unit is committed, earlier quarantine rows of the same (item, face) no longer count; what
still fails is in the retry unit's own quarantine. How records are stored: tasks/units/snapshots.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from schemas.ledger import CommitRecord, Item, Quarantined, inside, row_to_commit, table_to_quarantine
from tasks.store.records import first_complaint
from tasks.units.plan import READ_THREADS, Plan, PlanError, load_plan
from tasks.units.snapshots import (
    Listing,
    list_again,
    list_commits,
    listed,
    open_snapshot,
    read_columns,
    stream_rows,
)

Row = tuple[int, int | None]  # (item index, face index): what a quarantine row is about


# --- which units ------------------------------------------------------------------------------------------------------


def committed_units(plan: Plan) -> NDArray[np.int64]:
    """Return the sorted indices of the committed units; opens snapshots, but no single record."""

    def read(listing: Listing) -> NDArray[np.int64]:
        units = [np.array([record.unit for record in listing.records], np.int64)]
        units += [open_snapshot(plan, one).read(columns=["unit"])["unit"].to_numpy() for one in listing.snapshots]
        return np.unique(np.concatenate(units))

    return listed(plan, read)


def pending(plan: Plan) -> list[int]:
    """Return the sorted indices of units without a commit: plan − commits."""
    return np.setdiff1d(np.arange(plan.units), committed_units(plan), assume_unique=True).tolist()


# --- records ----------------------------------------------------------------------------------------------------------


def publish_commit(plan: Plan, commit: CommitRecord) -> None:
    """Write a commit record, which makes the unit's part and quarantine data."""
    name = plan.commit_name(commit.unit, commit.revision)
    plan.store.write(name, commit.model_dump_json(indent=1).encode())


def replace_commit(plan: Plan, before: CommitRecord, now: CommitRecord) -> CommitRecord:
    """Publish `now` in place of `before` and return it with its new revision.

    Under a new name: a driver that has `before` in a snapshot may be about to delete that name.
    """
    if not plan.compacts:
        publish_commit(plan, now)
        return now
    now = now.model_copy(update={"revision": before.revision + 1})
    publish_commit(plan, now)
    plan.store.delete(plan.commit_name(before.unit, before.revision))
    return now


def read_commits(dest: str) -> Iterator[CommitRecord]:
    """Yield the commit records of the stored plan by unit, in bounded memory."""
    plan = load_plan(dest)
    return _commits(plan, list_commits(plan))


def _commits(plan: Plan, listing: Listing) -> Iterator[CommitRecord]:
    after = -1
    while True:
        try:
            for row in stream_rows(plan, listing, after):
                yield _commit(plan, row)
                after = row["unit"]
            return
        except FileNotFoundError as error:  # moved into a snapshot, or rewritten
            listing = list_again(plan, listing, error)


def _commit(plan: Plan, row: dict[str, object]) -> CommitRecord:
    try:
        return row_to_commit(row, plan.fingerprint)
    except ValidationError as error:
        raise PlanError(
            f"the commit record of unit {row['unit']} of {plan.dest} is damaged ({first_complaint(error)}). "
            f"Run: deca verify {plan.dest}"
        ) from error


def commit_table(plan: Plan, columns: Sequence[str]) -> pa.Table:
    """Return `unit` and these columns of SNAPSHOT_SCHEMA for all commit records, by unit: 10 to 100 bytes a record."""
    return listed(plan, lambda listing: read_columns(plan, listing, columns))


def committed_parts(dest: str) -> list[str]:
    """Return the URIs of the committed parts, by unit. Read these, never a glob: an uncommitted part is not data."""
    plan = load_plan(dest)
    return [plan.store.join(part.file) for part in read_parts(plan)]


@dataclass(frozen=True, slots=True)
class Part:
    """A committed part, as in its commit record."""

    unit: int
    file: str  # name below the dataset
    rows: int
    bytes: int
    sha256: str
    origin: str  # hash of the part that its rows were first published in

    @property
    def short(self) -> str:
        """The first 16 digits of its hash, which plans over its rows store."""
        return self.sha256[:16]


def read_parts(plan: Plan) -> list[Part]:
    """Return the committed parts by unit, empty ones included: 400 bytes of memory each."""
    table = commit_table(plan, ["part", "rows", "bytes", "sha256", "origin"])
    table = table.filter(table["part"].is_valid())
    columns = (table[name].to_pylist() for name in ("unit", "part", "rows", "bytes", "sha256", "origin"))
    return [
        Part(unit, _checked(plan, part), rows, size, sha256, origin or sha256)
        for unit, part, rows, size, sha256, origin in zip(*columns, strict=True)
    ]


def _checked(plan: Plan, name: str) -> str:
    """Return a name of a commit record; PlanError if it is forged and leads out of the dataset."""
    try:
        return inside(name)
    except ValueError as error:
        raise PlanError(
            f"a commit record of {plan.dest} names {name!r}: {error}. Run: deca verify {plan.dest}"
        ) from error


# --- quarantine -------------------------------------------------------------------------------------------------------


def standing_quarantine(dest: str) -> list[Quarantined]:
    """Return the quarantined rows that no later committed retry unit supersedes."""
    return [row for _, row in standing_rows(load_plan(dest))]


def standing_rows(plan: Plan) -> Iterator[tuple[int, Quarantined]]:
    """Yield (unit, row) of the standing rows by unit; memory: the rows of READ_THREADS files, and the retried keys."""
    table = commit_table(plan, ["quarantine"])
    superseded: dict[Row, int] = {}
    for unit in plan.iter_units(plan.retry_units.intersection(table["unit"].to_pylist())):
        superseded |= {row_of(item): unit.index for item in unit.items}
    table = table.filter(table["quarantine"].is_valid())
    units, names = table["unit"].to_pylist(), pc.struct_field(table["quarantine"], "file").to_pylist()

    def read(name: str) -> list[Quarantined]:
        return table_to_quarantine(pq.read_table(pa.BufferReader(plan.store.read(_checked(plan, name)))))

    with ThreadPoolExecutor(READ_THREADS) as pool:
        for first in range(0, len(names), READ_THREADS):
            some = slice(first, first + READ_THREADS)
            for unit, rows in zip(units[some], pool.map(read, names[some]), strict=True):
                for row in rows:
                    if unit >= superseded.get(row_of(row), -1) and row.index not in plan.replaced:
                        yield unit, row


def count_standing(plan: Plan, stages: pa.ChunkedArray) -> dict[str, int]:
    """Count standing rows by stage. Rows are read only where some may be superseded.

    stages: that column of all commit records.
    """
    if plan.retries or plan.replaced:
        return dict(sorted(Counter(row.stage for _, row in standing_rows(plan)).items()))
    pairs = stages.combine_chunks()
    counts = pa.table({"stage": pairs.keys, "rows": pairs.items}).group_by("stage").aggregate([("rows", "sum")])
    return dict(sorted(zip(counts["stage"].to_pylist(), counts["rows_sum"].to_pylist(), strict=True)))


def row_of(about: Item | Quarantined) -> Row:
    return about.index, about.face_index
