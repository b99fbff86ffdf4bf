"""The transforms between an image and a network's square, against closed forms and images whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from deca_core.crop import CropError
from tasks.annotate.annotators.geometry import (
    apply,
    box_transform,
    cut,
    five_points,
    invert,
    paste,
    portrait_transform,
    similarity,
)
from tests.tasks.annotate.annotators.markers import discs, iou, polygon, turned
from tests.tasks.annotate.annotators.test_skin import drawn_face


def test_similarity_recovers_rotation_scale_and_shift():
    source = np.random.default_rng(0).normal(size=(7, 2))
    target = turned(source, (30.0, -5.0), 4.0, 73.0)
    found = similarity(source, target)
    np.testing.assert_allclose(apply(found, source), target, atol=1e-12)
    np.testing.assert_allclose(apply(invert(found), target), source, atol=1e-12)


def test_similarity_is_the_least_squares_one():
    """Against a general solver on the four unknowns."""
    rng = np.random.default_rng(1)
    source, target = rng.normal(size=(9, 2)), rng.normal(size=(9, 2))
    rows = [[[x, -y, 1, 0], [y, x, 0, 1]] for x, y in source]
    (a, b, tx, ty), *_ = np.linalg.lstsq(np.reshape(rows, (-1, 4)), target.ravel(), rcond=None)
    np.testing.assert_allclose(similarity(source, target), [[a, -b, tx], [b, a, ty]], atol=1e-12)


@pytest.mark.parametrize("points", [np.zeros((5, 2)), np.full((5, 2), np.nan)])
def test_points_in_one_place_are_refused(points):
    with pytest.raises(CropError, match="no extent"):
        similarity(points, np.eye(5, 2))


def test_a_box_becomes_the_whole_crop():
    """Edges of the box on edges of the crop: half a pixel outside the outermost centres."""
    frame = box_transform(np.array([50.0, 30.0]), 20.0, 256)
    np.testing.assert_allclose(apply(frame, np.array([[40, 20], [60, 40]]) - 0.5), [[-0.5, -0.5], [255.5, 255.5]])


def test_an_upright_box_of_the_same_size_is_cut_pixel_for_pixel():
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    crop = cut(image, box_transform(np.array([52.0, 40.0]), 32.0, 32), 32)
    np.testing.assert_array_equal(crop, image[24:56, 36:68])
    over = cut(image, box_transform(np.array([0.0, 90.0]), 32.0, 32), 32)  # the lower left corner in its middle
    np.testing.assert_array_equal(over[:16, 16:], image[74:, :16])
    assert over[16:].max() == over[:, :16].max() == 0
    assert cut(image, box_transform(np.array([500.0, 500.0]), 32.0, 32), 32).max() == 0


@pytest.mark.parametrize(("size", "degrees"), [(20.0, 0.0), (60.0, 30.0), (200.0, -100.0), (900.0, 170.0)])
def test_a_mark_lands_where_the_transform_says(size, degrees):
    """Enlarged and reduced, turned by any angle: its centre of mass to a third of a crop pixel."""
    unit = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    frame = similarity(turned(unit, (500.0, 450.0), size, degrees), unit * 112 + 55.5)
    mark = turned(np.array([[0.21, -0.3]]), (500.0, 450.0), size, degrees)[0]
    image = discs(1000, 900, [(mark, max(0.05 * size, 2), (255, 100, 100))])
    red = cut(image, frame, 112).astype(float)
    weight = np.clip(red[..., 0] - red[..., 1], 0, None)
    y, x = np.mgrid[:112, :112]
    found = np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()
    np.testing.assert_allclose(found, apply(frame, mark[None])[0], atol=0.34)


def test_reduction_averages_instead_of_picking():
    """A fine chequerboard becomes grey, whatever its phase; without a low-pass filter it would alias."""
    board = (np.indices((800, 800)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    crop = cut(board, box_transform(np.array([400.0, 400.0]), 777.0, 112), 112)
    assert np.abs(crop.astype(int) - 127).max() < 12


@pytest.mark.parametrize(("side", "degrees"), [(50.0, 0.0), (300.0, 33.0), (1500.0, -120.0)])
def test_a_mask_comes_back_where_it_was(side, degrees):
    unit = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    frame = similarity(turned(unit, (333.0, 250.0), side, degrees), unit * 256 + 127.5)
    shape = turned(np.array([[-0.3, -0.2], [0.35, -0.1], [0.1, 0.4]]), (333.0, 250.0), side, degrees)
    soft = polygon(256, 256, apply(frame, shape)).astype(np.float32)
    mask = paste(soft, frame, (500, 640))
    assert mask.shape == (500, 640)
    assert set(np.unique(mask)) == {0, 255}
    assert iou(mask > 0, polygon(640, 500, shape) >= 0.5) > 0.96


def test_a_mask_outside_the_image_is_empty():
    frame = box_transform(np.array([-500.0, 0.0]), 100.0, 64)
    assert paste(np.ones((64, 64), np.float32), frame, (20, 30)).max() == 0


@pytest.mark.parametrize("degrees", [0.0, 35.0, 180.0])
def test_the_portrait_frame_is_upright(degrees):
    """Eyes level and above the mouth, as far apart in the crop whatever the face's place, size and rotation."""
    _, points = drawn_face(200)
    straight = apply(portrait_transform(points, 512), points)
    landmarks = turned((points - 100) / 100, (700.0, 300.0), 240.0, degrees).astype(np.float32)
    found = apply(portrait_transform(landmarks, 512), landmarks)
    np.testing.assert_allclose(found, straight, atol=0.01)
    right, left, _, *mouth = five_points(found.astype(np.float32))
    assert abs(right[1] - left[1]) < 0.5
    assert mouth[0][1] > left[1] + 50
    assert (right + left)[0] / 2 == pytest.approx(255.5, abs=1)
    # Half the frame is the larger of 2 eye distances and 1.8 distances from eyes to mouth.
    down = np.mean(mouth, axis=0) - (right + left) / 2
    assert max(2 * np.hypot(*(left - right)), 1.8 * np.hypot(*down)) == pytest.approx(256, rel=1e-3)


def test_landmarks_in_one_place_have_no_portrait():
    with pytest.raises(CropError, match="no extent"):
        portrait_transform(np.ones((68, 2), np.float32), 512)
