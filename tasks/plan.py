"""Plans, commits and quarantine of one dataset: what is to be done, what is done, what could not be done.

    _plan.json                      the frozen plan; written last, so that a half-written plan is none
    _plan/units-*.parquet           its items, one row group a unit
    _plan/retry-001.json + -units-  rounds over quarantined rows; their units follow the earlier ones
    _commits/00042-<fp8>.json       a unit is done; without it the part is not data
    _quarantine/00042-<fp8>.parquet rows of that unit that failed
    part-00042-<fp8>.parquet        rows of that unit

Supersede rule: once a retry unit is committed, earlier quarantine rows of the same (item, face) no longer count; what
still fails stands in the retry unit's own quarantine. All functions take the dataset's URI, whichever flow wrote it.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from schemas.engine import SourceConfig, UnitsConfig
from schemas.ledger import (
    CommitRecord,
    Item,
    PlanRecord,
    Quarantined,
    RetryRecord,
    StoredFile,
    Unit,
    UnitFile,
    table_to_items,
    table_to_quarantine,
)
from tasks.draft import cut_units, differences, make_draft, write_units
from tasks.storage import Store

PLAN, PLAN_FOLDER, COMMITS, QUARANTINE = "_plan.json", "_plan", "_commits", "_quarantine"
READ_THREADS = 16  # commit records are small and many
SPLIT = 16  # a unit that was given up is retried in pieces of 1/16, so that the second round isolates the culprit
ID_COLUMN = "face_id"
PART_NAME = re.compile(r"part-\d{5,}-[0-9a-f]{8}\.parquet")

Mode = Literal["auto", "resume", "new"]
Row = tuple[int, int | None]  # (item index, face index): what a quarantine row is about


class PlanError(Exception):
    """A plan that is missing or cannot be read."""


class PlanConflict(PlanError):
    """Another plan lies at the destination; `differences` name what differs."""

    def __init__(self, dest: str, differences: list[str]) -> None:
        self.dest, self.differences = dest, differences
        super().__init__(
            f"{dest} holds a plan that differs from this run: {'; '.join(differences)}. Run again with --resume "
            "(go on with the stored plan as it is) or with --new (drop the earlier plan and its results)"
        )


@dataclass(frozen=True)
class Plan:
    """A frozen plan with its retry rounds."""

    dest: str
    record: PlanRecord
    retries: tuple[RetryRecord, ...] = ()

    @property
    def store(self) -> Store:
        return Store(self.dest)

    @property
    def fingerprint(self) -> str:
        return self.record.fingerprint

    @property
    def files(self) -> list[UnitFile]:
        return [*self.record.files, *(file for retry in self.retries for file in retry.files)]

    @property
    def units(self) -> int:
        """Units of the plan and its retry rounds; unit indices are 0 .. units - 1."""
        return self.record.units + sum(retry.units for retry in self.retries)

    def part_name(self, unit: int) -> str:
        return f"part-{unit:05d}-{self.fingerprint[:8]}.parquet"

    def commit_name(self, unit: int) -> str:
        return f"{COMMITS}/{unit:05d}-{self.fingerprint[:8]}.json"

    def quarantine_name(self, unit: int) -> str:
        return f"{QUARANTINE}/{unit:05d}-{self.fingerprint[:8]}.parquet"

    def count_items(self, indices: Collection[int]) -> int:
        """Items in these units."""
        size, last = self.record.items_per_unit, self.record.units - 1
        planned = sum(size if index < last else self.record.items - last * size for index in indices if index <= last)
        return planned + sum(len(unit.items) for unit in self.iter_units([index for index in indices if index > last]))

    def iter_units(self, indices: Collection[int] | None = None) -> Iterator[Unit]:
        """Units in order (those of `indices` only); memory holds one file of at most 64 units."""
        wanted = None if indices is None else set(indices)
        for file in self.files:
            inside = range(file.first_unit, file.first_unit + file.units)
            chosen = [index for index in inside if wanted is None or index in wanted]
            if chosen:
                parquet = pq.ParquetFile(pa.BufferReader(self.store.read(file.file)))
                for index in chosen:
                    table = parquet.read_row_group(index - file.first_unit)
                    yield Unit(index, table_to_items(table, self.record.root))


# --- making a plan ----------------------------------------------------------------------------------------------------


def open_or_build(
    dest: str,
    source: str | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    weights: Mapping[str, str] | None = None,
    source_config: SourceConfig | None = None,
    units: UnitsConfig | None = None,
    mode: Mode = "auto",
) -> Plan:
    """The plan at `dest`: the stored one where it equals what was asked for, else a new one.

    config: settings that influence results (nothing about Ray); weights: name -> hash of every model that takes part.
    mode: "auto" refuses a stored plan that differs (PlanConflict), "resume" takes it as it is without looking at the
    source, "new" drops it and its results. Raises SourceError, StorageError, PlanError.
    """
    store = Store(dest)
    if mode == "resume":
        return load_plan(dest)
    if source is None:
        raise PlanError(f"a plan for {store.uri} needs a source; name one, or go on with --resume")
    store.check_writable()
    folder = Path(tempfile.mkdtemp(prefix="deca-plan-"))
    try:
        draft = make_draft(
            folder,
            source,
            config=config or {},
            weights=weights or {},
            source_config=source_config or SourceConfig(),
            units=units or UnitsConfig(),
            skip=store.uri,
        )
        if mode == "new":
            drop_plan(dest)
        elif store.exists(PLAN):
            stored = load_plan(dest)
            if stored.fingerprint != draft.fingerprint:
                raise PlanConflict(store.uri, differences(stored.record, draft, store, folder))
            return stored
        _publish_draft(store, draft, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return load_plan(dest)


def build_plan(dest: str, source: str, **settings: Any) -> Plan:
    """A new plan, whatever lay at `dest` before; keywords of `open_or_build`."""
    return open_or_build(dest, source, **settings, mode="new")


def load_plan(dest: str) -> Plan:
    """The plan stored at `dest`; PlanError if there is none or another version wrote it."""
    store = Store(dest)
    try:
        record = PlanRecord.model_validate_json(store.read(PLAN))
        rounds = [name for name in store.list(PLAN_FOLDER) if name.endswith(".json")]
        retries = tuple(RetryRecord.model_validate_json(store.read(name)) for name in rounds)
    except FileNotFoundError as error:
        raise PlanError(
            f"no plan at {store.uri}. Make one by running the flow with a source and this output"
        ) from error
    except ValidationError as error:
        raise PlanError(
            f"the plan at {store.uri} is damaged or of another version ({_first(error)}). Run with --new"
        ) from error
    return Plan(store.uri, record, tuple(retry for retry in retries if retry.fingerprint == record.fingerprint))


def drop_plan(dest: str) -> None:
    """Delete a plan and everything that belongs to plans at `dest`; the record first, so that nothing half is valid."""
    store = Store(dest)
    store.delete(PLAN)
    parts = [name for name in store.list() if PART_NAME.fullmatch(name)]
    for name in chain(parts, *(store.list(folder) for folder in (COMMITS, QUARANTINE, PLAN_FOLDER))):
        store.delete(name)


def _publish_draft(store: Store, draft: PlanRecord, folder: Path) -> None:
    """Put the item files, then the record; names carry the fingerprint, so two runs at once do not mix."""
    files = [_publish_units(store, folder, file, draft.fingerprint) for file in draft.files]
    record = draft.model_copy(update={"files": files})
    try:
        store.create(PLAN, record.model_dump_json(indent=1).encode())
    except FileExistsError as error:
        other = load_plan(store.uri)
        if other.fingerprint != draft.fingerprint:
            raise PlanConflict(store.uri, ["another run planned here at the same moment"]) from error


def _publish_units(store: Store, folder: Path, file: UnitFile, fingerprint: str) -> UnitFile:
    name = f"{PLAN_FOLDER}/{Path(file.file).stem}-{fingerprint[:8]}.parquet"
    store.write(name, (folder / file.file).read_bytes())
    return file.model_copy(update={"file": name})


# --- what is done -----------------------------------------------------------------------------------------------------


def committed_units(plan: Plan) -> set[int]:
    """Indices of the committed units, from the names of the records alone."""
    suffix = f"-{plan.fingerprint[:8]}.json"
    names = plan.store.list(COMMITS)
    return {int(Path(name).name.removesuffix(suffix)) for name in names if name.endswith(suffix)}


def pending(plan: Plan) -> list[int]:
    """Units without a commit, in order: plan − commits."""
    done = committed_units(plan)
    return [index for index in range(plan.units) if index not in done]


def publish_commit(plan: Plan, commit: CommitRecord) -> None:
    """Write a commit record, which makes the unit's part and quarantine data."""
    plan.store.write(plan.commit_name(commit.unit), commit.model_dump_json(indent=1).encode())


