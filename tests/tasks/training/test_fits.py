"""Fits as labels of training: near the truth in the embedded world, in any crop, once a face, none without a face."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deca_core.assets import procedural_head
from deca_core.augment import PLAIN
from deca_core.flame import FLAME
from deca_core.losses import gram
from deca_world import World
from schemas.samples import DataConfig
from tasks.training import fits as sample_fits
from tasks.training.datasets import EncodedFace, WorldSource
from tasks.training.fits import FittedSource, in_training_crop
from tasks.training.order import BatchPlan
from tasks.training.samples import Samples


@pytest.fixture(scope="module")
def flame() -> FLAME:
    return FLAME(procedural_head())


@pytest.fixture(scope="module")
def world() -> WorldSource:
    return WorldSource(procedural_head(), seed=3, people=3, images=2)


class Changed:
    """A source with other landmarks."""

    fitted = False

    def __init__(self, source: WorldSource, change) -> None:
        self.source, self.change, self.index = source, change, source.index
        self.fingerprint = source.fingerprint

    def load(self, shard: int, rows: NDArray[np.int64]) -> dict[int, EncodedFace]:
        faces = self.source.load(shard, rows)
        return {row: replace(face, landmarks=self.change(face.landmarks)) for row, face in faces.items()}


def test_shapes_are_near_the_truth(world, flame):
    source, people = FittedSource(world, flame), World(procedural_head())
    metric = gram(flame.shape_basis, flame.v_template)
    errors, sizes = [], []
    for person in range(3):
        truth = torch.as_tensor(people.subject(3, person).shape)
        for face in source.load(person, np.arange(2)).values():
            assert face.fit is not None
            error = torch.from_numpy(face.fit[:100]) - truth
            errors.append(error @ metric @ error)
            sizes.append(truth @ metric @ truth)
    assert sum(errors) < 0.25 * sum(sizes)  # at half the distance of the mean face


def test_one_fit_serves_all_crops(world, flame):
    rows = np.arange(2)
    first = FittedSource(world, flame).load(0, rows)
    moved = FittedSource(Changed(world, lambda points: 1.7 * points - 40), flame).load(0, rows)
    for row in (0, 1):
        np.testing.assert_allclose(first[row].fit, moved[row].fit, atol=2e-2)
    points = in_training_crop(first[0].landmarks)
    assert np.ptp(points, 0).mean() == pytest.approx(2 / PLAIN.scale[0])
    np.testing.assert_allclose(points.min(0), -points.max(0), atol=1e-12)


@pytest.mark.parametrize("points", [0.0, 7.0, np.nan])
def test_landmarks_that_are_no_face_have_no_fit(world, flame, points):
    source = FittedSource(Changed(world, lambda there: np.full_like(there, points)), flame)
    assert [face.fit for face in source.load(0, np.arange(2)).values()] == [None, None]


def test_a_face_is_fitted_once(world, flame, monkeypatch):
    source, calls = FittedSource(world, flame), []
    original = sample_fits.fit_landmarks
    monkeypatch.setattr(sample_fits, "fit_landmarks", lambda *given: calls.append(len(given[1])) or original(*given))
    first, again = source.load(1, np.arange(2)), source.load(1, np.arange(2))
    assert calls == [2]
    np.testing.assert_array_equal(first[1].fit, again[1].fit)


def test_batches_carry_the_fits(world, flame):
    plan, config = BatchPlan(subjects=3, images=2), DataConfig(threads=1)
    source = FittedSource(world, flame)
    batch = next(iter(Samples(source, plan, PLAIN, config)))
    assert batch.fits is not None
    known = {
        fit.tobytes()
        for person in range(3)
        for face in source.load(person, np.arange(2)).values()
        if (fit := face.fit) is not None
    }
    assert {fit.numpy().tobytes() for fit in batch.fits} == known
    assert batch.to("cpu").fits is not None
    assert next(iter(Samples(world, plan, PLAIN, config))).fits is None
