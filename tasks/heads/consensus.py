"""Pictures of one person share one skull: a robust mean of their shape codes, and of their detail codes if asked.

A second pass over finished reconstructions that reads identities and codes and nothing else. The rows stay as they
are; what a person's pictures share lies beside them in consensus/, one row a person, and `share_codes` puts it into
rows that have been read. The file comes first and the record after it, in one write, so that a reader finds the earlier
consensus or the new one; of which rows a consensus was made stands in its record, and one of other rows is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
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
from schemas.ledger import StoredFile
from schemas.parquet import field_shape, fixed_array, fixed_values, write_table
from tasks.store.ranges import open_checked
from tasks.store.records import read_record
from tasks.store.storage import Store, hash_file
from tasks.units.commits import Part, read_parts
from tasks.units.plan import READ_THREADS, load_plan
from tasks.units.verify import Verification

BLOCK = 2**16  # bytes read ahead: codes are small columns beside large ones
ROW_GROUP = 4096  # rows of some hundred floats
STEPS = 60  # of Weiszfeld's iteration; always as many, so that no person's result depends on another's
SOFT = 1e-3  # of the mean distance: below, a picture pulls no harder. Keeps the median unique and finite on a picture
FAR = 2.5  # median distances from the median: pictures beyond are of somebody else, or show too little
AT_ONCE = 2**22  # numbers that are iterated together

Floats = NDArray[np.float64]


class ConsensusError(DecaError):
    """No consensus, or one of other rows; says what to run."""


# --- the median -------------------------------------------------------------------------------------------------------


def robust_weights(points: Floats) -> Floats:
    """Weights (M,N) of the N pictures of each of M people, 0 for outliers and equal for the others: points (M,N,D).

    Outliers lie far from the geometric median, which less than half of the points cannot carry away. The mean of the
    others is closer to the truth than the median: that leans to where outliers are.
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
        return weights  # of two points no one is the outlier
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
    """(100,100) matrix F: |(a - b) F| is how far two shapes lie apart, millimetres, root mean square over vertices."""
    basis = bundle.shape_basis.astype(np.float64)
    columns = 1000 * basis.reshape(-1, basis.shape[2]) / np.sqrt(len(basis))
    values, vectors = np.linalg.eigh(columns.T @ columns)
    return np.asarray(vectors * np.sqrt(values.clip(min=0)))


# --- making it --------------------------------------------------------------------------------------------------------


