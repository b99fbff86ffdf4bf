"""What a worker makes of a unit, and how it becomes data: files beside the part, quarantine, part, commit record.

In this order, so that whatever stops in between leaves nothing that a reader would take for data. Rows of whoever is
erased (tombstones.py) are taken out before a part is published. An erasure may begin while a unit is worked: its
tombstone comes first, and a unit looks for new ones once it is committed, so one of the two sees the other.
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
from tasks.units.tombstones import NOBODY, Erased, read_erased

FACE = "face_id"
Some = TypeVar("Some", pa.Table, pa.RecordBatch)


@dataclass
class Rows:
    """Rows that are made while they are asked for. Quarantine and files of their output are whole once they end."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


@dataclass
class UnitOutput:
    """What a worker makes of a unit: its rows, the rows that failed, and the files that it published beside them."""

    table: pa.Table | Rows
    quarantine: list[Quarantined] = field(default_factory=list)
    files: list[StoredFile] = field(default_factory=list)


class WorkerFault(Exception):
    """What a worker raised while its rows were being written: the worker's error, not the storage's."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def settled(unit: Unit, rows: Sequence[Quarantined]) -> list[Quarantined]:
    """Rows made consistent with the unit's items: each retried face gets its own row, with the attempts so far."""
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
    """A part that an erasure took away before it was committed: the unit is to be done again."""


def commit_unit(
    plan: Plan,
    unit: Unit,
    table: pa.Table | None,
    rows: Sequence[Quarantined],
    seconds: float,
    code: str = "",
    files: Sequence[StoredFile] = (),
    known: Erased = NOBODY,
) -> CommitRecord:
    """Publish a unit's quarantine and part, then its commit record. No table: the unit is given up whole.

    The same table and rows give the same bytes under the same names, so doing it twice is harmless.
    code: version of the worker that made the table; empty: the plan's.
    files: what the worker has published beside the part. known: who was erased when the unit was begun.
    """
    erased = read_erased(plan.store, known)
    failed = _living(plan, rows, erased)
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
    plan: Plan, unit: Unit, rows: Rows, output: UnitOutput, started: float, code: str, known: Erased = NOBODY
) -> CommitRecord:
    """As `commit_unit`, for rows that are still to be made: they are encoded while the worker makes the next ones.

    Raises WorkerFault, and Withdrawn where the rows are to be made once more.
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
        failed = _living(plan, failed, erased)
        quarantine = _publish_quarantine(plan, unit, failed)
        part, count, files = _publish_part(plan, unit, path, count, output.files, erased)
    seconds = time.monotonic() - started
    commit = _record(plan, unit, part, count, failed, quarantine, files, seconds, code)
    return _publish_record(plan, unit, commit, erased)


def _without(rows: Some, faces: Collection[str]) -> Some:
    """A table or batch without the rows of these faces."""
    if not faces or FACE not in rows.schema.names:
        return rows
    return rows.filter(pc.invert(pc.is_in(rows[FACE], pa.array(sorted(faces), pa.string()))))


def _guarded(batches: Iterator[pa.RecordBatch]) -> Generator[pa.RecordBatch]:
    """The worker's batches; what it raises cannot be taken for a full disk."""
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
    """Publish a scratch file of a unit; of one that is renewed under a name with its hash, beside what it renews."""
    if unit.renews is not None:
        name = f"{name.removesuffix('.parquet')}-{hash_file(path)[1][:8]}.parquet"
    size, sha256 = plan.store.publish(path, name)
    return StoredFile(file=name, bytes=size, sha256=sha256)


def _publish_part(
    plan: Plan, unit: Unit, path: Path, count: int, files: Sequence[StoredFile], erased: Erased
) -> tuple[StoredFile, int, list[StoredFile]]:
    """Publish a finished scratch file as a unit's part without the erased: (part, rows, files beside it)."""
    left = list(files)
    if erased and (spared := spare(path, files, erased)):
        count, split = spared
        left = split.stay
        for name in split.gone:
            plan.store.delete(name)
    return _publish(plan, unit, path, plan.part_name(unit.index)), count, left


# --- erasure ----------------------------------------------------------------------------------------------------------


def _living(plan: Plan, rows: Sequence[Quarantined], erased: Erased) -> list[Quarantined]:
    return [row for row in rows if not (erased and erased.has_quarantined(row, plan.record.root))]


def _publish_record(plan: Plan, unit: Unit, commit: CommitRecord, known: Erased) -> CommitRecord:
    """Commit a unit from which `known` are gone; whoever was erased since goes at once, and then what it renews."""
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
        raise Withdrawn(f"unit {commit.unit} met an erasure; it is done again without the erased") from error
    if commit != published:  # another driver may have moved the record meanwhile
        purge(plan)
    if unit.renews is not None:
        plan.store.delete_many(sorted(_names(unit.renews) - _names(commit)))
    return commit


def _names(commit: CommitRecord) -> set[str]:
    """The files that a record makes data."""
    files = {commit.part, *(file.file for file in commit.files), commit.quarantine and commit.quarantine.file}
    return {name for name in files if name}


def erase_unit(plan: Plan, commit: CommitRecord, erased: Erased) -> tuple[CommitRecord, list[str]]:
    """Take the erased out of a committed unit: (its record now, files that stay because other rows need them too).

    New part and quarantine first, then the files of the erased go, then the record switches, then the old part goes:
    interrupted anywhere, doing it again ends the same.
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
    living = _living(plan, rows, erased)
    if len(living) == len(rows):
        return commit
    stages = dict(sorted(Counter(row.stage for row in living).items()))
    file: StoredFile | None = None
    if living:
        stem = plan.quarantine_name(commit.unit).removesuffix(".parquet")
        with plan.store.scratch(stem) as path:
            write_table(quarantine_to_table(living), path, _metadata(plan))
            size, sha256 = hash_file(path)
            file = StoredFile(file=f"{stem}-{sha256[:8]}.parquet", bytes=size, sha256=sha256)
            plan.store.publish(path, file.file)
    return commit.model_copy(update={"quarantined": len(living), "stages": stages, "quarantine": file})
