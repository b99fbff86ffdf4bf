"""Stored commit records, one file each or many in a snapshot, read as one ledger by unit.

    _commits/00042-<fp8>.json                                 a record; -r1, -r2 ... if rewritten
    _commits/snapshot-<fp8>-<level>-<first>-<last>-<sha16>.parquet   records of units first .. last, one a row

The highest revision of a unit wins, whichever file it is in, so files may appear and disappear in any order as long as
one is deleted only after its content is published elsewhere (compaction.py). A reader lists again if a listed file is
gone.
"""

from __future__ import annotations

import hashlib
import heapq
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from schemas.ledger import OLDEST, SCHEMA_VERSION, SNAPSHOT_SCHEMA, CommitRecord, Row, commit_to_row
from schemas.parquet import open_writer
from tasks.store.ranges import open_checked
from tasks.store.records import first_complaint, read_record
from tasks.store.storage import hash_file
from tasks.units.plan import COMMITS, READ_THREADS, Plan, PlanError

RECORD = re.compile(rf"{COMMITS}/(\d{{5,}})-([0-9a-f]{{8}})(?:-r([1-9]\d*))?\.json")
SNAPSHOT = re.compile(rf"{COMMITS}/snapshot-([0-9a-f]{{8}})-(\d+)-(\d{{5,}})-(\d{{5,}})-([0-9a-f]{{16}})\.parquet")
ROW_GROUP = 4096  # rows: what a reader of whole records holds of a snapshot
FILES_GROUP = 2**17  # files beside parts in a row group: 20 MB
WHOLE = 64 * 2**20  # bytes up to which a snapshot is read with one request, and its hash looked at
BLOCK = 4 * 2**20  # bytes fetched at once of larger ones
WINDOW = 256  # small records that are read ahead

Found = TypeVar("Found")


class Record(NamedTuple):
    """A commit record in a file of its own. modified: seconds since the epoch, None where the store does not tell."""

    unit: int
    revision: int
    name: str
    modified: float | None


class Snapshot(NamedTuple):
    """A file of commit records. A level has sixteen times the records of the one below."""

    first: int
    last: int
    level: int
    name: str
    bytes: int


@dataclass(frozen=True)
class Listing:
    """Files in `_commits/` of a plan: records by unit and revision, snapshots by their first unit."""

    records: tuple[Record, ...]
    snapshots: tuple[Snapshot, ...]

    @property
    def latest(self) -> list[Record]:
        """Records without those that another one of their unit supersedes."""
        by_unit = {record.unit: record for record in self.records}  # the last one wins
        return list(by_unit.values())


def list_commits(plan: Plan) -> Listing:
    """List the commit files of a plan; other names are ignored here and reported by `verify`."""
    records, snapshots, mark = list[Record](), list[Snapshot](), plan.fingerprint[:8]
    for entry in plan.store.entries(COMMITS):
        if (found := RECORD.fullmatch(entry.name)) and found[2] == mark:
            records.append(Record(int(found[1]), int(found[3] or 0), entry.name, entry.modified))
        elif (found := SNAPSHOT.fullmatch(entry.name)) and found[1] == mark:
            snapshots.append(Snapshot(int(found[3]), int(found[4]), int(found[2]), entry.name, entry.bytes))
    return Listing(tuple(sorted(records)), tuple(sorted(snapshots)))


def listed(plan: Plan, read: Callable[[Listing], Found]) -> Found:
    """Return `read(listing)`; list again if a listed file is gone."""
    listing = list_commits(plan)
    while True:
        try:
            return read(listing)
        except FileNotFoundError as error:
            listing = list_again(plan, listing, error)


def list_again(plan: Plan, before: Listing, error: FileNotFoundError) -> Listing:
    """Return a new listing after a missing file; PlanError if the store still lists it."""
    now = list_commits(plan)
    if now == before:
        raise PlanError(f"{error} is listed and cannot be read. Run: deca verify {plan.dest}") from error
    return now


