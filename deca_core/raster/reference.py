"""Visibility in plain numpy: the definition that the fast kernels are tested against, and the fallback without them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MIN_AREA = 1e-12  # square pixels, twice the area of a face: below it a face has no inside to see
BLOCK = 2**18  # pixels of faces' boxes that are tested together


def barycentric(corners: NDArray, points: NDArray) -> NDArray:
    """Barycentric coordinates of 2D points in triangles: corners (N,3,2), points (N,2) -> (N,3). Inf on no area."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]

    def cross(p: NDArray, q: NDArray) -> NDArray:
        return p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]

    with np.errstate(divide="ignore", invalid="ignore"):
        area = cross(b - a, c - a)
        weights = [cross(b - points, c - points), cross(c - points, a - points), cross(a - points, b - points)]
        return np.stack([weight / area for weight in weights], axis=-1)


def rasterize_reference(vertices: NDArray, faces: NDArray, height: int, width: int) -> NDArray[np.int64]:
    """Nearest face of every pixel centre: vertices (V,3) in image space, faces (F,3) -> (H,W) face index, -1 empty.

    x right and y down in [-1, 1]; the smaller z is nearer, compared in float32; of equal depths the lower face index
    wins; no culling. A pixel centre on an edge belongs to both faces. Faces without area (MIN_AREA) or with a corner
    that is not finite are not seen.
    """
    scale = np.array([width / 2, height / 2])
    pixels = np.concatenate([(vertices[:, :2] + 1) * scale, vertices[:, 2:]], axis=-1)
    nearest = np.full(height * width, np.inf, np.float32)
    out = np.full(height * width, -1, np.int64)
    corners = pixels[faces]
    low = np.clip(np.ceil(corners[..., :2].min(1) - 0.5), 0, [width, height])
    high = np.clip(np.floor(corners[..., :2].max(1) - 0.5), -1, [width - 1, height - 1])
    with np.errstate(invalid="ignore", over="ignore"):
        (ux, uy), (vx, vy) = (corners[:, 1, :2] - corners[:, 0, :2]).T, (corners[:, 2, :2] - corners[:, 0, :2]).T
        area = np.abs(ux * vy - uy * vx)
    visible = np.flatnonzero((low <= high).all(1) & (area > MIN_AREA) & np.isfinite(area))
    low, sides = low[visible].astype(int), (high[visible] - low[visible] + 1).astype(int)
    ends = np.cumsum(sides.prod(axis=1))
    # One after the other, so that memory does not grow with the faces; those before win where depths are equal.
    blocks = np.split(np.arange(len(visible)), np.flatnonzero(np.diff(ends // BLOCK)) + 1)
    for block in blocks:
        face, x, y = _boxes(low[block], sides[block])
        index = visible[block][face]
        weights = barycentric(corners[index, :, :2], np.stack([x, y], axis=-1) + 0.5)
        with np.errstate(invalid="ignore", over="ignore"):
            depth = (weights * corners[index, :, 2]).sum(axis=1).astype(np.float32)
        pixel = y * width + x
        seen = np.flatnonzero((weights >= 0).all(1) & np.isfinite(depth) & (depth < nearest[pixel]))
        seen = seen[np.lexsort((index[seen], depth[seen], pixel[seen]))]
        first = seen[np.diff(pixel[seen], prepend=-1) > 0]  # of each pixel: the nearest, of these the lowest index
        nearest[pixel[first]], out[pixel[first]] = depth[first], index[first]
    return out.reshape(height, width)


def _boxes(low: NDArray[np.int64], sides: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Every pixel of N boxes, as (which box, x, y): low (N,2) their first pixel (x, y), sides (N,2) pixels."""
    counts = sides.prod(axis=1)
    box = np.repeat(np.arange(len(low)), counts)
    place = np.arange(len(box)) - np.repeat(np.cumsum(counts) - counts, counts)
    return box, low[box, 0] + place % sides[box, 0], low[box, 1] + place // sides[box, 0]
