"""The skin mask on drawn faces, where the truth is known, and on a portrait."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageDraw
from scipy import ndimage

from schemas.annotate import AnnotateConfig
from tasks.annotate.annotators import load_annotator
from tasks.annotate.annotators.skin import skin_mask

SKIN, HAIR, WALL = (205, 160, 135), (60, 40, 30), (70, 110, 160)


def drawn_face(size: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """A drawn head and its 68 landmarks: an oval with hair above y = 0.28, eyes and an open mouth."""
    s = size / 200
    angle = np.linspace(np.pi, 0, 17)  # jaw: half an ellipse around (100, 100)
    jaw = np.stack([100 + 60 * np.cos(angle), 100 + 75 * np.sin(angle)], axis=1)
    brows = np.array([[x, 82 - 4 * np.sin((x - a) / 35 * np.pi)] for a in (52, 113) for x in np.linspace(a, a + 35, 5)])
    nose = np.array([[100, y] for y in np.linspace(95, 122, 4)] + [[x, 128] for x in np.linspace(88, 112, 5)])

    def ring(x: float, y: float, a: float, b: float, count: int) -> np.ndarray:
        turn = np.pi + np.arange(count) * 2 * np.pi / count
        return np.stack([x + a * np.cos(turn), y + b * np.sin(turn)], axis=1)

    eyes = np.concatenate([ring(70, 98, 11, 5, 6), ring(130, 98, 11, 5, 6)])
    mouth = np.concatenate([ring(100, 147, 22, 12, 12), ring(100, 147, 16, 7, 8)])
    points = (np.concatenate([jaw, brows, nose, eyes, mouth]) * s).astype(np.float32)
    canvas = Image.new("RGB", (size, size), WALL)
    draw = ImageDraw.Draw(canvas)
    draw.ellipse([35 * s, 15 * s, 165 * s, 160 * s], fill=HAIR)
    draw.ellipse([40 * s, 25 * s, 160 * s, 175 * s], fill=SKIN)
    draw.rectangle([35 * s, 15 * s, 165 * s, 56 * s], fill=HAIR)
    for ring_points, colour in ((points[36:42], "white"), (points[42:48], "white"), (points[48:60], (170, 80, 80))):
        draw.polygon([tuple(p) for p in ring_points.tolist()], fill=colour)
    draw.polygon([tuple(p) for p in points[60:68].tolist()], fill=(40, 10, 10))
    noise = np.random.default_rng(0).normal(0, 3, (size, size, 3))
    return (np.asarray(canvas) + noise).clip(0, 255).astype(np.uint8), points


def at(mask: np.ndarray, x: float, y: float) -> int:
    scale = mask.shape[0] / 200
    return int(mask[round(y * scale), round(x * scale)])


@pytest.mark.parametrize("size", [60, 200, 900])
def test_skin_is_in_and_the_rest_is_out(size):
    image, points = drawn_face(size)
    mask = skin_mask(image, points)
    assert mask.shape == (size, size)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 255}
    inside = {"cheek": (65, 125), "chin": (100, 168), "forehead": (100, 65), "nose": (100, 120), "lip": (100, 157)}
    outside = {"left eye": (70, 98), "right eye": (130, 98), "mouth": (100, 147), "hair": (100, 45), "wall": (10, 100)}
    assert [name for name, (x, y) in inside.items() if not at(mask, x, y)] == []
    assert [name for name, (x, y) in outside.items() if at(mask, x, y)] == []


def test_dark_glasses_are_out_and_nostrils_are_in():
    image, points = drawn_face()
    image[88:108, 45:155] = 15  # a bar over both eyes
    image[124:128, 92:96] = 20  # a nostril
    mask = skin_mask(image, points)
    assert at(mask, 52, 100) == 0
    assert at(mask, 148, 100) == 0
    assert at(mask, 94, 126) == 255


def test_one_region_and_two_where_glasses_part_it():
    image, points = drawn_face()
    assert ndimage.label(skin_mask(image, points))[1] == 1
    image[88:108, 30:170] = 15
    parted = skin_mask(image, points)
    assert ndimage.label(parted)[1] == 2
    assert at(parted, 100, 70) == at(parted, 65, 125) == 255


def test_specks_of_skin_colour_in_dark_glasses_are_dropped():
    image, points = drawn_face()
    image[70:120, 30:170] = 15
    image[78:92, 93:107] = SKIN
    assert at(skin_mask(image, points), 100, 84) == 0


def test_lids_and_the_upper_forehead_are_left_out():
    image, points = drawn_face()
    image[25:60] = SKIN  # no hair
    mask = skin_mask(image, points)
    assert at(mask, 70, 91) == 0  # lid
    assert at(mask, 100, 66) == 255
    assert at(mask, 100, 50) == 0


@pytest.mark.parametrize("skin", [(90, 60, 45), (240, 215, 200), (150, 150, 150)])
def test_dark_pale_and_grey_faces(skin):
    """The colour is learned from the face itself; nothing is assumed about it."""
    image, points = drawn_face()
    near = np.abs(image.astype(int) - SKIN).max(axis=-1) < 25
    image[near] = (image[near].astype(int) - SKIN + skin).clip(0, 255)
    mask = skin_mask(image, points)
    near[:110] = False  # below the eyes: the upper forehead and the lids are left out on purpose
    assert (mask[near] > 0).mean() > 0.9
    assert at(mask, 70, 98) == 0
    assert at(mask, 10, 100) == 0


def test_a_face_partly_or_wholly_outside_the_image():
    image, points = drawn_face()
    half = skin_mask(np.ascontiguousarray(image[:, :100]), points)
    assert half.shape == (200, 100)
    assert at(half, 65, 125) == 255
    assert skin_mask(image, points + 1000).max() == 0
    assert skin_mask(image[:1, :1], points).shape == (1, 1)


def test_only_the_window_of_the_face_is_touched():
    """A large photograph costs its face: the rest of the mask stays untouched zeros."""
    image, points = drawn_face()
    large = np.zeros((4000, 5000, 3), np.uint8)
    large[1000:1200, 3000:3200] = image
    mask = skin_mask(large, points + np.float32([3000, 1000]))
    np.testing.assert_array_equal(mask[1000:1200, 3000:3200], skin_mask(image, points))
    assert mask.sum() == mask[1000:1200, 3000:3200].sum()


def test_the_portrait():
    image = np.ascontiguousarray(skimage.data.astronaut())
    annotator = load_annotator(AnnotateConfig())
    points = annotator.landmarks(image, annotator.detect(image)[0])
    mask = annotator.segment(image, points)
    assert mask[140, 190] == mask[140, 250] == mask[170, 222] == 255  # cheeks and chin
    for eye in (slice(36, 42), slice(42, 48)):
        x, y = points[eye].mean(axis=0).round().astype(int)
        assert mask[y, x] == 0
    assert mask[60, 222] == mask[120, 150] == mask[300, 100] == 0  # hair, hair at the side, suit
