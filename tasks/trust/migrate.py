"""Migration of datasets of earlier schemas to the current one, record by record.

A schema change is one function from JSON to JSON; Parquet files are not touched. The record that every reader opens
first (`_plan.json`) is rewritten last: until then the dataset is refused as of the earlier schema, and a repeated
migration resumes. Then commit records are compacted into snapshots (schema 3). No run may be active.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from schemas.ledger import OLDEST, SCHEMA_VERSION
from tasks.store.records import UPGRADE, SchemaError
from tasks.store.storage import Store
from tasks.trust.audit import Place, find_places
from tasks.units.compaction import compact
from tasks.units.plan import COMMITS, PLAN, PLAN_FOLDER, PlanError, load_plan

Record = dict[str, Any]


@dataclass(frozen=True)
class Migrated:
    """What was done to one dataset. records: how many were rewritten; moved: commit records, into snapshots."""

    uri: str
    before: int
    after: int
    records: int
    moved: int


def migrate(dest: str) -> list[Migrated]:
    """Migrate a dataset, or those of an ingest, to the current schema.

    Raises SchemaError where a newer version wrote it, PlanError for a damaged record, EraseError where there is none.
    """
    return [_migrate_units(place) for place in find_places(dest) if place.kind == "units"]


def _migrate_units(place: Place) -> Migrated:
    store = place.store
    before = _read(store, PLAN).get("schema_version", 1)
    if before > SCHEMA_VERSION:
        raise SchemaError(f"{store.uri} has schema {before}, this version writes {SCHEMA_VERSION}. Run: {UPGRADE}")
    count = 0
    for name in _older(store, before):
        record = _read(store, name)
        if record["schema_version"] < SCHEMA_VERSION:
            store.write(name, json.dumps(_upgraded(record), indent=1).encode())
            count += 1
    return Migrated(store.uri, before, SCHEMA_VERSION, count, compact(load_plan(store.uri)))


def _older(store: Store, before: int) -> Iterator[str]:
    """Records of an earlier schema, the plan last."""
    if before < OLDEST:  # commit records of a later one are read as they are
        yield from store.list(COMMITS)
    if before < SCHEMA_VERSION:
        yield from (name for name in store.list(PLAN_FOLDER) if name.endswith(".json"))
        yield PLAN


def _read(store: Store, name: str) -> Record:
    try:
        record = json.loads(store.read(name))
        if isinstance(record["schema_version"], int):
            return dict(record)
    except (ValueError, KeyError, TypeError):  # not JSON, or no record
        pass
    raise PlanError(f"{store.join(name)} is damaged. Run: deca verify {store.uri}")


def _upgraded(record: Record) -> Record:
    while record["schema_version"] < SCHEMA_VERSION:
        version = record["schema_version"]
        record = {**STEPS[version](record), "schema_version": version + 1}
    return record


def _to_2(record: Record) -> Record:
    """Add `origin`, the part that the rows came in first: None, as schema 1 does not record it."""
    return {**record, "origin": None} if "stages" in record else record


def _to_3(record: Record) -> Record:
    """Add `revision`, how often a commit was rewritten: 0, as earlier schemas reuse each name."""
    return {**record, "revision": 0} if "stages" in record else record


STEPS: dict[int, Callable[[Record], Record]] = {1: _to_2, 2: _to_3}  # by the schema they start from
