"""Measurements of a population of procedural heads, N(0, I) identities: whether they are plausible subjects.

Self-intersections of lids and lips, head dimensions against anthropometric tables, a hard bounding box of all
vertices, how far the jaw opens the lips, how much of the eyeballs closed lids leave visible.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from deca_core.assets.bundle import AssetBundle
from deca_core.assets.head.mesh import HeadMesh, Part
from deca_core.assets.head.outlines import EYE_CENTRE, MOUTH_Y, ear_coordinates, lid
from deca_core.flame import FLAME
from deca_core.raster import rasterize

Array = NDArray[np.float64]
Int = NDArray[np.int64]
Mask = NDArray[np.bool_]

MM = 1e-3
BATCH = 20
# Every vertex of every sample is inside this box of the bundle's frame, mm: x (either way), y, z.
HARD_BOUNDS = np.array([[-115.0, 115.0], [-200.0, 190.0], [-190.0, 110.0]])
WIDENED = 0.05  # of the mean, at either end of a band: points on a mesh are not a caliper's landmarks
EYE_WINDOW, EYE_PIXELS = (34.0, 22.0), (136, 88)  # mm and pixels of the image of one eye


@dataclass(frozen=True)
class Reference:
    """Adult means and standard deviations, mm, men then women; rounded, for the plausibility of a population only."""

    male: tuple[float, float]
    female: tuple[float, float]
    source: str

    @property
    def mean(self) -> float:
        """Of the means of both sexes."""
        return (self.male[0] + self.female[0]) / 2

    @property
    def band(self) -> tuple[float, float]:
        """5th percentile of women to 95th percentile of men, both taken as normal."""
        return self.female[0] - 1.645 * self.female[1], self.male[0] + 1.645 * self.male[1]


# Farkas, Anthropometry of the Head and Face (1994), North American adults; ANSUR: Gordon et al. (1989), US Army. The
# figures are approximate: good for a plausibility check, no substitute for the tables.
FARKAS, ANSUR = "Farkas 1994", "ANSUR 1989"
REFERENCES = {
    "face height n-gn": Reference((124.7, 5.7), (111.4, 4.8), FARKAS),
    "nose height n-sn": Reference((54.8, 3.3), (50.6, 3.1), FARKAS),
    "upper lip sn-sto": Reference((22.3, 2.1), (20.1, 2.0), FARKAS),
    "chin and lip sto-gn": Reference((50.7, 4.1), (43.4, 3.2), FARKAS),
    "bizygomatic zy-zy": Reference((139.1, 5.3), (130.0, 4.6), FARKAS),
    "bigonial go-go": Reference((105.6, 6.7), (94.5, 5.0), FARKAS),
    "head breadth": Reference((151.7, 5.4), (144.4, 4.9), ANSUR),
    "head length": Reference((197.1, 7.1), (187.2, 6.4), ANSUR),
    "chin to vertex": Reference((232.0, 8.6), (218.0, 8.4), ANSUR),
    "interpupillary": Reference((64.7, 3.7), (62.3, 3.6), ANSUR),
    "biocular ex-ex": Reference((91.2, 3.0), (87.8, 3.2), FARKAS),
    "intercanthal en-en": Reference((33.3, 2.7), (31.8, 2.3), FARKAS),
    "eye fissure height": Reference((10.8, 0.9), (10.9, 1.2), FARKAS),
    "nose width al-al": Reference((34.9, 2.1), (31.4, 2.0), FARKAS),
    "mouth width ch-ch": Reference((54.5, 3.0), (50.2, 3.5), FARKAS),
    "ear length sa-sba": Reference((62.7, 3.6), (59.0, 3.3), FARKAS),
}


class Population:
    """Identities of the procedural head, and the measurements on them."""

    def __init__(self, bundle: AssetBundle, mesh: HeadMesh, samples: int, seed: int) -> None:
        self.bundle, self.mesh, self.flame = bundle, mesh, FLAME(bundle)
        self.shapes = torch.from_numpy(np.random.default_rng(seed).standard_normal((samples, 100)).astype(np.float32))

    @torch.inference_mode()
    def posed(self, jaw_degrees: float = 0.0, **expressions: float) -> Array:
        """Return vertices (N, V, 3), mm, at a jaw opening and named expressions."""
        codes = torch.tensor([[expressions.get(name, 0.0) for name in self.bundle.expression_names]])
        pose = torch.tensor([[0.0, 0.0, 0.0, np.radians(jaw_degrees), 0.0, 0.0]], dtype=torch.float32)
        heads = [
            self.flame(part, codes.expand(len(part), -1), pose.expand(len(part), -1)).vertices
            for part in self.shapes.split(BATCH)
        ]
        return torch.cat(heads).double().numpy() / MM

    @cached_property
    def rest(self) -> Array:
        """(N, V, 3) mm."""
        return self.posed()

    def landmarks(self, vertices: Array) -> Array:
        """Return the frontal 68 landmarks (N, 68, 3) of vertices (N, V, 3)."""
        corners = vertices[:, self.bundle.faces[self.bundle.full_landmark_faces]]
        return (corners * self.bundle.full_landmark_bary[..., None]).sum(2)

    # ------------------------------------------------------------ dimensions

    def dimensions(self) -> dict[str, Array]:
        """Return the measures of `REFERENCES`, (N,) mm each."""
        rest, points = self.rest, self.landmarks(self.rest)
        x, y, z = self.mesh.sites.T
        skin, aside = self.mesh.part(Part.SKIN), np.abs(self.mesh.sites[:, 0])
        _, _, ear = ear_coordinates(y, z)
        off_ear = skin & ((ear > 1.25) | (aside < 50))
        glabella = skin & (aside < 1) & (np.abs(y - 20) < 6)
        auricle = skin & (ear < 1.03) & (aside > 50)
        gnathion = rest[:, skin & (aside < 1) & (np.abs(y + 118) < 4), 1].mean(1)
        nasion, subnasale = points[:, 27, 1], points[:, 33, 1]
        stomion = 0.5 * (points[:, 62, 1] + points[:, 66, 1])
        pupils = [rest[:, self.mesh.part(part)].mean(1) for part in (Part.LEFT_EYE, Part.RIGHT_EYE)]
        (inner, height_in), (outer, height) = lid([0.0, 1.0], upper=True)
        (x0, y0), (x1, y1) = lid(0.5, upper=True), lid(0.5, upper=False)
        wing = skin & (np.abs(aside - 16.0) < 1.6) & (np.abs(y + 41) < 3.5)
        return {
            "face height n-gn": nasion - gnathion,
            "nose height n-sn": nasion - subnasale,
            "upper lip sn-sto": subnasale - stomion,
            "chin and lip sto-gn": stomion - gnathion,
            "bizygomatic zy-zy": _breadth(rest, off_ear & (np.abs(y + 10) < 16) & (z > -70)),
            "bigonial go-go": _breadth(rest, skin & (np.abs(y + 73) < 7) & (z > -92)),
            "head breadth": _breadth(rest, off_ear & (y > 20)),
            "head length": rest[:, glabella, 2].max(1) - rest[:, skin & (y > -20), 2].min(1),
            "chin to vertex": rest[..., 1].max(1) - gnathion,
            "interpupillary": pupils[0][:, 0] - pupils[1][:, 0],
            "biocular ex-ex": _apart(rest, *(self._at(side * outer, height) for side in (1, -1))),
            "intercanthal en-en": _apart(rest, *(self._at(side * inner, height_in) for side in (1, -1))),
            "eye fissure height": np.mean(
                [_apart(rest, self._at(side * x0, y0), self._at(side * x1, y1), axis=1) for side in (1, -1)], axis=0
            ),
            "nose width al-al": _across(rest, wing, x),
            "mouth width ch-ch": points[:, 54, 0] - points[:, 48, 0],
            "ear length sa-sba": np.ptp(rest[:, auricle & (x > 0), 1], axis=1),
        }

    def _at(self, x: float, y: float) -> int:
        """The skin vertex nearest to a place of the featureless head, frontal mm."""
        sites = np.where(self.mesh.part(Part.SKIN)[:, None] & (self.mesh.sites[:, 2:] > -40), self.mesh.sites, np.inf)
        return int(np.hypot(sites[:, 0] - x, sites[:, 1] - y).argmin())

    def out_of_bounds(self) -> int:
        """Return the number of samples that leave HARD_BOUNDS."""
        low, high = self.rest.min(1), self.rest.max(1)
        return int(((low < HARD_BOUNDS[:, 0]) | (high > HARD_BOUNDS[:, 1])).any(1).sum())

    # ------------------------------------------------------------ mouth and lids

    def lip_gap(self, jaw_degrees: float) -> Array:
        """Distance of the inner lips on the midline, (N,) mm."""
        points = self.landmarks(self.posed(jaw_degrees))
        return np.linalg.norm(points[:, 62] - points[:, 66], axis=1)

    def eyeball_left_visible(self) -> Array:
        """Pixels of eyeball under lids_close = 1 over those of open eyes, seen from the front, (N, 2 eyes)."""
        return self._eyeball_pixels(self.posed(lids_close=1.0)) / self._eyeball_pixels(self.rest)

    def _eyeball_pixels(self, vertices: Array) -> Array:
        counts = []
        for part, side in ((Part.LEFT_EYE, 1), (Part.RIGHT_EYE, -1)):
            site_distance = np.linalg.norm(self.mesh.sites[:, :2] - EYE_CENTRE[:2] * [side, 1], axis=1)
            faces = self.mesh.faces[(site_distance < 30)[self.mesh.faces].any(1)]
            ball = torch.from_numpy(self.mesh.part(part)[faces].all(1))
            window = vertices - vertices[:, self.mesh.part(part)].mean(1, keepdims=True)
            image = window / [EYE_WINDOW[0] / 2, -EYE_WINDOW[1] / 2, -100.0]
            seen = rasterize(torch.from_numpy(image), torch.from_numpy(faces), *EYE_PIXELS[::-1])
            counts.append(((seen >= 0) & ball[seen.clamp(min=0)]).sum((1, 2)).numpy())
        return np.stack(counts, axis=1)

    # ------------------------------------------------------------ intersections

    def intersections(self) -> dict[str, Int]:
        """Pairs of triangles that cross, without a common vertex, (N,): lids (skin and rims), lips (and mouth bag)."""
        x, y, z = np.abs(self.mesh.sites[:, 0]), self.mesh.sites[:, 1], self.mesh.sites[:, 2]
        soft = self.mesh.part(Part.SKIN, Part.LID_MARGIN, Part.MOUTH) & (z > -40)
        lids = soft & (np.hypot(x - EYE_CENTRE[0], y - EYE_CENTRE[1]) < 24)
        lips = soft & (x < 36) & (np.abs(y - MOUTH_Y) < 17)
        found = {}
        for name, near in (("lids", lids), ("lips", lips)):
            faces = self.mesh.faces[near[self.mesh.faces].all(1)]
            found[name] = np.array([len(crossing_pairs(vertices, faces)) for vertices in self.rest])
        return found


def _breadth(vertices: Array, mask: Mask) -> Array:
    return np.ptp(vertices[:, mask, 0], axis=1)


def _apart(vertices: Array, first: int, second: int, axis: int = 0) -> Array:
    return vertices[:, first, axis] - vertices[:, second, axis]


def _across(vertices: Array, mask: Mask, x: Array) -> Array:
    """Mean distance between the left and right members of a paired set of vertices."""
    return vertices[:, mask & (x > 0), 0].mean(1) - vertices[:, mask & (x < 0), 0].mean(1)


def crossing_pairs(vertices: Array, faces: Int) -> Int:
    """Pairs (n, 2) of faces that cross and share no vertex.

    Two triangles in general position cross exactly where an edge of one passes through the other; coplanar contact
    does not count. Boxes discard the distant pairs.
    """
    corners = vertices[faces]
    first, second = _overlapping_boxes(corners.min(1), corners.max(1))
    apart = (faces[first][:, :, None] != faces[second][:, None]).all((1, 2))
    first, second = first[apart], second[apart]
    crosses = _pierces(corners[first], corners[second]) | _pierces(corners[second], corners[first])
    return np.stack([first[crosses], second[crosses]], axis=-1)


def _overlapping_boxes(low: Array, high: Array) -> tuple[Int, Int]:
    """Pairs i < j of boxes that overlap, found among those sorted along y."""
    order = np.argsort(low[:, 1])
    ends = np.searchsorted(low[order, 1], high[order, 1], side="right")
    counts = ends - np.arange(len(order)) - 1
    first = np.repeat(np.arange(len(order)), counts)
    second = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first + 1
    first, second = order[first], order[second]
    for axis in (0, 2):
        keep = (low[first, axis] <= high[second, axis]) & (low[second, axis] <= high[first, axis])
        first, second = first[keep], second[keep]
    return first, second


def _pierces(edges_of: Array, through: Array) -> Mask:
    """Whether an edge of the first triangle passes through the second, for (n, 3, 3) each."""
    a, b, c = np.moveaxis(through, 1, 0)
    hit = np.zeros(len(through), bool)
    for start, end in ((0, 1), (1, 2), (2, 0)):
        p, q = edges_of[:, start], edges_of[:, end]
        opposite = _volume(p, a, b, c) * _volume(q, a, b, c) < 0
        turns = np.stack([_volume(p, q, a, b), _volume(p, q, b, c), _volume(p, q, c, a)])
        hit |= opposite & ((turns > 0).all(0) | (turns < 0).all(0))
    return hit


def _volume(a: Array, b: Array, c: Array, d: Array) -> Array:
    """Signed volume (times 6) of tetrahedra: which side of the plane (b, c, d) a lies on."""
    return np.einsum("ni,ni->n", np.cross(b - a, c - a), d - a)
