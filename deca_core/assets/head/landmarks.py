"""The 68 landmarks (iBUG order) as barycentric points: 51 inner ones, and a contour that slides with the yaw.

Positions are frontal millimetres on the subject's left half; the other half is mirrored. Points follow where 68-point
predictors put them (slightly outside of the anatomical line at brows and lips).
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

# Contour from the ear (landmark 16) down to the chin (landmark 8): angle round the head in degrees and height in mm.
CONTOUR = ((88, 0), (88, -19), (86, -38), (84, -56), (76, -75), (65, -92), (45, -105), (22, -115), (0, -118))
# Level of the jaw's edge by angle round the head.
JAW_EDGE = Pchip([0, 22, 43, 62, 76, 92], [0.158, 0.158, 0.160, 0.168, 0.190, 0.23])
# What the predictors do on a turned head, per 22 degrees of yaw: mm down on the far and near side, degrees back on the
# near side; in the order of CONTOUR.
FAR_RAISE = (-2, 2, 4, 7, 8, 7, 5, 2, 0)
NEAR_RAISE = (0, -2, -5, -7, -7, -6, -3, -1, 0)
NEAR_BACK = (0, 3, 8, 9, 6, 2, 0, 0, 0)
FARTHEST_FORWARD = 22  # degrees: the far contour never slides further towards the nose


@dataclass(frozen=True)
class Embedding:
    """Points on the mesh: face numbers (...,) and barycentric weights (..., 3)."""

    faces: NDArray[np.int64]
    bary: Array

    def points(self, vertices: Array, faces: NDArray[np.int64]) -> Array:
        """Their positions (..., 3) on a head with `vertices` (V, 3)."""
        return (vertices[faces[self.faces]] * self.bary[..., None]).sum(axis=-2)


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
        best = int(np.argmax(np.minimum(np.minimum(first, second), third)))
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
        26: (52.0, brow(50)[1] - 3.5),
        25: brow(44),
        24: (33.0, brow(33)[1] + 0.7),
        23: (21.5, brow(21.5)[1] + 1.2),
        22: brow(10),
        35: (13.0, -45.5),
        34: (6.5, -47.5),
        42: tuple(lid(0.04, upper=True)),
        43: tuple(lid(0.31, upper=True)),
        44: tuple(lid(0.63, upper=True)),
        45: tuple(lid(0.975, upper=True)),
        46: tuple(lid(0.63, upper=False)),
        47: tuple(lid(0.34, upper=False)),
        54: (half + 0.3, float(mouth_line(half))),
        53: lip(15.8, True, -0.4),
        52: lip(6.5, True, 0.0),
        55: lip(16.5, False, -0.4),
        56: lip(7.5, False, 1.6),
        64: seam(half - 4.2, True),
        63: seam(7.2, True),
        65: seam(7.2, False),
    }
    middle = {27: 3.0, 28: -10.0, 29: -22.6, 30: -36.0, 33: -48.5}
    points = {index: (0.0, height) for index, height in middle.items()}
    points |= {51: lip(0, True, 0.0), 57: lip(0, False, 2.0), 62: seam(0, True), 66: seam(0, False)}
    for index, (x, y) in left.items():
        points[index], points[TWINS[index]] = (x, y), (-x, y)
    return np.array([points[index] for index in range(17, 68)])


# Left landmark: its mirror image on the subject's right.
LEFT_BROW_NOSE_EYE = (26, 25, 24, 23, 22, 35, 34, 42, 43, 44, 45, 46, 47)
RIGHT_BROW_NOSE_EYE = (17, 18, 19, 20, 21, 31, 32, 39, 38, 37, 36, 41, 40)
LEFT_MOUTH, RIGHT_MOUTH = (54, 53, 52, 55, 56, 64, 63, 65), (48, 49, 50, 59, 58, 60, 61, 67)
TWINS = dict(zip(LEFT_BROW_NOSE_EYE + LEFT_MOUTH, RIGHT_BROW_NOSE_EYE + RIGHT_MOUTH, strict=True))


def _contour_places() -> Array:
    """Places (40, 17, 2) of the contour for yaws of 0..39 degrees, landmark 0 (subject's right ear) first."""
    yaws = np.arange(MAX_YAW + 1)
    places = np.zeros((len(yaws), 17, 2))
    for landmark in range(17):
        step, far = min(landmark, 16 - landmark), landmark > 8
        rest, height = CONTOUR[step]
        turn = np.minimum(yaws / 22.0, 1.4)
        heights = height + turn * (FAR_RAISE if far else NEAR_RAISE)[step]
        angles = rest + turn * (0.0 if far else NEAR_BACK[step])
        if far and step < 7:
            outline = np.array([_outermost(yaw, rest, level) for yaw, level in zip(yaws, heights, strict=True)])
            angles = _smooth(angles + (outline - angles) * smoothstep(0, 10, yaws))
        levels = JAW_EDGE(angles) if step >= 7 else [_level_at(*at) for at in zip(angles, heights, strict=True)]
        places[:, landmark] = np.stack([(1 if far else -1) * np.radians(angles), levels], axis=-1)
    return places


def _outermost(yaw: float, start: float, height: float) -> float:
    """Angle round the head, degrees, at which a height's outline is reached when the head is turned by `yaw`."""
    angles = np.linspace(start, FARTHEST_FORWARD, 60)
    points = sculpt(np.radians(angles), np.array([_level_at(angle, height) for angle in angles]))
    across = points[:, 0] * np.cos(np.radians(yaw)) + points[:, 2] * np.sin(np.radians(yaw))
    return float(angles[np.argmax(across)])


def _smooth(angles: Array) -> Array:
    """Moving average over 11 degrees of yaw: the outline may jump from temple to cheek, the contour glides."""
    padded = np.concatenate([2 * angles[0] - angles[5:0:-1], angles, np.full(5, angles[-1])])
    return np.convolve(padded, np.full(11, 1 / 11), mode="valid")


_LEVELS = np.linspace(0.08, 0.9, 401)


def _level_at(degrees: float, height: float) -> float:
    """The level at which the base surface has the given height, at an angle round the head."""
    heights = base_surface(np.full(len(_LEVELS), np.radians(degrees)), _LEVELS)[:, 1]
    return float(np.interp(height, heights, _LEVELS))
