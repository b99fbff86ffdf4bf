"""Identity clustering by descriptor: components of a mutual-neighbour graph with a locally scaled threshold.

1. Each face's nearest neighbours (faiss). Its scale r is the mean distance of the nearest SCALE_NEIGHBOURS.
2. Two faces that are among each other's neighbours (Jarvis & Patrick 1973) are linked where d <= max_distance and
   e = d / sqrt(r_i r_j) <= LIMIT (local scaling, Zelnik-Manor & Perona 2004). A fixed threshold either links subjects
   that resemble many others or splits subjects that resemble none; e is a distance relative to how close strangers come
   here. r is kept between SURE * max_distance and max_distance, so that a subject with hundreds of images is not
   measured against itself, and subjects without near strangers are held to max_distance.
3. Connected components. One is a subject where its faces know each other: on average a share COHESION of the others (of
   at most SCALE_NEIGHBOURS) is linked to a face. A chain of look-alikes is not; it is taken apart by a tighter limit,
   again and again, and so is a component that holds two faces of one image or two subjects known before.

No N x N matrix; memory grows with N x neighbours. Equal input gives equal labels, whatever the number of threads:
distances that decide are recomputed in float64, and the search index is built by one thread from a fixed seed.
A subject with more images than `neighbours` may come apart, as not all of them can be each other's neighbours.

Tried on descriptors of the embedded world's subjects and left: average linkage (less recall at the same precision),
rank-order distances (Zhu et al., CVPR 2011) and Jaccard overlap of neighbour lists (good only where the lists are as
long as a subject has images).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

# Chosen for precision first, on the embedded world (5 images a subject, and 1 to 5) and on subjects with 1 to 300.
SCALE_NEIGHBOURS = 12
LIMIT = 1.05
SURE = 1 / 2
COHESION = 0.8
TIGHTEN = 0.97 ** np.arange(100)  # limits tried in turn, as shares of LIMIT: steps of 3 % down to a twentieth

EXACT = 100_000  # faces up to which the search is exhaustive
LINKS, BUILD_WIDTH, SEARCH_WIDTH = 32, 48, 128  # of the graph above; benchmarks/grouping.py measures what it finds
CHUNK = 4096  # faces searched at once

Rows = NDArray[np.int64]


def cluster(
    vectors: NDArray[np.float32],
    *,
    max_distance: float,
    neighbours: int,
    images: Rows | None = None,
    known: Rows | None = None,
) -> Rows:
    """Return a label (N,) for each of N descriptors (N, D); equal labels are one subject.

    max_distance: Euclidean, above it two faces are never linked; neighbours: nearest ones searched per face;
    images (N,): which image a face is from, and two faces of one image are two subjects; known (N,): identity >= 0 of
    an earlier face, -1 of a new one. Known faces keep their identity, and two identities are never joined; a new face
    joins the identity that its component holds. New subjects get first + row of their first face, where first is one
    above the largest of `known` (0 without). Raises ValueError for descriptors that are not finite.
    """
    count = len(vectors)
    if not np.isfinite(vectors).all():
        raise ValueError(f"descriptor {int(np.argmin(np.isfinite(vectors).all(axis=1)))} is not finite")
    known = np.full(count, -1, np.int64) if known is None else known
    images = np.arange(count) if images is None else images
    new = known < 0
    first = int(known.max(initial=-1)) + 1
    labels = np.where(new, first + np.arange(count), known)
    if new.any() and count > 1:
        edges = _edges(np.ascontiguousarray(vectors, np.float32), new, max_distance, min(neighbours, count - 1))
        _join(labels, _Graph(edges, new, images))
    return labels


# --- the graph --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Edges:
    """Links between faces: rows a < b, of which one at least is new, and their distance in local scale."""

    a: Rows
    b: Rows
    e: NDArray[np.float64]

    def where(self, mask: NDArray[np.bool_]) -> _Edges:
        return _Edges(self.a[mask], self.b[mask], self.e[mask])


@dataclass(frozen=True)
class _Graph:
    edges: _Edges
    new: NDArray[np.bool_]
    images: Rows


def _edges(vectors: NDArray[np.float32], new: NDArray[np.bool_], max_distance: float, neighbours: int) -> _Edges:
    """Steps 1 and 2. Only new faces and those that they may be linked to are searched for."""
    count = len(vectors)
    index = index_of(vectors)
    scale = np.zeros(count)
    found = list(_search(index, vectors, np.flatnonzero(new), max_distance, neighbours, scale))
    if not new.all():
        touched = np.zeros(count, bool)
        for _, columns, _ in found:
            touched[columns] = True
        found += _search(index, vectors, np.flatnonzero(touched & ~new), max_distance, neighbours, scale)
    rows, columns, distances = (np.concatenate(part) for part in zip(*found, strict=True))
    del found
    lists = csr_array((distances, (rows, columns)), shape=(count, count))
    # Where one of the two does not list the other, the minimum is the zero that is not stored.
    mutual: coo_array = coo_array(lists.minimum(lists.T.tocsr()))
    a, b = (axis.astype(np.int64) for axis in mutual.coords)
    scale = np.clip(scale, SURE * max_distance, max_distance)
    edges = _Edges(a, b, mutual.data / np.sqrt(scale[a] * scale[b]))
    return edges.where((a < b) & (new[a] | new[b]) & (edges.e <= LIMIT))


def index_of(vectors: NDArray[np.float32]) -> Any:
    """Return a search index: exhaustive up to EXACT faces, HNSW above (Malkov & Yashunin 2018).

    The graph depends on the order of insertion, so it is built by one thread; its random levels have faiss's fixed
    seed. Inverted lists need a tenth of all lists, and more time than this, for the same recall.
    """
    if len(vectors) <= EXACT:
        flat = faiss.IndexFlatL2(vectors.shape[1])
        flat.add(vectors)
        return flat
    index = faiss.IndexHNSWFlat(vectors.shape[1], LINKS)
    index.hnsw.efConstruction, index.hnsw.efSearch = BUILD_WIDTH, SEARCH_WIDTH
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        index.add(vectors)
    finally:
        faiss.omp_set_num_threads(threads)
    return index


def _search(
    index: Any,
    vectors: NDArray[np.float32],
    rows: Rows,
    max_distance: float,
    neighbours: int,
    scale: NDArray[np.float64],
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]]:
    """(row, neighbour, distance) of the pairs within `max_distance`, chunk by chunk; fills in the rows' scales."""
    near = min(SCALE_NEIGHBOURS, neighbours)
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        squares, found = index.search(vectors[chunk], neighbours + 1)
        other = (found != chunk[:, None]) & (found >= 0)  # the graph may find fewer
        rank = other.cumsum(axis=1)
        asked = other & (rank <= neighbours) & ((squares <= (1.001 * max_distance) ** 2) | (rank <= near))
        at, place = np.nonzero(asked)
        columns = found[at, place]
        distances = _distances(vectors, chunk[at], columns)
        nearest = rank[at, place] <= near
        counts = np.bincount(at[nearest], minlength=len(chunk))
        sums = np.bincount(at[nearest], weights=distances[nearest], minlength=len(chunk))
        scale[chunk] = sums / np.maximum(counts, 1)
        inside = distances <= max_distance
        # Equal images are at distance zero, which a sparse matrix does not store.
        kept = np.maximum(distances[inside], 1e-6).astype(np.float32)
        yield chunk[at[inside]].astype(np.int32), columns[inside].astype(np.int32), kept