# --- records ----------------------------------------------------------------------------------------------------------


def read_records(plan: Plan, records: Iterable[Record]) -> Iterator[Row]:
    """Yield records as rows, in order; memory: WINDOW of them. FileNotFoundError if one is gone."""
    source = iter(records)
    with ThreadPoolExecutor(READ_THREADS) as pool:
        while some := list(islice(source, WINDOW)):
            yield from pool.map(lambda record: _read_record(plan, record), some)


def _read_record(plan: Plan, record: Record) -> Row:
    uri = plan.store.join(record.name)
    try:
        data = read_record(plan.store, record.name, SCHEMA_VERSION, "unit", OLDEST)
        commit = CommitRecord.model_validate_json(data)
    except ValidationError as error:
        raise PlanError(
            f"{uri} is damaged ({first_complaint(error)}). Delete it: its unit is then done again"
        ) from error
    if (commit.unit, commit.revision) != (record.unit, record.revision):
        raise PlanError(f"{uri} is the record of unit {commit.unit}. Delete it: its unit is then done again")
    return commit_to_row(commit, record.modified)


# --- snapshots --------------------------------------------------------------------------------------------------------


def write_snapshot(plan: Plan, level: int, rows: Iterable[Row]) -> Snapshot:
    """Publish rows, which come by unit, as a snapshot; there must be one. FileNotFoundError as of what is read.

    Names are unique even for equal rows, so that a process that deletes its own snapshot deletes no other.
    """
    metadata = {"fingerprint": plan.fingerprint, "writer": secrets.token_hex(8)}
    gone: FileNotFoundError | None = None
    with plan.store.scratch(f"{COMMITS}/snapshot") as path:
        try:
            first, last = _write(path, metadata, rows)
        except FileNotFoundError as error:  # of what is read, which the scratch file would take for its own
            gone = error
        else:
            size, sha256 = hash_file(path)
            name = f"{COMMITS}/snapshot-{plan.fingerprint[:8]}-{level}-{first:05d}-{last:05d}-{sha256[:16]}.parquet"
            plan.store.publish(path, name)
    if gone is not None:
        raise gone
    return Snapshot(first, last, level, name, size)


def _write(path: Path, metadata: Mapping[str, str], rows: Iterable[Row]) -> tuple[int, int]:
    """Write rows to a local file; (first unit, last unit)."""
    first = last = -1
    with open_writer(SNAPSHOT_SCHEMA, path, metadata) as writer:
        for group in _grouped(rows):
            writer.write_table(pa.Table.from_pylist(group, SNAPSHOT_SCHEMA), row_group_size=ROW_GROUP)
            first, last = group[0]["unit"] if first < 0 else first, group[-1]["unit"]
    return first, last


