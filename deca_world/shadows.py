"""Shadow maps (numba, float32): depth seen from a lamp, and the share of its light that arrives."""

from __future__ import annotations

import math

import numba
from numpy.typing import NDArray

from deca_core.raster.numba_kernel import pixel_span

FAR = 1e9  # depth of nothing; not infinity, which fast arithmetic may assume away

_jit = numba.njit(cache=True, nogil=True, fastmath=True)


@_jit
def shadow_map(points: NDArray, faces: NDArray, parts: NDArray, solid: NDArray, depth: NDArray) -> None:
    """Depth seen from a lamp: points (N,3) in texels of the map, solid (parts,) false for what casts no shadow."""
    height, width = depth.shape
    depth[:] = FAR
    for face in range(len(faces)):
        if not solid[parts[face]]:
            continue
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        ax, ay, bx, by, cx, cy = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if abs(area) < 1e-9:
            continue
        x0, x1 = pixel_span(ax, bx, cx, width)
        y0, y1 = pixel_span(ay, by, cy, height)
        inverse = 1.0 / area
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                px, py = x + 0.5 - ax, y + 0.5 - ay
                wb = (px * (cy - ay) - py * (cx - ax)) * inverse
                wc = ((bx - ax) * py - (by - ay) * px) * inverse
                wa = 1.0 - wb - wc
                if wa >= 0 and wb >= 0 and wc >= 0:
                    z = wa * points[a, 2] + wb * points[b, 2] + wc * points[c, 2]
                    if z < depth[y, x]:
                        depth[y, x] = z


@_jit
def lit(depth: NDArray, points: NDArray, taps: int, radius: float, out: NDArray) -> None:
    """Share of the lamp that reaches each point: the mean of taps x taps bilinear comparisons `radius` texels apart.

    depth: a shadow map; points (N,3) in its texels; out (N,).
    """
    height, width = depth.shape
    for index in range(len(points)):
        x, y, z = points[index, 0], points[index, 1], points[index, 2]
        total = 0.0
        for tap in range(taps * taps):
            tx = x + (tap % taps - 0.5 * (taps - 1)) * radius - 0.5
            ty = y + (tap // taps - 0.5 * (taps - 1)) * radius - 0.5
            x0, y0 = math.floor(tx), math.floor(ty)
            if x0 < 0 or y0 < 0 or x0 >= width - 1 or y0 >= height - 1:
                total += 1.0
                continue
            fx, fy = tx - x0, ty - y0
            upper = (1 - fx) * (z <= depth[y0, x0]) + fx * (z <= depth[y0, x0 + 1])
            lower = (1 - fx) * (z <= depth[y0 + 1, x0]) + fx * (z <= depth[y0 + 1, x0 + 1])
            total += upper * (1 - fy) + lower * fy
        out[index] = total / (taps * taps)
