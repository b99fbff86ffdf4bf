"""Settings of one photograph: expression, pose, light, framing, background, occluders, lens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deca_core.assets.bundle import NUM_EXP
from deca_world.background import Background, sample_background
from deca_world.lens import Lens, sample_lens
from deca_world.lighting import Light, sample_light
from deca_world.occluders import Occluder, sample_occluders
from deca_world.streams import Stream, stream
from deca_world.subject import Subject

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Limits:
    """Ranges of the random settings. Angles in degrees; pairs are (smallest, largest)."""

    yaw: tuple[float, float] = (0.0, 60.0)  # of |yaw|; left and right are equally likely
    pitch: float = 20.0
    roll: float = 15.0
    # Of the weak-perspective camera: at 7 a head fills the image from crown to chin, at 4.4 the shoulders are seen.
    scale: tuple[float, float] = (4.4, 6.6)
    shift: float = 0.12  # of half the image's side
    occluders: bool = True
    expressions: bool = True
    lens: bool = True


@dataclass(frozen=True, eq=False)
class Shot:
    """One photograph of one subject. Rotations are axis-angle in radians, world space.

    exp (50,), jaw (3,), head (3,) global rotation, body (3,) rotation of the shoulders, eyes (6,) left and right;
    scale of the weak-perspective camera, offset (2,) of the face's middle in [-1, 1], y down.
    """

    image: int
    exp: Float
    jaw: Float
    head: Float
    body: Float
    eyes: Float
    scale: float
    offset: tuple[float, float]
    light: Light
    background: Background
    occluders: tuple[Occluder, ...]
    lens: Lens


# Expressions of everyday photographs: components at full strength, and the jaw's opening in radians.
MOODS: dict[str, tuple[float, dict[str, float], tuple[float, float]]] = {
    "neutral": (0.28, {}, (0.0, 0.02)),
    "smile": (0.14, {"smile": 0.8, "cheek_raise": 0.45, "squint": 0.15}, (0.0, 0.02)),
    "grin": (0.12, {"smile": 0.9, "cheek_raise": 0.7, "upper_lip_raise": 0.5, "lips_part": 0.6}, (0.0, 0.08)),
    "laugh": (0.04, {"smile": 0.8, "cheek_raise": 0.9, "squint": 0.5, "upper_lip_raise": 0.5}, (0.08, 0.20)),
    "brow raise": (0.08, {"brow_raise": 0.9, "lids_wide": 0.4}, (0.0, 0.06)),
    "surprise": (0.03, {"brow_raise": 1.0, "lids_wide": 0.8}, (0.08, 0.22)),
    "frown": (0.07, {"brow_lower": 0.9, "brow_squeeze": 0.6, "lip_press": 0.3}, (0.0, 0.0)),
    "sad": (0.04, {"frown": 0.8, "brow_inner_raise": 0.8, "chin_raise": 0.3}, (0.0, 0.0)),
    "disgust": (0.03, {"nose_wrinkle": 0.9, "upper_lip_raise": 0.6, "brow_lower": 0.4}, (0.0, 0.06)),
    "squint": (0.04, {"squint": 0.9, "cheek_raise": 0.5, "brow_lower": 0.4}, (0.0, 0.02)),
    "pucker": (0.03, {"pucker": 0.8, "funnel": 0.2}, (0.0, 0.04)),
    "talk": (0.08, {"lips_part": 0.5, "funnel": 0.2, "lower_lip_depress": 0.2}, (0.02, 0.12)),
    "smirk": (0.02, {"smile_left": 0.8, "dimple_left": 0.5}, (0.0, 0.02)),
}
# A few components beside the mood's own, weak: faces are never quite at rest.
STRAY, STRAY_STRENGTH = 3, 0.35
GLASSES_WORN = 0.92  # share of the images of subjects with glasses
BLINK = 0.03  # share of images with (nearly) closed eyes


def shot(subject: Subject, image: int, names: tuple[str, ...], limits: Limits | None = None) -> Shot:
    """The photograph `image` of `subject`: a pure function of its arguments. `names` of the expression components."""
    limits = limits or Limits()
    rng = stream(subject.seed, Stream.SHOT, subject.index, image)
    yaw, pitch, roll = sample_pose(rng, limits)
    exp, jaw = sample_expression(rng, names)
    if not limits.expressions:
        exp, jaw = np.zeros_like(exp), 0.0
    sway = rng.uniform(0.25, 0.8)  # how far the shoulders turn with the head
    gaze = np.radians([rng.normal(0, 4), rng.normal(0, 9) - 0.25 * yaw * rng.uniform()])
    eye = axis_angle(0.0, float(gaze[0]), float(gaze[1]))
    background, lens = sample_background(rng), sample_lens(rng, limits.lens)
    return Shot(
        image=image,
        exp=exp,
        jaw=np.array([jaw, 0.0, 0.0], np.float32),
        head=axis_angle(*np.radians([roll, pitch, yaw])),
        body=axis_angle(*np.radians([0.1 * roll, 0.0, sway * yaw])),
        eyes=np.concatenate([eye, eye]),
        scale=float(rng.uniform(*limits.scale)),
        offset=(float(rng.uniform(-1, 1) * limits.shift), float(rng.uniform(-1, 1) * limits.shift)),
        light=sample_light(rng),
        background=background,
        occluders=_occluders(subject, image) if limits.occluders else (),
        lens=lens,
    )


def _occluders(subject: Subject, image: int) -> tuple[Occluder, ...]:
    """Occluders of this photograph: the subject's glasses, sometimes off, and random others."""
    rng = stream(subject.seed, Stream.OCCLUDERS, subject.index, image)
    worn = subject.glasses if rng.uniform() < GLASSES_WORN else None
    found = sample_occluders(rng)
    # At most one pair per subject; sunglasses are rare on subjects without glasses.
    others = [occluder for occluder in found if occluder.kind != "glasses" or (worn is None and rng.uniform() < 0.15)]
    return (worn, *others) if worn else tuple(others)


