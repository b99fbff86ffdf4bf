"""True displacement D*(subject, expression, jaw): what makes this face wrinkle, and where.

Every subject has statics (moles, pores, fine lines, eye bags, age lines) and a pattern of creases that expressions
deepen. Creases lie where facial muscles fold the skin (across the frontalis, the corrugators, the orbicularis oculi
and oris, the zygomatics, the mentalis), but number, place, length and depth are the subject's own. Drawn on the head's
landmarks, so any bundle with 68 landmarks carries them; bundles without expression names have statics only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from deca_core.assets.bundle import UV_SIZE, AssetBundle
from deca_core.uv import UVAtlas
from deca_world.creases import DEEPER, Crease, crease_lines
from deca_world.streams import Stream, stream
from deca_world.subject import Subject

Float = NDArray[np.float32]

LIMIT = 4e-3  # metres; a soft ceiling inside the method's 10 mm
MM = 1e-3
FULL_JAW = 0.35  # radians: a wide open mouth

# Which expression components fold which group, and how much; the companion `<name>_left` folds the left side only.
DRIVERS: dict[str, dict[str, float]] = {
    "forehead": {"brow_raise": 1.0, "brow_inner_raise": 0.6, "brow_outer_raise": 0.5},
    "glabella": {"brow_lower": 0.9, "brow_squeeze": 1.0, "nose_wrinkle": 0.3},
    "crows_feet": {"smile": 0.7, "cheek_raise": 0.9, "squint": 0.8},
    "nasolabial": {
        "smile": 1.0,
        "cheek_raise": 0.4,
        "upper_lip_raise": 0.6,
        "nose_wrinkle": 0.5,
        "lip_stretch": 0.4,
        "dimple": 0.3,
        "cheek_puff": -0.8,
        "pucker": -0.4,
        "funnel": -0.4,
    },
    "bunny": {"nose_wrinkle": 1.0, "upper_lip_raise": 0.3},
    "under_eye": {"lower_lids_raise": 0.9, "squint": 0.7, "cheek_raise": 0.6, "smile": 0.4},
    "lid_fold": {"lids_close": -0.9, "lids_wide": 0.4},
    "marionette": {"frown": 1.0, "lip_press": 0.4, "chin_raise": 0.3},
    "lips": {"pucker": 1.0, "funnel": 0.7, "lip_press": 0.4},
    "chin": {"chin_raise": 1.0, "chin_bunch": 1.0},
    "dimple": {"dimple": 1.0, "smile": 0.35, "lip_corners_up": 0.3},
}
GROUPS = tuple(DRIVERS)
# Change of activation at a wide open jaw: the cheeks stretch, the chin smooths.
JAW_DRIVERS = {"nasolabial": 0.35, "chin": -0.8, "marionette": 0.25, "dimple": -0.3}


@dataclass(frozen=True)
class Pattern:
    """One subject's wrinkles on the skin texels: resting (N,), creases (G,N), both metres; rest (G,) and gain (G,)."""

    resting: Float
    creases: Float
    rest: Float  # how much of each group shows on the relaxed face
    gain: Float  # how much a full expression adds
    stain: Float  # (N,) darkness of moles in [0, 1]


