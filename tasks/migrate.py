"""Datasets of earlier schemas brought to this one, record by record.

What a schema changes is one function from JSON to JSON; Parquet files stay as they are. The record that every reader
opens first (`_plan.json`) is rewritten last, so until then the dataset is refused as of the earlier schema, and doing
it again goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from schemas.ledger import SCHEMA_VERSION
from tasks.audit import Place, find_places
from tasks.plan import COMMITS, PLAN, PLAN_FOLDER, PlanError
from tasks.records import UPGRADE, SchemaError
from tasks.storage import Store

Record = dict[str, Any]


@dataclass(frozen=True)
class Migrated:
    """What was done to one dataset. records: how many were rewritten."""

    uri: str
    before: int
    after: int
    records: int


def migrate(dest: str) -> list[Migrated]:
    """Bring a dataset, or those of an ingest, to the schema that this version writes.

    Raises SchemaError where a newer version wrote it, PlanError for a damaged record, EraseError where there is none.
    """
    return [_migrate_units(place) for place in find_places(dest) if place.kind == "units"]


def _migrate_units(place: Place) -> Migrated:
    store = place.store
    before = _read(store, PLAN).get("schema_version", 1)
    if before > SCHEMA_VERSION:
        raise SchemaError(f"{store.uri} has schema {before}, this version writes {SCHEMA_VERSION}. Run: {UPGRADE}")
    if before == SCHEMA_VERSION:
        return Migrated(store.uri, before, before, 0)
    rounds = [name for name in store.list(PLAN_FOLDER) if name.endswith(".json")]
    count = 0
    for name in [*store.list(COMMITS), *rounds, PLAN]:
        record = _read(store, name)
        if record["schema_version"] < SCHEMA_VERSION:
            store.write(name, json.dumps(_upgraded(record), indent=1).encode())
            count += 1
    return Migrated(store.uri, before, SCHEMA_VERSION, count)


def _read(store: Store, name: str) -> Record:
    try:
        record = json.loads(store.read(name))
        if isinstance(record["schema_version"], int):
            return dict(record)
    except (ValueError, KeyError, TypeError):  # not JSON, or no record
        pass
    raise PlanError(f"{store.join(name)} is damaged. Look with: deca verify {store.uri}")


def _upgraded(record: Record) -> Record:
    while record["schema_version"] < SCHEMA_VERSION:
        version = record["schema_version"]
        record = {**STEPS[version](record), "schema_version": version + 1}
    return record


def _to_2(record: Record) -> Record:
    """Commit records learn of the part that their rows came in first: in schema 1 that is not known to differ."""
    return {**record, "origin": None} if "stages" in record else record


STEPS: dict[int, Callable[[Record], Record]] = {1: _to_2}  # by the schema they start from
