"""The mean albedo: what is painted on the head, and the layers it is painted with.

A texel's place on the featureless head gives its frontal millimetres, so paint falls exactly on the sculpted features.
Colours are sRGB values in [0, 1] as they appear in photographs; soft occlusion (sockets, under the nose and jaw, ears)
is baked in, as it is in albedo models that are learned from photographs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deca_core.assets.head.atlas import (
    EYE_ISLAND,
    EYE_ISLAND_RADIUS,
    LID_ISLAND,
    LID_ISLAND_RADIUS,
    MOUTH_ISLAND,
    MOUTH_ISLAND_RADIUS,
    SHEET_BOTTOM,
    TEETH_HALF_WIDTH,
    place_of,
    texel_centres,
)
from deca_core.assets.head.curves import Array, gaussian, line, smoothstep
from deca_core.assets.head.outlines import (
    BROW,
    MOUTH_GAP,
    MOUTH_HALF_WIDTH,
    concha,
    ear_coordinates,
    hair_cover,
    lid,
    lid_parameter,
    lip_height,
    mouth_line,
    nostril,
    wing_crease,
)
from deca_core.assets.head.profile import base_surface

SKIN = (0.70, 0.53, 0.44)
BEARD = (0.50, 0.41, 0.37)
UNDER_EYE = (0.60, 0.43, 0.39)
HAIR = (0.20, 0.145, 0.115)
BROW_HAIR = (0.22, 0.155, 0.12)
LASH = (0.10, 0.07, 0.06)
LOWER_LASH = (0.33, 0.21, 0.18)
LID_FOLD = (0.41, 0.28, 0.23)
NOSTRIL = (0.21, 0.11, 0.09)
LIP = (0.65, 0.36, 0.345)
LIP_SEAM = (0.24, 0.10, 0.10)
EYE_WHITE = (0.84, 0.81, 0.79)
EYE_BACK = (0.72, 0.55, 0.52)
IRIS = (0.30, 0.20, 0.13)
LID_MARGIN_OUTER = (0.50, 0.33, 0.29)
LID_MARGIN_INNER = (0.50, 0.26, 0.24)
MOUTH_RIM = (0.50, 0.24, 0.23)
MOUTH_DEEP = (0.30, 0.10, 0.10)
TEETH = (0.78, 0.75, 0.68)

# Half the height of a brow, mm, by distance from the midline.
BROW_X, BROW_HALF_HEIGHT = [8, 14, 28, 40, 51], [2.6, 3.7, 3.4, 2.5, 1.1]


class Texels:
    """Where every texel of a square map lies: places, frontal millimetres, and smooth noise on top."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.u, self.v = texel_centres(size)
        self.longitude, self.level = place_of(self.u, self.v)
        self.on_sheet = (self.v >= SHEET_BOTTOM - 0.5 / size).astype(float)
        self.base = base_surface(self.longitude, self.level)
        self.x, self.y, self.z = np.abs(self.base[..., 0]), self.base[..., 1], self.base[..., 2]
        self.degrees = np.degrees(np.abs(self.longitude))
        self.front = (np.cos(self.longitude) > 0.1) * self.on_sheet

    def noise(self, rng: np.random.Generator, texels: float) -> Array:
        """Unit-variance noise of a correlation length in texels of a 256 map (Gaussian-filtered white noise)."""
        sigma = texels * self.size / 256
        frequency = np.fft.fftfreq(self.size)
        response = np.exp(-2 * (np.pi * sigma) ** 2 * (frequency[:, None] ** 2 + frequency[None] ** 2))
        smooth = np.fft.ifft2(np.fft.fft2(rng.standard_normal((self.size, self.size))) * response).real
        return smooth / smooth.std()

    def island(self, centre: Array, radius: float) -> Array:
        """Distance from the nearer of an island and its mirror image, 1 on its rim."""
        return np.hypot(np.abs(self.u - 0.5) - (centre[0] - 0.5), self.v - centre[1]) / radius


@dataclass(frozen=True)
class Layers:
    """Masks (size, size) in [0, 1] of what is painted; the albedo components reuse them."""

    skin: Array  # all bare skin
    face: Array  # its front
    hair: Array
    lips: Array
    seam: Array
    brows: Array
    upper_lash: Array
    lower_lash: Array
    fold: Array
    beard: Array
    iris: Array
    eye_white: Array


