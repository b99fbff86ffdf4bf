"""Sculpting: soft forms, nose, lips, lids and ears on top of the featureless head.

All reliefs are functions of the frontal position (x, y) on the base surface, in millimetres, so that landmarks, UV and
texture can be placed with the same coordinates. Amplitudes were set by eye against Farkas (1994): nose 33 mm wide and
19 mm proud at subnasale, ears about 20 mm off the head.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deca_core.assets.head.curves import Array, Pchip, blend, gaussian, line, smoothstep
from deca_core.assets.head.outlines import (
    EYE_CENTRE,
    EYE_RADIUS,
    MOUTH_GAP,
    MOUTH_HALF_WIDTH,
    concha,
    ear_coordinates,
    lid,
    lid_parameter,
    lip_height,
    mouth_line,
    nostril,
    wing_crease,
)
from deca_core.assets.head.profile import base_surface

LID_THICKNESS = 1.3  # mm of skin over the eyeball
MOUTH_SHIFT = -3.0  # mm from where the mouth is drawn to where it is
LIP_GAP = 0.02  # mm that each lip keeps from the seam: too little to see, enough that they never cross


class Form(NamedTuple):
    """A soft bump (height > 0) or hollow on both halves of the face; centre and spread in mm."""

    x: float
    y: float
    spread_x: float
    spread_y: float
    height: float


SOFT_FORMS = (
    Form(26, 23, 15, 5, 2.6),  # brow ridge
    Form(0, 22, 9, 7, 1.2),  # glabella
    Form(20, 5, 7, 8, -7.0),  # inner eye socket
    Form(33, 9, 11, 5, -4.2),  # under the brow
    Form(33, -8, 13, 6, -3.3),  # lower rim of the socket
    Form(44, -24, 13, 11, 4.5),  # cheek bone
    Form(25, -27, 10, 10, 2.2),  # beside the nose
    Form(46, -62, 11, 16, -2.4),  # hollow of the cheek
    Form(0, -62, 22, 13, 3.0),  # muzzle
    Form(0, -102, 11, 9, 3.8),  # chin
    Form(13, -104, 8, 7, 1.2),
    Form(0, -86, 15, 4.5, -3.0),  # fold under the lip
    Form(0, -55, 2.6, 5, -1.5),  # philtrum
    Form(5.5, -56, 2.2, 6, 0.8),  # its edges
)

# Nose: height of the bridge over the base surface, and half width of its cross-section, by height of the face.
NOSE_RIDGE = Pchip(
    [-54, -51, -48.5, -46, -43, -40, -36.5, -32, -26, -19, -11, -4, 4, 11, 19, 28],
    [0, 2.0, 6.0, 12.0, 17.6, 21.0, 22.2, 21.0, 18.0, 14.4, 10.4, 6.8, 3.8, 2.1, 0.8, 0],
)
NOSE_WIDTH = Pchip([-54, -47, -42, -37, -31, -22, -10, 3, 12, 28], [8.5, 9.2, 10.4, 10.8, 10.2, 9.2, 8.2, 7.6, 8.6, 11])
NOSE_DROOP = 0.15  # the tip leans down by this share of its height: its underside becomes steep, as it is


def sculpt(longitude: Array, level: Array) -> Array:
    """The finished resting surface, (..., 3) mm, at `longitude` (radians) and `level`."""
    base = base_surface(longitude, level)
    x, y, z = np.abs(base[..., 0]), base[..., 1], base[..., 2]
    front = smoothstep(-0.05, 0.3, np.cos(longitude)) * smoothstep(-130, -112, y)
    nose = _nose(x, y)
    z = z + front * (_soft_forms(x, y) + nose + _lips(x, y))
    z = _lids(x, y, z, front)
    closed = y + _close_mouth(x, y)
    y = closed + front * _lower_mouth(x, closed) - NOSE_DROOP * front * nose * smoothstep(-12, -36, y)
    ear, flare = _ear(base, longitude)
    return np.stack([(x + ear) * np.where(base[..., 0] < 0, -1.0, 1.0), y, z - flare], axis=-1)


def _soft_forms(x: Array, y: Array) -> Array:
    height = np.zeros_like(x)
    for form in SOFT_FORMS:
        height += form.height * gaussian(x, y, (form.x, form.y), (form.spread_x, form.spread_y))
    fold = gaussian(x, y, (30.5, -50.0), (4.5, 12.0)) * smoothstep(-76, -60, y)  # nasolabial
    return height - 1.8 * fold


def _nose(x: Array, y: Array) -> Array:
    """Bridge with a round tip, and two wings that melt into it."""
    inside = smoothstep(-55, -53, y) * smoothstep(30, 27, y)
    width = NOSE_WIDTH(y)
    # The lower edge climbs to the sides: the tip is a ball, not a beam.
    ridge = NOSE_RIDGE(y - 0.055 * np.minimum(x, 10.0) ** 2 * smoothstep(-30, -38, y))
    # A bell with a flattened top: the tip's dome has a radius of about 8 mm.
    bridge = ridge * inside * np.exp(-0.85 * (x / width) ** 2.45)
    wing = 10.2 * np.exp(-(np.hypot((x - 11.4) / 6.3, (y + 42.5) / 6.4) ** 2.5))
    nose = blend(bridge, wing, 5.0)
    return np.maximum(nose - 1.1 * wing_crease(x, y) - 5.0 * nostril(x, y), -3.0)


def _lips(x: Array, y: Array) -> Array:
    above = y - mouth_line(x)
    upper_height, lower_height = lip_height(x, upper=True) + 0.5, lip_height(x, upper=False) + 0.5
    t = np.clip(x / MOUTH_HALF_WIDTH, 0.0, 1.25)
    taper = np.clip(1 - t**2, 0.0, 1.0)
    upper = 5.2 * taper**0.7 * np.exp(-(((above - 0.5 * upper_height) / (0.75 * upper_height + 0.4)) ** 2))
    lower = 5.4 * taper**0.8 * np.exp(-(((above + 0.48 * lower_height) / (0.62 * lower_height + 0.4)) ** 2))
    edge = 0.7 * line(above - upper_height, 1.2) * taper * (above > 0)
    seam = 3.4 * line(above, 1.9) * (1 - np.clip(t, 0, 1) ** 4)
    corner = 2.6 * gaussian(x, y, (MOUTH_HALF_WIDTH + 0.5, float(mouth_line(MOUTH_HALF_WIDTH))), (3.0, 3.2))
    return np.where(above > 0, upper, lower) + edge - seam - corner


def _close_mouth(x: Array, y: Array) -> Array:
    """Vertical motion that brings the two sides of the slit together."""
    above = y - mouth_line(x)
    reach = np.exp(-np.clip(np.abs(above) - MOUTH_GAP, 0.0, None) / 4.0)
    # Beyond the corners there is skin on the line itself: the motion passes through zero there.
    return (
        -np.clip(above / MOUTH_GAP, -1.0, 1.0)
        * (MOUTH_GAP - LIP_GAP)
        * reach
        * smoothstep(1.1, 0.98, x / MOUTH_HALF_WIDTH)
    )


def _lower_mouth(x: Array, y: Array) -> Array:
    """Vertical motion that gives the upper lip its length (subnasale to stomion 21 mm, Farkas 1994)."""
    return MOUTH_SHIFT * gaussian(x, y, (0, -71), (40, 10.5))


def _lids(x: Array, y: Array, z: Array, front: Array) -> Array:
    """Skin pushed out by the eyeball (a soft maximum with a slightly larger sphere), and the fold of the upper lid."""
    radius, softness = EYE_RADIUS + LID_THICKNESS, 2.2
    off_axis = np.hypot(x - EYE_CENTRE[0], y - EYE_CENTRE[1])
    ball = (
        EYE_CENTRE[2] + np.sqrt(np.clip(radius**2 - off_axis**2, 0.0, None)) - 2.5 * np.clip(off_axis - radius, 0, None)
    )
    pushed = np.maximum(z, ball) + 0.5 * softness * np.log1p(np.exp(-np.abs(z - ball) / softness))
    share = smoothstep(22, 15, off_axis) * front
    z = z * (1 - share) + pushed * share
    fold = (
        line(y - lid(lid_parameter(x), upper=True)[..., 1] - 3.6, 1.2) * smoothstep(15, 22, x) * smoothstep(49, 42, x)
    )
    return z - 1.2 * fold * front


def _ear(base: Array, longitude: Array) -> tuple[Array, Array]:
    """Height of the auricle off the side of the head, and how far it flares backwards."""
    forward, upward, radius = ear_coordinates(base[..., 1], base[..., 2])
    beside = smoothstep(0.75, 0.95, np.abs(np.sin(longitude)))
    backness = np.clip(0.5 - forward / 32.0, 0.0, 1.0)
    plate = (2.0 + 14.0 * backness**0.9) * (0.72 + 0.28 * smoothstep(-26, -8, upward)) * smoothstep(1.06, 0.93, radius)
    rim = smoothstep(-14, 0, upward) * smoothstep(14, 8, forward - 0.35 * upward)
    helix = 2.6 * line(radius - 0.84, 0.11) * rim
    groove = 2.0 * line(radius - 0.64, 0.10) * rim
    antihelix = 1.8 * line(radius - 0.46, 0.11) * smoothstep(4, -3, forward)
    tragus = 3.2 * gaussian(forward, upward, (11.5, -2.5), (2.6, 4.2))
    height = beside * np.clip(plate + helix - groove + antihelix - 8.0 * concha(forward, upward) + tragus, -3.0, None)
    return height, 0.4 * np.clip(height, 0.0, None) * backness
