"""Drawing of wrinkles on the UV map (numba): creases along polylines and round spots, in metres on the skin."""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

_jit = numba.njit(cache=True, nogil=True)


@_jit
def draw_creases(
    points: NDArray, lines: NDArray, starts: NDArray, layer: NDArray, depth: NDArray, width: NDArray, out: NDArray
) -> None:
    """Add creases to maps: a valley between two low ridges, tapering to both ends.

    points (N,3) skin texels, metres; lines (K,3) vertices of all polylines; starts (S+1,) where each begins;
    layer (S,) the map it is drawn into; depth, width (S,) metres; out (L,N) metres.
    """
    for stroke in range(len(layer)):
        first, last = starts[stroke], starts[stroke + 1] - 1
        reach = 4.0 * width[stroke]
        low, high = np.empty(3, np.float32), np.empty(3, np.float32)
        for k in range(3):
            low[k], high[k] = lines[first : last + 1, k].min() - reach, lines[first : last + 1, k].max() + reach
        for index in range(len(points)):
            x, y, z = points[index, 0], points[index, 1], points[index, 2]
            if x < low[0] or x > high[0] or y < low[1] or y > high[1] or z < low[2] or z > high[2]:
                continue
            nearest, along = 1e9, 0.0
            for segment in range(first, last):
                dx = lines[segment + 1, 0] - lines[segment, 0]
                dy = lines[segment + 1, 1] - lines[segment, 1]
                dz = lines[segment + 1, 2] - lines[segment, 2]
                px, py, pz = x - lines[segment, 0], y - lines[segment, 1], z - lines[segment, 2]
                share = (px * dx + py * dy + pz * dz) / (dx * dx + dy * dy + dz * dz + 1e-12)
                share = min(max(share, 0.0), 1.0)
                square = (px - share * dx) ** 2 + (py - share * dy) ** 2 + (pz - share * dz) ** 2
                if square < nearest:
                    nearest, along = square, (segment - first + share) / (last - first)
            distance = math.sqrt(nearest) / width[stroke]
            if distance < 4.0:
                taper = math.sin(math.pi * min(max(along, 0.02), 0.98)) ** 0.7
                ridge = 0.4 * math.exp(-(((distance - 2.0) / 0.9) ** 2))
                out[layer[stroke], index] += depth[stroke] * taper * (ridge - math.exp(-distance * distance))


@_jit
def draw_spots(points: NDArray, centres: NDArray, radius: NDArray, height: NDArray, out: NDArray) -> None:
    """Add round spots with soft edges: centres (S,3), radius, height (S,) metres; out (N,)."""
    for spot in range(len(centres)):
        for index in range(len(points)):
            square = 0.0
            for k in range(3):
                square += (points[index, k] - centres[spot, k]) ** 2
            ratio = square / (radius[spot] * radius[spot])
            if ratio < 6.0:
                out[index] += height[spot] * math.exp(-(ratio**1.5))
