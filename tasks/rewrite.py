"""Committed parts rewritten without some of their rows; the commit record switches from the old part to the new one."""

from __future__ import annotations

from collections.abc import Collection
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.ledger import CommitRecord
from schemas.parquet import write_table
from tasks.storage import Store, hash_file

SOURCE_COLUMN, FILES_COLUMN = "source_uri", "files"
FILE_COLUMNS = ("displacement_file", "mesh_file")


def drop_rows(store: Store, commit: CommitRecord, uris: Collection[str]) -> CommitRecord:
    """Publish the part of `commit` without the rows of these source URIs; the record to commit in its place.

    The same record where there are no such rows. The new part's name holds its hash, so that the old one stays whole
    until the commit is replaced. Raises ValueError for a dataset without a column of source URIs.
    """
    if commit.part is None:
        return commit
    table = pq.read_table(pa.BufferReader(store.read(commit.part)))
    if SOURCE_COLUMN not in table.schema.names:
        raise ValueError(f"{store.join(commit.part)} has no column {SOURCE_COLUMN}")
    kept = table.filter(pc.invert(pc.is_in(table[SOURCE_COLUMN], pa.array(sorted(uris), pa.string()))))
    if len(kept) == len(table):
        return commit
    with store.scratch(commit.part) as path:
        write_table(kept, path)
        size, sha256 = hash_file(path)
        first = Path(commit.part).stem.split("-")[:3]  # part, unit, fingerprint
        name = f"{'-'.join(first)}-{sha256[:8]}.parquet"
        store.publish(path, name)
    files = commit.files
    if files:
        names = [kept[name].to_pylist() for name in FILE_COLUMNS if name in kept.schema.names]
        names += kept[FILES_COLUMN].to_pylist() if FILES_COLUMN in kept.schema.names else []
        named = set(chain.from_iterable(names))
        files = [file for file in files if file.file in named]  # the others are written anew with their rows
    return commit.model_copy(update={"part": name, "rows": len(kept), "bytes": size, "sha256": sha256, "files": files})
