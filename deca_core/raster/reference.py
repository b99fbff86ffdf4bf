"""Visibility in plain numpy: the definition that the fast kernels are tested against, and what a bare machine uses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MIN_AREA = 1e-12  # square pixels, twice the area of a face: below it a face has no inside to see


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
    nearest = np.full((height, width), np.inf, np.float32)
    out = np.full((height, width), -1, np.int64)
    corners = pixels[faces]
    low = np.clip(np.ceil(corners[..., :2].min(1) - 0.5), 0, [width, height])
    high = np.clip(np.floor(corners[..., :2].max(1) - 0.5), -1, [width - 1, height - 1])
    with np.errstate(invalid="ignore", over="ignore"):
        (ux, uy), (vx, vy) = (corners[:, 1, :2] - corners[:, 0, :2]).T, (corners[:, 2, :2] - corners[:, 0, :2]).T
        area = np.abs(ux * vy - uy * vx)
    visible = (low <= high).all(1) & (area > MIN_AREA) & np.isfinite(area)
    for index in np.flatnonzero(visible):
        (x0, y0), (x1, y1) = low[index].astype(int), high[index].astype(int)
        x, y = np.meshgrid(np.arange(x0, x1 + 1) + 0.5, np.arange(y0, y1 + 1) + 0.5)
        points = np.stack([x.ravel(), y.ravel()], axis=-1)
        weights = barycentric(np.broadcast_to(corners[index, :, :2], (len(points), 3, 2)), points)
        with np.errstate(invalid="ignore", over="ignore"):
            depth = (weights @ corners[index, :, 2]).astype(np.float32).reshape(x.shape)
        inside = (weights >= 0).all(1).reshape(x.shape) & np.isfinite(depth)
        window = (slice(y0, y1 + 1), slice(x0, x1 + 1))
        wins = inside & (depth < nearest[window])
        nearest[window][wins] = depth[wins]
        out[window][wins] = index
    return out
