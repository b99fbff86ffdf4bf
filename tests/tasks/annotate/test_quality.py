"""Quality figures against the embedded world's truth and against what is done to an image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from deca_core.assets import procedural_head
from deca_core.flame import FLAME, rotation_matrix
from deca_world import Limits
from deca_world.scene import shot as sample_shot
from deca_world.subject import subject
from tasks.annotate.quality import head_turn, measure, sharpness
from tests.tasks.annotate.annotators.test_skin import drawn_face

EVERYWHERE = np.ones((320, 320), bool)
SAME = np.array([[1.0, 0, 0], [0, 1, 0]])


@pytest.fixture(scope="module")
def turned() -> tuple[np.ndarray, np.ndarray]:
    """Landmarks of 30 subjects and the (yaw, pitch) of their heads in degrees, yaw spread evenly from -60 to 60."""
    bundle = procedural_head()
    flame, points, truth = FLAME(bundle), [], []
    for index in range(30):
        yaw = -60 + 120 * index / 29
        someone = subject(seed=3, index=index)
        limits = Limits(yaw=(abs(yaw), abs(yaw)), occluders=False)
        shots = (sample_shot(someone, image, bundle.expression_names, limits) for image in range(20))
        shot = next(shot for shot in shots if np.sign(shot.head[1]) == np.sign(yaw))
        pose = torch.from_numpy(np.concatenate([shot.head, shot.jaw]))[None]
        head = flame(torch.from_numpy(someone.shape)[None], torch.from_numpy(shot.exp)[None], pose)
        points.append(head.landmarks2d[0, :, :2].numpy() * [1000, -1000] + [200, 150])
        rotation = rotation_matrix(torch.from_numpy(shot.head)).numpy()  # Rz(roll) Rx(pitch, downwards) Ry(yaw)
        assert np.sign((rotation @ [0, 0, 1])[0]) == np.sign(yaw)  # to the subject's left: to the image's right
        truth.append((yaw, -np.degrees(np.arcsin(rotation[2, 1]))))
    return np.array(points, np.float32), np.array(truth)


def test_yaw_and_pitch_of_known_heads(turned):
    points, truth = turned
    found = np.array([head_turn(each) for each in points])
    error = np.abs(found - truth)
    assert error[:, 0].mean() < 2
    assert error[:, 0].max() < 8
    assert np.corrcoef(found[:, 0], truth[:, 0])[0, 1] > 0.99
    assert error[:, 1].mean() < 4.5
    assert np.corrcoef(found[:, 1], truth[:, 1])[0, 1] > 0.8


def test_size_place_and_roll_do_not_matter(turned):
    points = turned[0][7].astype(np.float64)
    yaw, pitch = head_turn(points)
    turn = np.radians(25)
    rolled = points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) * 13.7 + [500, -40]
    np.testing.assert_allclose(head_turn(rolled.astype(np.float32)), (yaw, pitch), atol=0.01)


def test_a_mirrored_face_looks_to_the_other_side(turned):
    points = turned[0][25]
    twins = np.r_[16:-1:-1, 26:16:-1, 27:31, 35:30:-1, 45:41:-1, 47:45:-1, 39:35:-1, 41:39:-1, 48:68]
    mirrored = points[twins] * np.float32([-1, 1])
    np.testing.assert_allclose(head_turn(mirrored), np.array(head_turn(points)) * [-1, 1], atol=1e-3)


def test_points_in_one_line_give_finite_angles():
    line = np.stack([np.arange(68), np.arange(68)], axis=1).astype(np.float32)
    assert np.isfinite(head_turn(line)).all()


def test_the_variance_of_the_laplacian_of_a_known_image():
    """A checkerboard of 100 and 200: the Laplacian is 4 x 100 on either colour, with both signs, so 400 squared."""
    y, x = np.mgrid[:320, :320]
    board = np.where((x + y) % 2, 200, 100).astype(np.uint8)[..., None].repeat(3, axis=2)
    inner = np.zeros((320, 320), bool)
    inner[1:-1, 1:-1] = True
    assert sharpness(board, inner) == pytest.approx(400**2)
    assert sharpness(np.full_like(board, 90), EVERYWHERE) == 0
    assert sharpness(board, ~EVERYWHERE) == 0


def test_sharpness_falls_with_every_step_of_blur():
    image = Image.fromarray(drawn_face(320)[0])
    blurred = [np.asarray(image.filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 0.7, 1.5, 3)]
    figures = [sharpness(each, EVERYWHERE) for each in blurred]
    assert figures == sorted(figures, reverse=True)
    assert figures[0] > 20 * figures[-1]


def test_coverage_counts_skin_and_only_inside_the_face():
    image, points = drawn_face(320)
    everything = np.full((320, 320), 255, np.uint8)
    whole = measure(image, everything, points, SAME, (320, 320))
    assert whole.mask_coverage == 1
    left = everything.copy()
    left[:, 160:] = 0
    assert measure(image, left, points, SAME, (320, 320)).mask_coverage == pytest.approx(0.5, abs=0.02)
    outside = everything.copy()
    outside[60:300] = 0
    assert measure(image, outside, points, SAME, (320, 320)).mask_coverage == 0
    eyes = points[36:42].mean(axis=0) - points[42:48].mean(axis=0)
    assert whole.eye_distance == pytest.approx(np.hypot(*eyes), rel=1e-6)


def test_the_edge_of_the_image_is_not_sharpness():
    """The crop is black outside the image: only what lies inside counts, and a face outside has no sharpness."""
    points = drawn_face(320)[1]
    grey = np.full((320, 320, 3), 128, np.uint8)
    grey[:, 160:] = 0
    mask = np.zeros((320, 320), np.uint8)
    assert measure(grey, mask, points, SAME, (160, 320)).sharpness == 0
    assert measure(grey, mask, points, SAME, (320, 320)).sharpness > 10
    assert measure(grey, mask, points, SAME, (4, 4)).sharpness == 0
