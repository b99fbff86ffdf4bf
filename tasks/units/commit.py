"""Commit a unit: publish the files beside its part, its quarantine, its part, and last its commit record.

In this order, so that a crash in between leaves nothing that a reader takes for data. Erased rows (tombstones.py) are
removed before a part is published. An erasure may begin while a unit is processed: it writes its tombstone first, and a
unit checks for new tombstones after its commit, so one of the two sees the other.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.ledger import (
    CommitRecord,
    Quarantined,
    StoredFile,
    Unit,
    quarantine_to_table,
    table_to_quarantine,
    with_item,
)
from schemas.parquet import write_batches, write_table
from tasks.store.storage import StorageError, hash_file
from tasks.units.commits import publish_commit, replace_commit
from tasks.units.compaction import purge
from tasks.units.plan import Plan
from tasks.units.ray_cluster import EngineError
from tasks.units.rewrite import files_left, publish_without, spare
from tasks.units.tombstones import NONE_ERASED, Erased, read_erased

FACE = "face_id"
Some = TypeVar("Some", pa.Table, pa.RecordBatch)


@dataclass
class Rows:
    """Lazily generated rows. Quarantine and files of their UnitOutput are complete once `batches` is exhausted."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


@dataclass
class UnitOutput:
    """A worker's result for a unit: its rows, the quarantined rows, and the files published beside the part."""

    table: pa.Table | Rows
    quarantine: list[Quarantined] = field(default_factory=list)
    files: list[StoredFile] = field(default_factory=list)


class WorkerFault(Exception):
    """An error of the worker, not of storage, raised while its rows were being written."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def settled(unit: Unit, rows: Sequence[Quarantined]) -> list[Quarantined]:
    """Return the quarantined rows matched to the unit's items: one row per retried face, with its attempts so far."""
    found: dict[tuple[int, int | None], Quarantined] = {}
    for row in rows:
        items = [item for item in unit.items if item.index == row.index]
        if not items:
            raise EngineError(f"the worker quarantined item {row.index}, which is not in unit {unit.index}")
        for item in [item for item in items if item.face_index == row.face_index] or items:
            new = with_item(row, item)
            found.setdefault((new.index, new.face_index), new)
    return list(found.values())


class Withdrawn(Exception):
    """An erasure deleted the part before it was committed: the unit must be processed again."""


def commit_unit(
    plan: Plan,
    unit: Unit,
    table: pa.Table | None,
    rows: Sequence[Quarantined],
    seconds: float,
    code: str = "",
    files: Sequence[StoredFile] = (),
    known: Erased = NONE_ERASED,
) -> CommitRecord:
    """Publish a unit's quarantine and part, then its commit record. table None: the unit is given up.

    The same table and rows give the same bytes under the same names, so the call is idempotent.
    code: code version of the worker; empty: the plan's.
    files: published by the worker beside the part. known: what was erased when the unit began.
    """
    erased = read_erased(plan.store, known)
    failed = _not_erased(plan, rows, erased)
    quarantine, part, count, left = _publish_quarantine(plan, unit, failed), None, 0, list(files)
    if table is not None:
        with plan.store.scratch(plan.part_name(unit.index)) as path:
            table = _without(table, unit.elsewhere)
            write_table(table, path, _metadata(plan))
            part, count, left = _publish_part(plan, unit, path, table.num_rows, files, erased)
    commit = _record(plan, unit, part, count, failed, quarantine, left, seconds, code)
    try:
        return _publish_record(plan, unit, commit, erased)
    except Withdrawn:
        return commit_unit(plan, unit, table, rows, seconds, code, left, erased)


def commit_rows(
    plan: Plan, unit: Unit, rows: Rows, output: UnitOutput, started: float, code: str, known: Erased = NONE_ERASED
) -> CommitRecord:
    """As `commit_unit`, for lazily generated rows: encoding overlaps with the worker.

    Raises WorkerFault, and Withdrawn where the unit must be processed again.
    """
    with plan.store.scratch(plan.part_name(unit.index)) as path:
        with contextlib.closing(_guarded(rows.batches)) as batches:
            kept = (_without(batch, unit.elsewhere) for batch in batches)
            count = write_batches(rows.schema, kept, path, _metadata(plan))
        try:
            failed = settled(unit, output.quarantine)
        except EngineError as error:
            raise WorkerFault(error) from error
        erased = read_erased(plan.store, known)
        failed = _not_erased(plan, failed, erased)
        quarantine = _publish_quarantine(plan, unit, failed)
        part, count, files = _publish_part(plan, unit, path, count, output.files, erased)
    seconds = time.monotonic() - started
    commit = _record(plan, unit, part, count, failed, quarantine, files, seconds, code)
    return _publish_record(plan, unit, commit, erased)


def _without(rows: Some, faces: Collection[str]) -> Some:
    """Return a table or batch without the rows of these faces."""
    if not faces or FACE not in rows.schema.names:
        return rows
    return rows.filter(pc.invert(pc.is_in(rows[FACE], pa.array(sorted(faces), pa.string()))))


def _guarded(batches: Iterator[pa.RecordBatch]) -> Generator[pa.RecordBatch]:
    """Yield the worker's batches; wrap its errors in WorkerFault, so that its OSError is not taken for a full disk."""
    try:
        yield from batches
    except StorageError:  # of a file beside the part
        raise
    except Exception as error:
        raise WorkerFault(error) from error