class WrinkleModel:
    """D* over one head.

    >>> model = WrinkleModel(bundle)  # doctest: +SKIP
    >>> model.displacement(subject, exp, jaw).shape  # doctest: +SKIP
    (256, 256)
    """

    def __init__(self, bundle: AssetBundle) -> None:
        template = torch.from_numpy(bundle.v_template)[None]
        positions = UVAtlas(bundle)(template)[0].numpy()
        mask = bundle.face_mask
        self.texels = np.flatnonzero((mask > 0.01) & np.any(positions != 0, axis=0))
        self.points: Float = np.ascontiguousarray(positions.reshape(3, -1)[:, self.texels].T)
        self.mask: Float = mask.ravel()[self.texels]
        side = self.points[:, 0] / (6 * MM)
        self.left: Float = (0.5 * (1 + np.tanh(side))).astype(np.float32)  # 1 on the subject's left
        self.anchors = _anchors(bundle)
        self._drivers = _driver_matrices(bundle.expression_names)
        self._cached: tuple[tuple[int, int], Pattern] | None = None

    def pattern(self, subject: Subject) -> Pattern:
        """The subject's wrinkles; the last subject's are kept."""
        key = (subject.seed, subject.index)
        if self._cached is None or self._cached[0] != key:
            self._cached = (key, _draw_pattern(self, subject))
        return self._cached[1]

    def displacement(self, subject: Subject, exp: Float, jaw: Float) -> Float:
        """D* (256,256) metres, |D*| < 4 mm, zero outside the face mask; exp (50,), jaw (3,) axis-angle radians."""
        pattern = self.pattern(subject)
        left, right = self.activation(pattern, exp, jaw)
        difference = (left - right) @ pattern.creases
        height = pattern.resting + right @ pattern.creases + difference * self.left
        out = np.zeros(UV_SIZE * UV_SIZE, np.float32)
        out[self.texels] = LIMIT * np.tanh(height / LIMIT) * self.mask
        return out.reshape(UV_SIZE, UV_SIZE)

    def activation(self, pattern: Pattern, exp: Float, jaw: Float) -> tuple[Float, Float]:
        """Fold depth of every group on the left and on the right side, each (G,), 0 smooth .. about 1.5."""
        opening = np.clip(jaw[0] / FULL_JAW, 0.0, 1.0)
        sides = []
        for drivers in self._drivers:
            push = drivers @ np.clip(exp, -0.5, 1.5) + opening * np.array([JAW_DRIVERS.get(g, 0.0) for g in GROUPS])
            sides.append(np.clip(pattern.rest + pattern.gain * push, 0.0, 1.6).astype(np.float32))
        return sides[0], sides[1]

    def shade(self, subject: Subject) -> Float:
        """Depth of the relaxed face's creases, (256,256), 1 of a full fold: little light reaches their bottom."""
        pattern = self.pattern(subject)
        out = np.zeros(UV_SIZE * UV_SIZE, np.float32)
        out[self.texels] = np.maximum(-(pattern.rest @ pattern.creases) / (DEEPER * MM), 0) * self.mask
        return out.reshape(UV_SIZE, UV_SIZE)

    def stain(self, subject: Subject) -> Float:
        """Darkness of the subject's moles, (256,256) in [0, 1]: the photographs' albedo is multiplied by 1 - stain."""
        out = np.zeros(UV_SIZE * UV_SIZE, np.float32)
        out[self.texels] = self.pattern(subject).stain * self.mask
        return out.reshape(UV_SIZE, UV_SIZE)


def _driver_matrices(names: tuple[str, ...]) -> tuple[Float, Float]:
    """Expression code to activation of the left and of the right side, each (G, 50)."""
    left, right = np.zeros((2, len(GROUPS), 50), np.float32)
    for row, group in enumerate(GROUPS):
        for name, weight in DRIVERS[group].items():
            if name in names:
                left[row, names.index(name)] = right[row, names.index(name)] = weight
            if f"{name}_left" in names:
                left[row, names.index(f"{name}_left")] = weight
    return left, right


def _anchors(bundle: AssetBundle) -> dict[str, NDArray]:
    """Places of the template's face in frontal view, mm, on the subject's left half; (x, y)."""
    faces, bary = bundle.faces[bundle.full_landmark_faces], bundle.full_landmark_bary
    points = np.einsum("lk,lkc->lc", bary, bundle.v_template[faces])[:, :2] / MM
    half = {
        "brow_in": 22,
        "brow_mid": 24,
        "brow_out": 26,
        "eye_in": 42,
        "eye_out": 45,
        "eye_top": 44,
        "eye_low": 46,
        "nose_root": 27,
        "nose_tip": 30,
        "ala": 35,
        "lip_corner": 54,
        "lip_top": 51,
        "lip_low": 57,
        "chin": 8,
    }
    return {name: np.abs(points[index]) * [1, 0] + points[index] * [0, 1] for name, index in half.items()}


