"""Visibility in plain numpy: the definition that the fast kernels are tested against, and what a bare machine uses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


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

    x right and y down in [-1, 1]; the smaller z is nearer; of equal depths the lower face index wins; no culling.
    A pixel centre on an edge belongs to both faces.
    """
    scale = np.array([width / 2, height / 2])
    pixels = np.concatenate([(vertices[:, :2] + 1) * scale, vertices[:, 2:]], axis=-1)
    nearest = np.full((height, width), np.inf)
    out = np.full((height, width), -1, np.int64)
    corners = pixels[faces]
    low = np.clip(np.ceil(corners[..., :2].min(1) - 0.5), 0, [width, height])
    high = np.clip(np.floor(corners[..., :2].max(1) - 0.5), -1, [width - 1, height - 1])
    visible = (low <= high).all(1)  # false where a corner is not finite
    for index in np.flatnonzero(visible):
        (x0, y0), (x1, y1) = low[index].astype(int), high[index].astype(int)
        x, y = np.meshgrid(np.arange(x0, x1 + 1) + 0.5, np.arange(y0, y1 + 1) + 0.5)
        points = np.stack([x.ravel(), y.ravel()], axis=-1)
        weights = barycentric(np.broadcast_to(corners[index, :, :2], (len(points), 3, 2)), points)
        depth = weights @ corners[index, :, 2] if np.isfinite(weights).all() else np.full(len(points), np.inf)
        inside = ((weights >= 0).all(1) & np.isfinite(depth)).reshape(x.shape)
        window = (slice(y0, y1 + 1), slice(x0, x1 + 1))
        wins = inside & (depth.reshape(x.shape) < nearest[window])
        nearest[window][wins] = depth.reshape(x.shape)[wins]
        out[window][wins] = index
    return out
