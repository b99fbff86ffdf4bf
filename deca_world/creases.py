"""Lines of creases in frontal view, mm, on a face's landmarks, with number, place and depth of each subject."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Anchors = dict[str, NDArray]
Generator = np.random.Generator

# The plans below give the bottom of a fold, as a caliper finds it. The skin beside it bends over a wider stretch, and
# what a photograph of 224 pixels can show (a pixel is a millimetre) is that: all folds wider and deeper by these.
WIDER, DEEPER = 1.7, 3.0


@dataclass(frozen=True)
class Crease:
    """One fold: its group, a line of (x, y) mm, depth and width in mm.

    side +1 the subject's left, -1 the right (the line is mirrored); in a plan 1 means both, 0 means a line that
    crosses the midline and is drawn once.
    """

    group: str
    side: int
    line: list[tuple[float, float]]
    depth: float
    width: float


def crease_lines(anchors: Anchors, rng: Generator, age: float) -> list[Crease]:
    """All folds of one subject. Both sides share their plan and differ in a few tenths of a millimetre."""
    upper = (_forehead, _glabella, _crows_feet, _bunny, _under_eye, _lid_fold)
    lower = (_nasolabial, _marionette, _lips, _chin, _dimple)
    depth = float(np.clip(0.85 + 0.12 * age + 0.15 * rng.standard_normal(), 0.5, 1.3))
    out = []
    for plan in upper + lower:
        for fold in plan(anchors, rng):
            for side in (1, -1) if fold.side else (1,):
                jitter = rng.normal(0.0, 0.45, (len(fold.line), 2))
                line = [(x + dx, y + dy) for (x, y), (dx, dy) in zip(fold.line, jitter, strict=True)]
                own = DEEPER * depth * rng.uniform(0.85, 1.15)
                out.append(Crease(fold.group, side, line, fold.depth * own, WIDER * fold.width))
    return out


def _bow(start: NDArray, end: NDArray, sag: float, points: int = 7) -> list[tuple[float, float]]:
    """A parabola from start to end whose middle is `sag` mm aside (positive: to the left of the direction)."""
    along = np.linspace(0, 1, points)[:, None]
    direction = (end - start) / max(float(np.linalg.norm(end - start)), 1e-6)
    normal = np.array([-direction[1], direction[0]])
    path = start + along * (end - start) + 4 * along * (1 - along) * sag * normal
    return [(float(x), float(y)) for x, y in path]


def _mm(x: float, y: float) -> NDArray:
    return np.array([x, y])


def _fold(group: str, line: list[tuple[float, float]], depth: float, width: float) -> Crease:
    return Crease(group, 1, line, depth, width)


def _forehead(a: Anchors, rng: Generator) -> Iterator[Crease]:
    """Lines across the frontalis: two to six, wavy, sometimes broken in the middle."""
    count, bottom = int(rng.integers(2, 7)), a["brow_mid"][1] + rng.uniform(8, 12)
    spacing, wave, arch = rng.uniform(5.0, 8.5), rng.uniform(0, 1.6), rng.uniform(-2.0, 4.0)
    middle = rng.uniform() < 0.75
    for index in range(count):
        y, reach = bottom + spacing * index, rng.uniform(30, 46) - 2.2 * index
        xs = np.linspace(-reach if middle else rng.uniform(3, 9), reach, 15)
        aside = np.abs(xs)
        ripple = np.sin(aside / 7 + rng.uniform(0, 6)) * np.clip(aside / 10, 0, 1)
        ys = y + arch * np.cos(xs / 26) + wave * ripple
        line = [(float(x), float(v)) for x, v in zip(xs, ys, strict=True)]
        yield Crease("forehead", 0 if middle else 1, line, rng.uniform(0.5, 0.95), rng.uniform(0.9, 1.4))


def _glabella(a: Anchors, rng: Generator) -> Iterator[Crease]:
    """One to three upright lines between the brows."""
    root, brow = a["nose_root"], a["brow_in"]
    for index in range(int(rng.integers(1, 4))):
        x = rng.uniform(3.5, 6.5) + 4.0 * index
        top = np.array([x + rng.uniform(0, 2.5), brow[1] + rng.uniform(4, 11)])
        low = np.array([x - rng.uniform(0, 1.5), root[1] + rng.uniform(1, 5)])
        yield _fold("glabella", _bow(low, top, rng.uniform(-1, 1)), rng.uniform(0.6, 1.1) / (1 + 0.6 * index), 1.3)


def _crows_feet(a: Anchors, rng: Generator) -> Iterator[Crease]:
    """A fan of two to five lines from the outer corner of the eye."""
    count, corner = int(rng.integers(2, 6)), a["eye_out"]
    for angle in np.linspace(rng.uniform(-45, -25), rng.uniform(15, 42), count) + rng.normal(0, 4, count):
        heading = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
        start = corner + _mm(2.5, 0.5) + heading * rng.uniform(1.5, 4.0)
        line = _bow(start, start + heading * rng.uniform(8, 16), rng.uniform(-1.2, 1.2))
        yield _fold("crows_feet", line, rng.uniform(0.45, 0.85), rng.uniform(0.8, 1.2))


def _nasolabial(a: Anchors, rng: Generator) -> Iterator[Crease]:
    """The fold from the wing of the nose past the corner of the mouth, sometimes with a second one outside."""
    start = a["ala"] + _mm(5.0 + rng.uniform(-1, 2.0), rng.uniform(1, 6))
    end = a["lip_corner"] + _mm(rng.uniform(5, 10), rng.uniform(-7, 3))
    sag = rng.uniform(1.0, 4.5)
    depth = rng.uniform(0.75, 1.3)
    yield _fold("nasolabial", _bow(start, end, sag, 9), depth, rng.uniform(1.4, 2.0))
    # The cheek swells outside the fold.
    yield _fold("nasolabial", _bow(start + _mm(5.5, 0), end + _mm(6, 3), sag, 9), -0.45 * depth, 3.4)
    if rng.uniform() < 0.4:
        outside = np.array([rng.uniform(7, 11), rng.uniform(-5, 0)])
        yield _fold("nasolabial", _bow(start + outside + _mm(0, -8), end + outside, sag), rng.uniform(0.25, 0.5), 1.3)


def _bunny(a: Anchors, rng: Generator) -> Iterator[Crease]:
    """Short slanting lines on the side of the nose."""
    root = a["nose_root"]
    for index in range(int(rng.integers(2, 4))):
        start = np.array([rng.uniform(2.5, 4.5), root[1] - 5 - 4.2 * index])
        end = start + _mm(rng.uniform(7, 11), rng.uniform(2.5, 6))
        yield _fold("bunny", _bow(start, end, rng.uniform(-0.8, 0.8)), rng.uniform(0.45, 0.8), 0.95)


def _under_eye(a: Anchors, rng: Generator) -> Iterator[Crease]:
    """One to three lines under the lower lid, parallel to it."""
    for index in range(int(rng.integers(1, 4))):
        drop = 5.0 + 3.4 * index + rng.uniform(-0.6, 0.6)
        start = a["eye_in"] + _mm(rng.uniform(1, 4), -drop + 1.5)
        end = a["eye_out"] + _mm(rng.uniform(-4, 2), -drop - rng.uniform(0, 2))
        yield _fold("under_eye", _bow(start, end, -rng.uniform(1.5, 3.5)), rng.uniform(0.35, 0.65), 0.95)


def _lid_fold(a: Anchors, rng: Generator) -> Iterator[Crease]:
    """The fold of the upper lid, higher or lower, single or double."""
    for index in range(1 + (rng.uniform() < 0.3)):
        lift = rng.uniform(5.0, 7.5) + 2.6 * index
        start, end = a["eye_in"] + _mm(1.0, lift - 2.0), a["eye_out"] + _mm(3.0, lift - 1.5)
        yield _fold("lid_fold", _bow(start, end, rng.uniform(2.5, 4.5)), rng.uniform(0.3, 0.7) / (1 + index), 1.0)


def _marionette(a: Anchors, rng: Generator) -> Iterator[Crease]:
    """From the corner of the mouth towards the chin."""
    start = a["lip_corner"] + _mm(rng.uniform(1.5, 3.5), -2.5)
    end = start + _mm(rng.uniform(1, 5), -rng.uniform(13, 21))
    yield _fold("marionette", _bow(start, end, rng.uniform(0, 2)), rng.uniform(0.45, 0.85), 1.4)


def _lips(a: Anchors, rng: Generator) -> Iterator[Crease]:
    """Upright lines above and below the red of the lips."""
    for x in np.arange(3.0, a["lip_corner"][0] - 3, rng.uniform(3.4, 5.0)):
        foot = np.array([x + rng.uniform(-0.7, 0.7), a["lip_top"][1] + 1.5 - 0.12 * x])
        yield _fold("lips", _bow(foot, foot + _mm(0.12 * x, rng.uniform(4, 8)), 0.3, 4), rng.uniform(0.15, 0.35), 0.8)
        head = np.array([x, a["lip_low"][1] - 2.0 + 0.15 * x])
        yield _fold("lips", _bow(head, head + _mm(0.1 * x, -rng.uniform(3, 6)), 0.3, 4), rng.uniform(0.1, 0.3), 0.8)


def _chin(a: Anchors, rng: Generator) -> Iterator[Crease]:
    """Short lines at random on the chin's pad (orange peel), and the arc above it."""
    low = a["lip_low"][1]
    for _ in range(int(rng.integers(5, 10))):
        start = np.array([rng.uniform(1, 13), rng.uniform(a["chin"][1] + 8, low - 11)])
        angle = rng.uniform(0, np.pi)
        end = start + rng.uniform(3, 6) * np.array([np.cos(angle), np.sin(angle)])
        yield _fold("chin", _bow(start, np.maximum(end, [0.5, -1e3]), 0.5, 4), rng.uniform(0.3, 0.55), 1.1)
    arc = _bow(np.array([-14.0, low - 10]), np.array([14.0, low - 10]), rng.uniform(1.0, 3.0), 9)
    yield Crease("chin", 0, arc, rng.uniform(0.3, 0.6), 1.5)


def _dimple(a: Anchors, rng: Generator) -> Iterator[Crease]:
    """A short upright fold beside the mouth; many subjects have hardly any."""
    start = a["lip_corner"] + _mm(rng.uniform(9, 14), rng.uniform(-2, 2))
    line = _bow(start, start + _mm(rng.uniform(0, 2), rng.uniform(7, 12)), -1.5)
    yield _fold("dimple", line, 0.9 * float(rng.uniform() ** 2), 1.7)
