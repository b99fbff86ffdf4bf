"""Assigns an identity to each annotated face, and decides which faces enter faces/.

Identities come from the images' paths, a table, labels beside the images, or clustering. Every annotated face gets
one row of ASSIGNMENTS_SCHEMA: with an identity where it has one, and with a reason where it is left out. The reasons,
in this order: the filters by name, NO_LABEL, ANOTHER_FACE, ERASED, FEW.

Clustering knows a face again by its face_id and its descriptor: under the path of an image, which gives the face_id,
another image may lie today.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.annotate import Provider
from schemas.faces import ASSIGNMENTS_SCHEMA, IdentitySource, annotations_schema
from schemas.ingest import FilterConfig, IngestConfig
from schemas.parquet import fixed_values
from tasks.people.cluster import cluster
from tasks.people.identities import IdentityError, Labels, path_labels, places_below, table_labels
from tasks.store.storage import Store, open_uri, storage_errors
from tasks.units.commits import Part, read_parts
from tasks.units.plan import READ_THREADS, load_plan
from tasks.units.tombstones import read_erased

FILTERS = ("eye_distance", "sharpness", "yaw", "mask_coverage")
NO_LABEL, ANOTHER_FACE, FEW = "no label", "another face of a labelled picture", "few pictures"  # stored values
ERASED = "erased"  # new images of an erased subject; the identity is not stored either
SETTINGS = {  # what leaves a face out for a reason, where a setting does
    "eye_distance": "filters.min_eye_distance",
    "sharpness": "filters.min_sharpness",
    "yaw": "filters.max_yaw",
    "mask_coverage": "filters.min_mask_coverage",
    FEW: "shards.min_images",
}
REASONS = ("", *FILTERS, NO_LABEL, ANOTHER_FACE, ERASED, FEW)

# Largest distance within one subject, where strangers come no closer; where they do, cluster.py asks for less.
# dlib: its authors' 0.6 is for single pairs, and an archive has millions; six real subjects were 0.70 to 1.00 apart.
# ArcFace (facexlib), on the unit sphere: a cosine of 0.4, above the 0.3 or so at which it verifies single pairs.
MAX_DISTANCE: dict[Provider, float] = {"dlib": 0.5, "facexlib": 1.1}

SIZES = (1, 2, 5, 10, 20, 50, 100)  # first of each class of cluster sizes

Method = Literal["path", "table", "sidecar", "cluster", "none"]


@dataclass(frozen=True)
class Scores:
    """Agreement of clusters with labels; 1 without pairs.

    precision: share of the clustered pairs that are of one subject; recall: share of the pairs of one subject that are
    clustered; purity: share of faces that belong to the most frequent subject of their cluster.
    """

    precision: float
    recall: float
    purity: float
    faces: int


@dataclass(frozen=True)
class GroupReport:
    """What grouping found."""

    method: Method
    faces: int  # annotated
    kept: int  # that enter faces/
    identities: int  # that enter faces/
    sizes: dict[str, int]  # identities by faces: "1", "2-4", ...
    left_out: dict[str, int]  # faces by reason
    max_distance: float | None = None  # of clustering
    joined: int = 0  # faces that clustering added to earlier identities
    scores: Scores | None = None  # of clustering, where `pattern`, `table` or sidecar labels give the identity


@dataclass(frozen=True)
class Grouping:
    assignments: pa.Table  # ASSIGNMENTS_SCHEMA, sorted by face_id
    report: GroupReport


@dataclass
class _Faces:
    """The annotated faces, sorted by face_id, with their state during grouping."""

    dest: str
    parts: list[Part]
    order: NDArray[np.int64]  # place of each row in the concatenated parts
    table: pa.Table
    reason: NDArray[np.int8] = field(init=False)  # place in REASONS

    def __post_init__(self) -> None:
        self.reason = np.zeros(len(self.table), np.int8)

    def leave_out(self, mask: NDArray[np.bool_], reason: str) -> None:
        """The first reason stays."""
        self.reason[mask & (self.reason == 0)] = REASONS.index(reason)

    def column(self, name: str) -> pa.Array:
        return self.table[name].combine_chunks()


def group(annotations_dest: str, config: IngestConfig, previous: pa.Table | None) -> Grouping:
    """Return the grouping of all annotated faces.

    previous: ASSIGNMENTS_SCHEMA of the current version. Clustering keeps its identities (unless identity.regroup): a
    face keeps its own for good, new faces join them or found new ones. Labels are taken as they are each time.
    Raises IdentityError where labels name none of the images, PlanError, StorageError.
    """
    method = _method(config)
    faces = _read(annotations_dest, _columns(config, method))
    _filter(faces, config.filters)
    labels = _labels(faces, config, method) if len(faces.table) else None
    joined, scores, max_distance = 0, None, None
    descriptor = pa.nulls(len(faces.table), pa.int64())
    source: IdentitySource = method if method in ("cluster", "none") else "label"
    if method == "cluster":
        max_distance = _max_distance(config)
        known = None if config.identity.regroup else previous
        clusters = _clustered(faces, known, max_distance, config.identity.neighbours)
        identity, descriptor, joined = clusters.identity, clusters.descriptor, clusters.joined
        scores = _agreement(faces, identity, labels)
    elif labels is None:
        identity = pc.binary_join_element_wise("p", faces.column("face_id"), "-")
    else:
        identity = _labelled(faces, labels, config.identity.labelled_faces)
    identity = _leave_out_erased(faces, identity)
    _leave_out_few(faces, identity, config.shards.min_images)
    left_out = pa.DictionaryArray.from_arrays(pa.array(faces.reason, mask=faces.reason == 0), pa.array(REASONS))
    sources = pa.repeat(pa.scalar(source), len(identity))
    columns = [faces.column("face_id"), identity, sources, left_out.cast(pa.string()), descriptor]
    assignments = pa.table(columns, schema=ASSIGNMENTS_SCHEMA)
    return Grouping(assignments, _report(faces, identity, method, max_distance, joined, scores))


def read_annotations(dest: str, columns: Sequence[str]) -> pa.Table:
    """Return columns of every committed face, sorted by face_id; raises PlanError, StorageError, FileNotFoundError."""
    return _read(dest, columns).table.select(list(columns))


def pairwise_scores(assigned: NDArray, true: NDArray) -> Scores:
    """Return the agreement of two labellings (N,) from the counts of their common faces."""
    if not len(assigned):
        return Scores(1.0, 1.0, 1.0, 0)
    _, cluster_of = np.unique(assigned, return_inverse=True)
    subjects, subject_of = np.unique(true, return_inverse=True)
    cells, counts = np.unique(cluster_of.astype(np.int64) * len(subjects) + subject_of, return_counts=True)
    largest = np.zeros(int(cluster_of.max()) + 1, np.int64)
    np.maximum.at(largest, cells // len(subjects), counts)
    agreeing, together, same = (_pairs(sizes) for sizes in (counts, np.bincount(cluster_of), np.bincount(subject_of)))
    return Scores(
        precision=agreeing / together if together else 1.0,
        recall=agreeing / same if same else 1.0,
        purity=int(largest.sum()) / len(assigned),
        faces=len(assigned),
    )


def _pairs(sizes: NDArray[np.int64]) -> int:
    return int((sizes.astype(np.int64) * (sizes - 1) // 2).sum())


# --- reading ----------------------------------------------------------------------------------------------------------


def _read(dest: str, columns: Sequence[str]) -> _Faces:
    parts = read_parts(load_plan(dest))
    wanted = list(dict.fromkeys(["face_id", *columns]))
    fields = annotations_schema(1)
    empty = pa.schema([fields.field(name) for name in wanted]).empty_table()
    tables = list(_parts(dest, parts, wanted))
    table = pa.concat_tables(tables) if tables else empty
    order = pc.sort_indices(table["face_id"]).to_numpy()
    return _Faces(dest, parts, order, table.take(pa.array(order)))


def _parts(dest: str, parts: Sequence[Part], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Columns of the committed parts in order; memory holds READ_THREADS of them."""
    store = Store(dest)

    def read(part: Part) -> pa.Table:
        uri = store.join(part.file)
        with storage_errors("read", uri):
            fs, path = open_uri(uri)
            with fs.open(path) as file:
                table = pq.ParquetFile(file).read(columns=list(columns), use_threads=False)
        return table.select(list(columns)).replace_schema_metadata(None)

    with ThreadPoolExecutor(READ_THREADS) as pool:
        for start in range(0, len(parts), READ_THREADS):
            yield from pool.map(read, parts[start : start + READ_THREADS])


