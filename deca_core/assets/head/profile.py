"""The featureless head: a closed sheet over longitude and level, fitted through control rows.

Design frame of the whole package, millimetres: x to the subject's left, y up (0 = pupils), z forward (0 = corneas).
`longitude` is the angle round the head (0 front, +pi/2 the subject's left side, pi back);
`level` runs from 0 (cut of the neck) to 1 (vertex of the skull).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from deca_core.assets.head.curves import Array, Pchip

# One row a level. The row tilts: its front, side and back lie at different heights, so that one row can follow the jaw.
# Sizes follow the means of both sexes in Farkas, Anthropometry of the Head and Face (1994), rounded:
# face height n-gn 118, n-sn 53, sn-sto 21, sto-gn 47, zy-zy 134, go-go 100, eu-eu 148, g-op 192; neck girth about 355.
#  level   front y    z  roundness  half width  side y    z   back y     z
CONTROL_ROWS = np.array(
    [
        [0.000, -170, -62, 1.00, 70.0, -158, -100, -138, -152],  # cut of the neck
        [0.042, -152, -56, 1.00, 55.5, -134, -98, -112, -147],
        [0.080, -137, -46, 1.00, 48.5, -108, -97, -92, -148],  # cervical point
        [0.116, -129, -22, 0.95, 47.0, -91, -91, -77, -155],  # under the chin
        [0.138, -124, -5, 0.93, 49.2, -81, -86, -68, -159],
        [0.155, -116, 4, 0.93, 52.5, -73, -82, -60, -163],  # gnathion, edge of the jaw, gonion
        [0.200, -103, 9, 0.95, 55.0, -58, -78, -45, -168],  # pogonion
        [0.255, -86, 7, 0.93, 58.5, -46, -77, -30, -173],  # sublabial fold
        [0.320, -68, 11, 0.93, 62.5, -36, -76, -15, -177],  # stomion
        [0.395, -47, 11, 0.93, 66.5, -24, -75, 0, -180],  # subnasale
        [0.480, -22, 6, 0.95, 69.0, -8, -76, 15, -181],  # middle of the nose, zygion
        [0.560, 0, 4, 1.00, 70.0, 6, -78, 30, -181],  # pupils
        [0.635, 22, 11, 1.00, 71.5, 24, -80, 45, -180],  # brows
        [0.720, 48, 12, 0.93, 74.0, 48, -83, 62, -174],
        [0.810, 78, 0, 0.92, 68.5, 76, -86, 84, -157],  # trichion
        [0.880, 100, -30, 0.95, 51.0, 99, -88, 99, -130],
        [0.940, 110.5, -62, 1.00, 28.5, 110.5, -88, 109.5, -106],
        [1.000, 114, -88, 1.00, 0.0, 114, -88, 114, -88],  # vertex
    ]
)
_ROWS = Pchip(CONTROL_ROWS[:, 0], CONTROL_ROWS[:, 1:])


def base_surface(longitude: ArrayLike, level: ArrayLike) -> Array:
    """Points (..., 3) of the featureless head, mm; `longitude` in radians and `level` broadcast together."""
    longitude, level = np.broadcast_arrays(np.asarray(longitude, float), np.asarray(level, float))
    front_y, front_z, roundness, half_width, side_y, side_z, back_y, back_z = np.moveaxis(_ROWS(level), -1, 0)
    cosine = np.abs(np.cos(longitude))
    in_front = np.abs(longitude) <= np.pi / 2
    forward = np.maximum(cosine, 1e-9) ** np.where(in_front, roundness, 0.95)
    end_y, end_z = np.where(in_front, front_y, back_y), np.where(in_front, front_z, back_z)
    y = end_y + (side_y - end_y) * (1 - cosine)
    z = side_z + (end_z - side_z) * forward
    return np.stack([half_width * np.sin(longitude), y, z], axis=-1)


def locate(frontal: ArrayLike) -> Array:
    """Inverse of `base_surface` on the front of the subject's left half: (n, 2) of x >= 0, y -> (longitude, level).

    Nearest point of a coarse grid, then Newton's method with numerical derivatives.
    """
    frontal = np.atleast_2d(np.asarray(frontal, float))
    longitudes, levels = np.linspace(0.0, 1.7, 31), np.linspace(0.0, 1.0, 61)
    grid = base_surface(longitudes[:, None], levels[None])[..., :2].reshape(-1, 2)
    nearest = np.argmin(((frontal[:, None] - grid[None]) ** 2).sum(-1), axis=1)
    found = np.stack([longitudes[nearest // len(levels)], levels[nearest % len(levels)]], axis=-1)
    step = 1e-5
    for _ in range(10):
        here = base_surface(found[:, 0], found[:, 1])[:, :2]
        along = (base_surface(found[:, 0] + step, found[:, 1])[:, :2] - here) / step
        up = (base_surface(found[:, 0], found[:, 1] + step)[:, :2] - here) / step
        error = here - frontal
        determinant = along[:, 0] * up[:, 1] - along[:, 1] * up[:, 0]
        determinant = np.where(np.abs(determinant) < 1e-9, 1e-9, determinant)
        found[:, 0] -= (error[:, 0] * up[:, 1] - error[:, 1] * up[:, 0]) / determinant
        found[:, 1] -= (along[:, 0] * error[:, 1] - along[:, 1] * error[:, 0]) / determinant
        found = np.clip(found, 0.0, [1.7, 1.0])
    found[frontal[:, 0] < 1e-6, 0] = 0.0
    return found


def locate_beside(profile: ArrayLike) -> Array:
    """Inverse of `base_surface` on the subject's left side: (n, 2) of depth z and height y -> (longitude, level).

    On a given level the longitude follows from the depth alone, and the height there grows with the level: bisection.
    """
    z, y = np.moveaxis(np.atleast_2d(np.asarray(profile, float)), -1, 0)

    def longitude_at(level: Array) -> Array:
        _, front_z, roundness, _, _, side_z, _, back_z = np.moveaxis(_ROWS(level), -1, 0)
        in_front = z >= side_z
        share = np.clip((z - side_z) / (np.where(in_front, front_z, back_z) - side_z), 0.0, 1.0)
        away = np.arccos(share ** np.where(in_front, 1 / roundness, 1 / 0.95))
        return np.where(in_front, away, np.pi - away)

    low, high = np.full(len(z), 0.1), np.full(len(z), 0.9)
    for _ in range(40):
        level = 0.5 * (low + high)
        below = base_surface(longitude_at(level), level)[:, 1] < y
        low, high = np.where(below, level, low), np.where(below, high, level)
    return np.stack([longitude_at(low), low], axis=-1)