def _grouped(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows in groups of at most ROW_GROUP, or FILES_GROUP files."""
    group, files = list[Row](), 0
    for row in rows:
        group.append(row)
        files += row["files_count"]
        if len(group) >= ROW_GROUP or files >= FILES_GROUP:
            yield group
            group, files = [], 0
    if group:
        yield group


def open_snapshot(plan: Plan, snapshot: Snapshot) -> pq.ParquetFile:
    """A snapshot for reading; PlanError for a damaged one, FileNotFoundError where it has gone."""
    try:
        if snapshot.bytes > WHOLE:
            return pq.ParquetFile(open_checked(plan.store.join(snapshot.name), None, BLOCK))
        data = plan.store.read(snapshot.name)
        if hash_in(snapshot.name) != hashlib.sha256(data).hexdigest()[:16]:
            raise _damaged(plan, snapshot, "its hash is another")
        return pq.ParquetFile(pa.BufferReader(data))
    except pa.ArrowInvalid as error:
        raise _damaged(plan, snapshot, str(error)) from error


def hash_in(name: str) -> str:
    """Return the first 16 digits of the SHA-256 in the name of a snapshot."""
    return name.removesuffix(".parquet").rpartition("-")[2]


def _damaged(plan: Plan, snapshot: Snapshot, why: str) -> PlanError:
    units = f"{snapshot.first} to {snapshot.last}"
    return PlanError(
        f"{plan.store.join(snapshot.name)} is damaged ({why}). Bring it back from a copy, or delete it: what it holds "
        f"of the units {units} is then done again"
    )


def read_snapshot(plan: Plan, snapshot: Snapshot, after: int = -1) -> Iterator[Row]:
    """Yield the rows of a snapshot with units above `after`, by unit; memory: one row group."""
    parquet = open_snapshot(plan, snapshot)
    for group in range(parquet.num_row_groups):
        if parquet.metadata.row_group(group).column(0).statistics.max > after:
            for row in parquet.read_row_group(group).to_pylist(maps_as_pydicts="strict"):
                if row["unit"] > after:
                    yield row


# --- all of them ------------------------------------------------------------------------------------------------------


def stream_rows(plan: Plan, listing: Listing, after: int = -1) -> Iterator[Row]:
    """Yield the current row of every unit above `after`, by unit. FileNotFoundError if a file is gone."""
    streams = [
        (snapshot.first, _ranked(read_snapshot(plan, snapshot, after), False))
        for snapshot in listing.snapshots
        if snapshot.last > after
    ]
    if records := [record for record in listing.latest if record.unit > after]:
        streams.append((records[0].unit, _ranked(read_records(plan, records), True)))
    for _, some in groupby(_merged(streams), lambda ranked: ranked.unit):
        yield max(some, key=lambda ranked: ranked.rank).row


class _Ranked(NamedTuple):
    """A row and what it is chosen by: its revision, whether it is a record of its own, when it was written."""

    unit: int
    rank: tuple[int, bool, float]
    row: Row


def _ranked(rows: Iterable[Row], own: bool) -> Iterator[_Ranked]:
    for row in rows:
        yield _Ranked(row["unit"], (row["revision"], own, row["written"] or 0.0), row)


def _merged(streams: Sequence[tuple[int, Iterator[_Ranked]]]) -> Iterator[_Ranked]:
    """Rows of streams that are in order, in order. A stream is begun where its first unit is reached."""
    waiting = sorted(streams, key=lambda stream: stream[0], reverse=True)
    heap = list[tuple[int, int, _Ranked, Iterator[_Ranked]]]()  # the number keeps rows from being compared
    count = 0
    while waiting or heap:
        while waiting and (not heap or waiting[-1][0] <= heap[0][0]):
            stream = waiting.pop()[1]
            if (begun := next(stream, None)) is not None:
                count += 1
                heapq.heappush(heap, (begun.unit, count, begun, stream))
        if heap:
            _, number, row, stream = heap[0]
            yield row
            if (following := next(stream, None)) is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (following.unit, number, following, stream))


def read_columns(plan: Plan, listing: Listing, columns: Sequence[str]) -> pa.Table:
    """`unit` and these columns of the rows that hold, by unit; of snapshots only these columns are read."""
    names = list(dict.fromkeys(["unit", "revision", "written", *columns]))
    records = pa.Table.from_pylist(list(read_records(plan, listing.latest)), SNAPSHOT_SCHEMA).select(names)
    tables = [records]
    for snapshot in listing.snapshots:
        tables.append(open_snapshot(plan, snapshot).read(columns=names).select(names))
    table = pa.concat_tables([one.replace_schema_metadata() for one in tables])
    keep = held(table, len(records))
    return table.combine_chunks().take(pa.array(keep)).select(list(dict.fromkeys(["unit", *columns])))


def held(table: pa.Table, own: int) -> np.ndarray:
    """Places of the rows that hold, by unit. The first `own` ones are records of their own."""
    unit, revision, written = (table[name].to_numpy() for name in ("unit", "revision", "written"))
    rank = np.arange(len(unit)) < own
    order = np.lexsort((np.nan_to_num(written), rank, revision, unit))
    return order[np.diff(unit[order], append=-1) != 0]