def make_consensus(dest: str, bundle: AssetBundle, detail: bool = False) -> ConsensusRecord:
    """The consensus of the committed rows of the reconstructions at `dest`; the one that is there if it is of them.

    Memory holds the codes of people whose rows have begun and not ended, little where the rows are sorted by identity.
    Raises ConsensusError where no row has an identity, PlanError, StorageError.
    """
    plan = load_plan(dest)
    parts = read_parts(plan)
    made = _digest(parts)
    previous, store = consensus_record(dest), _store(dest)
    same: dict[str, Any] = {
        "fingerprint": plan.fingerprint,
        "rows_sha256": made,
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
        name = f"identities-{hash_file(path)[1][:8]}.parquet"
        size, sha256 = store.publish(path, name)
    record = ConsensusRecord(
        **same,
        identities=len(table),
        faces=pc.sum(table["count"]).as_py(),
        unknown=work.unknown,
        file=StoredFile(file=name, bytes=size, sha256=sha256),
    )
    store.write(CURRENT, record.model_dump_json(indent=1).encode())
    for other in store.list():
        if other not in (name, CURRENT):
            store.delete(other)
    return record


def _digest(parts: Sequence[Part]) -> str:
    return hashlib.sha256(json.dumps([[part.unit, part.sha256] for part in parts]).encode()).hexdigest()


@dataclass
class _Codes:
    """Codes of some pictures of one person."""

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
            found = _by_person(number)
            values = {name: fixed_values(table, name) for name in table.column_names if name in ("shape", "detail")}
            face_ids = table["face_id"].to_numpy().astype(str)
            for person, rows in found.items():
                waiting[person].face_ids.append(face_ids[rows])
                for name, array in values.items():
                    getattr(waiting[person], name).append(array[rows])
            ended = [person for person in found if last[person] == part]
            for people in _alike(ended, waiting, counts):
                self.agree(people, waiting, columns)
        arrays = {"identity_id": names, "count": pa.array(counts)}
        for name, array in columns.items():
            column = schema.field(name)
            arrays[name] = fixed_array(column, array) if array.ndim > 1 else pa.array(array).cast(column.type)
        return pa.table([arrays[name] for name in schema.names], schema=schema)

    def identities(self) -> tuple[pa.Array, NDArray[np.int64]]:
        """(the people's names, sorted; the number of the part that holds the last of each)."""
        found = [table["identity_id"].drop_null().unique() for table in self.read(["identity_id"])]
        names = pa.chunked_array(found, pa.string()).unique() if found else pa.array([], pa.string())
        if not len(names):
            raise ConsensusError(
                f"{self.store.uri}: no row says who it is (identity_id), so there is nobody to agree on a head. "
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

    def agree(self, people: list[int], waiting: dict[int, _Codes], columns: dict[str, NDArray]) -> None:
        """The rows of people with equally many pictures."""
        codes = [waiting.pop(person) for person in people]
        # Sorted, so that sums do not depend on which unit a picture was in.
        orders = [np.argsort(np.concatenate(one.face_ids), kind="stable") for one in codes]
        for name, metric, spread in (("shape", self.metric, "spread"), ("detail", None, "detail_spread")):
            if name not in columns:
                continue
            parts = (np.concatenate(getattr(one, name))[order] for one, order in zip(codes, orders, strict=True))
            values = np.stack(list(parts)).astype(np.float64)
            points = values if metric is None else values @ metric
            weights = robust_weights(points)
            columns[name][people] = _centres(values, weights)
            columns[spread][people] = np.median(_distances(points, _centres(points, weights)), axis=1)
            if name == "shape":
                columns["used"][people] = (weights > 0).sum(axis=1)


def _by_person(number: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """Rows of each person in a part; those of nobody (-1) left out."""
    order = np.argsort(number, kind="stable")
    people, starts = np.unique(number[order], return_index=True)
    rows = np.split(order, starts[1:])
    return {int(person): own for person, own in zip(people, rows, strict=True) if person >= 0}


def _alike(people: list[int], codes: dict[int, _Codes], counts: NDArray[np.int64]) -> Iterator[list[int]]:
    """The people in groups of equally many pictures, small enough for memory; notes the counts."""
    groups: dict[int, list[int]] = defaultdict(list)
    for person in people:
        counts[person] = sum(map(len, codes[person].face_ids))
        groups[int(counts[person])].append(person)
    for count, group in sorted(groups.items()):
        size = max(1, AT_ONCE // (count * 128))
        yield from (group[first : first + size] for first in range(0, len(group), size))


# --- reading it -------------------------------------------------------------------------------------------------------


def _store(dest: str) -> Store:
    return Store(Store(dest).join(CONSENSUS_FOLDER))


def consensus_record(dest: str) -> ConsensusRecord | None:
    """The record of the consensus at `dest`, whichever rows it was made of; None where there is none."""
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
    """Rows of consensus_schema for the rows that lie at `dest`. Raises ConsensusError where there are none for them."""
    record = consensus_record(dest)
    if record is None:
        raise ConsensusError(f"{Store(dest).uri} has no consensus. Run: {_again(dest)}")
    again = _again(dest) + (" --consensus-detail" if record.detail else "")
    made_of, plan = (record.fingerprint, record.rows_sha256), load_plan(dest)
    if made_of != (plan.fingerprint, _digest(read_parts(plan))):
        raise ConsensusError(f"{Store(dest).uri}: rows came or went after its consensus was made. Run: {again}")
    try:
        return pq.read_table(pa.BufferReader(_store(dest).read(record.file.file)))
    except FileNotFoundError as error:
        uri = _store(dest).join(record.file.file)
        raise ConsensusError(f"{uri} is missing, or was replaced this moment. Run: {again}") from error


def share_codes(table: pa.Table, consensus: pa.Table) -> pa.Table:
    """Rows of reconstructions/ with the codes of `consensus` in place of their own; rows of nobody keep theirs.

    table: any columns, `identity_id` among them. The displacement stays that of the picture: where `detail` is shared,
    decode it anew.
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
    """Hash the consensus again; a problem also where it is of other rows than those that lie at `dest`."""
    record = consensus_record(dest)
    assert record is not None, "asked for where there is one"
    problems = []
    try:
        data = _store(dest).read(record.file.file)
        if hashlib.sha256(data).hexdigest() != record.file.sha256:
            problems.append(f"{CONSENSUS_FOLDER}/{record.file.file}: changed since it was published")
        else:
            read_consensus(dest)
    except FileNotFoundError:
        problems.append(f"{CONSENSUS_FOLDER}/{record.file.file}: missing")
    except ConsensusError as error:
        problems.append(str(error))
    leftovers = [name for name in _store(dest).list() if name not in (record.file.file, CURRENT)]
    return Verification(1, record.identities, problems, leftovers)


def _again(dest: str) -> str:
    return f"deca reconstruct SRC {Store(dest).uri} --resume --consensus identity"