def sample_pose(rng: np.random.Generator, limits: Limits) -> tuple[float, float, float]:
    """Yaw, pitch, roll in degrees: mostly near the camera, a quarter of the yaws anywhere inside the limits."""
    low, high = limits.yaw
    yaw = abs(rng.normal(0, 14)) if rng.uniform() < 0.75 else rng.uniform(low, high)
    if not low <= yaw <= high:
        yaw = rng.uniform(low, high)
    pitch = float(np.clip(rng.normal(0, 8), -limits.pitch, limits.pitch))
    roll = float(np.clip(rng.normal(0, 4.5), -limits.roll, limits.roll))
    return float(yaw * rng.choice([-1, 1])), pitch, roll


def sample_expression(rng: np.random.Generator, names: tuple[str, ...]) -> tuple[Float, float]:
    """Expression code (50,) and jaw opening in radians: a mood of some strength, lids, and a few stray components.

    A bundle without names (FLAME: statistical components) gets sparse normal coefficients instead.
    """
    strength, opening = rng.uniform(0.35, 1.05), rng.uniform()
    shares = [share for share, _, _ in MOODS.values()]
    _, components, jaw = list(MOODS.values())[rng.choice(len(MOODS), p=shares)]
    stray, amounts = rng.choice(NUM_EXP, STRAY, replace=False), rng.uniform(0, STRAY_STRENGTH, STRAY)
    lids = rng.uniform(0.75, 1.0) if rng.uniform() < BLINK else max(0.0, rng.normal(0.02, 0.1))
    one_sided = rng.normal(0, 0.12)
    exp = np.zeros(NUM_EXP, np.float32)
    if not names:
        exp[stray] = amounts * 4
        return exp, float(opening * jaw[1])
    for index, amount in zip(stray, amounts, strict=True):
        # Lids have a distribution of their own.
        exp[index] += 0.0 if names[index].startswith("lids") else amount
    for name, weight in components.items():
        for target, amount in ((name, weight * strength), (f"{name}_left", weight * one_sided)):
            if target in names:
                exp[names.index(target)] += amount
    if "lids_close" in names:
        exp[names.index("lids_close")] += lids
    return exp, float(jaw[0] + (jaw[1] - jaw[0]) * opening)


def axis_angle(roll: float, pitch: float, yaw: float) -> Float:
    """Rotation R = R_z(roll) R_x(pitch) R_y(yaw), radians, as axis-angle (3,). Positive yaw turns to the subject's
    left, positive pitch looks down."""
    half = 0.5 * np.array([roll, pitch, yaw])
    (sz, sx, sy), (cz, cx, cy) = np.sin(half), np.cos(half)
    # Quaternion product (cz + sz k)(cx + sx i)(cy + sy j).
    w = cz * cx * cy - sz * sx * sy
    vector = np.array([cz * sx * cy - sz * cx * sy, cz * cx * sy + sz * sx * cy, cz * sx * sy + sz * cx * cy])
    sine = float(np.linalg.norm(vector))
    return (vector * (2 * np.arctan2(sine, w) / sine if sine > 1e-12 else 2.0)).astype(np.float32)
