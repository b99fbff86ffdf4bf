"""Search a dataset for ids: in rows of any file, committed or left over, in file names, and in texts.

Unlike every other reader it reads uncommitted and replaced files too, since they are still on the disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.erase import ERASED
from schemas.faces import ANNOTATIONS_FOLDER, CURRENT, FACES_FOLDER
from schemas.ledger import ITEM_SCHEMA, QUARANTINE_SCHEMA, SNAPSHOT_SCHEMA, table_to_items, table_to_quarantine
from tasks.store.ranges import open_checked
from tasks.store.storage import Store
from tasks.units.plan import PLAN, PLAN_FOLDER, READ_THREADS, load_plan
from tasks.units.tombstones import Erased, EraseError, id_columns

TEXTS = (".json", ".md", ".html", ".txt", ".csv")
BLOCK = 2**18  # bytes fetched at once: columns of ids are small

TRAINING = "_train.json"  # record of a training run
SETTINGS = (PLAN, "_config.json")  # config of a run, which may name ids

How = Literal["rows", "name", "text", "plan", "unreadable"]


@dataclass(frozen=True)
class Place:
    """A dataset that rows can be erased from: one of the unit protocol, or versions of faces."""

    uri: str
    kind: Literal["units", "faces"]

    @property
    def store(self) -> Store:
        return Store(self.uri)

    @property
    def root(self) -> str:
        """Return the URI that image ids are relative to; empty for faces, whose rows store image ids."""
        return load_plan(self.uri).record.root if self.kind == "units" else ""


@dataclass(frozen=True)
class Occurrence:
    """Ids in one file. how: rows; its name; its text; plan: in the frozen list of inputs or the
    stored config, which are not changed; unreadable: unknown."""

    dataset: str
    file: str
    how: How
    rows: int = 0

    @property
    def counts(self) -> bool:
        """Whether it counts as a trace; a plan only has the URI of an image in the source."""
        return self.how not in ("plan", "unreadable")


def find_places(dest: str) -> list[Place]:
    """Return the datasets that DEST refers to: itself, or those of an ingest below it. EraseError if none."""
    store = Store(dest)
    if store.exists(TRAINING):
        raise EraseError(
            f"{store.uri} holds a training run: weights have no rows. Erase the faces that it was trained on, then "
            f"retrain: deca train FACES {store.uri} --new"
        )
    if store.exists(PLAN):
        return [Place(store.uri, "units")]
    if store.exists(CURRENT):
        return [Place(store.uri, "faces")]
    inside: list[Place] = []
    for folder, mark, kind in ((ANNOTATIONS_FOLDER, PLAN, "units"), (FACES_FOLDER, CURRENT, "faces")):
        if store.exists(f"{folder}/{mark}"):
            inside.append(Place(store.join(folder), "units" if kind == "units" else "faces"))
    if not inside:
        raise EraseError(f"{store.uri} holds no dataset: no {PLAN}, no {CURRENT}, nor either in a folder below it")
    return inside


# --- occurrences ------------------------------------------------------------------------------------------------------


def occurrences(place: Place, erased: Erased) -> list[Occurrence]:
    """Return every file of a dataset that contains one of the ids, except tombstones and erasure records."""
    if not erased:
        return []
    root = place.root
    names = [name for name in place.store.walk() if not name.startswith(f"{ERASED}/")]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        found = pool.map(lambda name: list(_look(place, name, erased, root)), names)
        return [one for some in found for one in some]


def _look(place: Place, name: str, erased: Erased, root: str) -> Iterator[Occurrence]:
    if erased.names(name):
        yield Occurrence(place.uri, name, "name")
    try:
        if name.endswith((".parquet", ".parquet.tmp")):
            rows = _count_rows(place, name, erased, root)
            if rows:
                planned = name.startswith(f"{PLAN_FOLDER}/")
                yield Occurrence(place.uri, name, "plan" if planned else "rows", rows)
        elif name.endswith(TEXTS) and erased.names(place.store.read(name).decode(errors="replace")):
            yield Occurrence(place.uri, name, "plan" if name in SETTINGS else "text")
    except FileNotFoundError:  # gone since it was listed
        return
    except pa.ArrowInvalid:  # cut off by a kill
        yield Occurrence(place.uri, name, "unreadable")


def _count_rows(place: Place, name: str, erased: Erased, root: str) -> int:
    """Return the number of erased rows of a Parquet file."""
    with open_checked(place.store.join(name), None, BLOCK) as file:
        parquet = pq.ParquetFile(file)
        schema = parquet.schema_arrow
        if schema.names == QUARANTINE_SCHEMA.names:
            return sum(erased.has_quarantined(row, root) for row in table_to_quarantine(parquet.read()))
        if schema.names == ITEM_SCHEMA.names:
            return sum(erased.has_item(item) for item in table_to_items(parquet.read(), root))
        if schema.names == SNAPSHOT_SCHEMA.names:
            groups = (parquet.read_row_group(group, columns=["files"]) for group in range(parquet.num_row_groups))
            rows = (row["files"] for group in groups for row in group.to_pylist())
            return sum(any(erased.names(file["file"]) for file in files) for files in rows)
        columns = id_columns(schema)
        return int(erased.rows(parquet.read(columns=columns)).sum()) if columns else 0
