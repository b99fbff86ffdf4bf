"""Skin tone against scikit-image's CIELAB and against colours whose class is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from skimage.color import lab2rgb, rgb2lab

from tasks.draw.skin_tone import CLASSES, cielab, tone_class, typology_angle


def test_cielab_is_that_of_scikit_image():
    colours = np.random.default_rng(0).integers(0, 256, (1000, 3)).astype(np.uint8)
    np.testing.assert_allclose(cielab(colours), rgb2lab(colours), atol=0.02)


@pytest.mark.parametrize(("lightness", "yellow"), [(75, 14), (66, 17), (58, 12), (55, 18), (42, 16), (30, 14)])
def test_angle_of_a_painted_face(lightness, yellow):
    crop = np.full((40, 40, 3), 128, np.uint8)
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 10:30] = 255
    crop[mask > 0] = np.round(lab2rgb(np.array([lightness, 12.0, yellow])) * 255)
    angle = typology_angle(crop, mask)
    assert angle == pytest.approx(math.degrees(math.atan((lightness - 50) / yellow)), abs=2)


def test_classes_by_their_bounds():
    assert [tone_class(angle) for angle in (56, 45, 30, 12, -5, -45)] == list(CLASSES)


def test_specks_of_skin_have_no_tone():
    mask = np.zeros((40, 40), np.uint8)
    mask[:3, :3] = 255
    assert typology_angle(np.full((40, 40, 3), 200, np.uint8), mask) is None
