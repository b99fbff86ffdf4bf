"""The complete mesh: mirrored head sheet, lid margins, mouth bag, teeth and eyeballs, with one UV atlas.

Everything is first built as UV vertices; a map from UV vertices to vertices then welds the back seam, the vertex of the
skull, and the inner edges of lids and lips. Triangles are counter-clockwise from outside, in 3D as in the atlas.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deca_core.assets.head.atlas import (
    EYE_ISLAND,
    EYE_ISLAND_RADIUS,
    LID_ISLAND,
    LID_ISLAND_RADIUS,
    LOWER_TEETH_V,
    MOUTH_ISLAND,
    MOUTH_ISLAND_RADIUS,
    TEETH_HALF_WIDTH,
    UPPER_TEETH_V,
    uv_of,
)
from deca_core.assets.head.curves import Array, smoothstep
from deca_core.assets.head.features import MOUTH_SHIFT, sculpt
from deca_core.assets.head.outlines import EYE_CENTRE, EYE_RADIUS, MOUTH_HALF_WIDTH, mouth_line
from deca_core.assets.head.profile import base_surface
from deca_core.assets.head.sheet import HalfSheet, Int, build_half_sheet, ring_bands


class Part(IntEnum):
    """What a vertex belongs to."""

    SKIN = 0
    LEFT_EYE = 1
    RIGHT_EYE = 2
    LID_MARGIN = 3
    MOUTH = 4
    UPPER_TEETH = 5
    LOWER_TEETH = 6


# Polar angles of the rings of an eyeball, degrees from the optical axis: pupil, iris, limbus, white.
EYE_RINGS = np.radians([0, 11, 21, 30, 34, 45, 64, 84, 106, 130, 155, 180])
EYE_SPOKES = 20
# The mouth bag: mm behind the lips, mm opened up and down, share of the width.
BAG_RINGS = ((3.0, 0.6, 0.985), (8.0, 4.5, 0.95), (24.0, 9.0, 0.86), (45.0, 7.0, 0.60))
BAG_ISLAND_RADII = (1.0, 0.93, 0.80, 0.55, 0.30)
TEETH_COLUMNS = 15


@dataclass(frozen=True)
class HeadMesh:
    """V vertices and U UV vertices of the resting head, millimetres in the design frame."""

    vertices: Array  # (V, 3)
    sites: Array  # (V, 3) where each vertex sits on the featureless head: the coordinates that fields are written in
    parts: Int  # (V,) Part
    longitudes: Array  # (V,) radians, skin only (else 0)
    levels: Array  # (V,), skin only (else 1)
    lip: Int  # (V,) +1 above the mouth line, -1 below
    faces: Int  # (F, 3)
    uv: Array  # (U, 2)
    uv_faces: Int  # (F, 3)
    num_skin_faces: int  # the faces of the head sheet come first
    seam: Int  # (n, 2) pairs of vertices of the upper and lower lip that touch, from the subject's right to left

    def part(self, *parts: Part) -> NDArray[np.bool_]:
        """Mask (V,) of the vertices that belong to any of the parts."""
        return np.isin(self.parts, parts)


class _Assembly:
    """Collects the parts: vertices with what is known of them, and UV vertices that point to vertices."""

    def __init__(self) -> None:
        self.vertices, self.sites, self.uv = np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 2))
        self.parts, self.lip, self.vertex_of_uv = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.uv_faces = np.zeros((0, 3), np.int64)

    def add_vertices(self, part: Part, points: Array, sites: Array, lip: ArrayLike = 0) -> Int:
        """Append vertices (n, 3); returns their numbers (n,)."""
        start, count = len(self.vertices), len(points)
        self.vertices = np.concatenate([self.vertices, points])
        self.sites = np.concatenate([self.sites, sites])
        self.parts = np.concatenate([self.parts, np.full(count, int(part))])
        self.lip = np.concatenate([self.lip, np.broadcast_to(np.asarray(lip, np.int64), (count,))])
        return start + np.arange(count)

    def add_surface(self, vertex_of_uv: Int, uv: Array, triangles: Int) -> None:
        """Append UV vertices (n, 2), each the image of a vertex, and triangles (m, 3) over them."""
        self.uv_faces = np.concatenate([self.uv_faces, triangles + len(self.uv)])
        self.uv = np.concatenate([self.uv, uv])
        self.vertex_of_uv = np.concatenate([self.vertex_of_uv, vertex_of_uv])


def build_mesh() -> HeadMesh:
    """Build the resting head."""
    half = build_half_sheet()
    assembly = _Assembly()
    left, right, places = _add_sheet(assembly, half)
    num_skin = len(places)
    num_skin_uv_faces = len(assembly.uv_faces)
    for side, numbers in ((1, left), (-1, right)):
        _add_lid_margin(assembly, numbers[half.lid_loop], side)
    _add_mouth(assembly, left, right, half)
    _add_teeth(assembly)
    for side in (1, -1):
        _add_eyeball(assembly, side)

    faces = assembly.vertex_of_uv[assembly.uv_faces]
    whole = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])

    def pairs(numbers: Int) -> Int:
        return np.stack([numbers[half.upper_lip], numbers[half.lower_lip]], axis=-1)

    count = len(assembly.vertices)
    longitudes, levels = np.zeros(count), np.ones(count)
    longitudes[:num_skin], levels[:num_skin] = places.T
    return HeadMesh(
        vertices=assembly.vertices,
        sites=assembly.sites,
        parts=assembly.parts,
        longitudes=longitudes,
        levels=levels,
        lip=assembly.lip,
        faces=faces[whole],
        uv=assembly.uv,
        uv_faces=assembly.uv_faces[whole],
        num_skin_faces=int(whole[:num_skin_uv_faces].sum()),
        seam=np.concatenate([pairs(right)[:0:-1], pairs(left)]),
    )


def _add_sheet(assembly: _Assembly, half: HalfSheet) -> tuple[Int, Int, Array]:
    """Both halves of the skin; returns the vertex numbers of the left and right half and all places."""
    places, count = half.places, len(half.places)
    front, back = places[:, 0] < 1e-9, places[:, 0] > np.pi - 1e-9
    top = places[:, 1] > 1 - 1e-9
    # UV vertices: the whole left half, then the right half without the front midline, which both share.
    own = ~front
    right_uv = np.arange(count)
    right_uv[own] = count + np.arange(own.sum())
    triangles = np.concatenate([half.triangles, right_uv[half.triangles][:, ::-1]])
    all_places = np.concatenate([places, places[own] * [-1, 1]])

    # Vertices: the back midline is shared as well, and the vertex of the skull is a single one.
    number = np.arange(count)
    number[top] = np.flatnonzero(top)[0]
    kept = number == np.arange(count)
    number = (np.cumsum(kept) - 1)[number]
    mirrored = number.copy()
    doubled = kept & own & ~back & ~top
    mirrored[doubled] = kept.sum() + np.arange(doubled.sum())
    left, right = number, mirrored
    vertex_places = np.concatenate([places[kept], places[doubled] * [-1, 1]])

    points = sculpt(vertex_places[:, 0], vertex_places[:, 1])
    sites = base_surface(vertex_places[:, 0], vertex_places[:, 1])
    points[np.flatnonzero((front | back | top)[kept]), 0] = 0.0
    lip = np.where(sites[:, 1] > mouth_line(sites[:, 0]), 1, -1)
    assembly.add_vertices(Part.SKIN, points, sites, lip)
    assembly.add_surface(np.concatenate([left, right[own]]), uv_of(all_places[:, 0], all_places[:, 1]), triangles)
    return left, right, vertex_places


def _disc(centre: Array, radii: tuple[float, ...] | Array, angles: Array, side: int = 1) -> Array:
    """UV rings round a centre; on the right side (side = -1) the mirror image."""
    ring = np.stack([np.cos(angles), np.sin(angles)], -1)
    uv = centre + np.asarray(radii)[:, None, None] * ring
    return uv.reshape(-1, 2) if side > 0 else uv.reshape(-1, 2) * [-1, 1] + [1, 0]


def _add_lid_margin(assembly: _Assembly, loop: Int, side: int) -> None:
    """The wet edge of the lids: two rings from the edge inwards, along the eyeball."""
    edge, sites, around = assembly.vertices[loop], assembly.sites[loop], len(loop)
    centre = edge[:, :2].mean(axis=0)
    rings = []
    for share, depth in ((0.92, 0.0), (0.72, -2.5)):
        ring = edge.copy()
        ring[:, :2] = centre + (edge[:, :2] - centre) * share
        off_axis = np.hypot(ring[:, 0] - side * EYE_CENTRE[0], ring[:, 1] - EYE_CENTRE[1])
        ball = EYE_CENTRE[2] + np.sqrt(np.maximum((EYE_RADIUS + 0.3) ** 2 - off_axis**2, 0.0))
        ring[:, 2] = np.where(off_axis < EYE_RADIUS - 1, np.minimum(ball, edge[:, 2]), edge[:, 2] - 1.5) + depth
        rings.append(ring)
    # The loop runs clockwise seen from the front on the left side, so its disc does in the atlas as well.
    angles = np.pi - 2 * np.pi * np.arange(around) / around
    uv = _disc(LID_ISLAND, np.array([1.0, 0.85, 0.6]) * LID_ISLAND_RADIUS, angles, side)
    triangles = ring_bands(3, around)
    inner = assembly.add_vertices(Part.LID_MARGIN, np.concatenate(rings), np.tile(sites, (2, 1)))
    assembly.add_surface(np.concatenate([loop, inner]), uv, triangles[:, ::-1] if side > 0 else triangles)


def _add_mouth(assembly: _Assembly, left: Int, right: Int, half: HalfSheet) -> None:
    """A bag behind the lips, extruded from the edge of the slit and closed at its end."""
    upper, lower = half.upper_lip, half.lower_lip
    loop = np.concatenate([left[upper[::-1]], right[upper[1:]], right[lower[-2::-1]], left[lower[1:-1]]])
    side = np.concatenate([[0], np.ones(len(upper) * 2 - 3), [0], -np.ones(len(lower) * 2 - 3)]).astype(np.int64)
    edge, sites, around = assembly.vertices[loop], assembly.sites[loop].copy(), len(loop)
    sites[:, 1] += 0.3 * side
    rings = [edge]
    for depth, opening, width in BAG_RINGS:
        ring = edge.copy()
        ring[:, 0] *= width
        ring[:, 1] += side * opening * (1 - (edge[:, 0] / (MOUTH_HALF_WIDTH + 2)) ** 2)
        ring[:, 2] -= depth
        rings.append(ring)
    end = rings[-1].mean(axis=0, keepdims=True)
    points, all_sites = np.concatenate([*rings, end]), np.concatenate([np.tile(sites, (len(rings), 1)), sites[:1]])
    all_sites[-1, 0] = 0.0
    angles = 2 * np.pi * np.arange(around) / around
    uv = _disc(MOUTH_ISLAND, np.array([*BAG_ISLAND_RADII, 0.0]) * MOUTH_ISLAND_RADIUS, angles)[: len(points)]
    last = (len(rings) - 1) * around
    here = np.arange(around)
    fan = np.stack([here + last, (here + 1) % around + last, np.full(around, last + around)], -1)
    triangles = np.concatenate([ring_bands(len(rings), around), fan])
    sides = np.append(np.tile(side, len(rings)), 0)
    inner = assembly.add_vertices(Part.MOUTH, points[around:], all_sites[around:], sides[around:])
    assembly.add_surface(np.concatenate([loop, inner]), uv, triangles)


def _add_teeth(assembly: _Assembly) -> None:
    """Two curved bands behind the lips."""
    along = np.linspace(-1, 1, TEETH_COLUMNS)
    here = np.arange(TEETH_COLUMNS - 1)
    strip = np.concatenate(
        [
            np.stack([here, here + TEETH_COLUMNS, here + 1], -1),
            np.stack([here + 1, here + TEETH_COLUMNS, here + TEETH_COLUMNS + 1], -1),
        ]
    )
    for part, heights, rows in (  # heights before the mouth is shifted
        (Part.UPPER_TEETH, (-61.0, -69.4), UPPER_TEETH_V[::-1]),
        (Part.LOWER_TEETH, (-70.2, -77.5), LOWER_TEETH_V),
    ):
        # The dental arch: 38 mm wide and 14 mm deep in front of the molars.
        arch = [
            np.stack([19.0 * along, np.full(TEETH_COLUMNS, y + MOUTH_SHIFT), 4.5 - 14.0 * along**2], -1)
            for y in heights
        ]
        gum = 0 if part == Part.UPPER_TEETH else 1
        arch[gum][:, 2] -= 4.5
        uv = np.concatenate([np.stack([0.5 + TEETH_HALF_WIDTH * along, np.full(TEETH_COLUMNS, v)], -1) for v in rows])
        points = np.concatenate(arch)
        numbers = assembly.add_vertices(part, points, points, lip=1 if part == Part.UPPER_TEETH else -1)
        assembly.add_surface(numbers, uv, strip)


def _add_eyeball(assembly: _Assembly, side: int) -> None:
    """A sphere with a slight cornea; its disc in the atlas gives half of its radius to the front 30 degrees."""
    spokes = 2 * np.pi * np.arange(EYE_SPOKES) / EYE_SPOKES
    sine, cosine = np.sin(EYE_RINGS)[:, None], np.cos(EYE_RINGS)[:, None]
    ring = np.stack([sine * np.cos(spokes), sine * np.sin(spokes), cosine * np.ones(EYE_SPOKES)], -1)
    cornea = 1 + 0.03 * smoothstep(0.6, 0.25, EYE_RINGS)
    mirror = np.array([side, 1, 1])
    points = (EYE_CENTRE + EYE_RADIUS * cornea[:, None, None] * ring) * mirror
    points = np.concatenate([points[0, :1], points[1:-1].reshape(-1, 3), points[-1, :1]])
    uv = _disc(EYE_ISLAND, eye_disc_radius(EYE_RINGS), spokes, side)
    triangles = ring_bands(len(EYE_RINGS), EYE_SPOKES)[:, ::-1]
    part = Part.LEFT_EYE if side > 0 else Part.RIGHT_EYE
    numbers = assembly.add_vertices(part, points, np.tile(EYE_CENTRE * mirror, (len(points), 1)))
    # One vertex at the pupil and one at the back, of which the atlas keeps an image for every spoke.
    of_uv = np.concatenate([np.full(EYE_SPOKES - 1, numbers[0]), numbers, np.full(EYE_SPOKES - 1, numbers[-1])])
    assembly.add_surface(of_uv, uv, triangles if side > 0 else triangles[:, ::-1])


def eye_disc_radius(polar: Array) -> Array:
    """Radius in the atlas of a polar angle of the eyeball, radians."""
    return EYE_ISLAND_RADIUS * (1 - (1 - polar / np.pi) ** 4)