def _draw_pattern(model: WrinkleModel, subject: Subject) -> Pattern:
    from deca_world.strokes import draw_creases, draw_spots

    rng = stream(subject.seed, Stream.WRINKLES, subject.index)
    age = subject.age
    points = model.points
    strokes = crease_lines(model.anchors, rng, age)
    starts = np.cumsum([0, *(len(stroke.line) for stroke in strokes)])
    layer = np.array([GROUPS.index(stroke.group) for stroke in strokes])
    depth = np.array([stroke.depth for stroke in strokes], np.float32) * np.float32(MM)
    width = np.array([stroke.width for stroke in strokes], np.float32) * np.float32(MM)
    creases = np.zeros((len(GROUPS), len(points)), np.float32)
    draw_creases(points, _on_skin(model, strokes), starts, layer, depth, width, creases)

    resting, stain = _fine_skin(model, rng, age), np.zeros(len(points), np.float32)
    moles = int(rng.poisson(2.5))
    centres = points[rng.integers(len(points), size=moles)]
    radius = rng.uniform(0.9, 1.9, moles).astype(np.float32) * np.float32(MM)
    height = (rng.uniform(0.0, 0.6, moles) * MM).astype(np.float32)
    draw_spots(points, centres, radius, height, resting)
    draw_spots(points, centres, radius, rng.uniform(0.2, 0.7, moles).astype(np.float32), stain)

    old = np.clip(0.35 + 0.3 * age, 0.0, 1.0)
    rest = old**1.5 * rng.uniform(0.0, 0.8, len(GROUPS))
    rest[GROUPS.index("lid_fold")] = rng.uniform(0.4, 1.0)
    rest[GROUPS.index("dimple")] = 0.0
    gain = rng.uniform(0.6, 1.1, len(GROUPS)) * (0.85 + 0.5 * old)
    return Pattern(resting, creases, rest.astype(np.float32), gain.astype(np.float32), np.clip(stain, 0.0, 0.8))


def _on_skin(model: WrinkleModel, strokes: list[Crease]) -> Float:
    """All strokes' vertices (K,3) on the head: each takes the depth of the nearest skin texel seen from before."""
    from scipy.spatial import cKDTree

    frontal = np.concatenate([np.array(stroke.line) * [stroke.side * MM, MM] for stroke in strokes])
    _, near = cKDTree(model.points[:, :2]).query(frontal)
    return np.column_stack([frontal, model.points[near, 2]]).astype(np.float32)


def _fine_skin(model: WrinkleModel, rng: np.random.Generator, age: float) -> Float:
    """Pores, the fine net of lines and eye bags: (N,) metres."""
    x, y = np.abs(model.points[:, 0]) / MM, model.points[:, 1] / MM
    pores = _smooth_noise(model, rng, 0.8) * rng.uniform(0.015, 0.045)
    net = _smooth_noise(model, rng, 1.6) * (0.012 + 0.03 * np.clip(0.4 + 0.3 * age, 0, 1.5))
    low = model.anchors["eye_low"]
    bag_depth = max(0.0, rng.normal(0.15 + 0.2 * age, 0.25))
    drop = y - (low[1] - 5.0)
    bag = bag_depth * np.exp(-(((x - low[0]) / 13.0) ** 2)) * np.exp(-((drop / 3.2) ** 2))
    trough = 0.7 * bag_depth * np.exp(-(((x - low[0] + 3) / 11.0) ** 2)) * np.exp(-(((drop + 6.5) / 2.4) ** 2))
    return ((pores + net + bag - trough) * MM).astype(np.float32)


def _smooth_noise(model: WrinkleModel, rng: np.random.Generator, spread: float) -> Float:
    """White noise on the UV map, blurred by `spread` texels, unit variance, at the skin texels."""
    noise = rng.standard_normal((UV_SIZE, UV_SIZE), dtype=np.float32)
    reach = np.arange(-4, 5)
    kernel = np.exp(-0.5 * (reach / spread) ** 2).astype(np.float32)
    kernel /= np.sqrt((kernel**2).sum())  # keeps the variance
    for axis in (0, 1):
        noise = sum(weight * np.roll(noise, shift, axis) for shift, weight in zip(reach, kernel, strict=True))
    return np.asarray(noise).ravel()[model.texels]
