"""The layout of a version, decided before any crop is read: which shard each face is in, and what a shard depends on.

The rule. The place of an identity is the first 8 bytes of SHA-256(identity_id) as a fraction of 2^64; it is held back
for validation where the second 8 bytes, read the same way, are below `val_fraction`. The shards of a split are 2^k
equal ranges of places, k the smallest that leaves at most `faces_per_shard` faces a shard on average; rows are sorted
by (place, identity_id, face_id). So an identity lies in one shard (which it may make larger), adding subjects touches
only the shards they fall into, and a dataset that doubles splits each shard in two.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.faces import SCHEMA_VERSION, Split
from schemas.ingest import ShardConfig
from schemas.parquet import ROW_GROUP
from tasks.people.versions import FacesError
from tasks.store.ranges import open_checked
from tasks.store.storage import Store, storage_errors
from tasks.units.commits import read_parts
from tasks.units.plan import READ_THREADS, load_plan

INDEX_BLOCK = 64 * 1024  # bytes fetched at once: the ids of a part are small and lie far apart


@dataclass(frozen=True)
class ShardPlace:
    """One shard of a layout: rows first .. first + rows - 1 of its faces."""

    split: Split
    number: int
    first: int
    rows: int


@dataclass(frozen=True)
class Layout:
    """The faces of a version in the order of its shards: face_id, identity_id, identity_source."""

    faces: pa.Table
    shards: list[ShardPlace]

    def rows(self, shard: ShardPlace) -> pa.Table:
        return self.faces.slice(shard.first, shard.rows)


def lay_out(assignments: pa.Table, config: ShardConfig) -> Layout:
    """Return the layout of the faces that are not left out. assignments: rows of ASSIGNMENTS_SCHEMA in any order."""
    kept = assignments.filter(pc.is_null(assignments["left_out"]))
    kept = kept.select(["face_id", "identity_id", "identity_source"]).sort_by("face_id").combine_chunks()
    if kept["identity_id"].null_count:
        face = kept.filter(pc.is_null(kept["identity_id"]))["face_id"][0]
        raise FacesError(f"face {face} has neither an identity nor a reason to be left out; group the faces again")
    names = kept["identity_id"].unique()
    place, held_back = _hashes(names.to_pylist(), config.val_fraction)
    order = np.lexsort((_rank(names), place, held_back))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    subject = pc.index_in(kept["identity_id"], names).to_numpy()
    rows = np.argsort(rank[subject], kind="stable")  # stable: face_id stays the last key
    place, held_back = place[subject[rows]], held_back[subject[rows]]
    splits: list[tuple[Split, int, int]] = [("train", 0, len(rows) - int(held_back.sum()))]
    splits.append(("val", splits[0][2], len(rows)))
    shards = []
    for split, first, last in splits:
        numbers = _shard_numbers(place[first:last], config.faces_per_shard)
        values, starts, counts = np.unique(numbers, return_index=True, return_counts=True)
        for number, start, count in zip(values.tolist(), starts.tolist(), counts.tolist(), strict=True):
            shards.append(ShardPlace(split, number, first + start, count))
    return Layout(kept.take(pa.array(rows)), shards)


def _hashes(names: list[str], val_fraction: float) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """(place of each identity in units of 2^-64, whether it is held back)."""
    digests = b"".join(hashlib.sha256(name.encode()).digest()[:16] for name in names)
    halves = np.frombuffer(digests, ">u8").reshape(-1, 2).astype(np.uint64)
    return halves[:, 0], halves[:, 1] / 2.0**64 < val_fraction


def _rank(names: pa.ChunkedArray | pa.Array) -> NDArray[np.uint64]:
    """Position of each name in the order of their UTF-8 bytes."""
    return pc.rank(names).to_numpy()


def _shard_numbers(place: NDArray[np.uint64], faces_per_shard: int) -> NDArray[np.uint64]:
    bits = 0
    while len(place) > faces_per_shard << bits:
        bits += 1
    return place >> np.uint64(64 - bits) if bits else np.zeros_like(place)


# --- where the rows come from -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FaceIndex:
    """Which committed part holds each face."""

    face_ids: pa.ChunkedArray
    part: NDArray[np.int64]  # of each face: index into `uris`
    row: NDArray[np.int64]  # of each face: row of that part
    uris: list[str]
    sha256: list[str]  # of the parts, as they were before rows were taken out: the others are what they were
    embedding: int  # length of the identity descriptors; 0 where there is no part
    bytes_a_face: float  # in the parts, on average

    def locate(self, face_ids: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(part, row) of faces; part -1 where no part holds it."""
        at = pc.index_in(face_ids, self.face_ids).fill_null(-1).to_numpy()
        if not len(self.row):
            return np.full(len(at), -1), np.zeros(len(at), np.int64)
        return np.where(at < 0, -1, self.part[at]), np.where(at < 0, 0, self.row[at])