def paint_layers(texels: Texels, rng: np.random.Generator) -> Layers:
    """Masks of every feature."""
    x, y, front = texels.x, texels.y, texels.front
    above = y - mouth_line(x)
    upper, lower = lip_height(x, upper=True) + 0.3, lip_height(x, upper=False) + 0.3
    lips = np.where(above > 0, smoothstep(1.0, -0.6, above - upper), smoothstep(1.2, -0.6, -above - lower))
    lips = lips * smoothstep(MOUTH_HALF_WIDTH + 1.5, MOUTH_HALF_WIDTH - 1.5, x) * front
    seam = line(np.clip(np.abs(above) - MOUTH_GAP, 0, None), 1.1) * front
    seam = seam * smoothstep(MOUTH_HALF_WIDTH + 1.5, MOUTH_HALF_WIDTH - 2, x)
    strokes = np.clip(0.84 + 0.12 * texels.noise(rng, 1.0), 0.5, 1.1)
    hair = hair_cover(texels.base, texels.longitude, 0.9 * texels.noise(rng, 2.0)) * texels.on_sheet
    outside_lips = (
        (1 - lips) * (1 - 0.8 * gaussian(x, y, (0, -52), (4, 4))) * (1 - 0.75 * gaussian(x, y, (30, -52), (14, 9)))
    )
    beard = smoothstep(-38, -52, y - 0.35 * np.clip(x - 30, 0, None)) * smoothstep(0.06, 0.15, texels.level)
    beard = beard * smoothstep(95, 70, texels.degrees) * outside_lips * texels.on_sheet
    fold = line(y - lid(lid_parameter(x), upper=True)[..., 1] - 3.8, 1.1)
    upper_distance, along = _distance_to_lid(texels, upper=True)
    lower_distance, _ = _distance_to_lid(texels, upper=False)
    polar = eye_polar_angle(texels)
    eye = (texels.island(EYE_ISLAND, EYE_ISLAND_RADIUS) < 1.12) * 1.0
    return Layers(
        skin=texels.on_sheet * (1 - hair),
        face=texels.on_sheet * (1 - hair) * smoothstep(100, 80, texels.degrees) * smoothstep(-122, -112, y),
        hair=hair,
        lips=lips,
        seam=seam,
        brows=np.clip(brow_band(texels, 0.0, 1.0) * strokes, 0, 1),
        upper_lash=line(upper_distance, 1.5) * (0.55 + 0.45 * along) * front,
        lower_lash=line(lower_distance, 0.9) * front,
        fold=fold * smoothstep(17, 22, x) * smoothstep(51, 45, x) * front,
        beard=beard,
        iris=eye * smoothstep(33, 29.5, polar) * smoothstep(10.5, 13, polar),
        eye_white=eye * smoothstep(29.5, 33, polar),
    )


def brow_band(texels: Texels, raised: float, thickness: float) -> Array:
    """The area of both brows, moved up by `raised` mm, its height multiplied by `thickness`."""
    half_height = thickness * np.interp(texels.x, BROW_X, BROW_HALF_HEIGHT)
    band = np.exp(-(np.abs((texels.y - raised - BROW(np.clip(texels.x, 8, 51))) / half_height) ** 3))
    return band * smoothstep(7.5, 12, texels.x) * smoothstep(52, 45, texels.x) * texels.front


def eye_polar_angle(texels: Texels) -> Array:
    """Angle from the optical axis, degrees, in the eyes' discs (see mesh.eye_disc_radius)."""
    radius = np.clip(texels.island(EYE_ISLAND, EYE_ISLAND_RADIUS), 0, 1)
    return 180 * (1 - (1 - radius) ** 0.25)


def mean_albedo(texels: Texels, layers: Layers, rng: np.random.Generator) -> Array:
    """(size, size, 3) in [0, 1]."""
    x, y = texels.x, texels.y
    paint = np.empty((texels.size, texels.size, 3))
    paint[:] = SKIN
    blush = 0.5 * gaussian(x, y, (40, -30), (15, 12)) + 0.5 * gaussian(x, y, (0, -37), (12, 9))
    blush = (blush + 0.4 * gaussian(x, y, (0, -102), (14, 9))) * layers.skin
    paint += blush[..., None] * (0.05, -0.03, -0.03)
    paint += (gaussian(x, y, (0, 50), (45, 25)) * layers.skin)[..., None] * (0.02, 0.015, 0.0)
    mottling = 0.010 * texels.noise(rng, 9.0) + 0.006 * texels.noise(rng, 1.2)
    paint += (mottling * layers.skin)[..., None]
    paint = _over(paint, BEARD, 0.13 * layers.beard)
    paint = _over(paint, LIP, 0.85 * layers.lips)
    paint = _over(paint, LIP_SEAM, 0.9 * layers.seam)
    paint = _over(paint, UNDER_EYE, 0.22 * gaussian(x, y, (33, -11), (11, 4)) * layers.skin)
    paint *= (1 - _occlusion(texels))[..., None]
    paint = _over(paint, NOSTRIL, 0.85 * nostril(x, y) * texels.front)
    paint = _over(paint, LID_FOLD, 0.5 * layers.fold)
    paint = _over(paint, LASH, 0.9 * layers.upper_lash)
    paint = _over(paint, LOWER_LASH, 0.6 * layers.lower_lash)
    paint = _over(paint, BROW_HAIR, 0.85 * layers.brows)
    paint = _over(paint, HAIR, layers.hair)
    paint += (0.030 * texels.noise(rng, 1.3) * layers.hair)[..., None]
    return np.clip(_paint_inner_parts(paint, texels), 0.02, 1.0)


