"""Displacement fields: the vocabulary in which identity and expression components are written.

A component is a row of moves; a move is a soft local push or a proportional stretch, in millimetres at coefficient 1.
Fields are functions of a vertex's site on the featureless head, so the same numbers hold for every part of the mesh.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from deca_core.assets.head.curves import Array, gaussian, smoothstep
from deca_core.assets.head.mesh import HeadMesh, Part
from deca_core.assets.head.outlines import EYE_CENTRE, EYE_RADIUS, MOUTH_GAP, mouth_line

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
            weight = weight * (mesh.lip == self.lip)
        if self.side == "whole":
            weight = weight * gaussian(site_x, site_y, (self.x, self.y), (self.spread_x, self.spread_y))
            return weight[:, None] * np.array(self.move)
        aside = np.abs(site_x)
        weight = weight * gaussian(aside, site_y, (self.x, self.y), (self.spread_x, self.spread_y))
        if self.side != "both":
            weight = weight * smoothstep(-6, 6, site_x if self.side == "left" else -site_x)
        # Sideways motion fades towards the midline, where the two halves would tear or fold.
        sideways = np.sign(site_x) * np.clip(aside / max(6.0, 0.6 * self.spread_x), 0.0, 1.0)
        return weight[:, None] * _outwards(self.move, sideways)


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
        return weight[:, None] * _outwards(self.move, np.sign(site_x))


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


def _outwards(move: tuple[float, float, float], sideways: Array) -> Array:
    """A move for every vertex, its x-component pointing away from the midline by the factor `sideways`."""
    return np.stack([sideways * move[0], np.full_like(sideways, move[1]), np.full_like(sideways, move[2])], axis=-1)


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
    return field - local * (near * mesh.lip)[:, None]
