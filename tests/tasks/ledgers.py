"""Plans of many small units and their commit records, without work and without parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from schemas.engine import UnitsConfig
from schemas.ledger import CommitRecord, Item, Quarantined, StoredFile
from tasks.units.commit import UnitOutput
from tasks.units.commits import publish_commit
from tasks.units.plan import Plan
from tasks.units.rounds import open_or_build

SCHEMA = pa.schema([("face_id", pa.string()), ("source_uri", pa.string())], metadata={"schema_version": "1"})


class Rows:
    """A row an item; every fifth item is quarantined."""

    def process(self, items: Sequence[Item]) -> UnitOutput:
        good = [item for item in items if item.index % 5 != 4]
        table = pa.table(
            {"face_id": [f"{item.image_id}-00" for item in good], "source_uri": [item.uri for item in good]}, SCHEMA
        )
        return UnitOutput(
            table, [Quarantined.of(item, "decode", "ImageError", "bad") for item in items if item not in good]
        )


def items(count: int) -> Iterator[Item]:
    return (Item(index, f"memory://photos/{index:05d}.jpg", size=1, root="memory://photos") for index in range(count))


def make_plan(dest: str, units: int) -> Plan:
    return open_or_build(dest, "memory://photos", items=items(units), units=UnitsConfig(items_per_unit=1), config={})


def record(plan: Plan, unit: int, files: Sequence[str] = ()) -> CommitRecord:
    """What a worker would publish for a unit; its rows are as many as its number."""
    return CommitRecord(
        unit=unit,
        fingerprint=plan.fingerprint,
        items=1,
        rows=unit,
        quarantined=unit % 2,
        stages={"decode": 1} if unit % 2 else {},
        part=None if unit % 7 == 6 else plan.part_name(unit),
        bytes=10 * unit,
        sha256=None if unit % 7 == 6 else f"{unit:064x}",
        quarantine=StoredFile(file=plan.quarantine_name(unit), bytes=5, sha256="ab" * 32) if unit % 2 else None,
        files=[StoredFile(file=name, bytes=3, sha256="cd" * 32) for name in files],
        seconds=unit / 8,
        versions={"code": "1"},
    )


def commit(plan: Plan, units: Sequence[int]) -> list[CommitRecord]:
    """Publish the records of units."""
    made = [record(plan, unit) for unit in units]
    for one in made:
        publish_commit(plan, one)
    return made
