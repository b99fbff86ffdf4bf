"""What a worker makes of a unit, and how it becomes data: files beside the part, quarantine, part, commit record.

In this order, so that whatever stops in between leaves nothing that a reader would take for data.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from schemas.ledger import CommitRecord, Quarantined, StoredFile, Unit, quarantine_to_table, settle
from schemas.parquet import write_batches, write_table
from tasks.plan import Plan, publish_commit
from tasks.ray_cluster import EngineError
from tasks.storage import StorageError, Store


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
            new = settle(row, item)
            found.setdefault((new.index, new.face_index), new)
    return list(found.values())


def commit_unit(
    plan: Plan,
    unit: Unit,
    table: pa.Table | None,
    rows: Sequence[Quarantined],
    seconds: float,
    code: str = "",
    files: Sequence[StoredFile] = (),
) -> CommitRecord:
    """Publish a unit's quarantine and part, then its commit record. No table: the unit is given up whole.

    The same table and rows give the same bytes under the same names, so doing it twice is harmless.
    code: version of the worker that made the table; empty: the plan's.
    files: what the worker has published beside the part.
    """
    quarantine, part = _publish_quarantine(plan, unit, rows), None
    if table is not None:
        part = _publish_table(plan.store, plan.part_name(unit.index), table, _metadata(plan))
    count = 0 if table is None else table.num_rows
    return _record(plan, unit, part, count, rows, quarantine, files, seconds, code)


def commit_rows(plan: Plan, unit: Unit, rows: Rows, output: UnitOutput, started: float, code: str) -> CommitRecord:
    """As `commit_unit`, for rows that are still to be made: they are encoded while the worker makes the next ones."""
    name = plan.part_name(unit.index)
    with plan.store.scratch(name) as path:
        with contextlib.closing(_guarded(rows.batches)) as batches:
            count = write_batches(rows.schema, batches, path, _metadata(plan))
        try:
            failed = settled(unit, output.quarantine)
        except EngineError as error:
            raise WorkerFault(error) from error
        quarantine = _publish_quarantine(plan, unit, failed)
        size, sha256 = plan.store.publish(path, name)
    part = StoredFile(file=name, bytes=size, sha256=sha256)
    seconds = time.monotonic() - started
    return _record(plan, unit, part, count, failed, quarantine, output.files, seconds, code)


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
    commit = CommitRecord(
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
        versions={"code": code or plan.record.code, "python": platform.python_version(), "pyarrow": pa.__version__},
    )
    publish_commit(plan, commit)
    return commit


def _metadata(plan: Plan) -> dict[str, str]:
    return {"fingerprint": plan.fingerprint} | {f"weights.{name}": sha for name, sha in plan.record.weights.items()}


def _publish_quarantine(plan: Plan, unit: Unit, rows: Sequence[Quarantined]) -> StoredFile | None:
    if not rows:
        return None
    return _publish_table(plan.store, plan.quarantine_name(unit.index), quarantine_to_table(rows), _metadata(plan))


def _publish_table(store: Store, name: str, table: pa.Table, metadata: dict[str, str]) -> StoredFile:
    with store.scratch(name) as path:
        write_table(table, path, metadata)
        size, sha256 = store.publish(path, name)
    return StoredFile(file=name, bytes=size, sha256=sha256)
