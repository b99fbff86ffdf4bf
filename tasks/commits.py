"""What is done of a plan: commit records, the parts that they make data, and the quarantine that stands.

Supersede rule: once a retry unit is committed, earlier quarantine rows of the same (item, face) no longer count; what
still fails stands in the retry unit's own quarantine.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from schemas.ledger import SCHEMA_VERSION, CommitRecord, Item, Quarantined, table_to_quarantine
from tasks.plan import COMMITS, READ_THREADS, Plan, PlanError, load_plan
from tasks.records import first_complaint, read_record
from tasks.storage import Store

Row = tuple[int, int | None]  # (item index, face index): what a quarantine row is about


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
            raise PlanError(
                f"{uri} is damaged ({first_complaint(error)}). Delete it: its unit is then done again"
            ) from error

    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(pool.map(read, names))


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
        superseded |= {row_of(item): unit.index for item in unit.items}
    files = [(commit.unit, commit.quarantine.file) for commit in commits if commit.quarantine]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        tables = pool.map(lambda entry: pq.read_table(pa.BufferReader(plan.store.read(entry[1]))), files)
        rows = [
            (unit, row) for (unit, _), table in zip(files, tables, strict=True) for row in table_to_quarantine(table)
        ]
    return [
        (unit, row) for unit, row in rows if unit >= superseded.get(row_of(row), -1) and row.index not in plan.replaced
    ]


def row_of(about: Item | Quarantined) -> Row:
    return about.index, about.face_index
