"""From a source to a plan on local disk, before anything is published: items, units, record, and what differs from
another plan.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.engine import SourceConfig, UnitsConfig
from schemas.ledger import ITEM_SCHEMA, Item, PlanRecord, Unit, UnitFile, table_to_items, units_to_table
from schemas.parquet import open_writer
from schemas.results import LATER_SETTINGS, result_version
from tasks.sources.discover import discover, source_root
from tasks.store.storage import Store, hash_file, normalise

CONTENT = ("uri", "member", "offset", "size", "etag")  # columns that tell what an item is
PROVENANCE = ("code", "files")  # fields of a record that its identity is not made of
UNITS_PER_FILE = 64  # 16k items, about 1 MB: what a reader holds at once


def make_draft(
    folder: Path,
    source: str,
    *,
    config: Mapping[str, Any],
    weights: Mapping[str, str],
    source_config: SourceConfig,
    units: UnitsConfig,
    code: str,
    items: Iterable[Item] | None = None,
    skip: str | None = None,
    workers: int | None = None,
) -> PlanRecord:
    """Write the item files of a plan for `source` into the local `folder` and work out its record.

    code: version of what makes the plan, for the record; items: what to plan where `source` is only a name and nothing
    can be listed; skip: a folder inside the source that is no input; workers: see `open_or_build`. Raises SourceError.
    """
    digest = hashlib.sha256()
    left_out: Counter[str] = Counter()
    listing = discover(source, source_config, skip, left_out) if items is None else items

    def hashed() -> Iterator[Item]:
        for item in listing:
            digest.update(_item_line(item))
            yield item

    files = write_units(folder, "units", cut_units(hashed(), units.items_per_unit))
    count = sum(file.items for file in files)
    size = units.size_for(count, workers) if workers else units.items_per_unit
    if size < min(count, units.items_per_unit):  # only the end of a listing tells; memory never holds it
        files = _cut_again(folder, files, size)
    record = {
        "source": normalise(source),
        "root": source_root(source) if items is None else normalise(source),
        "config": {**config, "source": source_config.plan_settings()},
        "code": code,
        "result_version": result_version(config),
        "weights": dict(sorted(weights.items())),
        "items_per_unit": units.items_per_unit,
        "unit_size": size,
        "items": count,
        "units": sum(file.units for file in files),
        "items_sha256": digest.hexdigest(),
        "files": [file.model_dump() for file in files],
    }
    canonical = json.dumps({key: record[key] for key in record if key not in PROVENANCE}, sort_keys=True)
    fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
    known = {"fingerprint": fingerprint, "images_left_out": dict(sorted(left_out.items()))}
    return PlanRecord.model_validate({**json.loads(json.dumps(record)), **known})


def cut_units(items: Iterable[Item], size: int, first: int = 0) -> Iterator[Unit]:
    source = iter(items)
    index = first
    while block := list(islice(source, size)):
        yield Unit(index, block)
        index += 1


def _cut_again(folder: Path, files: Sequence[UnitFile], size: int) -> list[UnitFile]:
    """The items of these files in units of another size."""
    listed = [(folder / file.file).rename(folder / f"listed-{file.file}") for file in files]
    items = (item for path in listed for table in _row_groups(path) for item in table_to_items(table, ""))
    return write_units(folder, "units", cut_units(items, size))


def _row_groups(path: Path) -> Iterator[pa.Table]:
    parquet = pq.ParquetFile(path)
    yield from map(parquet.read_row_group, range(parquet.num_row_groups))


def write_units(folder: Path, stem: str, units: Iterable[Unit]) -> list[UnitFile]:
    """Units as local Parquet files of at most 64 row groups, each a unit."""
    source, files = iter(units), list[UnitFile]()
    while block := next(source, None):
        path = folder / f"{stem}-{len(files):05d}.parquet"
        count = rows = 0
        with open_writer(ITEM_SCHEMA, path) as writer:
            for unit in chain([block], islice(source, UNITS_PER_FILE - 1)):
                writer.write_table(units_to_table([unit]), row_group_size=len(unit.items))
                count, rows = count + 1, rows + len(unit.items)
        size, sha256 = hash_file(path)
        file = UnitFile(file=path.name, bytes=size, sha256=sha256, first_unit=block.index, units=count, items=rows)
        files.append(file)
    return files


def _item_line(item: Item) -> bytes:
    return f"{item.uri}\0{item.member}\0{item.offset}\0{item.size}\0{item.etag}\n".encode()


PACKAGES = ("deca_core", "deca_world", "schemas", "tasks")


@lru_cache
def code_version() -> str:
    """Return the package version and a short hash over the sources that make results.

    Provenance: records say which code wrote them, and nothing is compared with it. Meaning of rows: schemas/results.py.
    """
    home = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (home / package).rglob("*.py")):
        digest.update(f"{path.relative_to(home).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return f"{importlib.metadata.version('deca-pipeline')}+{digest.hexdigest()[:12]}"


def differences(
    old: PlanRecord, draft: PlanRecord, store: Store, folder: Path, replaced: Collection[int] = ()
) -> list[str]:
    """What differs between the plan in `store` and a draft whose item files lie in `folder`, in words.

    replaced: indices of planned items that no longer count.
    """
    found = setting_differences(old, draft)
    if old.items_sha256 != draft.items_sha256:
        found.append(str(InputChanges(old, draft, store, folder, replaced)))
    return found


LATER_VALUES = {name: json.dumps(value) for name, value in LATER_SETTINGS.items()}


def same_plan(old: PlanRecord, draft: PlanRecord) -> bool:
    """Whether both plan the same inputs under the same settings: all of their identity but the result version."""
    return old.items_sha256 == draft.items_sha256 and not setting_differences(old, draft)


def setting_differences(old: PlanRecord, draft: PlanRecord) -> list[str]:
    """What differs but for the inputs, in words."""
    found = [
        f"{name} {before} -> {after}"
        for name, before, after in (
            ("source", old.source, draft.source),
            ("items per unit", old.items_per_unit, draft.items_per_unit),
        )
        if before != after
    ]
    for name, before, after in (("config", old.config, draft.config), ("weights", old.weights, draft.weights)):
        left, right = flat_settings(before), flat_settings(after)
        left = {key: value for key, value in LATER_VALUES.items() if key in right} | left
        found += [
            f"{name} {key} {left.get(key, 'unset')} -> {right.get(key, 'unset')}"
            for key in sorted({*left, *right})
            if left.get(key) != right.get(key)
        ]
    return found


def flat_settings(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"a.b": value}, values as JSON text."""
    if not isinstance(value, Mapping):
        return {prefix: json.dumps(value)}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flat_settings(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


class InputChanges:
    """The inputs of a draft against those of a plan: counts, the added and the changed; 35 bytes of memory an input.

    Inputs are told apart by 64-bit hashes of their names: beside ten million planned ones, one new name in a trillion
    would be taken for a planned one.
    """

    def __init__(
        self, old: PlanRecord, draft: PlanRecord, store: Store, folder: Path, replaced: Collection[int] = ()
    ) -> None:
        """replaced: indices of planned items that no longer count."""
        self.draft, self.folder = draft, folder
        planned = (pq.ParquetFile(pa.BufferReader(store.read(file.file))).read() for file in old.files)
        old_keys, old_rows = (np.unique(hashes) for hashes in _hash_items(planned, replaced))
        keys, rows = _hash_items(self._drafted())
        self.known, self.same = _among(keys, old_keys), _among(rows, old_rows)  # of every item of the draft
        self.added = len(np.unique(keys[~self.known]))
        self.removed = int((~_among(old_keys, np.unique(keys))).sum())
        self.changed = len(np.unique(keys[self.known & ~self.same]))

    def __str__(self) -> str:
        if not (self.added or self.removed or self.changed):
            return "inputs: the same ones in another order"
        return f"inputs: {self.added} added, {self.removed} removed, {self.changed} changed"

    def items(self) -> Iterator[tuple[Item, bool]]:
        """(item, is it a changed one) of all added and changed ones, in the draft's order."""
        first = 0
        for table in self._drafted():
            part = slice(first, first + len(table))
            known, other = self.known[part], ~self.same[part]
            items = table_to_items(table.filter(pa.array(other)), self.draft.root)
            yield from zip(items, known[other].tolist(), strict=True)
            first += len(table)

    def _drafted(self) -> Iterator[pa.Table]:
        for file in self.draft.files:
            yield pq.ParquetFile(self.folder / file.file).read()


def _hash_items(
    tables: Iterable[pa.Table], replaced: Collection[int] = ()
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """64-bit hashes of every item that is not replaced: of its name, and of its name and content."""

    def short(text: str) -> bytes:
        return hashlib.blake2b(text.encode(), digest_size=8).digest()

    keys, rows = bytearray(), bytearray()
    for table in tables:
        columns = (table.column(name).to_pylist() for name in ("index", *CONTENT))
        for index, uri, member, *content in zip(*columns, strict=True):
            if index not in replaced:
                keys += short(f"{uri}\0{member}")
                rows += short("\0".join(map(str, (uri, member, *content))))
    return np.frombuffer(keys, np.uint64), np.frombuffer(rows, np.uint64)


def _among(values: NDArray[np.uint64], ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which values are in the sorted array."""
    if not len(ordered):
        return np.zeros(len(values), bool)
    return ordered[np.searchsorted(ordered, values).clip(max=len(ordered) - 1)] == values