def _over(paint: Array, colour: tuple[float, float, float], opacity: Array) -> Array:
    return paint * (1 - opacity[..., None]) + opacity[..., None] * np.array(colour)


def _distance_to_lid(texels: Texels, upper: bool) -> tuple[Array, Array]:
    """Distance in mm from the edge of a lid, and the position along it, for texels near an eye (else far away)."""
    near = (texels.x < 60) & (np.abs(texels.y) < 20)
    t = np.linspace(0, 1, 160)
    squared = ((np.stack([texels.x[near], texels.y[near]], -1)[:, None] - lid(t, upper)[None]) ** 2).sum(-1)
    distance, along = np.full(texels.x.shape, 1e3), np.zeros(texels.x.shape)
    distance[near], along[near] = np.sqrt(squared.min(axis=1)), t[squared.argmin(axis=1)]
    return distance, along


def _occlusion(texels: Texels) -> Array:
    """Share of ambient light that the shape itself keeps off the skin."""
    x, y = texels.x, texels.y
    dark = 0.34 * gaussian(x, y, (19, 5), (6, 7)) + 0.20 * gaussian(x, y, (32, 10), (12, 4))
    dark += 0.40 * wing_crease(x, y) + 0.16 * gaussian(x, y, (0, -49), (11, 2.2))
    dark += 0.20 * gaussian(x, y, (0, -84), (15, 3.5)) + 0.28 * gaussian(x, y, (26.5, -68.5), (2.5, 2.5))
    nasolabial = line(x - (20 - 0.28 * (y + 40)), 3.0) * smoothstep(-64, -55, y) * smoothstep(-40, -46, y)
    light = 1 - np.where(texels.front > 0, dark + 0.14 * nasolabial, 0.0)
    under_jaw = smoothstep(0.157, 0.126, texels.level) * (1 - 0.45 * smoothstep(0.098, 0.04, texels.level))
    light *= 1 - 0.42 * under_jaw * smoothstep(-0.3, 0.2, np.cos(texels.longitude))
    light *= 1 - 0.30 * smoothstep(78, 100, texels.degrees) * smoothstep(-38, -55, y)
    forward, upward, radius = ear_coordinates(y, texels.z)
    beside = smoothstep(0.75, 0.95, np.abs(np.sin(texels.longitude)))
    light *= 1 - beside * (
        0.5 * concha(forward, upward) + 0.22 * line(radius - 0.64, 0.10) + 0.35 * line(radius - 1.08, 0.09)
    )
    return 1 - light * texels.on_sheet - (1 - texels.on_sheet)


def _paint_inner_parts(paint: Array, texels: Texels) -> Array:
    """Eyeballs, lid margins, mouth and teeth in the strip below the sheet."""
    polar = eye_polar_angle(texels)[..., None]
    eye = np.where(polar < 58, EYE_WHITE, EYE_BACK) * (1 - 0.25 * smoothstep(35, 70, polar))
    iris = np.array(IRIS) * (1 - 0.6 * smoothstep(23, 30, polar))
    coloured = smoothstep(33, 29.5, polar)
    eye = eye * (1 - coloured) + iris * coloured
    eye = eye * (1 - 0.9 * smoothstep(13, 10.5, polar))
    # The upper lid shades the top of the eye.
    eye = eye * (1 - 0.45 * smoothstep(-0.002, 0.024, texels.v - EYE_ISLAND[1]))[..., None]
    below = texels.on_sheet == 0
    lid_radius = texels.island(LID_ISLAND, LID_ISLAND_RADIUS)
    mouth_radius = np.hypot(texels.u - MOUTH_ISLAND[0], texels.v - MOUTH_ISLAND[1])[..., None] / MOUTH_ISLAND_RADIUS
    mouth = np.array(MOUTH_DEEP) * (0.15 + 0.85 * smoothstep(0.5, 0.86, mouth_radius))
    mouth = np.where(mouth_radius > 0.86, MOUTH_RIM, mouth)
    paint = np.where((below & (texels.island(EYE_ISLAND, EYE_ISLAND_RADIUS) < 1.12))[..., None], eye, paint)
    margin = np.where((lid_radius > 0.82)[..., None], LID_MARGIN_OUTER, LID_MARGIN_INNER)
    paint = np.where((below & (lid_radius < 1.12))[..., None], margin, paint)
    paint = np.where(below[..., None] & (mouth_radius < 1.12), mouth, paint)
    teeth = below & (np.abs(texels.u - 0.5) < TEETH_HALF_WIDTH + 0.01) & (texels.v < 0.0245)
    return np.where(teeth[..., None], TEETH, paint)
