"""Rewrite committed parts without some of their rows; the commit record switches from the old part to the new."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.ledger import CommitRecord, StoredFile
from schemas.parquet import write_table
from tasks.store.storage import Store, hash_file
from tasks.units.tombstones import Erased, id_columns

SOURCE_COLUMN = "source_uri"


@dataclass(frozen=True)
class Files:
    """Files beside a part after rows were removed."""

    stay: list[StoredFile]
    gone: list[str]  # named by rows that went, and by no other; or by their own name of the erased
    shared: list[str]  # named by rows of both kinds


def drop_rows(store: Store, commit: CommitRecord, uris: Collection[str]) -> CommitRecord:
    """Publish the part of `commit` without the rows of these source URIs; the record to commit in its place.

    The same record where there are no such rows. The new part's name contains its hash, so that the old one stays
    whole until the commit is replaced. Files of these rows leave the record and stay stored, to be overwritten.
    Raises ValueError for a dataset without a column of source URIs.
    """
    if commit.part is None:
        return commit
    table = pq.read_table(pa.BufferReader(store.read(commit.part)))
    if SOURCE_COLUMN not in table.schema.names:
        raise ValueError(f"{store.join(commit.part)} has no column {SOURCE_COLUMN}")
    going = pc.is_in(table[SOURCE_COLUMN], pa.array(sorted(uris), pa.string())).to_numpy()
    if not going.any():
        return commit
    return publish_without(store, commit, table, going, files_left(commit.files, table, going).stay)


def publish_without(
    store: Store, commit: CommitRecord, table: pa.Table, going: NDArray[np.bool_], files: list[StoredFile]
) -> CommitRecord:
    """Publish a part (its table) without the rows `going` (N,) under a new name; the record that names it."""
    assert commit.part is not None
    kept = table.filter(pa.array(~going))
    with store.scratch(commit.part) as path:
        write_table(kept, path)
        size, sha256 = hash_file(path)
        first = Path(commit.part).stem.split("-")[:3]  # part, unit, fingerprint
        name = f"{'-'.join(first)}-{sha256[:8]}.parquet"
        store.publish(path, name)
    changed = {"part": name, "rows": len(kept), "bytes": size, "sha256": sha256, "files": files}
    return commit.model_copy(update={**changed, "origin": commit.origin or commit.sha256})


def spare(path: Path, files: Sequence[StoredFile], erased: Erased) -> tuple[int, Files] | None:
    """Remove erased rows from an unpublished part; return (rows left, files left), None if it has none."""
    parquet = pq.ParquetFile(path)
    ids = parquet.read(columns=id_columns(parquet.schema_arrow))
    going = erased.rows(ids)
    if not going.any():
        return None
    table = parquet.read()
    write_table(table.filter(pa.array(~going)), path)
    return int((~going).sum()), files_left(files, table, going, erased)


# --- files beside the part --------------------------------------------------------------------------------------------


def files_left(
    files: Sequence[StoredFile], table: pa.Table, going: NDArray[np.bool_], erased: Erased | None = None
) -> Files:
    """Split the files of a part after rows are removed: a row owns the files that any of its texts names.

    erased: files that no row names go as well where their own name holds one of these ids.
    """
    names = {file.file for file in files}
    if not names:
        return Files([], [], [])
    of_kept = _named(table.filter(pa.array(~going)), names)
    of_going = _named(table.filter(pa.array(going)), names)
    of_erased = {name for name in names if erased is not None and erased.names(name)}
    gone = (of_going | of_erased) - of_kept
    return Files([file for file in files if file.file not in gone], sorted(gone), sorted(of_going & of_kept))


def _named(table: pa.Table, names: set[str]) -> set[str]:
    """Which of these names stand in any column of text, also inside lists and structs."""
    found: set[str] = set()
    for column in table.columns:
        for texts in _texts(column):
            found.update(names.intersection(texts.unique().to_pylist()))
    return found


def _texts(column: pa.ChunkedArray | pa.Array) -> Iterator[pa.Array]:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield column
    elif pa.types.is_struct(kind):
        for index in range(kind.num_fields):
            yield from _texts(pc.struct_field(column, index))
    elif (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and not pa.types.is_primitive(kind.value_type):
        yield from _texts(pc.list_flatten(column))
