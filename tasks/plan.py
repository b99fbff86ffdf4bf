"""Plans, commits and quarantine of one dataset: what is to be done, what is done, what could not be done.

    _plan.json                      the frozen plan; written last, so that a half-written plan is none
    _plan/units-*.parquet           its items, one row group a unit
    _plan/round-00001.json + -units-  rounds: quarantined rows, or new and changed inputs; units follow the earlier ones
    _commits/00042-<fp8>.json       a unit is done; without it the part is not data
    _quarantine/00042-<fp8>.parquet rows of that unit that failed
    files/ab/...                    files of rows, where a flow writes such; the commit record holds their hashes
    part-00042-<fp8>.parquet        rows of that unit (-<sha8> more once rows of replaced inputs were taken out)

Supersede rule: once a retry unit is committed, earlier quarantine rows of the same (item, face) no longer count; what
still fails stands in the retry unit's own quarantine. All functions take the dataset's URI, whichever flow wrote it.
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from schemas.engine import SourceConfig, UnitsConfig
from schemas.ledger import (
    SCHEMA_VERSION,
    CommitRecord,
    Item,
    PlanRecord,
    Quarantined,
    RoundRecord,
    Unit,
    UnitFile,
    table_to_items,
    table_to_quarantine,
)
from tasks.draft import InputChanges, code_version, cut_units, differences, make_draft, setting_differences, write_units
from tasks.records import read_record
from tasks.rewrite import drop_rows
from tasks.storage import Store

PLAN, PLAN_FOLDER, COMMITS, QUARANTINE = "_plan.json", "_plan", "_commits", "_quarantine"
CONFIG = "_config.json"  # the resolved settings of the run that wrote a dataset
FILES = "files"  # what lies beside the parts, named by commit records
READ_THREADS = 16  # commit records are small and many
SPLIT = 16  # a unit that was given up is retried in pieces of 1/16, so that the second round isolates the culprit
PART_NAME = re.compile(r"part-\d{5,}-[0-9a-f]{8}(-[0-9a-f]{8})?\.parquet")

logger = logging.getLogger("deca")

Mode = Literal["auto", "resume", "extend", "new"]
Row = tuple[int, int | None]  # (item index, face index): what a quarantine row is about


class PlanError(Exception):
    """A plan that is missing or cannot be read."""


class PlanConflict(PlanError):
    """Another plan lies at the destination; `differences` name what differs."""

    def __init__(self, dest: str, differences: list[str]) -> None:
        self.dest, self.differences = dest, differences
        grown = all(text.startswith("inputs: ") for text in differences)
        super().__init__(
            f"{dest} holds a plan that differs from this run: {'; '.join(differences)}. Run again with --resume "
            f"(go on with the stored plan as it is){', --extend (plan what is new or changed)' if grown else ''} "
            "or with --new (drop the earlier plan and its results)"
        )


@dataclass(frozen=True)
class Plan:
    """A frozen plan with its later rounds."""

    dest: str
    record: PlanRecord
    rounds: tuple[RoundRecord, ...] = ()

    @property
    def store(self) -> Store:
        return Store(self.dest)

    @property
    def fingerprint(self) -> str:
        return self.record.fingerprint

    @property
    def files(self) -> list[UnitFile]:
        return [*self.record.files, *(file for later in self.rounds for file in later.files)]

    @property
    def retries(self) -> list[RoundRecord]:
        return [later for later in self.rounds if later.kind == "retry"]

    @property
    def inputs(self) -> PlanRecord:
        """The record that a new plan over all inputs so far would have: the frozen one unless it was extended."""
        extensions = [later for later in self.rounds if later.kind == "extend"]
        if not extensions:
            return self.record
        latest = {
            "items": self.planned_items - len(self.replaced),
            "items_sha256": extensions[-1].inputs_sha256,
            "files": [*self.record.files, *(file for later in extensions for file in later.files)],
            "fingerprint": extensions[-1].inputs_fingerprint,
        }
        return self.record.model_copy(update=latest)

    @property
    def planned_items(self) -> int:
        """Items of the plan and its extensions, replaced ones included; the next item's index."""
        return self.record.items + sum(later.items for later in self.rounds if later.kind == "extend")

    @cached_property
    def replaced(self) -> frozenset[int]:
        """Indices of items that an extension has planned anew because their content had changed."""
        return frozenset(index for later in self.rounds for index in later.replaced)

    @property
    def retry_units(self) -> set[int]:
        """Indices of the units of retry rounds."""
        files = (file for later in self.retries for file in later.files)
        return {index for file in files for index in range(file.first_unit, file.first_unit + file.units)}

    @property
    def units(self) -> int:
        """Units of the plan and its rounds; unit indices are 0 .. units - 1."""
        return self.record.units + sum(later.units for later in self.rounds)

    def part_name(self, unit: int) -> str:
        return f"part-{unit:05d}-{self.fingerprint[:8]}.parquet"

    def commit_name(self, unit: int) -> str:
        return f"{COMMITS}/{unit:05d}-{self.fingerprint[:8]}.json"

    def quarantine_name(self, unit: int) -> str:
        return f"{QUARANTINE}/{unit:05d}-{self.fingerprint[:8]}.parquet"

    def count_items(self, indices: Collection[int]) -> int:
        """Items in these units, replaced ones included."""
        size, ordered = self.record.items_per_unit, sorted(indices)
        total = first = 0
        parts: list[PlanRecord | RoundRecord] = [self.record, *self.rounds]
        for part in parts:
            last = first + part.units - 1
            inside = ordered[bisect_left(ordered, first) : bisect_left(ordered, last + 1)]
            if len(inside) == part.units:
                total += part.items
            elif inside and isinstance(part, RoundRecord) and part.kind == "retry":  # its units differ in size
                total += sum(len(unit.items) for unit in self.iter_units(inside))
            elif inside:
                total += size * len(inside) - (size * part.units - part.items if inside[-1] == last else 0)
            first = last + 1
        return total

    def iter_units(self, indices: Collection[int] | None = None) -> Iterator[Unit]:
        """Units in order (those of `indices` only) without replaced items; memory holds one file of 64 units."""
        wanted = None if indices is None else set(indices)
        for file in self.files:
            inside = range(file.first_unit, file.first_unit + file.units)
            chosen = [index for index in inside if wanted is None or index in wanted]
            if chosen:
                parquet = pq.ParquetFile(pa.BufferReader(self.store.read(file.file)))
                for index in chosen:
                    table = parquet.read_row_group(index - file.first_unit)
                    items = table_to_items(table, self.record.root)
                    yield Unit(index, [item for item in items if item.index not in self.replaced])


