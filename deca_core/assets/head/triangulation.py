"""Delaunay triangulation of points in the plane (Bowyer 1981, Watson 1981)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deca_core.assets.head.curves import Array

JITTER = 1e-5  # of a point spacing of about 1: breaks the ties of points on one circle


def delaunay(points: Array) -> NDArray[np.int64]:
    """Triangles (m, 3), counter-clockwise, of `points` (n, 2); the same points always give the same triangles.

    One point is inserted at a time: the triangles whose circumcircle holds it form a cavity, which is closed again
    with triangles from its border to the point. Quadratic, but one vectorised test a point: 0.5 s for 2,500 points.
    """
    count = len(points)
    rng = np.random.default_rng(0)
    spread = float(np.ptp(points, axis=0).max())
    middle = points.mean(axis=0)
    corners = middle + 300 * spread * np.array([[-1.0, -0.6], [1.0, -0.6], [0.0, 1.2]])
    xy = np.concatenate([points + JITTER * rng.standard_normal(points.shape), corners])

    capacity = 3 * count + 16
    triangles = np.zeros((capacity, 3), np.int64)
    centres, radii = np.zeros((capacity, 2)), np.full(capacity, -1.0)  # a radius of -1 marks an unused slot
    triangles[0] = (count, count + 1, count + 2)
    centres[:1], radii[:1] = _circumcircles(xy[triangles[:1]])
    free = list(range(capacity - 1, 0, -1))
    used = 1

    for point in rng.permutation(count):
        inside = np.flatnonzero(((centres[:used] - xy[point]) ** 2).sum(1) < radii[:used])
        border = _border(triangles[inside])
        radii[inside] = -1.0
        free.extend(inside[::-1].tolist())
        slots = np.array([free.pop() for _ in range(len(border))])
        triangles[slots, :2], triangles[slots, 2] = border, point
        centres[slots], radii[slots] = _circumcircles(xy[triangles[slots]])
        used = max(used, int(slots.max()) + 1)
    kept = triangles[:used][radii[:used] >= 0]
    return kept[(kept < count).all(axis=1)]


def _border(triangles: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Directed edges that only one of the triangles has."""
    edges = [(a, b) for t in triangles.tolist() for a, b in ((t[0], t[1]), (t[1], t[2]), (t[2], t[0]))]
    present = set(edges)
    return [(a, b) for a, b in edges if (b, a) not in present]


def _circumcircles(corners: Array) -> tuple[Array, Array]:
    """Centres (m, 2) and squared radii (m,) of triangles (m, 3, 2)."""
    a = corners[:, 0]
    b, c = corners[:, 1] - a, corners[:, 2] - a
    twice = 2 * (b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0])
    bb, cc = (b**2).sum(1), (c**2).sum(1)
    offset = np.stack([c[:, 1] * bb - b[:, 1] * cc, b[:, 0] * cc - c[:, 0] * bb], axis=1) / twice[:, None]
    return a + offset, (offset**2).sum(1)
