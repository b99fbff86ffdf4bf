"""Occluders of a face: glasses, locks of hair over the forehead, a hand at the cheek, a microphone.

An `Occluder` is a kind and a seed: everything else about it is drawn from the seed inside the ranges below, so that it
stays small in a description of a photograph and the same in every process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deca_core.assets.bundle import AssetBundle
from deca_world.hairstyles import NATURAL
from deca_world.props import (
    DEFAULT_SKIN,
    HEAD,
    Colour,
    Float,
    Prop,
    grid_faces,
    grid_uv,
    head_frame,
    joint_weights,
    landmarks,
    merge,
    plain_texture,
    smooth_noise,
    smoothstep,
    tube,
)

# How many photographs in a hundred show each.
PERCENT = {"glasses": 16.0, "strands": 12.0, "hand": 5.0, "microphone": 1.5}


@dataclass(frozen=True)
class Occluder:
    """kind: a key of `PERCENT`; style: a key of `GLASSES` for glasses, else empty; seed: of everything else."""

    kind: str
    style: str
    seed: int


@dataclass(frozen=True)
class Spectacles:
    """Shape of a frame: half width and height of a lens and radius of the rim in metres.

    square: exponent of the outline (2 an ellipse); lift: raises the outer corner; droop: lengthens the lower half;
    rim: "full", "upper" or "none"; dark: chance of sunglasses.
    """

    share: float
    half_width: tuple[float, float]
    half_height: tuple[float, float]
    thickness: tuple[float, float]
    square: float = 2.0
    lift: float = 0.0
    droop: float = 0.0
    rim: str = "full"
    dark: float = 0.1


GLASSES: dict[str, Spectacles] = {
    "round wire": Spectacles(1.0, (0.0205, 0.0235), (0.0195, 0.0225), (0.0007, 0.0011), dark=0.15),
    "oval": Spectacles(0.8, (0.0225, 0.0255), (0.0145, 0.0170), (0.0008, 0.0016)),
    "rectangle": Spectacles(1.0, (0.0235, 0.0270), (0.0130, 0.0160), (0.0010, 0.0022), square=4.5),
    "thick square": Spectacles(1.0, (0.0235, 0.0265), (0.0175, 0.0205), (0.0024, 0.0034), square=4.0, dark=0.25),
    "horn rim": Spectacles(0.8, (0.0225, 0.0255), (0.0185, 0.0215), (0.0018, 0.0030), square=2.7, lift=0.08, dark=0.2),
    "cat eye": Spectacles(0.5, (0.0235, 0.0265), (0.0155, 0.0185), (0.0016, 0.0028), square=2.6, lift=0.28, dark=0.2),
    "aviator": Spectacles(0.6, (0.0260, 0.0290), (0.0190, 0.0215), (0.0008, 0.0012), square=2.5, droop=0.3, dark=0.5),
    "half rim": Spectacles(0.7, (0.0240, 0.0270), (0.0145, 0.0170), (0.0010, 0.0020), square=3.5, rim="upper"),
    "rimless": Spectacles(0.5, (0.0235, 0.0260), (0.0145, 0.0170), (0.0008, 0.0008), square=3.2, rim="none"),
}
FRAME_COLOURS: tuple[Colour, ...] = (
    (0.05, 0.05, 0.055),
    (0.20, 0.12, 0.07),
    (0.36, 0.22, 0.12),
    (0.62, 0.60, 0.58),
    (0.66, 0.52, 0.28),
    (0.12, 0.16, 0.32),
    (0.42, 0.08, 0.10),
    (0.80, 0.76, 0.70),
)
# A lens plane bends back to the sides by this much: z falls by WRAP * x^2.
WRAP = 1.7


def sample_occluders(rng: np.random.Generator, rate: float = 1.0) -> list[Occluder]:
    """The occluders of one photograph, mostly none; `rate` scales how frequent they are."""
    styles = list(GLASSES)
    shares = np.array([GLASSES[name].share for name in styles])
    found = []
    for kind, percent in PERCENT.items():
        draw, style, seed = rng.random(), str(rng.choice(styles, p=shares / shares.sum())), int(rng.integers(2**31))
        if draw < rate * percent / 100:
            found.append(Occluder(kind, style if kind == "glasses" else "", seed))
    return found


def build_occluders(
    bundle: AssetBundle,
    shaped_vertices: Float,
    occluders: Sequence[Occluder],
    skin: Colour = DEFAULT_SKIN,
    hair: Colour | None = None,
) -> list[Prop]:
    """The props of occluders on a shaped head (V,3). `skin` colours hands, `hair` the locks (None: any natural one)."""
    head = _Face(bundle, shaped_vertices, skin, hair)
    return [prop for o in occluders for prop in _BUILDERS[o.kind](head, o, np.random.default_rng(o.seed))]


class _Face:
    """Landmarks and surface of the shaped head, and the sitter's colours."""

    def __init__(self, bundle: AssetBundle, vertices: Float, skin: Colour, hair: Colour | None) -> None:
        self.frame = head_frame(bundle)
        self.surface = self.frame.surface(vertices)
        self.landmarks = landmarks(bundle, vertices)
        self.skin, self.hair = skin, hair

    def at(self, azimuth: NDArray, polar: NDArray, lift: NDArray | float) -> NDArray:
        """Points over the surface: azimuth, polar (N,) degrees, lift (N,) metres away from the skull -> (N,3)."""
        column = np.interp(azimuth, self.frame.azimuth, np.arange(len(self.frame.azimuth)))
        row = np.interp(polar, self.frame.polar, np.arange(len(self.frame.polar)))
        i, j = (
            np.minimum(row.astype(int), len(self.surface) - 2),
            np.minimum(column.astype(int), len(self.surface[0]) - 2),
        )
        a, b = (row - i)[:, None], (column - j)[:, None]
        upper = self.surface[i, j] * (1 - b) + self.surface[i, j + 1] * b
        lower = self.surface[i + 1, j] * (1 - b) + self.surface[i + 1, j + 1] * b
        theta, phi = np.radians(azimuth), np.radians(polar)
        away = np.stack([np.sin(phi) * np.sin(theta), np.cos(phi), np.sin(phi) * np.cos(theta)], axis=-1)
        return upper * (1 - a) + lower * a + np.broadcast_to(lift, len(azimuth))[:, None] * away