def read_commits(dest: str) -> list[CommitRecord]:
    """Commit records of the stored plan, by unit."""
    plan = load_plan(dest)
    names = [plan.commit_name(index) for index in sorted(committed_units(plan))]

    def read(name: str) -> CommitRecord:
        try:
            return CommitRecord.model_validate_json(plan.store.read(name))
        except ValidationError as error:
            uri = plan.store.join(name)
            raise PlanError(f"{uri} is damaged ({_first(error)}). Delete it: its unit is then done again") from error

    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(pool.map(read, names))


def _first(error: ValidationError) -> str:
    """The first complaint of a validation in one line."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".lstrip(": ")


def committed_parts(dest: str) -> list[str]:
    """URIs of the parts that are data, by unit. Read these, never a glob: a part without a commit is not data."""
    store = Store(dest)
    return [store.join(commit.part) for commit in read_commits(dest) if commit.part]


def standing_quarantine(dest: str) -> list[Quarantined]:
    """Quarantined rows that no later committed retry unit has taken over."""
    plan = load_plan(dest)
    return [row for _, row in _standing(plan, read_commits(dest))]


def _standing(plan: Plan, commits: list[CommitRecord]) -> list[tuple[int, Quarantined]]:
    """(unit, row) of the rows that stand."""
    superseded: dict[Row, int] = {}
    for unit in plan.iter_units([commit.unit for commit in commits if commit.unit >= plan.record.units]):
        superseded |= {_row(item): unit.index for item in unit.items}
    files = [(commit.unit, commit.quarantine.file) for commit in commits if commit.quarantine]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        tables = pool.map(lambda entry: pq.read_table(pa.BufferReader(plan.store.read(entry[1]))), files)
        rows = [
            (unit, row) for (unit, _), table in zip(files, tables, strict=True) for row in table_to_quarantine(table)
        ]
    return [(unit, row) for unit, row in rows if unit >= superseded.get(_row(row), -1)]


# --- retry ------------------------------------------------------------------------------------------------------------


def plan_retry(dest: str) -> Plan:
    """The plan with one more round over the standing quarantine; unchanged where nothing stands or all is under way.

    Rows of one face become items with that face_index; attempts count on. Units that were given up whole are cut into
    sixteenths (then into single pictures) to isolate what kills the worker.
    """
    plan = load_plan(dest)
    waiting = [index for index in pending(plan) if index >= plan.record.units]
    under_way = {_row(item) for unit in plan.iter_units(waiting) for item in unit.items}
    standing = {
        _row(row): (unit, row) for unit, row in _standing(plan, read_commits(dest)) if _row(row) not in under_way
    }
    if not standing:
        return plan
    whole = plan.record.items_per_unit
    sizes: dict[int, list[Item]] = {}
    for item in _retry_items(plan, standing):
        given_up = standing[_row(item)][1].stage == "unit"
        sizes.setdefault(max(1, whole // SPLIT**item.attempts) if given_up else whole, []).append(item)
    units: list[Unit] = []
    for size, items in sorted(sizes.items(), reverse=True):
        units += cut_units(items, size, plan.units + len(units))
    _publish_retry(plan, units)
    return load_plan(dest)


def _row(about: Item | Quarantined) -> Row:
    return about.index, about.face_index


def _retry_items(plan: Plan, standing: Mapping[Row, tuple[int, Quarantined]]) -> list[Item]:
    """The planned items behind quarantined rows, in order of index and face."""
    rows: dict[int, list[Quarantined]] = {}
    for _, row in standing.values():
        rows.setdefault(row.index, []).append(row)
    found = {
        _row(row): replace(item, face_index=row.face_index, attempts=row.attempts)
        for unit in plan.iter_units({unit for unit, _ in standing.values()})
        for item in unit.items
        for row in rows.get(item.index, ())
    }
    return [found[key] for key in sorted(found, key=lambda key: (key[0], -1 if key[1] is None else key[1]))]


def _publish_retry(plan: Plan, units: list[Unit]) -> None:
    number = len(plan.retries) + 1
    with tempfile.TemporaryDirectory(prefix="deca-plan-") as name:
        files = write_units(Path(name), f"retry-{number:03d}-units", units)
        files = [_publish_units(plan.store, Path(name), file, plan.fingerprint) for file in files]
    record = RetryRecord(
        round=number,
        fingerprint=plan.fingerprint,
        items=sum(file.items for file in files),
        units=len(units),
        files=files,
    )
    record_name = f"{PLAN_FOLDER}/retry-{number:03d}.json"
    try:
        plan.store.create(record_name, record.model_dump_json(indent=1).encode())
    except FileExistsError as error:
        raise PlanError(
            f"another retry of {plan.dest} began at the same moment. Run: deca status {plan.dest}"
        ) from error


# --- status and verify ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Status:
    """Where a dataset stands."""

    dest: str
    source: str
    fingerprint: str
    code: str
    items: int
    units: int  # retry rounds included
    committed: int
    pending: int
    rows: int
    bytes: int  # of the committed parts
    quarantined: dict[str, int]  # standing rows by stage
    retries: int

    @property
    def complete(self) -> bool:
        """Nothing pending, nothing in quarantine."""
        return not self.pending and not self.quarantined


def status(dest: str) -> Status:
    """Counts of a dataset, from its plan, commits and quarantine."""
    plan = load_plan(dest)
    commits = read_commits(dest)
    stages = Counter(row.stage for _, row in _standing(plan, commits))
    return Status(
        dest=plan.dest,
        source=plan.record.source,
        fingerprint=plan.fingerprint,
        code=plan.record.code,
        items=plan.record.items,
        units=plan.units,
        committed=len(commits),
        pending=plan.units - len(commits),
        rows=sum(commit.rows for commit in commits),
        bytes=sum(commit.bytes for commit in commits),
        quarantined=dict(sorted(stages.items())),
        retries=len(plan.retries),
    )


@dataclass(frozen=True)
class Verification:
    """What `verify` found. Leftovers are files that no record names: harmless, and never read."""

    files: int  # hashed
    rows: int
    problems: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(dest: str) -> Verification:
    """Hash every committed file again and look for what is missing, changed, doubled or left over."""
    plan = load_plan(dest)
    try:
        commits = read_commits(dest)
    except PlanError as error:
        return Verification(0, 0, [str(error)])
    expected = [StoredFile(**file.model_dump(include={"file", "bytes", "sha256"})) for file in plan.files]
    for commit in commits:
        if commit.part and commit.sha256:
            expected.append(StoredFile(file=commit.part, bytes=commit.bytes, sha256=commit.sha256))
        if commit.quarantine:
            expected.append(commit.quarantine)
    problems, ids = [], []
    for file in expected:  # one at a time: a part may be large
        problem, found = _check_file(plan.store, file)
        problems += [problem] if problem else []
        ids.append(found)
    problems += _doubled(np.concatenate([np.empty(0, "S16"), *ids]))
    named = {file.file for file in expected} | {plan.commit_name(commit.unit) for commit in commits}
    named |= {f"{PLAN_FOLDER}/retry-{retry.round:03d}.json" for retry in plan.retries} | {PLAN}
    present = [name for name in plan.store.list() if PART_NAME.fullmatch(name)]
    present += chain(*(plan.store.list(folder) for folder in (COMMITS, QUARANTINE, PLAN_FOLDER)))
    leftovers = [name for name in present if name not in named]
    return Verification(len(expected), sum(commit.rows for commit in commits), problems, leftovers)


def _check_file(store: Store, file: StoredFile) -> tuple[str | None, NDArray[np.bytes_]]:
    """(what is wrong with a published file, the ids in it)."""
    none = np.empty(0, "S16")
    try:
        data = store.read(file.file)
    except FileNotFoundError:
        return f"{file.file}: missing", none
    if hashlib.sha256(data).hexdigest() != file.sha256:
        return f"{file.file}: changed since it was committed ({len(data)} bytes, {file.bytes} committed)", none
    parquet = pq.ParquetFile(pa.BufferReader(data))
    if not PART_NAME.fullmatch(file.file) or ID_COLUMN not in parquet.schema_arrow.names:
        return None, none
    return None, np.array([str(value).encode() for value in parquet.read(columns=[ID_COLUMN])[0].to_pylist()], "S")


def _doubled(ids: NDArray[np.bytes_]) -> list[str]:
    """Names the ids that occur more than once, at most ten of them."""
    values, counts = np.unique(ids, return_counts=True)
    return [
        f"{ID_COLUMN} {value.decode()}: {count} times" for value, count in zip(values, counts, strict=True) if count > 1
    ][:10]