def index_faces(annotations: str) -> FaceIndex:
    """Return the index of every committed face, from the id columns alone.

    Raises FacesError for a face that two parts hold, and for parts whose descriptors differ in length.
    """
    store = Store(annotations)
    parts = read_parts(load_plan(annotations))
    uris = [store.join(part.file) for part in parts]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        found = list(pool.map(_read_ids, uris))
    counts = [len(ids) for ids, _ in found]
    starts = np.repeat(np.cumsum([0, *counts[:-1]]), counts) if counts else np.empty(0, np.int64)
    face_ids = pa.chunked_array([ids for ids, _ in found], pa.string())
    part = np.repeat(np.arange(len(counts)), counts)
    index = FaceIndex(
        face_ids,
        part,
        np.arange(len(part)) - starts,
        uris,
        [part.origin for part in parts],
        found[0][1] if found else 0,
        sum(one.bytes for one in parts) / max(1, len(part)),
    )
    _check_index(index, [embedding for _, embedding in found])
    return index


def _read_ids(uri: str) -> tuple[pa.Array, int]:
    """(ids of a part, length of its descriptors)."""
    try:
        with storage_errors("read", uri), open_checked(uri, None, INDEX_BLOCK) as file:
            parquet = pq.ParquetFile(file)
            ids = parquet.read(columns=["face_id"])["face_id"].combine_chunks()
            return ids, parquet.schema_arrow.field("embedding").type.list_size
    except FileNotFoundError as error:
        raise FacesError(f"{uri} is committed and missing. Run: deca verify {uri.rpartition('/')[0]}") from error


def _check_index(index: FaceIndex, embeddings: list[int]) -> None:
    for uri, embedding in zip(index.uris, embeddings, strict=True):
        if embedding != index.embedding:
            raise FacesError(
                f"{uri} has descriptors of {embedding} numbers, {index.uris[0]} of {index.embedding}: two embedders "
                "are mixed. Annotate again with --new"
            )
    counts = pc.value_counts(index.face_ids)
    doubled = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(doubled):
        face = doubled[0]["values"].as_py()
        parts = index.part[pc.equal(index.face_ids, face).to_numpy()]
        uris = " and ".join(index.uris[part] for part in parts[:2])
        raise FacesError(f"face {face} is in {uris}. Run: deca verify {uris.rpartition('/')[0]}")


def row_digests(layout: Layout, part: NDArray[np.int64], index: FaceIndex, settings: Mapping[str, str]) -> list[str]:
    """Return `rows_sha256` of every shard: over its faces in order, their identities, and the hashes of their parts.

    Equal digests mean equal files, so a shard whose digest is that of an earlier version need not be made again.
    part: of each face of the layout. settings: what else goes into every file.
    """
    hashes = pa.array([*index.sha256, ""])  # the last one is that of part -1
    digests = []
    for shard in layout.shards:
        header = {"schema": SCHEMA_VERSION, "row_group": ROW_GROUP, "shard": [shard.split, shard.number], **settings}
        rows = layout.rows(shard)
        files = hashes.take(pa.array(part[shard.first : shard.first + shard.rows] % len(hashes)))
        lines = pc.binary_join_element_wise(*rows.columns, files, "\0")
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        digest.update("\n".join(["", *lines.to_pylist()]).encode())
        digests.append(digest.hexdigest())
    return digests
