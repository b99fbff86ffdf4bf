"""Crop squares and warping against the reference's answers and against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from deca_core.crop import CropError, Square, crop_transform, square_from_box, square_from_landmarks, warp
from deca_core.images import ImageError
from tests.deca_core.conftest import assert_close


def points_in(left, top, right, bottom):
    """68 points whose box this is."""
    return np.linspace([left, top], [right, bottom], 68)


def test_golden_squares(golden):
    answer = golden("crop.npz")
    for row in answer["rows"]:
        is_landmarks, left, right, top, bottom, size, x, y = row
        box = np.array([left, top, right, bottom])
        if is_landmarks:
            square = square_from_landmarks(points_in(left, top, right, bottom), scale=1.25)
        else:
            square = square_from_box(box, scale=1.25)
        assert square.size == int(size * 1.25)
        np.testing.assert_allclose(square.center, (x, y), rtol=1e-6)


def test_golden_warp(golden):
    answer = golden("crop.npz")
    _, left, right, top, bottom, *_ = answer["rows"][0]
    square = square_from_landmarks(points_in(left, top, right, bottom))
    transform = crop_transform(square)
    np.testing.assert_allclose(transform, answer["tform"][:2], rtol=1e-6, atol=1e-9)
    assert_close(warp(answer["image"], transform), answer["crop"].transpose(2, 0, 1))


def test_warp_of_a_ramp_is_exact_and_black_outside():
    ramp = np.tile(np.linspace(0, 1, 50, dtype=np.float32)[None, :, None], (40, 1, 3))
    transform = crop_transform(Square((45.0, 20.0), 30), size=64)
    crop = warp(ramp, transform, size=64)
    x = 30 + np.arange(64) * 30 / 63
    inside = x <= 49
    np.testing.assert_allclose(crop[0, 32, inside], x[inside] / 49, atol=1e-5)
    assert (crop[:, :, x >= 50] == 0).all()


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 30, 3), (30, 1, 3)])
def test_warp_of_a_sliver(shape):
    crop = warp(np.full(shape, 255, np.uint8), crop_transform(Square((0.0, 0.0), 2), size=9), size=9)
    assert crop.shape == (3, 9, 9)
    assert crop[:, 4, 4] == pytest.approx(1, abs=1e-5)
    assert (crop[:, 0, 0] == 0).all()


def test_rotated_transform():
    image = np.zeros((9, 9, 3), np.float32)
    image[2, 6] = 1
    quarter_turn = np.array([[0.0, 1, 0], [-1, 0, 8]])  # (x, y) -> (y, 8 - x)
    assert warp(image, quarter_turn, size=9)[0, 2, 2] == pytest.approx(1, abs=1e-5)


def test_face_without_extent():
    with pytest.raises(CropError, match="no extent"):
        square_from_landmarks(np.full((68, 2), 10.0))
    with pytest.raises(CropError, match="no extent"):
        square_from_landmarks(np.full((68, 2), np.nan))


@pytest.mark.parametrize("shape", [(5, 2), (68, 3), (1, 68, 2), (2, 68), (136,)])
def test_landmarks_of_another_kind_have_another_box(shape):
    """Five points of a detector, or a batch: all of them have a box, and none is the face's."""
    with pytest.raises(CropError, match="expected the 68 of iBUG"):
        square_from_landmarks(np.random.default_rng(0).uniform(0, 100, shape))
    with pytest.raises(CropError, match="a box has the shape"):
        square_from_box(np.zeros((2, 4)))


def test_warp_takes_bytes_and_shares_alike_and_nothing_else():
    pixels = np.random.default_rng(0).integers(1, 256, (30, 30, 3), np.uint8)
    transform = crop_transform(Square((15.0, 15.0), 20), size=24)
    crop = warp(pixels, transform, 24)
    for same in (pixels / 255, (pixels / 255).astype(np.float32)):
        np.testing.assert_allclose(warp(same, transform, 24), crop, atol=1e-6)
    for image, fix in (
        (pixels.astype(np.float32), "divide by 255"),
        (pixels.astype(np.uint16) * 257, "images / 65535"),
        (pixels.astype(np.float32) * 257, "divide by 65535"),
        (pixels.astype(np.int64), "images / 255"),
        (pixels / 127.5 - 1, r"\(images \+ 1\) / 2"),
        (np.full((30, 30, 3), np.nan), "not finite"),
        (pixels[..., 0], "expected an array"),
    ):
        with pytest.raises(ImageError, match=fix):
            warp(image, transform, 24)
    with pytest.raises(CropError, match="expected \\(2, 3\\) finite"):
        warp(pixels, np.full((2, 3), np.nan))