def _prop(name: str, mesh: tuple[Float, NDArray, Float], texture: Float, specular: float) -> Prop:
    vertices, faces, uv = mesh
    return Prop(name, vertices.astype(np.float32), faces, joint_weights(len(vertices), HEAD), uv, texture, specular)


def _glasses(face: _Face, occluder: Occluder, rng: np.random.Generator) -> list[Prop]:
    style = GLASSES[occluder.style]
    half_width, half_height = rng.uniform(*style.half_width), rng.uniform(*style.half_height)
    thickness, bridge = rng.uniform(*style.thickness), rng.uniform(0.0075, 0.0100)
    points = face.landmarks
    eyes = points[36:48].mean(0)
    middle, y = points[27, 0], eyes[1] - rng.uniform(0.001, 0.004)
    near = points[[17, 18, 19, 20, 23, 24, 25, 26, 36, 37, 38, 43, 44, 45]]
    stand_off = max(
        float((near[:, 2] + WRAP * (near[:, 0] - middle) ** 2).max()) + 0.002,
        float(points[27, 2]) + 0.003,
        float(eyes[2]) + 0.013,
    )

    def plane(x: NDArray, height: NDArray) -> NDArray:
        """Frontal offsets from the bridge, metres, to points on the curved and slightly tilted lens plane."""
        return np.stack([middle + x, y + height, stand_off - WRAP * x**2 + 0.10 * height], axis=-1)

    angle = np.linspace(0, 2 * np.pi, 37)
    unit_x = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** (2 / style.square)
    unit_y = np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** (2 / style.square)
    unit_y = unit_y + style.lift * np.clip(unit_x, 0, 1) ** 2 * (unit_y > -0.3) - style.droop * np.clip(-unit_y, 0, 1)
    frame, lenses = [], []
    for side in (-1.0, 1.0):
        x, height = side * (bridge + half_width * (1 + unit_x)), half_height * unit_y
        rim = slice(0, 19) if style.rim == "upper" else slice(0, 37)
        if style.rim != "none":
            frame.append(tube(plane(x[rim], height[rim]), thickness, sides=6))
        rings = np.linspace(0, 1, 3)[:, None]
        centre = side * (bridge + half_width)
        lens = plane(centre + rings * (x - centre), rings * height)
        lenses.append((lens.reshape(-1, 3), grid_faces(3, 37), _lens_uv(rings * unit_x, rings * unit_y)))
        frame.append(
            _temple(face, plane(np.array(side * (bridge + 2 * half_width)), np.array(0.35 * half_height)), thickness)
        )
    across = np.linspace(-1, 1, 9)
    arch = plane(across * bridge * 1.05, 0.35 * half_height + 0.002 * (1 - across**2))
    frame.append(tube(arch, max(thickness, 0.0012), sides=6))
    colour = FRAME_COLOURS[int(rng.integers(len(FRAME_COLOURS)))]
    return [
        _prop("glasses", merge(frame), plain_texture(colour), 0.5),
        _prop("lenses", merge(lenses), _lens_texture(rng, dark=rng.random() < style.dark), 0.6),
    ]


