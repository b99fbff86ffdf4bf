"""The nearest point of a triangle mesh: exact, by a tree of boxes over its triangles (numba)."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

LEAF = 4  # triangles below which a box is not split further
DEPTH = 96  # boxes that may wait; splits are at the median, so a tree is some 20 deep


@numba.njit(cache=True, nogil=True)
def build_tree(corners: NDArray) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Boxes over triangles (F,3,3): order (F,) of the triangles, boxes (N,2,3), child (N,) and span (N,2).

    Box n contains the triangles order[span[n, 0]:span[n, 1]]; its halves are child[n] and child[n] + 1, -1 for a leaf.
    """
    count = len(corners)
    order = np.arange(count)
    boxes = np.empty((2 * count, 2, 3))
    child = np.full(2 * count, -1)
    span = np.empty((2 * count, 2), np.int64)
    span[0, 0], span[0, 1] = 0, count
    centres = np.empty((count, 3))
    for face in range(count):
        for axis in range(3):
            centres[face, axis] = (corners[face, 0, axis] + corners[face, 1, axis] + corners[face, 2, axis]) / 3
    used, node = 1, 0
    while node < used:
        first, last = span[node]
        low, high = np.full(3, np.inf), np.full(3, -np.inf)
        centre_low, centre_high = np.full(3, np.inf), np.full(3, -np.inf)
        for place in range(first, last):
            face = order[place]
            for axis in range(3):
                for corner in range(3):
                    low[axis] = min(low[axis], corners[face, corner, axis])
                    high[axis] = max(high[axis], corners[face, corner, axis])
                centre_low[axis] = min(centre_low[axis], centres[face, axis])
                centre_high[axis] = max(centre_high[axis], centres[face, axis])
        boxes[node, 0], boxes[node, 1] = low, high
        if last - first > LEAF:
            longest = np.argmax(centre_high - centre_low)
            inside = order[first:last]
            order[first:last] = inside[np.argsort(centres[inside, longest], kind="mergesort")]
            middle = (first + last) // 2
            child[node] = used
            span[used, 0], span[used, 1] = first, middle
            span[used + 1, 0], span[used + 1, 1] = middle, last
            used += 2
        node += 1
    return order, boxes[:used].copy(), child[:used].copy(), span[:used].copy()


@numba.njit(cache=True, nogil=True)
def _on_segment(point: NDArray, start: NDArray, end: NDArray, out: NDArray) -> float:
    """Squared distance to a segment, whose nearest point goes to `out`; it may have no length."""
    length = along = 0.0
    for axis in range(3):
        edge = end[axis] - start[axis]
        length += edge * edge
        along += edge * (point[axis] - start[axis])
    share = min(max(along / length, 0.0), 1.0) if length > 0 else 0.0
    squared = 0.0
    for axis in range(3):
        out[axis] = start[axis] + share * (end[axis] - start[axis])
        squared += (point[axis] - out[axis]) ** 2
    return squared


@numba.njit(cache=True, nogil=True)
def nearest_on_triangle(point: NDArray, corners: NDArray, out: NDArray, scratch: NDArray) -> float:
    """Squared distance of a point to a triangle (3,3), whose nearest point goes to `out`.

    Above the triangle it is the foot of the perpendicular, elsewhere the nearest point of the three edges: that holds
    for triangles without area as well.
    """
    bx, by, bz = corners[1] - corners[0]
    cx, cy, cz = corners[2] - corners[0]
    px, py, pz = point - corners[0]
    bb, bc, cc = bx * bx + by * by + bz * bz, bx * cx + by * cy + bz * cz, cx * cx + cy * cy + cz * cz
    pb, pc = px * bx + py * by + pz * bz, px * cx + py * cy + pz * cz
    area = bb * cc - bc * bc  # four times the square of the area
    if area > 1e-14 * bb * cc:
        second, third = (cc * pb - bc * pc) / area, (bb * pc - bc * pb) / area
        if second >= 0 and third >= 0 and second + third <= 1:
            squared = 0.0
            for axis in range(3):
                edge_b, edge_c = corners[1, axis] - corners[0, axis], corners[2, axis] - corners[0, axis]
                out[axis] = corners[0, axis] + second * edge_b + third * edge_c
                squared += (point[axis] - out[axis]) ** 2
            return squared
    best = np.inf
    for corner in range(3):
        squared = _on_segment(point, corners[corner], corners[(corner + 1) % 3], scratch)
        if squared < best:
            best = squared
            out[:] = scratch
    return best


@numba.njit(cache=True, nogil=True)
def _to_box(point: NDArray, box: NDArray) -> float:
    """Squared distance of a point to a box (2,3)."""
    squared = 0.0
    for axis in range(3):
        outside = max(box[0, axis] - point[axis], point[axis] - box[1, axis], 0.0)
        squared += outside * outside
    return squared


@numba.njit(cache=True, nogil=True)
def nearest(
    points: NDArray,
    corners: NDArray,
    order: NDArray,
    boxes: NDArray,
    child: NDArray,
    span: NDArray,
    face: NDArray,
    out: NDArray,
) -> NDArray:
    """Distances (N,) of points (N,3) to the triangles; `face` (N,) and `out` (N,3) receive triangle and nearest point.

    `face` comes with a guess, any triangle: a good one spares most of the search.
    """
    distance = np.empty(len(points))
    found, scratch = np.empty(3), np.empty(3)
    waiting, bounds = np.empty(DEPTH, np.int64), np.empty(DEPTH)
    for index in range(len(points)):
        point = points[index]
        best = nearest_on_triangle(point, corners[face[index]], out[index], scratch)
        size, waiting[0], bounds[0] = 1, 0, _to_box(point, boxes[0])
        while size:
            size -= 1
            node = waiting[size]
            if bounds[size] >= best:
                continue
            half = child[node]
            if half < 0:
                for place in range(span[node, 0], span[node, 1]):
                    squared = nearest_on_triangle(point, corners[order[place]], found, scratch)
                    if squared < best:
                        best, face[index] = squared, order[place]
                        out[index] = found
                continue
            left, right = _to_box(point, boxes[half]), _to_box(point, boxes[half + 1])
            if left < right:  # the nearer half is searched first
                waiting[size], bounds[size], waiting[size + 1], bounds[size + 1] = half + 1, right, half, left
            else:
                waiting[size], bounds[size], waiting[size + 1], bounds[size + 1] = half, left, half + 1, right
            size += 2
        distance[index] = np.sqrt(best)
    return distance
