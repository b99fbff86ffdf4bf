"""Statistics by subject against plain numpy, and intervals against what is known of the draws."""

from __future__ import annotations

import numpy as np
import pytest

from deca_core.metrics import shape_spread
from tasks.measure.bootstrap import difference_interval, mean_over_images, pooled_median, spread_ratio, value_of


def drawn_rows(subjects: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Rows of a draw spelled out: every subject's rows as often as it is drawn."""
    return np.concatenate([np.tile(np.flatnonzero(subjects == subject), count) for subject, count in enumerate(counts)])


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray]:
    """Values of images of seven subjects, one to five of each; the last has none."""
    rng = np.random.default_rng(0)
    subjects = np.repeat(np.arange(6), [1, 5, 2, 3, 4, 2])
    order = rng.permutation(len(subjects))
    return rng.normal(size=len(subjects)), subjects[order]


COUNTS = np.array([[1, 1, 1, 1, 1, 1, 1], [0, 3, 0, 2, 1, 0, 1], [7, 0, 0, 0, 0, 0, 0]])


def test_mean_and_median_of_a_draw_are_those_of_its_rows(rows):
    values, subjects = rows
    means = mean_over_images(values, subjects, 7)(COUNTS.astype(float))
    medians = pooled_median(values, subjects)(COUNTS.astype(float))
    for mean, median, counts in zip(means, medians, COUNTS, strict=True):
        spelled = values[drawn_rows(subjects, counts)]
        assert mean == pytest.approx(spelled.mean())
        assert median == np.quantile(spelled, 0.5, method="lower")
    assert np.isnan(mean_over_images(values, subjects, 7)(np.eye(7)[6:])).all()
    assert np.isnan(pooled_median(values, subjects)(np.eye(7)[6:])).all()


def test_spread_of_a_draw(rows):
    """Of all subjects as `shape_spread`; of a draw over its pairs, none of them a subject with itself."""
    _, subjects = rows
    points = np.random.default_rng(1).normal(size=(len(subjects), 4)) + subjects[:, None]
    ratio = spread_ratio(points, subjects, 7)
    within, between = shape_spread(points, [str(subject) for subject in subjects], np.eye(4)[None])
    assert value_of(ratio, 7) == pytest.approx(within / between)
    counts = COUNTS[1]
    square = np.square(points[:, None] - points[None]).sum(-1)
    weight = counts[subjects]
    inside = outside = np.zeros(2)
    for i in range(len(subjects)):
        for j in range(i):
            if subjects[i] == subjects[j]:
                inside = inside + weight[i] * np.array([square[i, j], 1])
            else:
                outside = outside + weight[i] * weight[j] * np.array([square[i, j], 1])
    expected = np.sqrt(inside[0] / inside[1] / (outside[0] / outside[1]))
    assert ratio(counts[None].astype(float))[0] == pytest.approx(expected)
    assert np.isnan(ratio(COUNTS[2:].astype(float))).all()  # one subject alone


def test_the_interval_of_a_mean_is_that_of_the_normal_law():
    """Subjects without spread among their images, as many images each: 1.96 standard errors over subjects."""
    rng = np.random.default_rng(2)
    subjects = np.repeat(np.arange(200), 3)
    first = rng.normal(size=600)
    own = rng.normal(0.3, 1.0, size=200)
    second = first + own[subjects]
    pair = (mean_over_images(first, subjects, 200), mean_over_images(second, subjects, 200))
    low, high = difference_interval([pair], 200, 4000)
    error = 1.96 * own.std() / np.sqrt(200)
    assert (low, high) == pytest.approx((own.mean() - error, own.mean() + error), abs=0.15 * error)
    assert difference_interval([pair], 200, 4000) == (low, high)
    # Paired: what both methods share, here a spread of the images as large, is in no difference.
    same = (pair[0], mean_over_images(first + 0.01, subjects, 200))
    assert difference_interval([same], 200) == pytest.approx((0.01, 0.01))


def test_seeds_that_disagree_widen_the_interval():
    subjects = np.arange(50)
    base = mean_over_images(np.zeros(50), subjects, 50)
    up, down = (mean_over_images(np.full(50, value), subjects, 50) for value in (1.0, -0.5))
    assert difference_interval([(base, up), (base, up)], 50) == pytest.approx((1.0, 1.0))
    low, high = difference_interval([(base, up), (base, down), (base, up)], 50)
    assert (low, high) == pytest.approx((-0.5, 1.0))


def test_nothing_measured_has_no_interval():
    nothing = mean_over_images(np.zeros(0), np.zeros(0, np.int64), 4)
    assert difference_interval([(nothing, nothing)], 4) is None
