"""Augmentation: what is drawn on the stored crop is where landmarks and mask say after every change."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from deca_core.augment import PLAIN, Augmentation, augment, crop_jitter

SIZE = 320
WHOLE = np.full((SIZE, SIZE), 255, np.uint8)  # a mask
GEOMETRY = dataclasses.replace(Augmentation(), occlusion=0.0, brightness=0, contrast=0, saturation=0, tint=0)


def dots(points: np.ndarray) -> np.ndarray:
    """A black image (320,320,3) with a white blob, 2 pixels wide, round every point (N,2)."""
    y, x = np.mgrid[:SIZE, :SIZE]
    distance = np.hypot(x[..., None] - points[:, 0], y[..., None] - points[:, 1]).min(-1)
    return np.repeat((255 * np.exp(-(distance**2) / 8))[..., None], 3, axis=2).astype(np.uint8)


def face_points(generator: np.random.Generator) -> np.ndarray:
    """68 places on a grid in the stored crop's inner part, at least 8 pixels apart."""
    grid = np.stack(np.meshgrid(np.arange(100, 220, 12), np.arange(100, 220, 12)), axis=-1).reshape(-1, 2)
    return grid[generator.permutation(len(grid))[:68]] + generator.uniform(-1, 1, (68, 2))


@pytest.mark.parametrize("seed", range(4))
def test_landmarks_follow(seed):
    """The centre of gravity of a blob, found in the augmented image, is where its landmark went."""
    generator = np.random.default_rng(seed)
    points = face_points(generator)
    for index in (0, 20, 67):
        face = augment(dots(points[[index]]), points, np.zeros((SIZE, SIZE), np.uint8), generator, GEOMETRY)
        assert face.landmarks.shape == (68, 2)
        grey = face.image.mean(0).astype(np.float64)
        y, x = np.mgrid[:224, :224]
        centre = np.array([(grey * x).sum(), (grey * y).sum()]) / grey.sum()
        np.testing.assert_allclose((face.landmarks[index] + 1) * 112, centre, atol=0.05)


@pytest.mark.parametrize("seed", range(4))
def test_mask_follows(seed):
    """A mask of the red part of the image is a mask of it afterwards, to a pixel of blur at its edge."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[90:200, 120:230] = 255
    crop = np.dstack([mask, np.zeros_like(mask), np.zeros_like(mask)])
    face = augment(crop, np.zeros((68, 2)), mask, np.random.default_rng(seed), GEOMETRY)
    np.testing.assert_array_equal(face.mask[0], face.image[0])
    assert face.mask.mean() > 0.05


def test_scale_and_shift_stay_in_their_ranges():
    generator = np.random.default_rng(0)
    scales, shifts, corners = [], [], []
    for _ in range(300):
        inverse = np.linalg.inv(np.vstack([crop_jitter(SIZE, generator, Augmentation()), [0, 0, 1]]))[:2]
        low, high = inverse @ [0, 0, 1], inverse @ [223, 223, 1]
        face = (SIZE - 1) / 2
        scales.append((high - low) / face)
        shifts.append(((low + high) / 2 - (SIZE - 1) / 2) / face)
        corners += [low, high]
    scales = np.array(scales)
    np.testing.assert_allclose(scales[:, 0], scales[:, 1])
    assert 1.4 <= scales.min() < 1.42 < 1.78 < scales.max() <= 1.8
    assert 0.09 < np.abs(shifts).max() <= 0.1
    assert np.min(corners) >= -1e-9  # never outside of what was stored
    assert np.max(corners) <= SIZE - 1 + 1e-9


def test_plain_is_the_middle_crop():
    crop = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    generator = np.random.default_rng(1)
    views = [augment(crop, np.full((68, 2), 159.5), WHOLE, generator, PLAIN) for _ in range(2)]
    np.testing.assert_array_equal(views[0].image, views[1].image)
    np.testing.assert_allclose(views[0].landmarks, 2 * 111.5 / 224 - 1, rtol=1e-6)
    assert (views[0].mask > 1 - 1e-5).all()


def test_occlusion_hides_image_and_mask_alike():
    settings = dataclasses.replace(PLAIN, occlusion=1.0)
    crop = np.full((SIZE, SIZE, 3), 128, np.uint8)
    hidden = []
    for seed in range(20):
        face = augment(crop, np.zeros((68, 2)), WHOLE, np.random.default_rng(seed), settings)
        changed = np.abs(face.image - 128 / 255).max(0) > 1e-3
        assert not (changed & (face.mask[0] != 0)).any()
        hidden.append(1 - face.mask.mean())
        assert face.image.min() >= 0
        assert face.image.max() <= 1
    assert min(hidden) > 0.005
    assert max(hidden) < 3 * 0.36**2
    never = dataclasses.replace(settings, occlusion=0.0)
    assert augment(crop, np.zeros((68, 2)), WHOLE, np.random.default_rng(0), never).mask.all()


def test_colours_change_and_nothing_else():
    generator = np.random.default_rng(0)
    crop = generator.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    points = face_points(generator)
    colours = dataclasses.replace(PLAIN, brightness=0.2, contrast=0.2, saturation=0.2, tint=0.05)
    plain = augment(crop, points, WHOLE, np.random.default_rng(5), PLAIN)
    changed = augment(crop, points, WHOLE, np.random.default_rng(5), colours)
    np.testing.assert_array_equal(plain.landmarks, changed.landmarks)
    np.testing.assert_array_equal(plain.mask, changed.mask)
    assert 0.01 < np.abs(plain.image - changed.image).mean() < 0.3
    assert changed.image.min() >= 0
    assert changed.image.max() <= 1
    assert changed.image.dtype == np.float32


def test_same_generator_same_image():
    crop = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    points = np.zeros((68, 2))
    first, second, other = (augment(crop, points, WHOLE, np.random.default_rng(seed)).image for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).mean() > 0.01