def _distances(vectors: NDArray[np.float32], a: Rows, b: Rows) -> NDArray[np.float64]:
    """Distances of pairs of rows. faiss's own come from matrix products, whose rounding depends on the threads."""
    result = np.empty(len(a))
    for start in range(0, len(a), 16 * CHUNK):
        part = slice(start, start + 16 * CHUNK)
        difference = vectors[a[part]].astype(np.float64) - vectors[b[part]]
        result[part] = np.sqrt(np.einsum("nd,nd->n", difference, difference))
    return result


# --- its components ---------------------------------------------------------------------------------------------------


def _join(labels: Rows, graph: _Graph) -> None:
    """Step 3, in place. `labels` come with the known identities, and every new face as a subject of its own."""
    identities, node = np.unique(labels, return_inverse=True)  # one node an identity, one a new face
    edges = graph.edges
    waiting = np.zeros(len(identities), bool)  # nodes with an edge
    waiting[node[edges.a]] = waiting[node[edges.b]] = True
    for share in TIGHTEN:
        rows = np.flatnonzero(waiting[node])  # faces that are not settled
        if not len(rows):
            return
        close = edges.where(edges.e <= LIMIT * share)
        ones = np.ones(len(close.a), np.int8)
        links = csr_array((ones, (node[close.a], node[close.b])), shape=(len(identities), len(identities)))
        component = connected_components(links, directed=False)[1].astype(np.int64)[node]
        edges = edges.where(component[edges.a] == component[edges.b])  # a tighter limit joins none of the others
        subject = _is_subject(graph, edges, rows, component, node)
        settled = rows[subject[component[rows]]]
        _name(labels, settled, component, graph.new)
        waiting[node[settled]] = False
        edges = edges.where(waiting[node[edges.a]])


def _is_subject(graph: _Graph, edges: _Edges, rows: Rows, component: Rows, node: Rows) -> NDArray[np.bool_]:
    """Whether each component (by number) is one subject; `rows` are the faces in question."""
    total = int(component.max()) + 1
    part, new = component[rows], graph.new[rows]
    size = np.bincount(part, minlength=total)
    # Faces of one image. Those that an earlier run gave to one identity are not questioned.
    _, key, times = np.unique(np.stack([part, graph.images[rows]]), axis=1, return_inverse=True, return_counts=True)
    twice = np.zeros(total, bool)
    twice[part[new & (times[key.reshape(-1)] > 1)]] = True
    # Known identities.
    pairs = np.unique(np.stack([part[~new], node[rows[~new]]]), axis=1)
    identities = np.bincount(pairs[0], minlength=total)
    # How well the new faces know the others.
    degree = np.bincount(np.concatenate([edges.a, edges.b]), minlength=len(component))[rows[new]]
    most = np.minimum(size[part[new]] - 1, SCALE_NEIGHBOURS)
    known = np.bincount(part[new], weights=np.minimum(degree, most) / np.maximum(most, 1), minlength=total)
    faces = np.bincount(part[new], minlength=total)
    return ~twice & (identities <= 1) & ((size == 1) | (known >= COHESION * faces))


def _name(labels: Rows, rows: Rows, component: Rows, new: NDArray[np.bool_]) -> None:
    """Give the faces of each component one label: its known identity, else the first of its faces."""
    part = component[rows]
    name = np.full(int(component.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(name, part, labels[rows])  # known identities are below every new one
    fresh = new[rows]
    labels[rows[fresh]] = name[part[fresh]]
