"""Procedural backgrounds: walls, rooms out of focus, lights at night, leaves, shelves, sky. Never a face."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Generator = np.random.Generator

# Most are plain, the others far out of focus, as in portraits: structure beside a cheek draws the contour that landmark
# predictors find.
KINDS = {"wall": 0.34, "room": 0.24, "lights": 0.06, "leaves": 0.16, "shelf": 0.08, "outdoor": 0.12}
COARSE = 64  # pixels on a side of what is out of focus


@dataclass(frozen=True)
class Background:
    """kind: a key of KINDS; seed of its details; brightness of its mean, 0..1."""

    kind: str
    seed: int
    brightness: float


def sample_background(rng: Generator) -> Background:
    return Background(
        kind=str(rng.choice(list(KINDS), p=list(KINDS.values()))),
        seed=int(rng.integers(2**31)),
        brightness=float(rng.uniform(0.15, 0.8)),
    )


def paint(background: Background, size: int) -> Float:
    """The background as an image (size, size, 3) in [0, 1]."""
    rng = np.random.default_rng(background.seed)
    painter = {
        "wall": _wall,
        "room": _room,
        "lights": _lights,
        "leaves": _leaves,
        "shelf": _shelf,
        "outdoor": _outdoor,
    }[background.kind]
    image = painter(rng, background.brightness)
    return np.clip(enlarge(image.astype(np.float32), size), 0.0, 1.0)


def enlarge(image: Float, size: int) -> Float:
    """Bilinear enlargement of (n,n,3) to (size,size,3)."""
    count = len(image)
    at = np.clip((np.arange(size) + 0.5) * (count / size) - 0.5, 0, count - 1.001)
    low = at.astype(int)
    share = (at - low).astype(np.float32)
    rows = image[low] * (1 - share)[:, None, None] + image[low + 1] * share[:, None, None]
    return rows[:, low] * (1 - share)[:, None] + rows[:, low + 1] * share[:, None]


def _colour(rng: Generator, brightness: float, saturation: float) -> NDArray:
    return np.clip(brightness * (1 + saturation * rng.standard_normal(3)), 0.02, 1.0)


def _grid(count: int) -> tuple[NDArray, NDArray]:
    axis = (np.arange(count) + 0.5) / count
    return np.meshgrid(axis, axis)


def _cloud(rng: Generator, cells: int, count: int) -> NDArray:
    """Smooth noise (count,count) with about `cells` bumps on a side, unit variance at its nodes."""
    nodes = rng.standard_normal((cells, cells, 1)).astype(np.float32)
    return enlarge(nodes, count)[..., 0]


def _wall(rng: Generator, brightness: float) -> NDArray:
    """A plain wall: a gradient, a vignette of light, faint stains."""
    x, y = _grid(COARSE)
    slope = rng.normal(0, 0.22, 2)
    light = 1 + slope[0] * (x - 0.5) + slope[1] * (y - 0.5) + 0.05 * rng.uniform() * _cloud(rng, 6, COARSE)
    centre = rng.uniform(0.1, 0.9, 2)
    light = light + rng.uniform(0, 0.25) * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / 0.15)
    return _colour(rng, brightness, 0.12) * light[..., None]


def _boxes(rng: Generator, image: NDArray, number: int, brightness: float, contrast: float) -> None:
    count = len(image)
    for _ in range(number):
        width, height = (rng.uniform(0.06, 0.6, 2) * count).astype(int) + 1
        left, top = (rng.uniform(-0.2, 1.0, 2) * count).astype(int)
        colour = _colour(rng, np.clip(brightness * (1 + contrast * rng.standard_normal()), 0.05, 1.0), 0.18)
        image[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] = colour


def _soften(image: NDArray, spread: float) -> NDArray:
    from scipy.ndimage import gaussian_filter1d

    for axis in (0, 1):
        image = gaussian_filter1d(image, spread, axis=axis, mode="nearest", truncate=2.5)
    return image


def _room(rng: Generator, brightness: float) -> NDArray:
    """Furniture, windows and images out of focus."""
    image = _wall(rng, brightness)
    _boxes(rng, image, int(rng.integers(4, 12)), brightness, 0.35)
    return _soften(image, rng.uniform(2.5, 6.0))


def _lights(rng: Generator, brightness: float) -> NDArray:
    """A dark street with discs of light out of focus."""
    image = _wall(rng, 0.25 * brightness + 0.04)
    x, y = _grid(COARSE)
    for _ in range(int(rng.integers(8, 30))):
        (cx, cy), radius = rng.uniform(0, 1, 2), rng.uniform(0.02, 0.09)
        disc = np.clip((radius - np.hypot(x - cx, y - cy)) * COARSE * 0.5 + 0.5, 0, 1)
        image = image + disc[..., None] * _colour(rng, rng.uniform(0.1, 0.4), 0.25)
    return _soften(image, rng.uniform(1.5, 3.0))


def _leaves(rng: Generator, brightness: float) -> NDArray:
    """Foliage: noise at three sizes, greenish."""
    count = 128 if rng.uniform() < 0.5 else COARSE
    weights = rng.uniform(0.06, 0.15, 3)
    height = sum(w * _cloud(rng, cells, count) for w, cells in zip(weights, (5, 14, 40), strict=True))
    base = np.array([0.80, 0.92, 0.55]) * (1 + 0.10 * rng.standard_normal(3))
    image = 0.65 * brightness * base * np.exp(1.8 * np.asarray(height))[..., None]
    return _soften(image, rng.uniform(1.0, 3.5))


def _shelf(rng: Generator, brightness: float) -> NDArray:
    """Rows of upright spines, out of focus."""
    count, rows = 128, int(rng.integers(2, 5))
    image = np.zeros((count, count, 3))
    for row in range(rows):
        top, bottom, left = count * row // rows, count * (row + 1) // rows, 0
        while left < count:
            width = int(rng.integers(3, 11))
            height = int((bottom - top) * rng.uniform(0.68, 0.92))
            spine = _colour(rng, brightness * rng.uniform(0.5, 1.3), 0.25)
            image[bottom - height : bottom - 3, left : left + width - 1] = spine
            left += width
        image[bottom - 3 : bottom] = _colour(rng, 0.5 * brightness, 0.1)
    return _soften(image, rng.uniform(3.0, 7.0))


def _outdoor(rng: Generator, brightness: float) -> NDArray:
    """Sky over an uneven horizon and ground."""
    _, y = _grid(COARSE)
    horizon = rng.uniform(0.25, 0.8) + 0.06 * _cloud(rng, 8, COARSE)[:1]
    sky = np.array([0.75, 0.88, 1.0]) * rng.uniform(0.5, 1.0) * (1 + 0.1 * _cloud(rng, 6, COARSE)[..., None])
    ground = _colour(rng, 0.6 * brightness, 0.2) * (1 + 0.15 * _cloud(rng, 20, COARSE)[..., None])
    share = np.clip((y - horizon) * 20 + 0.5, 0, 1)[..., None]
    return _soften(sky * (1 - share) + ground * share, rng.uniform(2.0, 5.0))