def _lens_uv(x: NDArray, y: NDArray) -> Float:
    return (0.5 + 0.35 * np.stack([x, y], axis=-1)).reshape(-1, 2).astype(np.float32)


def _lens_texture(rng: np.random.Generator, dark: bool) -> Float:
    """Tinted glass, or clear glass with the pale streak of a window in it. (24,24,4)"""
    v, u = np.mgrid[0:1:24j, 0:1:24j]
    texture = np.empty((24, 24, 4), np.float32)
    if dark:
        texture[..., :3] = np.array([0.05, 0.045, 0.04]) * rng.uniform(0.5, 2.0, 3)
        texture[..., 3] = rng.uniform(0.65, 0.97) * (1 - rng.uniform(0, 0.5) * v)
    else:
        streak = smoothstep(0.10, 0.0, np.abs(u + 0.6 * v - rng.uniform(0.4, 1.2)))
        texture[..., :3] = np.array([0.85, 0.90, 0.95])
        texture[..., 3] = rng.uniform(0.02, 0.07) + rng.uniform(0.0, 0.25) * streak
    return texture


def _temple(face: _Face, hinge: NDArray, thickness: float) -> tuple[Float, NDArray, Float]:
    """The arm from the hinge past the temple to behind the ear."""
    side = np.sign(hinge[0])
    ear = face.at(np.array([84.0]) * side, np.array([88.0]), 0.004)[0]
    bend = np.array([ear[0], hinge[1] + 0.004, ear[2] - 0.012])
    outward = np.array([0.004 * side, 0.0, 0.0])
    path = [hinge, hinge + np.array([0.004 * side, 0.001, -0.006]), (hinge + bend) / 2 + outward, bend]
    path.append(bend + np.array([0.0, -0.022, -0.018]))
    return tube(np.array(path), max(thickness, 0.0012), sides=6)


def _strands(face: _Face, occluder: Occluder, rng: np.random.Generator) -> list[Prop]:
    """Locks that fall from the front of the hairline over forehead and eye."""
    t = np.linspace(0, 1, 14)
    root, tip = rng.uniform(-35, 35), rng.uniform(75, 104)
    drift = rng.normal(0.35 * root, 10)
    locks = []
    for _ in range(int(rng.integers(2, 7))):
        begin = root + rng.normal(0, 7)
        azimuth = begin + (drift + rng.normal(0, 4)) * t**1.5 + rng.normal(0, 5) * np.sin(np.pi * t)
        polar = 40 + (tip + rng.normal(0, 6) - 40) * t
        path = face.at(azimuth, polar, 0.010 - 0.004 * t + rng.uniform(0, 0.003))
        along = np.gradient(path, axis=0)
        across = np.cross(along, path - face.surface[0, 0] * [0, 0, 1])
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        width = rng.uniform(0.002, 0.0055) * (1 - 0.75 * t**2)
        grid = path[:, None] + np.array([-1, 0, 1])[None, :, None] * (width[:, None] * across)[:, None]
        locks.append((grid.reshape(-1, 3).astype(np.float32), grid_faces(14, 3), grid_uv(14, 3)))
    colour = face.hair or list(NATURAL.values())[int(rng.integers(len(NATURAL)))]
    return [_prop("strands", merge(locks), _lock_texture(rng, colour), 0.25)]


def _lock_texture(rng: np.random.Generator, colour: Colour) -> Float:
    """Streaks along a lock, softer at its edges and its tip. (64,24,4)"""
    v, u = np.mgrid[0:1:64j, 0:1:24j]
    streak = smooth_noise(rng, (2, 12), 64, 24)
    texture = np.empty((64, 24, 4), np.float32)
    texture[..., :3] = np.clip((0.9 + 0.15 * streak)[..., None] * np.array(colour), 0, 1)
    edge = np.minimum(u, 1 - u) + 0.06 * streak
    texture[..., 3] = smoothstep(0.0, 0.16, edge) * smoothstep(1.0, 0.8, v + 0.1 * streak) * smoothstep(0.0, 0.1, v)
    return texture


