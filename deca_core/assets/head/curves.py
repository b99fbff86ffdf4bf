"""The few curves and falloffs that the head is drawn with. Everything is vectorised numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class Pchip:
    """Monotone cubic interpolation (Fritsch and Carlson 1980): smooth, and never overshoots its knots.

    `knots` (n,) ascending, `values` (n,) or (n,k). Outside the knots the end values are held.

    >>> float(Pchip([0, 1, 2], [0, 1, 4])(1.0))
    1.0
    """

    def __init__(self, knots: ArrayLike, values: ArrayLike) -> None:
        self.knots = np.asarray(knots, float)
        self.values = np.asarray(values, float)
        self.slopes = self._slopes()

    def __call__(self, at: ArrayLike) -> Array:
        """Values at `at` (any shape); a trailing axis of k where the knots have one."""
        at = np.clip(np.asarray(at, float), self.knots[0], self.knots[-1])
        cell = np.clip(np.searchsorted(self.knots, at, side="right") - 1, 0, len(self.knots) - 2)
        width = self.knots[cell + 1] - self.knots[cell]
        t = (at - self.knots[cell]) / width
        if self.values.ndim == 2:
            t, width = t[..., None], width[..., None]
        start, end = self.values[cell], self.values[cell + 1]
        leaving, arriving = self.slopes[cell] * width, self.slopes[cell + 1] * width
        square, cube = t * t, t * t * t
        return (
            (2 * cube - 3 * square + 1) * start
            + (cube - 2 * square + t) * leaving
            + (3 * square - 2 * cube) * end
            + (cube - square) * arriving
        )

    def _slopes(self) -> Array:
        steps = np.diff(self.knots)
        steps = steps.reshape(-1, *[1] * (self.values.ndim - 1))
        secants = np.diff(self.values, axis=0) / steps
        before, after = 2 * steps[1:] + steps[:-1], steps[1:] + 2 * steps[:-1]
        agree = secants[:-1] * secants[1:] > 0
        left, right = np.where(agree, secants[:-1], 1.0), np.where(agree, secants[1:], 1.0)
        inner = np.where(agree, (before + after) / (before / left + after / right), 0.0)
        first = _end_slope(steps[0], steps[1], secants[0], secants[1])
        last = _end_slope(steps[-1], steps[-2], secants[-1], secants[-2])
        return np.concatenate([first[None], inner, last[None]])


def _end_slope(near_step: Array, far_step: Array, near: Array, far: Array) -> Array:
    """Three-point slope at an end, limited so that the curve stays monotone."""
    slope = ((2 * near_step + far_step) * near - near_step * far) / (near_step + far_step)
    slope = np.where(np.sign(slope) != np.sign(near), 0.0, slope)
    return np.where((np.sign(near) != np.sign(far)) & (np.abs(slope) > 3 * np.abs(near)), 3 * near, slope)


def smoothstep(start: float, end: float, x: ArrayLike) -> Array:
    """0 at `start`, 1 at `end`, flat outside, smooth between; `start` may be the larger one."""
    t = np.clip((np.asarray(x, float) - start) / (end - start), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def gaussian(x: Array, y: Array, centre: tuple[float, float], spread: tuple[float, float]) -> Array:
    """Bell of height 1 with standard deviations `spread` round `centre`."""
    return np.exp(-0.5 * ((x - centre[0]) / spread[0]) ** 2 - 0.5 * ((y - centre[1]) / spread[1]) ** 2)


def line(distance: Array, width: float) -> Array:
    """Profile of a drawn line: 1 on it, falling as a bell of the given width."""
    return np.exp(-((distance / width) ** 2))


def blend(a: Array, b: Array, radius: float) -> Array:
    """Union of two reliefs (heights >= 0): their larger one, rounded where they meet within `radius`.

    Unlike a log-sum-exp it adds nothing where one of the two is absent (height 0).
    """
    share = np.clip(0.5 + 0.5 * (a - b) / radius, 0.0, 1.0)
    return share * a + (1 - share) * b + share * (1 - share) * np.clip(2 * np.minimum(a, b), 0.0, radius)
