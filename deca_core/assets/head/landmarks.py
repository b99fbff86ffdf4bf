"""The 68 landmarks (iBUG order) as barycentric points: 51 inner ones, and a contour that slides with the yaw.

Positions are frontal millimetres on the subject's left half; the other half is mirrored. They follow the definition of
the 68 points, moved by a few millimetres towards the mean answer of dlib's predictor on renderings of this head (brows,
nose, lips, chin, contour), so that annotated and modelled landmarks mean the same place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deca_core.assets.head.atlas import uv_of
from deca_core.assets.head.curves import Array, Pchip, smoothstep
from deca_core.assets.head.features import sculpt
from deca_core.assets.head.mesh import HeadMesh
from deca_core.assets.head.outlines import BROW, MOUTH_GAP, MOUTH_HALF_WIDTH, lid, lip_height, mouth_line
from deca_core.assets.head.profile import base_surface, locate

NUM_BINS, MAX_YAW = 79, 39  # one row of the contour for every degree -39..39

# Contour from the ear (landmark 16) down to the chin (landmark 8): angle round the head in degrees and height in mm. It
# runs a little inside the outline of a head seen from the front: that costs 2 mm there, but points further back would
# swing up and down with every nod, which predictors follow only in part.
CONTOUR = ((77, 3), (79, -17), (79, -36), (79, -54), (73, -71), (61, -91.5), (42, -106), (22, -117), (0, -120))
# Level of the jaw's edge by angle round the head.
JAW_EDGE = Pchip([0, 22, 43, 62, 76, 92], [0.149, 0.149, 0.157, 0.168, 0.190, 0.23])
# What predictors do on a turned head, at 22 degrees of yaw and in the order of CONTOUR: mm up on the far and the near
# side, degrees further back on the near side.
FAR_RAISE = (-4.5, 0, 2, 4.5, 6.5, 8, 5, 2, 0)
NEAR_RAISE = (-0.5, -1.5, -4, -7, -10, -6, -3, -0.5, 0)
NEAR_BACK = (9, 9, 15, 16, 9, 3, 1, 1, 0)
FAR_INSIDE = 4.5  # degrees that the far contour stays inside the outline
# How far towards the nose the far contour may slide, degrees: it stays outside of the eye.
FARTHEST_FORWARD = (46, 38, 30, 24, 22, 22, 22)


# Left landmark: its mirror image on the subject's right.
LEFT_BROW_NOSE_EYE = (26, 25, 24, 23, 22, 35, 34, 42, 43, 44, 45, 46, 47)
RIGHT_BROW_NOSE_EYE = (17, 18, 19, 20, 21, 31, 32, 39, 38, 37, 36, 41, 40)
LEFT_MOUTH, RIGHT_MOUTH = (54, 53, 52, 55, 56, 64, 63, 65), (48, 49, 50, 59, 58, 60, 61, 67)
TWINS = dict(zip(LEFT_BROW_NOSE_EYE + LEFT_MOUTH, RIGHT_BROW_NOSE_EYE + RIGHT_MOUTH, strict=True))


@dataclass(frozen=True)
class Embedding:
    """Points on the mesh: face numbers (...,) and barycentric weights (..., 3)."""

    faces: NDArray[np.int64]
    bary: Array


def inner_landmarks(mesh: HeadMesh) -> Embedding:
    """Landmarks 17..67, (51,)."""
    points = _inner_points()
    places = locate(np.abs(points) * [1, 0] + points * [0, 1])
    places[:, 0] *= np.where(points[:, 0] < 0, -1.0, 1.0)
    return embed(mesh, places)


def contour_landmarks(mesh: HeadMesh) -> Embedding:
    """The contour for every yaw bin, (79, 17): bins 0..39 are yaws of 0..39 degrees, bins 40..78 of -1..-39.

    A positive yaw turns the face to the subject's left, so the subject's left side becomes the far one. There the
    contour is the silhouette; on the near side it stays on the edge of the jaw and before the ear.
    """
    places = _contour_places()
    mirrored = places[1:, ::-1] * [-1, 1]
    found = embed(mesh, np.concatenate([places, mirrored]).reshape(-1, 2))
    return Embedding(found.faces.reshape(NUM_BINS, 17), found.bary.reshape(NUM_BINS, 17, 3))


def embed(mesh: HeadMesh, places: Array) -> Embedding:
    """Triangles of the skin under places (n, 2) of longitude and level, searched in the atlas."""
    corners = mesh.uv[mesh.uv_faces[: mesh.num_skin_faces]]
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    area = _cross(b - a, c - a)
    faces, bary = [], []
    for target in uv_of(places[:, 0], places[:, 1]):
        second, third = _cross(target - a, c - a) / area, _cross(b - a, target - a) / area
        first = 1 - second - third
        inside = np.minimum(np.minimum(first, second), third)
        best = int(np.argmax(inside))
        if inside[best] < -0.2:
            raise ValueError(f"no skin at uv {target}: a landmark lies in the opening of an eye or of the mouth")
        weights = np.clip([first[best], second[best], third[best]], 0.0, 1.0)
        faces.append(best)
        bary.append(weights / weights.sum())
    return Embedding(np.array(faces), np.array(bary))


def _cross(a: Array, b: Array) -> Array:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _inner_points() -> Array:
    """Frontal (51, 2) mm of landmarks 17..67; image left is the subject's right (x < 0)."""
    half = MOUTH_HALF_WIDTH

    def brow(x: float) -> tuple[float, float]:
        return x, float(BROW(x)) + 1.5

    def lip(x: float, upper: bool, outwards: float) -> tuple[float, float]:
        height = float(lip_height(x, upper)) + outwards
        return x, float(mouth_line(x)) + (height if upper else -height)

    def seam(x: float, upper: bool) -> tuple[float, float]:
        return x, float(mouth_line(x)) + (MOUTH_GAP if upper else -MOUTH_GAP)

    # Landmark on the subject's left side: position. Its twin on the right side follows from TWINS.
    left = {
        26: (53.0, brow(50)[1] - 2.0),
        25: (44.5, brow(44)[1] + 1.0),
        24: (32.0, brow(32)[1] + 1.4),
        23: (20.3, brow(20.3)[1] + 1.3),
        22: (9.6, brow(9.6)[1]),
        35: (12.5, -47.6),
        34: (6.4, -49.8),
        42: tuple(lid(0.03, upper=False)),
        43: tuple(lid(0.31, upper=True)),
        44: tuple(lid(0.61, upper=True)),
        45: tuple(lid(0.90, upper=True)),
        46: tuple(lid(0.63, upper=False)),
        47: tuple(lid(0.34, upper=False)),
        54: (half + 0.3, float(mouth_line(half))),
        53: (17.0, lip(16.0, True, -1.0)[1]),
        52: lip(7.1, True, -2.1),
        55: lip(16.5, False, 1.8),
        56: lip(7.7, False, 2.4),
        64: (half - 4.2, seam(half - 4.2, True)[1] - 2.0),
        63: seam(7.2, True),
        65: seam(7.2, False),
    }
    middle = {27: 2.2, 28: -11.5, 29: -23.2, 30: -35.3, 33: -50.0}
    points = {index: (0.0, height) for index, height in middle.items()}
    points |= {51: lip(0, True, -3.1), 57: lip(0, False, 3.7), 62: seam(0, True), 66: seam(0, False)}
    for index, (x, y) in left.items():
        points[index], points[TWINS[index]] = (x, y), (-x, y)
    return np.array([points[index] for index in range(17, 68)])