# --- making a plan ----------------------------------------------------------------------------------------------------


def open_or_build(
    dest: str,
    source: str | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    weights: Mapping[str, str] | None = None,
    source_config: SourceConfig | None = None,
    units: UnitsConfig | None = None,
    code: str | None = None,
    items: Iterable[Item] | None = None,
    mode: Mode = "auto",
) -> Plan:
    """The plan at `dest`: the stored one where it equals what was asked for, else a new one.

    config: settings that influence results (nothing about Ray); weights: name -> hash of every model that takes part;
    code: `code_version` of the worker's module; None: of everything;
    items: the plan's items where `source` is a name and not a place to list.
    mode: "auto" refuses a stored plan that differs (PlanConflict), "resume" takes it as it is without looking at the
    source, "extend" adds a round over new and changed inputs, "new" drops it and its results.
    Raises SourceError, StorageError, PlanError.
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
            code=code or code_version(),
            items=items,
            skip=store.uri,
        )
        if mode == "new":
            drop_plan(dest)
        elif store.exists(PLAN):
            stored = load_plan(dest)
            if mode == "extend":
                return _extend(stored, draft, folder)
            if stored.inputs.fingerprint != draft.fingerprint:
                raise PlanConflict(store.uri, differences(stored.inputs, draft, store, folder, stored.replaced))
            return stored
        _publish_draft(store, draft, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return load_plan(dest)


def load_plan(dest: str) -> Plan:
    """The plan stored at `dest`; PlanError if there is none or another version wrote it."""
    store = Store(dest)
    try:
        record = PlanRecord.model_validate_json(read_record(store, PLAN, SCHEMA_VERSION, "items_sha256"))
        names = [name for name in store.list(PLAN_FOLDER) if name.endswith(".json")]
        with ThreadPoolExecutor(READ_THREADS) as pool:
            rounds = [RoundRecord.model_validate_json(data) for data in pool.map(store.read, names)]
    except FileNotFoundError as error:
        raise PlanError(
            f"no plan at {store.uri}. Make one by running the flow with a source and this output"
        ) from error
    except ValidationError as error:
        raise PlanError(
            f"the plan at {store.uri} is damaged or of another version ({_first(error)}). Run with --new"
        ) from error
    rounds = sorted(
        (later for later in rounds if later.fingerprint == record.fingerprint), key=lambda later: later.round
    )
    return Plan(store.uri, record, tuple(rounds))


def drop_plan(dest: str) -> None:
    """Delete a plan and its results at `dest`; the record first, so that nothing half is valid. Tombstones stay."""
    store = Store(dest)
    store.delete(PLAN)
    parts = [name for name in store.list() if PART_NAME.fullmatch(name)]
    for name in chain(parts, *(store.list(folder) for folder in (COMMITS, QUARANTINE, PLAN_FOLDER))):
        store.delete(name)
    store.delete_folder(FILES)


def _publish_draft(store: Store, draft: PlanRecord, folder: Path) -> None:
    """Put the item files, then the record; names carry the fingerprint, so two runs at once do not mix."""
    files = [_publish_units(store, folder, file, draft.fingerprint[:8]) for file in draft.files]
    record = draft.model_copy(update={"files": files})
    try:
        store.create(PLAN, record.model_dump_json(indent=1).encode())
    except FileExistsError as error:
        other = load_plan(store.uri)
        if other.fingerprint != draft.fingerprint:
            raise PlanConflict(store.uri, ["another run planned here at the same moment"]) from error


def _publish_units(store: Store, folder: Path, file: UnitFile, mark: str) -> UnitFile:
    name = f"{PLAN_FOLDER}/{Path(file.file).stem}-{mark}.parquet"
    store.write(name, (folder / file.file).read_bytes())
    return file.model_copy(update={"file": name})


# --- what is done -----------------------------------------------------------------------------------------------------


def committed_units(plan: Plan) -> set[int]:
    """Indices of the committed units, from the names of the records alone."""
    suffix = f"-{plan.fingerprint[:8]}.json"
    stems = (Path(name).name.removesuffix(suffix) for name in plan.store.list(COMMITS) if name.endswith(suffix))
    return {int(stem) for stem in stems if stem.isdecimal()}  # what is no number is none of ours: `verify` tells


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
            return CommitRecord.model_validate_json(read_record(plan.store, name, SCHEMA_VERSION, "unit"))
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
    return [row for _, row in standing_rows(plan, read_commits(dest))]


def standing_rows(plan: Plan, commits: list[CommitRecord]) -> list[tuple[int, Quarantined]]:
    """(unit, row) of the rows that stand."""
    superseded: dict[Row, int] = {}
    retried = plan.retry_units
    for unit in plan.iter_units([commit.unit for commit in commits if commit.unit in retried]):
        superseded |= {_row(item): unit.index for item in unit.items}
    files = [(commit.unit, commit.quarantine.file) for commit in commits if commit.quarantine]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        tables = pool.map(lambda entry: pq.read_table(pa.BufferReader(plan.store.read(entry[1]))), files)
        rows = [
            (unit, row) for (unit, _), table in zip(files, tables, strict=True) for row in table_to_quarantine(table)
        ]
    return [
        (unit, row) for unit, row in rows if unit >= superseded.get(_row(row), -1) and row.index not in plan.replaced
    ]


# --- retry ------------------------------------------------------------------------------------------------------------


def plan_retry(dest: str) -> Plan:
    """The plan with one more round over the standing quarantine; unchanged where nothing stands or all is under way.

    Rows of one face become items with that face_index; attempts count on. Units that were given up whole are cut into
    sixteenths (then into single pictures) to isolate what kills the worker.
    """
    plan = load_plan(dest)
    retried = plan.retry_units
    waiting = [index for index in pending(plan) if index in retried]
    under_way = {_row(item) for unit in plan.iter_units(waiting) for item in unit.items}
    standing = {
        _row(row): (unit, row) for unit, row in standing_rows(plan, read_commits(dest)) if _row(row) not in under_way
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
    with tempfile.TemporaryDirectory(prefix="deca-plan-") as name:
        return _publish_round(plan, units, Path(name), kind="retry")


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


# --- rounds -----------------------------------------------------------------------------------------------------------


def _extend(plan: Plan, draft: PlanRecord, folder: Path) -> Plan:
    """The plan with one more round over new and changed inputs; itself where the inputs are the same.

    Rows of inputs that are gone stay, those of the earlier content of changed ones are taken out. PlanConflict where
    anything but the inputs differs.
    """
    if found := setting_differences(plan.record, draft):
        raise PlanConflict(plan.dest, found)
    if draft.fingerprint == plan.inputs.fingerprint:
        return plan
    if draft.config["source"].get("deduplicate"):
        raise PlanError(
            f"{plan.dest}: --extend does not go with inputs.deduplicate: what was planned would have to be read again "
            "to know its content. Use --new, or plan without it"
        )
    changes = InputChanges(plan.inputs, draft, plan.store, folder, plan.replaced)
    logger.info(
        "%s: %d inputs are new, %d changed, %d gone (their rows stay)",
        plan.dest,
        changes.added,
        changes.changed,
        changes.removed,
    )
    # The earlier rows go first: should this end here, the next extension finds the inputs changed as before.
    replaced = _take_out(plan, {item.source_uri for item, known in changes.items() if known}) if changes.changed else []
    numbered = (replace(item, index=index) for index, (item, _) in enumerate(changes.items(), start=plan.planned_items))
    return _publish_round(
        plan,
        cut_units(numbered, plan.record.items_per_unit, plan.units),
        folder,
        kind="extend",
        inputs_sha256=draft.items_sha256,
        inputs_fingerprint=draft.fingerprint,
        removed=changes.removed,
        replaced=replaced,
    )


def _take_out(plan: Plan, uris: set[str]) -> list[int]:
    """Rewrite the committed parts without rows of these inputs; the indices that the inputs have had."""
    units: set[int] = set()
    indices: set[int] = set()
    for unit in plan.iter_units():
        if found := {item.index for item in unit.items if item.source_uri in uris}:
            units.add(unit.index)
            indices |= found
    parts = [name for name in plan.store.list() if PART_NAME.fullmatch(name)] if units else []
    for commit in read_commits(plan.dest):
        if commit.unit in units and commit.part is not None:
            try:
                kept = drop_rows(plan.store, commit, uris)
            except ValueError as error:
                raise PlanError(f"{error}, so rows of changed inputs cannot be taken out. Use --new") from error
            if kept != commit:
                publish_commit(plan, kept)
            begin = plan.part_name(commit.unit).removesuffix(".parquet")
            for name in parts:  # the part that was replaced, now or by an extension that did not get this far
                if name.startswith(begin) and name != kept.part:
                    plan.store.delete(name)
    return sorted(indices)


def _publish_round(plan: Plan, units: Iterable[Unit], folder: Path, **fields: Any) -> Plan:
    """Write units as the next round and return the plan with it; PlanError if another round came first."""
    number = len(plan.rounds) + 1
    files = write_units(folder, f"round-{number:05d}-units", units)
    # Names hold the content's hash as well: a round made at the same moment must not replace these files.
    files = [_publish_units(plan.store, folder, file, f"{plan.fingerprint[:8]}-{file.sha256[:8]}") for file in files]
    record = RoundRecord(
        round=number,
        fingerprint=plan.fingerprint,
        items=sum(file.items for file in files),
        units=sum(file.units for file in files),
        files=files,
        **fields,
    )
    try:
        plan.store.create(round_name(number), record.model_dump_json(indent=1).encode())
    except FileExistsError as error:
        raise PlanError(
            f"another round of {plan.dest} began at the same moment. Run: deca status {plan.dest}"
        ) from error
    return load_plan(plan.dest)


def round_name(number: int) -> str:
    return f"{PLAN_FOLDER}/round-{number:05d}.json"
