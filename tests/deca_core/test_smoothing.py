"""Smoothing against closed forms, and on a synthetic talking, blinking head with noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deca_core.codes import Codes
from deca_core.crop import CropError, crop_transform, square_from_landmarks
from deca_core.flame import FLAME
from deca_core.smoothing import (
    LIDS,
    Eyelids,
    crop_camera,
    keep_blinks,
    local_fit,
    smooth_codes,
    source_camera,
)

TIMES = np.arange(100) / 25


@pytest.fixture(scope="module")
def lids(flame) -> Eyelids:
    return Eyelids.of(flame)


def opening_mm(flame: FLAME, exp: np.ndarray) -> np.ndarray:
    """Mean distance of the lids (T,2) by eye, through the whole FLAME layer."""
    count = len(exp)
    head = flame(torch.zeros(count, 100), torch.from_numpy(exp).float(), torch.zeros(count, 6))
    points = head.landmarks3d.double().numpy()
    gaps = [[np.linalg.norm(points[:, a] - points[:, b], axis=1) for a, b in eye] for eye in LIDS]
    return 1000 * np.array(gaps).mean(axis=1).T


def test_a_parabola_at_uneven_times_passes_unchanged():
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.uniform(0.02, 0.07, 60))
    values = np.stack([3 - 2 * times + 0.7 * times**2, np.full(60, 4.0)], axis=1)
    assert np.allclose(local_fit(times, values, 0.4), values, atol=1e-9)


def test_it_is_the_weighted_least_squares_parabola():
    rng = np.random.default_rng(1)
    times, values = TIMES, rng.normal(size=(100, 1))
    now, half = 40, 0.18
    near = np.abs(times - times[now]) < half
    weights = (1 - (np.abs(times[near] - times[now]) / half) ** 3) ** 3
    expected = np.polyval(np.polyfit(times[near] - times[now], values[near, 0], 2, w=np.sqrt(weights)), 0.0)
    assert np.isclose(local_fit(times, values, 2 * half)[now, 0], expected, atol=1e-9)


def test_few_frames_stay_as_they_are():
    values = np.array([[1.0], [5.0]])
    assert np.array_equal(local_fit(np.array([0.0, 0.04]), values), values)
    spread = np.arange(5) * 2.0  # seconds apart: every window has one frame
    assert np.array_equal(local_fit(spread, np.eye(5)), np.eye(5))


def test_lids_are_measured_as_the_head_opens_them(flame, lids):
    rng = np.random.default_rng(2)
    exp = 0.2 * rng.normal(size=(6, 50))
    change = opening_mm(flame, exp) - opening_mm(flame, np.zeros((1, 50)))
    assert np.allclose(1000 * exp @ lids.measure.T, change, atol=0.35)  # of some millimetres: distances are not linear
    assert np.allclose(lids.measure @ lids.move, np.eye(2), atol=1e-9)


def test_blinks_stay_and_the_rest_is_calmed(bundle, flame, lids):
    names = bundle.expression_names
    rng = np.random.default_rng(3)
    true = np.zeros((100, 50))
    true[:, names.index("smile")] = 0.4 - 0.4 * np.cos(2 * np.pi * TIMES / 3)
    middles = (0.8, 2.0, 3.1)
    for middle in middles:
        blink = 0.5 + 0.5 * np.cos(2 * np.pi * np.clip((TIMES - middle) / 0.16, -0.5, 0.5))
        true[:, names.index("lids_close")] += blink
    noisy = true + rng.normal(0, 0.03, true.shape)
    smooth, plain = lids.smooth(TIMES, noisy), local_fit(TIMES, noisy)

    def jitter(exp: np.ndarray) -> float:
        return float(np.abs(np.diff(exp - true, 2, axis=0)).mean())

    assert jitter(smooth) < 0.35 * jitter(noisy)
    kept, lost = (opening_mm(flame, exp).mean(1) for exp in (smooth, plain))
    for middle in middles:
        at = np.abs(TIMES - middle) < 0.06
        raw = opening_mm(flame, noisy).mean(1)
        amplitude = np.median(raw) - raw[at].min()
        assert abs((np.median(kept) - kept[at].min()) / amplitude - 1) < 0.1
        assert np.median(lost) - lost[at].min() < 0.85 * amplitude  # what the lids' own filter is for


def test_a_wink_is_one_eyes_own():
    opening = np.zeros((100, 2))
    opening[50:53, 0] = -0.008
    opening += np.random.default_rng(4).normal(0, 0.0003, opening.shape)
    kept = keep_blinks(TIMES, opening)
    assert kept[51, 0] < -0.007
    assert abs(kept[51, 1]) < 0.0005


def test_cameras_survive_the_way_through_the_source():
    rng = np.random.default_rng(5)
    cam = np.stack([rng.uniform(5, 9, 7), *rng.normal(0, 0.02, (2, 7))], axis=1)
    points = rng.uniform(100, 300, (7, 68, 2)).astype(np.float32)
    transforms = np.stack([crop_transform(square_from_landmarks(one)) for one in points])
    seen = source_camera(cam, transforms)
    assert np.allclose(crop_camera(seen, transforms), cam)
    world = rng.normal(0, 0.1, (7, 3))  # any point, through the crop as the method projects it, lands where `seen` says
    x = cam[:, 0] * (world[:, 0] + cam[:, 1])
    y = -cam[:, 0] * (world[:, 1] + cam[:, 2])
    crop = np.stack([(x + 1) * 112, (y + 1) * 112], axis=1)
    source = (crop - transforms[:, :, 2]) / transforms[:, 0, 0][:, None]
    expected = np.stack([seen[:, 1] + seen[:, 0] * world[:, 0], seen[:, 2] - seen[:, 0] * world[:, 1]], axis=1)
    assert np.allclose(source, expected)


def test_a_still_head_in_a_jumping_crop_stays_still(lids):
    """The crop jitters and the camera compensates: smoothing must not take them apart."""
    rng = np.random.default_rng(6)
    seen = np.tile([[900.0, 320.0, 240.0]], (50, 1))
    scale, shift = rng.uniform(0.8, 1.2, 50), rng.uniform(-60, 0, (50, 2))
    transforms = np.zeros((50, 2, 3))
    transforms[:, 0, 0] = transforms[:, 1, 1] = scale
    transforms[:, :, 2] = shift
    codes = Codes.zeros(50).replace(cam=torch.from_numpy(crop_camera(seen, transforms)).float())
    smooth = smooth_codes(TIMES[:50], codes, transforms, lids)
    assert np.allclose(source_camera(smooth.cam.double().numpy(), transforms), seen, atol=1e-2)
    assert torch.equal(smooth.shape, codes.shape)
    assert smooth.exp.dtype == torch.float32


def test_a_head_that_is_carried_upside_down_turns_on(lids):
    """From 150 to 210 degrees of roll: axis-angle jumps to -150, and the mean of both would be a head held up."""
    roll = np.radians(np.linspace(150, 210, 50))
    wrapped = (roll + np.pi) % (2 * np.pi) - np.pi
    pose = np.zeros((50, 6))
    pose[:, 2] = wrapped
    codes = Codes.zeros(50).replace(pose=torch.from_numpy(pose).float(), cam=torch.tensor([[7.0, 0, 0]]).repeat(50, 1))
    upright = np.tile([[1.0, 0, 0], [0, 1, 0]], (50, 1, 1))
    smooth = smooth_codes(TIMES[:50], codes, upright, lids).pose.double().numpy()
    assert np.allclose(smooth[:, 2], roll, atol=1e-3)
    turned = upright @ np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    with pytest.raises(CropError, match="turned in its image"):
        smooth_codes(TIMES[:50], codes, turned, lids)