def _contour_places() -> Array:
    """Places (40, 17, 2) of the contour for yaws of 0..39 degrees, landmark 0 (subject's right ear) first."""
    yaws = np.arange(MAX_YAW + 1.0)
    places = np.zeros((len(yaws), 17, 2))
    for landmark in range(17):
        step, far = min(landmark, 16 - landmark), landmark > 8
        rest, height = CONTOUR[step]
        turn = np.minimum(yaws / 22.0, 1.4)
        heights = height + turn * (FAR_RAISE if far else NEAR_RAISE)[step]
        angles: Array = rest + turn * (0.0 if far else NEAR_BACK[step])
        if far and step < 7:
            outline = _outline(yaws, (rest, FARTHEST_FORWARD[step]), heights) - FAR_INSIDE
            angles = _smooth(angles + (outline - angles) * smoothstep(0, 10, yaws))
        levels = JAW_EDGE(angles) if step >= 7 else _levels_at(angles, heights)
        places[:, landmark] = np.stack([(1 if far else -1) * np.radians(angles), levels], axis=-1)
    return places


def _outline(yaws: Array, between: tuple[float, float], heights: Array) -> Array:
    """Angle round the head, degrees, at which the outline of a turned head runs, for every yaw and height (n,)."""
    angles = np.linspace(*between, 60)
    levels = _levels_at(*np.broadcast_arrays(angles, heights[:, None]))
    points = sculpt(np.broadcast_to(np.radians(angles), levels.shape), levels)
    yaw = np.radians(yaws)[:, None]
    return angles[np.argmax(points[..., 0] * np.cos(yaw) + points[..., 2] * np.sin(yaw), axis=1)]


def _smooth(angles: Array) -> Array:
    """Moving average over 17 degrees of yaw: the outline may jump from temple to cheek, the contour glides."""
    padded = np.concatenate([2 * angles[0] - angles[8:0:-1], angles, np.full(8, angles[-1])])
    return np.convolve(padded, np.full(17, 1 / 17), mode="valid")


def _levels_at(degrees: Array, heights: Array) -> Array:
    """The level at which the base surface has a height, at an angle round the head; by bisection."""
    low, high = np.full(np.shape(heights), 0.08), np.full(np.shape(heights), 0.9)
    for _ in range(20):
        level = 0.5 * (low + high)
        below = base_surface(np.radians(degrees), level)[..., 1] < heights
        low, high = np.where(below, level, low), np.where(below, high, level)
    return low