def _embeddings(faces: _Faces, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Descriptors (len(rows), D) of these faces, in their order."""
    wanted = np.full(len(faces.order), -1)
    wanted[faces.order[rows]] = np.arange(len(rows))  # place in the parts -> row of the result
    result: NDArray[np.float32] | None = None
    first = 0
    for part in _parts(faces.dest, faces.parts, ["embedding"]):
        values = fixed_values(part, "embedding")
        if result is None:
            result = np.empty((len(rows), values.shape[1]), np.float32)
        target = wanted[first : first + len(values)]
        result[target[target >= 0]] = values[target >= 0]
        first += len(values)
    return np.empty((0, 1), np.float32) if result is None else result


# --- steps ------------------------------------------------------------------------------------------------------------


def _method(config: IngestConfig) -> Method:
    identity = config.identity
    if identity.method != "auto":
        return identity.method
    if identity.pattern is not None:
        return "path"
    if identity.table is not None:
        return "table"
    return "sidecar" if config.annotate.sidecar.identity else "cluster"


def _columns(config: IngestConfig, method: Method) -> list[str]:
    columns = [*FILTERS, "image_id", "face_index"]
    if method != "none" and (config.identity.pattern is not None or config.identity.table is not None):
        columns.append("source_uri")
    if method == "sidecar" or config.annotate.sidecar.identity:
        columns.append("label")
    return columns


def _filter(faces: _Faces, limits: FilterConfig) -> None:
    """Leave out faces beyond a limit; NaN counts as beyond."""
    least = {
        "eye_distance": limits.min_eye_distance,
        "sharpness": limits.min_sharpness,
        "mask_coverage": limits.min_mask_coverage,
    }
    for name in FILTERS:
        values = faces.column(name).to_numpy(zero_copy_only=False)
        if name == "yaw":
            if limits.max_yaw is not None:
                faces.leave_out(~(np.abs(values) <= limits.max_yaw), name)
        elif (limit := least[name]) is not None:
            faces.leave_out(~(values >= limit), name)


def _labels(faces: _Faces, config: IngestConfig, method: Method) -> Labels | None:
    """The label of each face's image; None where nothing gives labels. For clustering they are the reference."""
    identity = config.identity
    if method == "none":
        return None
    if method == "path" or (method == "cluster" and identity.pattern is not None):
        return path_labels(_places(faces), identity.pattern or "")
    if method == "table" or (method == "cluster" and identity.table is not None):
        return table_labels(faces.column("source_uri"), _places(faces), identity.table or "")
    if "label" not in faces.table.column_names:
        return None
    labels = faces.column("label")
    if method == "sidecar" and labels.null_count == len(labels):
        raise IdentityError(
            "no image has a label beside it, as identity.method=sidecar expects. Name the files that hold them: "
            "--set annotate.sidecar.identity=['{stem}.id.txt']"
        )
    return labels


def _places(faces: _Faces) -> pa.Array:
    """Paths below the source."""
    return places_below(faces.column("source_uri"), load_plan(faces.dest).record.root)


def _labelled(faces: _Faces, labels: Labels, which: str) -> pa.Array:
    """Identities from labels. Other faces of a labelled image, and those without a label, are left out."""
    given = labels.is_valid().to_numpy(zero_copy_only=False)
    faces.leave_out(~given, NO_LABEL)
    carries = given if which == "all" else given & _largest(faces)
    faces.leave_out(~carries, ANOTHER_FACE)
    return pc.if_else(pa.array(carries), labels, pa.scalar(None, pa.string()))


def _largest(faces: _Faces) -> NDArray[np.bool_]:
    """Whether a face is the largest of its image that was annotated, kept or not.

    Where a larger one was erased none is: the label is of the erased subject.
    """
    image, index = _images(faces), faces.column("face_index").to_numpy()
    first = np.full(int(image.max(initial=-1)) + 1, np.iinfo(np.int32).max)
    np.minimum.at(first, image, index)
    gone = [face.rpartition("-") for face in read_erased(Store(faces.dest)).faces]
    if gone:
        known = faces.column("image_id").dictionary_encode().dictionary
        at = pc.index_in(pa.array([name for name, _, _ in gone]), value_set=known).fill_null(-1).to_numpy()
        numbers = np.array([int(number) if number.isdigit() else first.max() for _, _, number in gone])
        np.minimum.at(first, at[at >= 0], numbers[at >= 0])
    return np.asarray(index == first[image])


def _images(faces: _Faces) -> NDArray[np.int64]:
    """A number for each face's image."""
    return faces.column("image_id").dictionary_encode().indices.to_numpy().astype(np.int64)


def _max_distance(config: IngestConfig) -> float:
    if config.identity.max_distance is not None:
        return config.identity.max_distance
    return MAX_DISTANCE[config.annotate.provider_of("embed")]


@dataclass(frozen=True)
class _Clusters:
    """What clustering found."""

    identity: pa.Array  # of every annotated face; null: it took no part
    descriptor: pa.Array  # hash of its embedding; null as well
    joined: int = 0  # faces that joined earlier identities


def _clustered(faces: _Faces, previous: pa.Table | None, max_distance: float, neighbours: int) -> _Clusters:
    """Identities by descriptor. Faces that filters leave out take part only if known before."""
    ids = faces.column("face_id")
    names, known, descriptor = _earlier(ids, previous)
    rows = np.flatnonzero((faces.reason == 0) | (known >= 0))
    vectors = _embeddings(faces, rows)
    hashes = _hashes(vectors)
    changed = (known[rows] >= 0) & (hashes != descriptor[rows])  # another image lies there now
    known = np.where(changed, -1, known[rows])
    part = (faces.reason[rows] == 0) | (known >= 0)
    if not part.all():
        rows, vectors, hashes, known, changed = (column[part] for column in (rows, vectors, hashes, known, changed))
    alive, known[known >= 0] = np.unique(known[known >= 0], return_inverse=True)
    images = _images(faces)[rows]
    labels = cluster(vectors, max_distance=max_distance, neighbours=neighbours, images=images, known=known)
    joined = int(((known < 0) & (labels < len(alive))).sum())
    founded = pc.binary_join_element_wise("p", ids.take(pa.array(rows)), "-")
    # A founder may be another subject than before; a name stays with its subject.
    again = pc.is_in(founded, value_set=names).to_numpy(zero_copy_only=False) | changed
    if again.any():
        suffix = pa.array([f"{value:016x}" for value in hashes.view(np.uint64).tolist()])
        founded = pc.if_else(pa.array(again), pc.binary_join_element_wise(founded, suffix, "-"), founded)
    everyone = pa.concat_arrays([names.take(pa.array(alive)), founded])
    number, hashed = np.full(len(ids), -1), np.zeros(len(ids), np.int64)
    number[rows], hashed[rows] = labels, hashes
    absent = number < 0
    return _Clusters(everyone.take(pa.array(number, mask=absent)), pa.array(hashed, mask=absent), joined)


def _hashes(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """First 8 bytes of BLAKE2b of each descriptor's bytes (N, D), as little-endian numbers."""
    data = b"".join(hashlib.blake2b(vector.tobytes()).digest()[:8] for vector in vectors.astype("<f4", copy=False))
    return np.frombuffer(data, "<i8").astype(np.int64)


def _earlier(ids: pa.Array, previous: pa.Table | None) -> tuple[pa.Array, NDArray[np.int64], NDArray[np.int64]]:
    """(names of the earlier clusters, sorted; which of them each face is, -1 none; its descriptor's hash then)."""
    if previous is None:
        return pa.array([], pa.string()), np.full(len(ids), -1), np.zeros(len(ids), np.int64)
    rows = previous.filter(
        pc.and_(pc.equal(previous["identity_source"], "cluster"), previous["descriptor"].is_valid())
    ).combine_chunks()
    at = pc.index_in(ids, value_set=rows["face_id"].combine_chunks())
    identity = rows["identity_id"].combine_chunks().take(at)
    names = identity.unique().drop_null().sort()
    known = pc.fill_null(pc.index_in(identity, value_set=names), -1).to_numpy().astype(np.int64)
    return names, known, pc.fill_null(rows["descriptor"].combine_chunks().take(at), 0).to_numpy()


def _agreement(faces: _Faces, identity: pa.Array, labels: Labels | None) -> Scores | None:
    """Scores over the faces that clustering and the labels both know."""
    if labels is None:
        return None
    both = pc.and_(identity.is_valid(), labels.is_valid()).to_numpy(zero_copy_only=False) & _largest(faces)
    mask = pa.array(both)
    assigned, true = (side.filter(mask).dictionary_encode().indices.to_numpy() for side in (identity, labels))
    return pairwise_scores(assigned, true)


def _leave_out_erased(faces: _Faces, identity: pa.Array) -> pa.Array:
    """Leave out erased subjects, whatever else the reason was, without their identity."""
    erased = read_erased(Store(faces.dest))
    going = erased.rows(pa.table({"identity_id": identity}))
    if not going.any():
        return identity
    faces.reason[going] = REASONS.index(ERASED)
    return pc.if_else(pa.array(going), pa.scalar(None, pa.string()), identity)


def _leave_out_few(faces: _Faces, identity: pa.Array, min_images: int) -> None:
    """Leave out identities that have too few faces; they keep their name, so that they can grow."""
    number = pc.fill_null(identity.dictionary_encode().indices, -1).to_numpy()
    kept = faces.reason == 0
    counts = np.bincount(number[kept], minlength=int(number.max(initial=-1)) + 1)
    few = np.zeros(len(number), bool)
    few[kept] = counts[number[kept]] < min_images
    faces.leave_out(few, FEW)


def _report(
    faces: _Faces,
    identity: pa.Array,
    method: Method,
    max_distance: float | None,
    joined: int,
    scores: Scores | None,
) -> GroupReport:
    kept = faces.reason == 0
    counts = pc.value_counts(identity.filter(pa.array(kept))).field("counts").to_numpy()
    classes = np.searchsorted(SIZES, counts, side="right") - 1
    ends = [f"-{after - 1}" if after - 1 > first else "" for first, after in pairwise(SIZES)]
    names = [f"{first}{end}" for first, end in zip(SIZES, [*ends, "+"], strict=True)]
    reasons = Counter(REASONS[code] for code in faces.reason[~kept].tolist())
    return GroupReport(
        method=method,
        faces=len(kept),
        kept=int(kept.sum()),
        identities=len(counts),
        sizes=dict(zip(names, np.bincount(classes, minlength=len(names)).tolist(), strict=True)),
        left_out=dict(sorted(reasons.items())),
        max_distance=max_distance,
        joined=joined,
        scores=scores,
    )
