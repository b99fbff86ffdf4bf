"""Figures over people, and how much they would differ with other people: a paired bootstrap over identities.

The pictures of one person are no independent evidence, so people are drawn, each with all pictures. A statistic answers
for many draws at once: counts (R,P), how often each of P people is in each of R draws, to values (R,).
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


def mean_over_pictures(values: NDArray, people: Ints, number: int) -> Statistic:
    """The mean of values (N,), of pictures of people (N,) numbered 0 .. number - 1."""
    sums, pictures = np.bincount(people, values, number), np.bincount(people, minlength=number)
    return lambda counts: _ratio(counts @ sums, counts @ pictures)


def pooled_median(values: NDArray, people: Ints) -> Statistic:
    """The median of values (N,), all people's together; the lower one of two in the middle."""
    order = np.argsort(values)
    ordered, owners = np.asarray(values, np.float64)[order], people[order]

    def median(weights: Floats) -> float:
        below = np.cumsum(weights[owners])
        return float(ordered[np.searchsorted(below, below[-1] / 2)]) if len(below) and below[-1] else np.nan

    return lambda counts: np.array([median(weights) for weights in counts])


def spread_ratio(points: NDArray, people: Ints, number: int) -> Statistic:
    """How far apart points (N,D) of one person lie over how far apart those of two people: RMS over all pairs each.

    As `shape_spread`; a person who is drawn twice is still one, and makes no pair of two people with itself.
    """
    points = np.asarray(points, np.float64)
    pictures = np.bincount(people, minlength=number).astype(np.float64)
    own = np.zeros((number, points.shape[1]))
    np.add.at(own, people, points)
    square = np.bincount(people, (points * points).sum(axis=1), number)
    within = pictures * square - (own * own).sum(axis=1)  # squared distances of all pairs of a person's pictures
    within_pairs = pictures * (pictures - 1) / 2
    # The same of the pairs between every two people.
    between = pictures[:, None] * square + square[:, None] * pictures - 2 * own @ own.T
    between_pairs = np.outer(pictures, pictures)
    for pairs in (between, between_pairs):
        np.fill_diagonal(pairs, 0.0)

    def ratio(counts: Floats) -> Floats:
        inside = _ratio(counts @ within, counts @ within_pairs)
        across = _ratio(((counts @ between) * counts).sum(1), ((counts @ between_pairs) * counts).sum(1))
        return np.sqrt(_ratio(inside.clip(min=0), across))

    return ratio


def _ratio(above: Floats, below: Floats) -> Floats:
    """The quotient; NaN where it has none."""
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)


def value_of(statistic: Statistic, people: int) -> float:
    """The statistic of everybody."""
    return float(statistic(np.ones((1, people)))[0])


def difference_interval(
    pairs: Sequence[tuple[Statistic, Statistic]], people: int, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """Ends of 95 % of the mean difference (second - first) of pairs of statistics, a pair for every training seed.

    People are drawn, the same for both of a pair; and of several pairs, pairs, so that the interval holds what another
    training would give as far as these seeds tell. None where no draw has a difference. Source: Efron 1979.
    """
    rng = np.random.default_rng(SEED)
    counts = rng.multinomial(people, np.full(people, 1 / people), resamples).astype(np.float64)
    seeds = rng.multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), resamples) / len(pairs)
    differences = np.stack([second(counts) - first(counts) for first, second in pairs], axis=1)
    drawn = (seeds * differences).sum(axis=1)
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return None
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
