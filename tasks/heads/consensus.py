"""One shape code for each identity: a robust mean over its images; also one detail code, if asked.

A second pass over finished reconstructions that reads only identities and codes. The rows stay unchanged; the result is
stored beside them in consensus/, one row an identity, and `share_codes` applies it to rows that have been read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from deca_core.assets import AssetBundle
from deca_core.errors import DecaError
from schemas.consensus import CONSENSUS_FOLDER, CURRENT, SCHEMA_VERSION, ConsensusRecord, consensus_schema
from schemas.parquet import field_shape, fixed_array, fixed_values, write_table
from tasks.heads.derived import publish_file, publish_record, rows_digest, verify_derived
from tasks.store.ranges import open_checked
from tasks.store.records import read_record
from tasks.store.storage import Store
from tasks.units.commits import Part, read_parts
from tasks.units.plan import READ_THREADS, load_plan
from tasks.units.verify import Verification

BLOCK = 2**16  # bytes read ahead: codes are small columns beside large ones
ROW_GROUP = 4096  # rows of some hundred floats
STEPS = 60  # of Weiszfeld's iteration; a fixed number, so that no identity's result depends on another's
SOFT = 1e-3  # of the mean distance: floor of the distances; keeps the median unique, and finite at a point
FAR = 2.5  # median distances from the median: images beyond show another subject, or too little of the face
AT_ONCE = 2**22  # numbers that are iterated together

Floats = NDArray[np.float64]


class ConsensusError(DecaError):
    """No consensus, or one of other rows; says what to run."""


# --- the median -------------------------------------------------------------------------------------------------------


def robust_weights(points: Floats) -> Floats:
    """Weights (M,N) of the N images of each of M identities, 0 for outliers and equal for the others: points (M,N,D).

    Outliers are far from the geometric median, whose breakdown point is one half. The mean of the others is closer to
    the truth than the median, which leans towards outliers.
    """
    middle = _centres(points, median_weights(points))
    distances = _distances(points, middle)
    near = FAR * np.median(distances, axis=1, keepdims=True) + SOFT * distances.mean(axis=1, keepdims=True)
    kept = (distances <= near).astype(float)
    return np.asarray(kept / kept.sum(axis=1, keepdims=True))


def median_weights(points: Floats) -> Floats:
    """Weights (M,N) that make the geometric median, the point with the least sum of distances: points (M,N,D).

    Weiszfeld 1937, with distances softened to sqrt(d^2 + eps^2).
    """
    count = points.shape[1]
    weights = np.full(points.shape[:2], 1 / count)
    if count < 3:
        return weights  # of two points neither is the outlier
    soft = (
        SOFT * _distances(points, _centres(points, weights)).mean(axis=1, keepdims=True) + np.finfo(float).tiny ** 0.5
    )
    for _ in range(STEPS):
        distances = np.hypot(_distances(points, _centres(points, weights)), soft)
        weights = soft / distances
        weights /= weights.sum(axis=1, keepdims=True)
    return weights


def _centres(points: Floats, weights: Floats) -> Floats:
    return (points * weights[..., None]).sum(axis=1)


def _distances(points: Floats, centres: Floats) -> Floats:
    return np.sqrt(np.square(points - centres[:, None]).sum(axis=2))


def shape_metric(bundle: AssetBundle) -> Floats:
    """(100,100) matrix F: |(a - b) F| is the distance of two shapes in millimetres, root mean square over vertices."""
    basis = bundle.shape_basis.astype(np.float64)
    columns = 1000 * basis.reshape(-1, basis.shape[2]) / np.sqrt(len(basis))
    values, vectors = np.linalg.eigh(columns.T @ columns)
    return np.asarray(vectors * np.sqrt(values.clip(min=0)))


# --- making it --------------------------------------------------------------------------------------------------------


def make_consensus(dest: str, bundle: AssetBundle, detail: bool = False) -> ConsensusRecord:
    """Make the consensus of the committed rows at `dest`; returns the stored record if it is of these rows.

    Memory holds the codes of identities with rows still to come: few where the rows are sorted by identity.
    Raises ConsensusError where no row has an identity, PlanError, StorageError.
    """
    plan = load_plan(dest)
    parts = read_parts(plan)
    previous, store = consensus_record(dest), _store(dest)
    same: dict[str, Any] = {
        "fingerprint": plan.fingerprint,
        "rows_sha256": rows_digest(parts),
        "bundle": bundle.hash,
        "detail": detail,
    }
    if previous and previous.model_dump(include=set(same)) == same and store.exists(previous.file.file):
        return previous
    work = _Pass(Store(dest), [part for part in parts if part.rows], shape_metric(bundle))
    table = work.run(detail)
    metadata = {"fingerprint": plan.fingerprint, "weights.bundle": bundle.hash}
    with store.scratch(CURRENT) as path:
        write_table(table, path, metadata, ROW_GROUP)
        file = publish_file(store, path, "identities")
    record = ConsensusRecord(
        **same,
        identities=len(table),
        faces=pc.sum(table["count"]).as_py(),
        unknown=work.unknown,
        file=file,
    )
    publish_record(store, CURRENT, record, file)
    return record


@dataclass
class _Codes:
    """Codes of images of one identity, a list entry a part."""

    face_ids: list[NDArray[np.str_]] = field(default_factory=list)
    shape: list[NDArray[np.float32]] = field(default_factory=list)
    detail: list[NDArray[np.float32]] = field(default_factory=list)


@dataclass
class _Pass:
    """One pass over the parts, in order."""

    store: Store
    parts: list[Part]
    metric: Floats
    unknown: int = 0

    def run(self, detail: bool) -> pa.Table:
        """Rows of consensus_schema, sorted by identity_id."""
        names, last = self.identities()
        schema, counts = consensus_schema(detail), np.zeros(len(names), np.int64)
        columns = {
            column.name: np.zeros((len(names), *field_shape(column)), np.float32)
            for column in schema
            if pa.types.is_fixed_size_list(column.type)
        }
        columns |= {name: np.zeros(len(names)) for name in schema.names if name == "used" or name.endswith("spread")}
        waiting: dict[int, _Codes] = defaultdict(_Codes)
        for part, table in enumerate(self.read(["identity_id", "face_id", "shape", *(["detail"] if detail else [])])):
            number = pc.index_in(table["identity_id"], names).fill_null(-1).to_numpy()
            self.unknown += int((number < 0).sum())
            found = _rows_by_identity(number)
            values = {name: fixed_values(table, name) for name in table.column_names if name in ("shape", "detail")}
            face_ids = table["face_id"].to_numpy().astype(str)
            for identity, rows in found.items():
                waiting[identity].face_ids.append(face_ids[rows])
                for name, array in values.items():
                    getattr(waiting[identity], name).append(array[rows])
            ended = [identity for identity in found if last[identity] == part]
            for group in _groups(ended, waiting, counts):
                self.fill(group, waiting, columns)
        arrays = {"identity_id": names, "count": pa.array(counts)}
        for name, array in columns.items():
            column = schema.field(name)
            arrays[name] = fixed_array(column, array) if array.ndim > 1 else pa.array(array).cast(column.type)
        return pa.table([arrays[name] for name in schema.names], schema=schema)

    def identities(self) -> tuple[pa.Array, NDArray[np.int64]]:
        """(sorted identity_ids; for each the number of the last part that holds it)."""
        found = [table["identity_id"].drop_null().unique() for table in self.read(["identity_id"])]
        names = pa.chunked_array(found, pa.string()).unique() if found else pa.array([], pa.string())
        if not len(names):
            raise ConsensusError(
                f"{self.store.uri}: no row has an identity (identity_id), so there is no consensus to make. "
                "Reconstruct faces that ingest has grouped: deca ingest SRC people/, then deca reconstruct people/ DEST"
            )
        names = names.take(pc.sort_indices(names))
        last = np.zeros(len(names), np.int64)
        for part, ids in enumerate(found):
            last[pc.index_in(ids, names).to_numpy()] = part
        return names, last

    def read(self, columns: list[str]) -> Iterator[pa.Table]:
        """These columns of the parts, in order; memory holds READ_THREADS of them."""

        def one(part: Part) -> pa.Table:
            with open_checked(self.store.join(part.file), None, BLOCK) as file:
                return pq.ParquetFile(file).read(columns=columns)

        with ThreadPoolExecutor(READ_THREADS) as pool:
            for first in range(0, len(self.parts), READ_THREADS):
                yield from pool.map(one, self.parts[first : first + READ_THREADS])

    def fill(self, identities: list[int], waiting: dict[int, _Codes], columns: dict[str, NDArray]) -> None:
        """Fill the rows of identities with equally many images."""
        codes = [waiting.pop(identity) for identity in identities]
        # Sorted, so that sums do not depend on the unit of an image.
        orders = [np.argsort(np.concatenate(one.face_ids), kind="stable") for one in codes]
        for name, metric, spread in (("shape", self.metric, "spread"), ("detail", None, "detail_spread")):
            if name not in columns:
                continue
            parts = (np.concatenate(getattr(one, name))[order] for one, order in zip(codes, orders, strict=True))
            values = np.stack(list(parts)).astype(np.float64)
            points = values if metric is None else values @ metric
            weights = robust_weights(points)
            columns[name][identities] = _centres(values, weights)
            columns[spread][identities] = np.median(_distances(points, _centres(points, weights)), axis=1)
            if name == "shape":
                columns["used"][identities] = (weights > 0).sum(axis=1)


def _rows_by_identity(number: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """Rows of each identity in a part, without those of none (-1)."""
    order = np.argsort(number, kind="stable")
    identities, starts = np.unique(number[order], return_index=True)
    rows = np.split(order, starts[1:])
    return {int(identity): own for identity, own in zip(identities, rows, strict=True) if identity >= 0}


def _groups(identities: list[int], codes: dict[int, _Codes], counts: NDArray[np.int64]) -> Iterator[list[int]]:
    """Groups of identities with equally many images, of bounded memory; fills in their counts."""
    groups: dict[int, list[int]] = defaultdict(list)
    for identity in identities:
        counts[identity] = sum(map(len, codes[identity].face_ids))
        groups[int(counts[identity])].append(identity)
    for count, group in sorted(groups.items()):
        size = max(1, AT_ONCE // (count * 128))
        yield from (group[first : first + size] for first in range(0, len(group), size))


# --- reading it -------------------------------------------------------------------------------------------------------


def _store(dest: str) -> Store:
    return Store(Store(dest).join(CONSENSUS_FOLDER))


def consensus_record(dest: str) -> ConsensusRecord | None:
    """The record of the consensus at `dest`, also of earlier rows; None where there is none."""
    try:
        return ConsensusRecord.model_validate_json(read_record(_store(dest), CURRENT, SCHEMA_VERSION, "rows_sha256"))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ConsensusError(
            f"{_store(dest).join(CURRENT)} is damaged or of another version of the program. Delete it, then: "
            f"{_again(dest)}"
        ) from error


def read_consensus(dest: str) -> pa.Table:
    """The consensus of the current rows at `dest` (consensus_schema). Raises ConsensusError where there is none."""
    record = consensus_record(dest)
    if record is None:
        raise ConsensusError(f"{Store(dest).uri} has no consensus. Run: {_again(dest)}")
    again = _again(dest) + (" --consensus-detail" if record.detail else "")
    made_of, plan = (record.fingerprint, record.rows_sha256), load_plan(dest)
    if made_of != (plan.fingerprint, rows_digest(read_parts(plan))):
        raise ConsensusError(f"{Store(dest).uri}: rows came or went after its consensus was made. Run: {again}")
    try:
        return pq.read_table(pa.BufferReader(_store(dest).read(record.file.file)))
    except FileNotFoundError as error:
        uri = _store(dest).join(record.file.file)
        raise ConsensusError(f"{uri} is missing, or was just replaced. Run: {again}") from error


def share_codes(table: pa.Table, consensus: pa.Table) -> pa.Table:
    """Rows of reconstructions/ with the codes of `consensus` in place of their own; rows without identity keep theirs.

    table: any columns, `identity_id` among them. The displacement stays the image's: decode it again where `detail` is
    shared.
    """
    number = pc.index_in(table["identity_id"], consensus["identity_id"].combine_chunks()).fill_null(-1).to_numpy()
    known = number >= 0
    for name in ("shape", "detail"):
        if name in table.column_names and name in consensus.column_names:
            values = fixed_values(table, name).copy()
            values[known] = fixed_values(consensus, name)[number[known]]
            place, column = table.schema.get_field_index(name), table.schema.field(name)
            table = table.set_column(place, column, fixed_array(column, values))
    return table


def verify_consensus(dest: str) -> Verification:
    """Hash the consensus; also a problem: it was made of other rows than those at `dest`."""
    record = consensus_record(dest)
    assert record is not None, "called only where there is one"
    return verify_derived(dest, CONSENSUS_FOLDER, CURRENT, record.file, record.identities, lambda: read_consensus(dest))


def _again(dest: str) -> str:
    return f"deca reconstruct SRC {Store(dest).uri} --resume --consensus identity"