def _hand(face: _Face, occluder: Occluder, rng: np.random.Generator) -> list[Prop]:
    """Fingers on cheek or chin, the palm off the face and the forearm down out of the image."""
    side, lean = rng.choice([-1.0, 1.0]), rng.uniform(-8, 22)
    base, reach = rng.uniform(14, 42), rng.uniform(26, 42)
    t = np.linspace(0, 1, 10)
    parts, knuckles = [], []
    for finger, length in enumerate((0.88, 1.0, 0.95, 0.75)[: int(rng.integers(2, 5))]):
        azimuth = side * (base + 11 * finger - (lean + rng.normal(0, 2)) * t)
        polar = rng.uniform(137, 142) - reach * length * t
        on_skin = face.at(azimuth, polar, 0.006)
        chord = (
            on_skin[0] + (on_skin[-1] - on_skin[0]) * t[:, None] + 0.012 * np.sin(np.pi * t)[:, None] * _away(on_skin)
        )
        # Knuckles stand off, the tip touches the skin.
        path = (on_skin + chord) / 2 + (0.012 * (1 - t) ** 2)[:, None] * _away(on_skin)
        radius = 0.0088 * (1 - 0.22 * t) * rng.uniform(0.95, 1.05) * np.sqrt(np.clip(1.02 - t**8, 0.002, 1))
        parts.append(tube(path, radius, sides=10))
        knuckles.append(path[0])
    centre, first = np.mean(knuckles, axis=0), knuckles[0] - knuckles[-1]
    down = np.array([side * 0.25, -1.0, 0.10])
    s = np.linspace(0, 1, 9)[:, None]
    arm = centre + s * down * 0.30
    widths = np.interp(s[:, 0], [0, 0.125, 0.25, 0.375, 1], [0.022, 0.040, 0.038, 0.027, 0.036])
    parts.append(_flat_tube(arm, widths, first))
    colour = np.clip(np.array(face.skin) * rng.uniform(0.88, 1.05), 0, 1)
    texture = np.ones((32, 32, 4), np.float32)
    texture[..., :3] = np.clip(colour * (1 + 0.04 * smooth_noise(rng, (6, 6), 32, 32))[..., None], 0, 1)
    return [_prop("hand", merge(parts), texture, 0.08)]


def _away(points: NDArray) -> NDArray:
    """Horizontal direction away from the head's axis."""
    out = points * [1, 0, 1] + [0, 0, 0.045]
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def _flat_tube(path: NDArray, widths: NDArray, along: NDArray) -> tuple[Float, NDArray, Float]:
    """Palm and arm: a tube half as thick as it is wide; `along` is the direction of its width."""
    wide = along / (np.linalg.norm(along) + 1e-9)
    thick = np.cross(path[-1] - path[0], wide)
    thick /= np.linalg.norm(thick)
    angle = np.linspace(0, 2 * np.pi, 15)
    ring = np.cos(angle)[:, None] * wide + 0.55 * np.sin(angle)[:, None] * thick
    vertices = path[:, None] + widths[:, None, None] * ring
    return vertices.reshape(-1, 3).astype(np.float32), grid_faces(len(path), 15), grid_uv(len(path), 15)


def _microphone(face: _Face, occluder: Occluder, rng: np.random.Generator) -> list[Prop]:
    """A hand-held microphone in front of chin or mouth."""
    mouth = face.landmarks[48:60].mean(0)
    head = mouth + np.array([rng.normal(0, 0.012), rng.uniform(-0.035, -0.015), rng.uniform(0.035, 0.055)])
    direction = np.array([rng.normal(0, 0.35), -1.0, rng.uniform(0.2, 0.8)])
    direction /= np.linalg.norm(direction)
    s = np.r_[-0.026, -0.024, -0.018, 0.0, 0.018, 0.024, 0.028, 0.10, 0.20]
    radius = np.r_[0.0005, 0.010, 0.019, 0.026, 0.021, 0.016, 0.013, 0.011, 0.010]
    vertices, faces, uv = tube(head + s[:, None] * direction, radius, sides=18)
    grey = rng.uniform(0.05, 0.5)
    texture = plain_texture((grey, grey, grey))
    return [_prop("microphone", (vertices, faces, uv), texture, 0.3)]


_BUILDERS: dict[str, Callable[[_Face, Occluder, np.random.Generator], list[Prop]]] = {
    "glasses": _glasses,
    "strands": _strands,
    "hand": _hand,
    "microphone": _microphone,
}
