"""Visibility on the CPU: an integer z-buffer whose cost is the number of pixels that the faces cover."""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

from deca_core.raster.reference import MIN_AREA


@numba.njit(cache=True, nogil=True)
def pixel_span(a: float, b: float, c: float, size: int) -> tuple[int, int]:
    """First and last pixel (of `size`, centres at i + 0.5) that a triangle's corners span along one axis."""
    # Held to the image before they become integers, which cannot hold any float.
    first, last = max(np.ceil(min(a, b, c) - 0.5), 0.0), min(np.floor(max(a, b, c) - 0.5), size - 1.0)
    return int(min(first, float(size))), int(max(last, -1.0))


@numba.njit(cache=True, nogil=True)
def rasterize_numba(vertices: NDArray, faces: NDArray, nearest: NDArray, out: NDArray) -> None:
    """Fill `out` (B,H,W) int64 with the nearest face of every pixel, -1 where there is none.

    vertices (B,V,3) float in image space; faces (F,3) int64; nearest (B,H,W) float32 scratch.
    Same rules as `rasterize_reference`.
    """
    batch, height, width = out.shape
    for image in range(batch):
        points, depth_map, face_map = vertices[image], nearest[image], out[image]
        depth_map[:] = np.inf
        face_map[:] = -1
        for face in range(len(faces)):
            a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
            ax, ay = (points[a, 0] + 1) * width * 0.5, (points[a, 1] + 1) * height * 0.5
            bx, by = (points[b, 0] + 1) * width * 0.5, (points[b, 1] + 1) * height * 0.5
            cx, cy = (points[c, 0] + 1) * width * 0.5, (points[c, 1] + 1) * height * 0.5
            area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
            if not (abs(area) > MIN_AREA and math.isfinite(area)):
                continue
            x0, x1 = pixel_span(ax, bx, cx, width)
            y0, y1 = pixel_span(ay, by, cy, height)
            inverse = 1.0 / area
            for y in range(y0, y1 + 1):
                for x in range(x0, x1 + 1):
                    px, py = x + 0.5, y + 0.5
                    wa = ((bx - px) * (cy - py) - (by - py) * (cx - px)) * inverse
                    wb = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) * inverse
                    wc = ((ax - px) * (by - py) - (ay - py) * (bx - px)) * inverse
                    if wa >= 0 and wb >= 0 and wc >= 0:
                        z = np.float32(wa * points[a, 2] + wb * points[b, 2] + wc * points[c, 2])
                        if -np.inf < z < depth_map[y, x]:
                            depth_map[y, x] = z
                            face_map[y, x] = face
