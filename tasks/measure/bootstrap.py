"""Paired bootstrap over subjects: statistics of resampled subjects, and intervals of their differences.

Images of one subject are not independent, so subjects are resampled, each with all its images. A statistic maps counts
(R,P), how often each of P subjects is in each of R draws, to values (R,).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Statistic = Callable[[Floats], Floats]

RESAMPLES = 1000
SEED = 0  # of the draws: the same rows give the same interval
CONFIDENCE = 0.95


def mean_over_images(values: NDArray, subjects: Ints, number: int) -> Statistic:
    """Return the mean of values (N,), of images of subjects (N,) numbered 0 .. number - 1."""
    sums, images = np.bincount(subjects, values, number), np.bincount(subjects, minlength=number)
    return lambda counts: _ratio(counts @ sums, counts @ images)


def pooled_median(values: NDArray, subjects: Ints) -> Statistic:
    """Return the median of values (N,) over all subjects; the lower one of two in the middle."""
    order = np.argsort(values)
    ordered, owners = np.asarray(values, np.float64)[order], subjects[order]

    def median(weights: Floats) -> float:
        below = np.cumsum(weights[owners])
        return float(ordered[np.searchsorted(below, below[-1] / 2)]) if len(below) and below[-1] else np.nan

    return lambda counts: np.array([median(weights) for weights in counts])


def spread_ratio(points: NDArray, subjects: Ints, number: int) -> Statistic:
    """Return the RMS distance of points (N,D) within a subject over that between subjects, over all pairs each.

    As `shape_spread`; a subject that is drawn twice is still one, and makes no between-pair with itself.
    """
    points = np.asarray(points, np.float64)
    images = np.bincount(subjects, minlength=number).astype(np.float64)
    own = np.zeros((number, points.shape[1]))
    np.add.at(own, subjects, points)
    square = np.bincount(subjects, (points * points).sum(axis=1), number)
    within = images * square - (own * own).sum(axis=1)  # squared distances of all pairs of a subject's images
    within_pairs = images * (images - 1) / 2
    # The same for the pairs between every two subjects.
    between = images[:, None] * square + square[:, None] * images - 2 * own @ own.T
    between_pairs = np.outer(images, images)
    for pairs in (between, between_pairs):
        np.fill_diagonal(pairs, 0.0)

    def ratio(counts: Floats) -> Floats:
        inside = _ratio(counts @ within, counts @ within_pairs)
        across = _ratio(((counts @ between) * counts).sum(1), ((counts @ between_pairs) * counts).sum(1))
        return np.sqrt(_ratio(inside.clip(min=0), across))

    return ratio


def _ratio(above: Floats, below: Floats) -> Floats:
    """Return the quotient, NaN where the divisor is 0."""
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)


def value_of(statistic: Statistic, subjects: int) -> float:
    """Return the statistic over all subjects, each once."""
    return float(statistic(np.ones((1, subjects)))[0])


def difference_interval(
    pairs: Sequence[tuple[Statistic, Statistic]], subjects: int, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean difference (second - first) of pairs of statistics, a pair per seed.

    Subjects are resampled, the same for both of a pair, and so are the pairs: the interval covers the variation between
    trainings, as far as these seeds show it. None where no draw has a difference. Source: Efron 1979.
    """
    rng = np.random.default_rng(SEED)
    counts = rng.multinomial(subjects, np.full(subjects, 1 / subjects), resamples).astype(np.float64)
    seeds = rng.multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), resamples) / len(pairs)
    differences = np.stack([second(counts) - first(counts) for first, second in pairs], axis=1)
    drawn = (seeds * differences).sum(axis=1)
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return None
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
