"""Triangulation of the head sheet: where its vertices lie, and how they are joined.

Only the subject's left half is built, in the plane (longitude, level); the other half is its mirror image. Rings of
points follow the lids and the lips, so that these edges are cut cleanly; the rest is filled with staggered rows whose
spacing follows the relief, thinned where they come too close to a ring, and joined by a Delaunay triangulation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deca_core.assets.head.curves import Array
from deca_core.assets.head.outlines import MOUTH_GAP, MOUTH_HALF_WIDTH, ear_ring, lid, lip_height, mouth_line
from deca_core.assets.head.profile import base_surface, locate, locate_beside
from deca_core.assets.head.triangulation import delaunay

Int = NDArray[np.int64]

# Millimetres per radian of longitude and per unit of level: the plane in which spacing is measured.
PLANE = np.array([70.0, 320.0])

LID_POINTS = 15  # along one lid, both canthi included
LID_RINGS = (0.0, 0.9, 2.2, 3.7, 5.6, 8.0)  # mm outside the edge of the lids
LIP_POINTS = 14  # from the middle of a lip to the corner, both included
# 0 the slit, 1 the border of the red, above 1 outside of it (one unit is 8 mm).
LIP_RINGS = (0.0, 0.33, 0.68, 1.0, 1.35, 1.8, 2.35)
# Radii on the auricle (1 is its outline), dense where its flank falls off. These rings are joined by hand, spoke by
# spoke: across the flank they lie much closer than along it, which a Delaunay triangulation would tangle.
EAR_RINGS = (1.16, 1.07, 1.02, 0.97, 0.91, 0.82, 0.70, 0.56, 0.38, 0.18)
EAR_SPOKES = 30


@dataclass(frozen=True)
class Zone:
    """A rectangle of the sheet with rows of points: longitudes in degrees, levels, spacings in mm."""

    longitudes: tuple[float, float]
    levels: tuple[float, float]
    along: float
    up: float


# The first zone that covers a place sets its spacing; later zones fill what is left.
ZONES = (
    Zone((0, 18), (0.375, 0.480), 2.0, 1.9),  # nose
    Zone((0, 84), (0.072, 0.700), 4.3, 4.8),  # face, throat
    Zone((0, 120), (0.020, 0.830), 6.0, 6.6),  # forehead, sides, neck
    Zone((0, 180), (0.0, 0.955), 9.6, 9.0),  # scalp, nape, neck
)


@dataclass(frozen=True)
class HalfSheet:
    """The left half: places (n, 2) of longitude and level, triangles (m, 3), and the edges of the two openings."""

    places: Array
    triangles: Int
    lid_loop: Int  # (28,) along the upper lid outwards, back along the lower one
    upper_lip: Int  # (14,) from the middle to the corner of the mouth
    lower_lip: Int  # (14,) likewise; both end in the same vertex


def build_half_sheet() -> HalfSheet:
    """Place and join the vertices of the left half."""
    lids, lips, ear = _lid_rings(), _lip_rings(), _ear_rings()
    rings = np.concatenate([locate(np.concatenate([*lids, *lips])), ear[0]])
    fill = np.concatenate([_midlines(), *[_rows(zone) for zone in ZONES]])
    fill = fill[~_within(fill, lids[-1]) & ~_within(fill, _whole_mouth(lips[-1])) & ~_inside(fill, ear[0])]
    fill = fill[~_against(fill, ear[0])]
    sheet = _thin(np.concatenate([rings, fill]), fixed=len(rings))

    plane = sheet * PLANE
    triangles = delaunay(plane)
    a, b, c = np.moveaxis(plane[triangles], 1, 0)
    area = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    middle = sheet[triangles].mean(axis=1)
    hole = _within(middle, lids[0]) | _within(middle, _whole_mouth(lips[0])) | _inside(middle, ear[0])
    lip = len(lids) * len(lids[0]) + np.arange(2 * LIP_POINTS - 1)
    ear_numbers = np.concatenate([len(rings) - EAR_SPOKES + np.arange(EAR_SPOKES), len(sheet) + np.arange(len(ear[1]))])
    return HalfSheet(
        places=np.concatenate([sheet, ear[1]]),
        triangles=np.concatenate([triangles[(area > 1e-2) & ~hole], ear_numbers[_ear_triangles()]]),
        lid_loop=np.arange(len(lids[0])),
        upper_lip=lip[:LIP_POINTS],
        lower_lip=lip[: LIP_POINTS - 2 : -1],
    )


def ring_bands(rings: int, around: int) -> Int:
    """Two triangles for every cell between consecutive closed rings of `around` points, inwards."""
    here = np.arange(around)
    after = (here + 1) % around
    lower, upper = np.stack([here, after, here + around], -1), np.stack([after, after + around, here + around], -1)
    cells = np.concatenate([lower, upper])
    return np.concatenate([cells + ring * around for ring in range(rings - 1)])


def _ear_rings() -> tuple[Array, Array]:
    """Places of the outermost ring of the auricle, and of all inner rings with the centre."""
    rings = np.concatenate([ear_ring(radius, EAR_SPOKES) for radius in EAR_RINGS])
    places = locate_beside(np.concatenate([rings, ear_ring(0.0, 1)]))
    return places[:EAR_SPOKES], places[EAR_SPOKES:]


def _ear_triangles() -> Int:
    """Triangles over the rings of the auricle, clockwise in its side view: counter-clockwise in (longitude, level)."""
    last = (len(EAR_RINGS) - 1) * EAR_SPOKES
    here = last + np.arange(EAR_SPOKES)
    fan = np.stack([here, np.roll(here, -1), np.full(EAR_SPOKES, last + EAR_SPOKES)], -1)
    return np.concatenate([ring_bands(len(EAR_RINGS), EAR_SPOKES), fan])[:, ::-1]


def _lid_rings() -> list[Array]:
    t = np.linspace(0, 1, LID_POINTS)
    loop = np.concatenate([lid(t, upper=True), lid(t[-2:0:-1], upper=False)])
    centre = np.array([loop[:, 0].mean(), -0.2])
    # The rings become rounder outwards: offsets weigh more across the eye than along it.
    return [centre + (loop - centre) * [1 + offset / 19, 1 + offset / 7.5] for offset in LID_RINGS]


def _lip_rings() -> list[Array]:
    along = np.sin(np.linspace(0, np.pi / 2, LIP_POINTS))
    x = along * MOUTH_HALF_WIDTH
    gap = MOUTH_GAP * (along < 0.999)
    rings = []
    for ring in LIP_RINGS:
        red, outside = min(ring, 1.0), max(ring - 1.0, 0.0)
        wider = 1 + 0.03 * red + 0.34 * outside
        rise = 8.0 * outside * np.sqrt(np.maximum(1 - (0.999 * along) ** 2, 0))
        upper = mouth_line(x) + gap + red * lip_height(x, upper=True) + rise
        lower = mouth_line(x) - gap - red * lip_height(x, upper=False) - rise
        outline = np.concatenate([upper, lower[-2::-1]])
        rings.append(np.stack([np.concatenate([x, x[-2::-1]]) * wider, outline], axis=-1))
    return rings


def _whole_mouth(half: Array) -> Array:
    return np.concatenate([half, half[::-1] * [-1, 1]])


def _midlines() -> Array:
    """Points round the cut of the neck and the vertex, and on both midlines, as dense as the zones there."""
    ends = [np.stack([np.linspace(0, np.pi, n), np.full(n, level)], -1) for level, n in ((0.0, 24), (1.0, 7))]
    front = np.concatenate([np.arange(*zone.levels, zone.up / PLANE[1]) for zone in ZONES if zone.longitudes[0] == 0])
    back = np.arange(*ZONES[-1].levels, ZONES[-1].up / PLANE[1])
    middle = [np.stack([np.full(len(at), longitude), at], -1) for longitude, at in ((0.0, front), (np.pi, back))]
    return np.concatenate([*ends, *middle])


def _rows(zone: Zone) -> Array:
    """Staggered rows of points over a zone."""
    start, end = np.radians(zone.longitudes)
    columns = np.arange(start, end, zone.along / PLANE[0])
    points = []
    for index, level in enumerate(np.arange(zone.levels[0], zone.levels[1], zone.up / PLANE[1])):
        row = columns + (0.5 * zone.along / PLANE[0] if index % 2 else 0.0)
        # Near the vertex the rows shrink: keep every second or third point.
        row = row[:: 1 + int(level > 0.90) + int(level > 0.94)]
        points.append(np.stack([row[row < np.pi], np.full((row < np.pi).sum(), level)], -1))
    return np.concatenate(points)


def _spacing(places: Array) -> Array:
    """Closest allowed neighbour, mm in the plane, at each place."""
    degrees, spacing = np.degrees(places[:, 0]), np.full(len(places), np.nan)
    for zone in ZONES:
        covered = (degrees >= zone.longitudes[0]) & (degrees <= zone.longitudes[1])
        covered &= (places[:, 1] >= zone.levels[0]) & (places[:, 1] <= zone.levels[1])
        spacing = np.where(np.isnan(spacing) & covered, 0.72 * min(zone.along, zone.up), spacing)
    return np.where(np.isnan(spacing), 5.0, spacing)


def _thin(places: Array, fixed: int) -> Array:
    """Drop points too close to an earlier one; the first `fixed` and those of the vertex always stay."""
    plane, spacing = places * PLANE, _spacing(places)
    alive = np.ones(len(places), bool)
    loose = np.arange(len(places)) >= fixed
    loose &= places[:, 1] < 0.999
    for index in range(len(places)):
        if alive[index]:
            near = ((plane - plane[index]) ** 2).sum(1) < np.maximum(spacing, spacing[index] * (index >= fixed)) ** 2
            near[: index + 1] = False
            alive &= ~(near & loose)
    return places[alive]


def _within(places: Array, outline: Array) -> NDArray[np.bool_]:
    """Whether places of the front lie inside a frontal polygon (n, 2) in mm."""
    frontal = base_surface(places[:, 0], places[:, 1])[:, :2]
    return _inside(frontal, outline) & (places[:, 0] < 1.4)


def _against(places: Array, ring: Array) -> NDArray[np.bool_]:
    """Places within the circle over an edge of the ring: without them Delaunay keeps every edge (Gabriel 1969)."""
    start, end = ring * PLANE, np.roll(ring, -1, axis=0) * PLANE
    middle, radius = 0.5 * (start + end), 0.5 * np.linalg.norm(end - start, axis=1)
    distance = np.linalg.norm((places * PLANE)[:, None] - middle, axis=-1)
    return (distance < 1.05 * radius).any(axis=1)


def _inside(points: Array, outline: Array) -> NDArray[np.bool_]:
    """Whether points (m, 2) lie inside a polygon (n, 2), by counting crossings to the right of them."""
    x, y = points[:, :1], points[:, 1:]
    start, end = outline, np.roll(outline, -1, axis=0)
    straddles = (start[:, 1] > y) != (end[:, 1] > y)
    rise = np.where(start[:, 1] == end[:, 1], 1.0, end[:, 1] - start[:, 1])
    crossing = start[:, 0] + (y - start[:, 1]) / rise * (end[:, 0] - start[:, 0])
    return (straddles & (x < crossing)).sum(axis=1) % 2 == 1
