"""Displacement fields: the vocabulary in which identity and expression components are written.

A component is a row of moves; a move is a soft local push or a proportional stretch, in millimetres at coefficient 1.
Fields are functions of a vertex's site on the featureless head, so the same numbers hold for every part of the mesh.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deca_core.assets.head.curves import Array, gaussian, smoothstep
from deca_core.assets.head.mesh import HeadMesh, Part
from deca_core.assets.head.outlines import (
    EYE_CENTRE,
    EYE_RADIUS,
    LID_INNER_X,
    LID_LENGTH,
    MOUTH_GAP,
    MOUTH_HALF_WIDTH,
    lid,
    lid_parameter,
    mouth_line,
)

# Share of what a field does to the height of the eyes' openings that stays.
LID_PARTING = 0.4

Side = Literal["both", "left", "right", "whole"]


@dataclass(frozen=True)
class Push:
    """A bell of displacement on the front of the face, centre (x, y) and spread in mm, written for the left half.

    side: "both" mirrors it, "left" and "right" keep one half, "whole" is one bell about the given x (not mirrored).
    lip: +1 only above the mouth line, -1 only below it, 0 both.
    """

    x: float
    y: float
    spread_x: float
    spread_y: float
    move: tuple[float, float, float]
    lip: int = 0
    side: Side = "both"

    def field(self, mesh: HeadMesh) -> Array:
        """(V, 3) mm."""
        site_x, site_y, site_z = mesh.sites.T
        weight = smoothstep(-85, -45, site_z)
        if self.lip:
            # Towards the corners, where the skin is one sheet, the step at the mouth line becomes a ramp.
            above = self.lip * (site_y - mouth_line(site_x))
            slit = smoothstep(MOUTH_HALF_WIDTH + 1, MOUTH_HALF_WIDTH - 9, np.abs(site_x))
            weight = weight * (mesh.lip == self.lip) * (slit + (1 - slit) * smoothstep(0, 8, above))
        if self.side == "whole":
            weight = weight * gaussian(site_x, site_y, (self.x, self.y), (self.spread_x, self.spread_y))
            return weight[:, None] * np.array(self.move)
        here = gaussian(site_x, site_y, (self.x, self.y), (self.spread_x, self.spread_y))
        there = gaussian(site_x, site_y, (-self.x, self.y), (self.spread_x, self.spread_y))
        if self.side != "both":
            weight = weight * smoothstep(-6, 6, site_x if self.side == "left" else -site_x)
        # The sum is even and the difference odd in x: no crease on the midline, and nothing tears there.
        twice = 1 + np.exp(-2 * (self.x / self.spread_x) ** 2)
        sideways, along = here - there, (here + there) / twice
        return np.stack([weight * sideways * self.move[0], *(weight * along * m for m in self.move[1:])], axis=-1)


@dataclass(frozen=True)
class SidePush:
    """A bell of displacement on the sides of the head, centre (z, y) and spread in mm; dx points outwards."""

    z: float
    y: float
    spread_z: float
    spread_y: float
    move: tuple[float, float, float]

    def field(self, mesh: HeadMesh) -> Array:
        """(V, 3) mm."""
        site_x, site_y, site_z = mesh.sites.T
        weight = gaussian(site_z, site_y, (self.z, self.y), (self.spread_z, self.spread_y))
        weight = weight * smoothstep(20, 50, np.abs(site_x))
        return weight[:, None] * np.stack(
            [np.sign(site_x) * self.move[0], np.full_like(site_x, self.move[1]), np.full_like(site_x, self.move[2])], -1
        )


@dataclass(frozen=True)
class Stretch:
    """Proportional growth along one axis: `gain` mm per mm away from `origin`, within a band of heights.

    beyond: "" everywhere; "above", "below" only on that side of the origin; "aside" only where |x| is beyond it.
    """

    axis: int
    gain: float
    origin: float = 0.0
    centre_y: float = 0.0
    spread_y: float = np.inf
    beyond: Literal["", "above", "below", "aside"] = ""

    def field(self, mesh: HeadMesh) -> Array:
        """(V, 3) mm."""
        site = mesh.sites[:, self.axis]
        along = site - self.origin
        if self.beyond == "aside":
            along = np.sign(site) * np.maximum(np.abs(site) - self.origin, 0.0)
        elif self.beyond:
            along = np.maximum(along, 0.0) if self.beyond == "above" else np.minimum(along, 0.0)
        out = np.zeros_like(mesh.sites)
        out[:, self.axis] = self.gain * along * np.exp(-0.5 * ((mesh.sites[:, 1] - self.centre_y) / self.spread_y) ** 2)
        return out


Move = Push | SidePush | Stretch


def total(moves: Iterable[Move], mesh: HeadMesh) -> Array:
    """Sum of the fields of all moves, (V, 3) mm."""
    return np.sum([move.field(mesh) for move in moves], axis=0)


def keep_eyes_round(field: Array, mesh: HeadMesh, *, move_eyes: bool) -> Array:
    """Eyeballs only translate (or rest, where `move_eyes` is false), and lids slide along them.

    What a field does to the skin near an eyeball is taken relative to the eyeball; its part along the eyeball's
    normal is removed, so that lids neither sink into it nor lift off. This holds for all skin that closing lids unroll.
    """
    field = field.copy()
    for side, part in ((1, Part.LEFT_EYE), (-1, Part.RIGHT_EYE)):
        eye = mesh.part(part)
        carried = field[eye].mean(axis=0) if move_eyes else np.zeros(3)
        field[eye] = carried
        from_eye = mesh.vertices - EYE_CENTRE * [side, 1, 1]
        distance = np.linalg.norm(from_eye, axis=1, keepdims=True)
        normal = from_eye / np.maximum(distance, 1e-6)
        weight = smoothstep(EYE_RADIUS + 12.0, EYE_RADIUS + 5.0, distance) * smoothstep(-6, -2, from_eye[:, 2:])
        weight[mesh.part(Part.LEFT_EYE, Part.RIGHT_EYE)] = 0.0
        relative = field - carried
        field -= weight * normal * (normal * relative).sum(axis=1, keepdims=True)
    return field


def keep_lids_alike(field: Array, mesh: HeadMesh) -> Array:
    """Heights of the eyes' openings vary by LID_PARTING of what a field would do.

    Closing the lids is one linear field for all people: it cannot follow much taller openings. What remains of the
    difference between upper and lower lid fades over the skin round the eye.
    """
    field = field.copy()
    t = np.linspace(0.0, 1.0, 15)
    x, y = mesh.sites[:, 0], mesh.sites[:, 1]
    soft = mesh.part(Part.SKIN, Part.LID_MARGIN) & (mesh.sites[:, 2] > -40)
    for side in (1, -1):
        upper, lower = (_nearest(mesh, lid(t, up) * [side, 1]) for up in (True, False))
        parting = 0.5 * (1 - LID_PARTING) * (field[upper, 1] - field[lower, 1])
        along = lid_parameter(side * x)
        middle = 0.5 * (lid(along, upper=True)[:, 1] + lid(along, upper=False)[:, 1])
        outside = np.maximum(np.abs(y - middle) - 5.0, 0.0) + np.maximum(
            np.abs(side * x - LID_INNER_X - LID_LENGTH / 2) - LID_LENGTH / 2, 0.0
        )
        weight = soft * smoothstep(10.0, 0.0, outside)
        field[:, 1] -= weight * np.clip((y - middle) / 3.5, -1.0, 1.0) * np.interp(along, t, parting)
    return field


def _nearest(mesh: HeadMesh, points: Array) -> NDArray[np.int64]:
    """Skin vertices whose frontal sites are nearest to points (n, 2)."""
    skin = np.flatnonzero(mesh.part(Part.SKIN) & (mesh.sites[:, 2] > -40))
    return skin[((points[:, None] - mesh.sites[skin, :2]) ** 2).sum(-1).argmin(axis=1)]


def carry_teeth(field: Array, mesh: HeadMesh) -> Array:
    """Teeth translate with the middle of the lips, so that a mouth that sits elsewhere keeps its teeth."""
    field = field.copy()
    lips = mesh.part(Part.SKIN) & (np.abs(mesh.sites[:, 0]) < 12) & (np.abs(mesh.sites[:, 1] + 68) < 2)
    field[mesh.part(Part.UPPER_TEETH, Part.LOWER_TEETH)] = field[lips].mean(axis=0)
    return field


def keep_lips_closed(field: Array, mesh: HeadMesh) -> Array:
    """Lips that touch at rest move together; what a field does to them apart fades in over the next millimetres."""
    field = field.copy()
    upper, lower = mesh.seam.T
    parting = 0.5 * (field[upper] - field[lower])
    x = mesh.sites[:, 0]
    seam_x = mesh.sites[upper, 0]
    local = np.stack([np.interp(x, seam_x, parting[:, axis], left=0.0, right=0.0) for axis in range(3)], axis=-1)
    distance = np.abs(mesh.sites[:, 1] - mouth_line(x)) - MOUTH_GAP
    near = smoothstep(4.5, 0.3, distance) * mesh.part(Part.SKIN, Part.MOUTH) * (mesh.sites[:, 2] > -30)
    field -= local * (near * mesh.lip)[:, None]
    # The small triangles at a corner move together, else they fold over one another.
    soft = mesh.part(Part.SKIN, Part.MOUTH) & (mesh.sites[:, 2] > -30)
    for corner in (upper[0], upper[-1]):
        away = np.linalg.norm(mesh.sites[:, :2] - mesh.sites[corner, :2], axis=1)
        weight = (soft * smoothstep(4.0, 1.0, away))[:, None]
        field += weight * (field[corner] - field)
    return field
