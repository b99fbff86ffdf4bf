"""Mirrored subjects: pixels, mask, landmarks and fit agree; no sample mixes a subject with its mirror image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deca_core.assets import procedural_head
from deca_core.augment import PLAIN
from deca_core.camera import project
from deca_core.codes import COARSE_LENGTHS
from deca_core.flame import FLAME
from schemas.samples import DataConfig
from tasks.training.batches import decode_face
from tasks.training.datasets import WorldSource
from tasks.training.fits import FittedSource
from tasks.training.mirror import TWINS, MirroredSource
from tasks.training.order import BatchPlan
from tasks.training.samples import Samples

PEOPLE, PICTURES = 3, 2


@pytest.fixture(scope="module")
def world() -> WorldSource:
    return WorldSource(procedural_head(), seed=3, people=PEOPLE, images=PICTURES)


def test_twins_lie_where_the_mirrored_head_has_its_landmarks():
    """On the symmetric template: what the mirror does to the points is what TWINS does to their numbers."""
    template = FLAME(procedural_head())(torch.zeros(1, 100), torch.zeros(1, 50), torch.zeros(1, 6))
    points = template.landmarks3d[0].numpy()
    np.testing.assert_allclose(points[TWINS] * [-1, 1, 1], points, atol=1e-3)
    np.testing.assert_array_equal(TWINS[TWINS], np.arange(68))


def test_pixels_mask_and_landmarks_are_turned_alike(world):
    source = MirroredSource(world)
    assert len(source.index) == 2 * PEOPLE
    plain, turned = (source.load(shard, np.arange(PICTURES)) for shard in (1, 1 + PEOPLE))
    for row in range(PICTURES):
        crop, mask, points = decode_face(plain[row])
        turned_crop, turned_mask, turned_points = decode_face(turned[row])
        np.testing.assert_array_equal(turned_crop, crop[:, ::-1])
        np.testing.assert_array_equal(turned_mask, mask[:, ::-1])
        np.testing.assert_allclose(turned_points[TWINS], [319, 0] + points * [-1, 1], atol=1e-4)
        assert turned_points[0, 0] < turned_points[16, 0]  # point 0 is on the left of the image again
        assert turned[row].name != plain[row].name


def test_a_mirrored_face_is_fitted_by_itself(world):
    """The fit of the mirror image turns the head to the other side, and its landmarks are the mirrored ones."""
    flame = FLAME(procedural_head())
    source = FittedSource(MirroredSource(world), flame)
    plain, turned = (source.load(shard, np.arange(PICTURES)) for shard in (0, PEOPLE))
    for row in range(PICTURES):
        heads = [landmarks_of(flame, faces[row].fit) for faces in (plain, turned)]
        size = np.ptp(heads[0], axis=0).mean()
        error = np.linalg.norm(heads[1][TWINS] * [-1, 1] - heads[0], axis=1).mean()
        assert error < 0.02 * size


def landmarks_of(flame: FLAME, fit: np.ndarray) -> np.ndarray:
    """The projected landmarks of a fit under a camera of its own, about their middle."""
    shape, exp, pose = torch.from_numpy(fit)[None].split([COARSE_LENGTHS[name] for name in ("shape", "exp", "pose")], 1)
    points = project(flame(shape, exp, pose).landmarks2d, torch.tensor([[1.0, 0.0, 0.0]]))[0, :, :2].numpy()
    return points - points.mean(0)


def test_no_sample_mixes_a_subject_with_its_mirror_image(world):
    samples = Samples(MirroredSource(world), BatchPlan(2, PICTURES), PLAIN, DataConfig(threads=1, prefetch=1))
    batches = list(samples)
    subjects = torch.cat([batch.subjects for batch in batches]).unique()
    assert subjects.tolist() == list(range(2 * PEOPLE))
    for batch in batches:
        assert (batch.subjects.view(2, PICTURES) == batch.subjects.view(2, PICTURES)[:, :1]).all()
