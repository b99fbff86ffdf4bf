"""The lines of a face in frontal view (millimetres, subject's left half x >= 0): lids, lips, brow, hairline, ear.

Sculpting, mesh, landmarks and albedo all read them from here, so that what is modelled, cut and painted coincides.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from deca_core.assets.head.curves import Array, Pchip, line, smoothstep

# Eyeball: radius 12.2 mm; pupils 63 mm apart (Dodgson 2004: mean 63.4 mm).
EYE_CENTRE = np.array([31.5, 0.3, -13.5])
EYE_RADIUS = 12.2

# Palpebral fissure: inner canthi 33 mm apart, 29 mm long, 10 mm high (Farkas 1994: 32.5, 31, 10.8).
LID_INNER_X, LID_LENGTH = 16.6, 29.4

# Closed mouth: 51 mm wide (Farkas 1994: 52). The slit stands open by 2 x MOUTH_GAP in the atlas, so that the two lips
# have UV of their own; sculpting closes it.
MOUTH_HALF_WIDTH, MOUTH_GAP = 25.5, 0.9
MOUTH_Y = -68.0

# Ear: 60 mm long, 35 mm wide (Farkas 1994), its axis leaning 15 degrees backwards.
EAR_CENTRE_Y, EAR_CENTRE_Z, EAR_HALF_LENGTH, EAR_LEAN = -4.0, -90.0, 30.0, np.radians(15.0)

BROW = Pchip([9, 14, 20, 30, 40, 46, 51], [19.0, 21.0, 23.2, 25.8, 25.4, 22.8, 18.8])
# Height where the hair begins by angle round the head, degrees.
HAIRLINE = Pchip(
    [0, 20, 34, 43, 52, 62, 70, 78, 84, 92, 104, 112, 128, 180],
    [71, 70, 63, 50, 34, 14, -2, 8, 26, 34, 12, -24, -62, -76],
)


def lid(t: ArrayLike, upper: bool) -> Array:
    """Edge of a lid from the inner (t = 0) to the outer canthus (t = 1), (..., 2)."""
    along = np.asarray(t, float)
    axis = -1.6 + 2.6 * along
    inside = np.clip(along, 0.0, 1.0)
    rise, drop = 5.2 * np.sin(np.pi * inside**0.88) ** 0.78, 4.6 * np.sin(np.pi * inside**1.12) ** 0.85
    return np.stack([LID_INNER_X + LID_LENGTH * along, axis + (rise if upper else -drop)], axis=-1)


def lid_parameter(x: Array) -> Array:
    """Position along the lids (0 inner, 1 outer canthus) of a frontal |x|."""
    return np.clip((x - LID_INNER_X) / LID_LENGTH, 0.0, 1.0)


def mouth_line(x: ArrayLike) -> Array:
    """Height of the closed mouth at frontal |x|: a shallow bow that dips to the corners."""
    t = np.clip(np.abs(np.asarray(x, float)) / MOUTH_HALF_WIDTH, 0.0, 1.3)
    return MOUTH_Y + 0.5 + 0.6 * np.cos(1.05 * np.pi * t) - 0.3 * t**2


def lip_height(x: ArrayLike, upper: bool) -> Array:
    """Height of the red of a lip at frontal |x|; the upper one has Cupid's bow (Farkas 1994: 8 and 9.5 mm)."""
    aside = np.abs(np.asarray(x, float))
    t = np.clip(aside / MOUTH_HALF_WIDTH, 0.0, 1.0)
    if upper:
        return 7.8 * (1 - t**1.9) ** 0.9 - 1.3 * np.exp(-((aside / 3.0) ** 2))
    return 9.8 * (1 - t**2.4) ** 0.95


def nostril(x: Array, y: Array) -> Array:
    """Bell over a nostril, at frontal |x|."""
    return np.exp(-(np.hypot((x - 6.4) / 3.4, (y + 47.3) / 2.2) ** 2))


def wing_crease(x: Array, y: Array) -> Array:
    """Line along the outer edge of a wing of the nose, where it meets the cheek, at frontal |x|."""
    distance = np.hypot(x - 11.6, (y + 41.0) / 1.1) - 7.8
    return line(distance, 1.6) * smoothstep(13, 16.5, x) * smoothstep(-49.5, -44, y) * smoothstep(-31, -36, y)


def ear_coordinates(y: Array, z: Array) -> tuple[Array, Array, Array]:
    """Position on the auricle from base height and depth: (forward mm, upward mm, radius: 1 on the outline)."""
    sine, cosine = np.sin(EAR_LEAN), np.cos(EAR_LEAN)
    depth, height = z - EAR_CENTRE_Z, y - EAR_CENTRE_Y
    forward, upward = depth * cosine + height * sine, height * cosine - depth * sine
    return forward, upward, np.hypot(forward / _ear_half_width(upward), upward / EAR_HALF_LENGTH)


def ear_ring(radius: float, spokes: int) -> Array:
    """Points (spokes, 2) of depth z and height y at one radius of `ear_coordinates`."""
    angles = 2 * np.pi * np.arange(spokes) / spokes
    upward = radius * EAR_HALF_LENGTH * np.sin(angles)
    forward = radius * _ear_half_width(upward) * np.cos(angles)
    sine, cosine = np.sin(EAR_LEAN), np.cos(EAR_LEAN)
    return np.stack(
        [EAR_CENTRE_Z + forward * cosine - upward * sine, EAR_CENTRE_Y + upward * cosine + forward * sine], -1
    )


def _ear_half_width(upward: Array) -> Array:
    """The auricle is broader above than at its lobe."""
    return 14.5 + 3.0 * np.clip(upward / EAR_HALF_LENGTH, -1.0, 0.6)


def concha(forward: Array, upward: Array) -> Array:
    """The bowl of the ear, 1 inside, over `ear_coordinates`."""
    return np.exp(-(np.hypot((forward - 2.0) / 7.0, (upward + 1.5) / 10.5) ** 4))


def hair_cover(points: Array, longitude: Array, shift: ArrayLike = 0.0) -> Array:
    """1 on the scalp, 0 on the skin, smooth between; `shift` raises the hairline, mm. Ears stay bare."""
    height = points[..., 1] - HAIRLINE(np.degrees(np.abs(longitude))) - np.asarray(shift)
    _, _, ear = ear_coordinates(points[..., 1], points[..., 2])
    beside = smoothstep(0.75, 0.95, np.abs(np.sin(longitude)))
    return smoothstep(-4.0, 6.0, height) * (1 - beside * smoothstep(1.12, 1.0, ear))
