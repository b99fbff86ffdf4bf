"""The plan of one dataset: its frozen items and units, and later rounds.

    _plan.json                      the frozen plan; written last, so that a half-written plan is none
    _plan/units-*.parquet           its items, one row group a unit
    _plan/round-00001.json + -units-  rounds: quarantined rows, or new and changed inputs; units follow the earlier ones
    _commits/00042-<fp8>.json       a unit is done; without it the part is not data. Many of them make a snapshot, and
                                    a rewritten one gets a new name (-r1): tasks/units/commits.py
    _quarantine/00042-<fp8>.parquet rows of that unit that failed
    files/ab/...                    files of rows, where a flow writes such; the commit record holds their hashes
    part-00042-<fp8>.parquet        rows of that unit (-<sha8> more once rows of replaced inputs were taken out)

Plans are made, extended and retried in rounds.py. All functions take the dataset's URI, whichever flow wrote it.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from deca_core.errors import DecaError
from schemas.ledger import OLDEST, SCHEMA_VERSION, PlanRecord, RoundRecord, Unit, UnitFile, table_to_items
from schemas.results import changes_since
from tasks.store.records import UPGRADE, first_complaint, read_record
from tasks.store.storage import Store

PLAN, PLAN_FOLDER, COMMITS, QUARANTINE = "_plan.json", "_plan", "_commits", "_quarantine"
CONFIG = "_config.json"  # the resolved settings of the run that wrote a dataset
FILES = "files"  # what lies beside the parts, named by commit records
READ_THREADS = 16  # commit records are small and many
PART_NAME = re.compile(r"part-\d{5,}-[0-9a-f]{8}(-[0-9a-f]{8})?\.parquet")


class PlanError(DecaError):
    """A plan that is missing or cannot be read."""


class PlanConflict(PlanError):
    """The destination has another plan; `differences` lists what differs."""

    def __init__(self, dest: str, differences: list[str]) -> None:
        self.dest, self.differences = dest, differences
        grown = all(text.startswith("inputs: ") for text in differences)
        super().__init__(
            f"{dest} holds a plan that differs from this run: {'; '.join(differences)}. Run again with --resume "
            f"(use the stored plan as it is){', --extend (plan what is new or changed)' if grown else ''} "
            "or with --new (drop the earlier plan and its results)"
        )


class ResultsConflict(PlanError):
    """The stored rows have another result version than this program writes (schemas/results.py)."""

    def __init__(self, plan: Plan, before: int, now: int) -> None:
        flow = plan.record.config.get("flow", "plan")
        changed = f" ({changes})" if (changes := changes_since(flow, before)) else ""
        ways = ". Run again with --upgrade (recompute them in place) or with --new (drop them)"
        super().__init__(
            f"{plan.dest} holds {flow} rows of version {before}, this program makes version {now}{changed}"
            + (ways if before < now else f". Run: {UPGRADE}")
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
        """Return the record of a new plan over all inputs so far: the frozen one unless it was extended."""
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
        """Indices of items that an extension planned again because their content had changed."""
        return frozenset(index for later in self.rounds for index in later.replaced)

    @property
    def upgraded(self) -> bool:
        """Whether rows of an earlier result version are being recomputed."""
        return any(later.kind == "upgrade" for later in self.rounds)

    @property
    def result_version(self) -> int:
        """Result version of new rows."""
        return next(
            (one.result_version for one in reversed(self.rounds) if one.result_version), self.record.result_version
        )

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

    def commit_name(self, unit: int, revision: int = 0) -> str:
        return f"{COMMITS}/{unit:05d}-{self.fingerprint[:8]}{f'-r{revision}' if revision else ''}.json"

    @property
    def compacts(self) -> bool:
        """Whether commit records may be compacted into snapshots, which programs of schema 2 cannot read."""
        return self.record.schema_version > OLDEST

    def quarantine_name(self, unit: int) -> str:
        return f"{QUARANTINE}/{unit:05d}-{self.fingerprint[:8]}.parquet"

    def count_items(self, indices: Collection[int]) -> int:
        """Items in these units, replaced ones included."""
        ordered = sorted(indices)
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
                size = part.unit_size or self.record.size
                total += size * len(inside) - (size * part.units - part.items if inside[-1] == last else 0)
            first = last + 1
        return total

    def iter_units(self, indices: Collection[int] | None = None) -> Iterator[Unit]:
        """Yield units in order (only those of `indices`) without replaced items; memory: one file of 64 units."""
        wanted = None if indices is None else set(indices)
        for file in self.files:
            inside = range(file.first_unit, file.first_unit + file.units)
            chosen = [index for index in inside if wanted is None or index in wanted]
            if chosen:
                parquet = pq.ParquetFile(pa.BufferReader(self.store.read(file.file)))
                # All at once: reading row groups one by one would dominate the driver's time on small units.
                groups = [index - file.first_unit for index in chosen]
                items = iter(table_to_items(parquet.read_row_groups(groups, use_threads=False), self.record.root))
                for index, group in zip(chosen, groups, strict=True):
                    own = islice(items, parquet.metadata.row_group(group).num_rows)
                    yield Unit(index, [item for item in own if item.index not in self.replaced])


def load_plan(dest: str) -> Plan:
    """Return the plan stored at `dest`; PlanError if there is none or another version wrote it."""
    store = Store(dest)
    try:
        record = PlanRecord.model_validate_json(read_record(store, PLAN, SCHEMA_VERSION, "items_sha256", OLDEST))
        names = [name for name in store.list(PLAN_FOLDER) if name.endswith(".json")]
        with ThreadPoolExecutor(READ_THREADS) as pool:
            rounds = [RoundRecord.model_validate_json(data) for data in pool.map(store.read, names)]
    except FileNotFoundError as error:
        raise PlanError(
            f"no plan at {store.uri}. Make one by running the flow with a source and this output"
        ) from error
    except ValidationError as error:
        raise PlanError(
            f"the plan at {store.uri} is damaged or of another version ({first_complaint(error)}). Run with --new"
        ) from error
    rounds = sorted(
        (later for later in rounds if later.fingerprint == record.fingerprint), key=lambda later: later.round
    )
    return Plan(store.uri, record, tuple(rounds))


def round_name(number: int) -> str:
    return f"{PLAN_FOLDER}/round-{number:05d}.json"