def _record(
    plan: Plan,
    unit: Unit,
    part: StoredFile | None,
    count: int,
    rows: Sequence[Quarantined],
    quarantine: StoredFile | None,
    files: Sequence[StoredFile],
    seconds: float,
    code: str,
) -> CommitRecord:
    return CommitRecord(
        unit=unit.index,
        fingerprint=plan.fingerprint,
        items=len(unit.items),
        rows=count,
        quarantined=len(rows),
        stages=dict(sorted(Counter(row.stage for row in rows).items())),
        part=part.file if part else None,
        bytes=part.bytes if part else 0,
        sha256=part.sha256 if part else None,
        quarantine=quarantine,
        files=sorted(files, key=lambda file: file.file),
        seconds=round(seconds, 3),
        versions={
            "code": code or plan.record.code,
            "result": str(plan.result_version),
            "python": platform.python_version(),
            "pyarrow": pa.__version__,
        },
    )


def _metadata(plan: Plan) -> dict[str, str]:
    return {"fingerprint": plan.fingerprint} | {f"weights.{name}": sha for name, sha in plan.record.weights.items()}


def _publish_quarantine(plan: Plan, unit: Unit, rows: Sequence[Quarantined]) -> StoredFile | None:
    if not rows:
        return None
    name = plan.quarantine_name(unit.index)
    with plan.store.scratch(name) as path:
        write_table(quarantine_to_table(rows), path, _metadata(plan))
        return _publish(plan, unit, path, name)


def _publish(plan: Plan, unit: Unit, path: Path, name: str) -> StoredFile:
    """Publish a scratch file of a unit; on an upgrade the name holds a hash, so that the earlier file stays."""
    if unit.renews is not None:
        name = f"{name.removesuffix('.parquet')}-{hash_file(path)[1][:8]}.parquet"
    size, sha256 = plan.store.publish(path, name)
    return StoredFile(file=name, bytes=size, sha256=sha256)


def _publish_part(
    plan: Plan, unit: Unit, path: Path, count: int, files: Sequence[StoredFile], erased: Erased
) -> tuple[StoredFile, int, list[StoredFile]]:
    """Publish a finished scratch file, without erased rows, as a unit's part: (part, rows, files beside it)."""
    left = list(files)
    if erased and (spared := spare(path, files, erased)):
        count, split = spared
        left = split.stay
        for name in split.gone:
            plan.store.delete(name)
    return _publish(plan, unit, path, plan.part_name(unit.index)), count, left


# --- erasure ----------------------------------------------------------------------------------------------------------


def _not_erased(plan: Plan, rows: Sequence[Quarantined], erased: Erased) -> list[Quarantined]:
    return [row for row in rows if not (erased and erased.has_quarantined(row, plan.record.root))]


def _publish_record(plan: Plan, unit: Unit, commit: CommitRecord, known: Erased) -> CommitRecord:
    """Commit a unit without `known`; remove what was erased since, then the files of the record it renews."""
    if unit.renews is None:
        publish_commit(plan, commit)
    else:
        commit = replace_commit(plan, unit.renews, commit)
    published = commit
    try:
        while (erased := read_erased(plan.store, known)).number != known.number:
            commit, known = erase_unit(plan, commit, erased)[0], erased
    except FileNotFoundError as error:
        plan.store.delete(plan.commit_name(commit.unit, commit.revision))
        raise Withdrawn(f"unit {commit.unit} met an erasure; it is processed again without the erased rows") from error
    if commit != published:  # another driver may have moved the record meanwhile
        purge(plan)
    if unit.renews is not None:
        plan.store.delete_many(sorted(_names(unit.renews) - _names(commit)))
    return commit


def _names(commit: CommitRecord) -> set[str]:
    """Return the names of all files of a record."""
    files = {commit.part, *(file.file for file in commit.files), commit.quarantine and commit.quarantine.file}
    return {name for name in files if name}


def erase_unit(plan: Plan, commit: CommitRecord, erased: Erased) -> tuple[CommitRecord, list[str]]:
    """Remove erased rows from a committed unit; return (its new record, files kept because other rows use them too).

    Order: publish the new part and quarantine, delete the erased files, switch the record, delete the old part.
    Interrupted anywhere, a second call ends the same.
    """
    store, now, shared = plan.store, commit, list[str]()
    if commit.part is not None:
        table = pq.read_table(pa.BufferReader(store.read(commit.part)))
        going = erased.rows(table)
        files = files_left(commit.files, table, going, erased)
        shared = files.shared
        if going.any():
            now = publish_without(store, commit, table, going, files.stay)
        now = now.model_copy(update={"files": files.stay})
        for name in files.gone:
            store.delete(name)
    now = _erase_quarantine(plan, now, erased)
    if now != commit:
        now = replace_commit(plan, commit, now)
    before = {commit.part, commit.quarantine.file if commit.quarantine else None}
    after = {now.part, now.quarantine.file if now.quarantine else None}
    for old in sorted(name for name in before - after if name):
        store.delete(old)
    return now, shared


def _erase_quarantine(plan: Plan, commit: CommitRecord, erased: Erased) -> CommitRecord:
    if commit.quarantine is None:
        return commit
    data = plan.store.read(commit.quarantine.file)
    rows = table_to_quarantine(pq.read_table(pa.BufferReader(data)))
    kept = _not_erased(plan, rows, erased)
    if len(kept) == len(rows):
        return commit
    stages = dict(sorted(Counter(row.stage for row in kept).items()))
    file: StoredFile | None = None
    if kept:
        stem = plan.quarantine_name(commit.unit).removesuffix(".parquet")
        with plan.store.scratch(stem) as path:
            write_table(quarantine_to_table(kept), path, _metadata(plan))
            size, sha256 = hash_file(path)
            file = StoredFile(file=f"{stem}-{sha256[:8]}.parquet", bytes=size, sha256=sha256)
            plan.store.publish(path, file.file)
    return commit.model_copy(update={"quarantined": len(kept), "stages": stages, "quarantine": file})
