"""Motions: what presets do to a real head, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deca_core.animation import EASE, PRESETS, WIDE, Motion, MotionError, eased, preset
from deca_core.codes import Codes


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_begins_and_ends_at_rest(bundle, name):
    motion = preset(name, bundle.expression_names, 30)
    assert np.isclose(np.diff(motion.times), 1 / 30).all()
    for row in (0, -1):
        assert np.abs(motion.exp[row]).max() < 1e-6
        assert np.abs(motion.jaw[row]).max() < 1e-6
    assert max(np.abs(motion.exp).max(), np.abs(motion.jaw).max()) > 0.1


def test_a_blink_closes_the_eyes_and_jaw_open_the_mouth_apart(bundle, flame):
    def gaps(motion: Motion, upper: int, lower: int) -> np.ndarray:
        codes = motion.on(Codes.zeros())
        points = flame(codes.shape, codes.exp, codes.pose).landmarks3d
        return 1000 * (points[:, upper] - points[:, lower]).norm(dim=1).numpy()

    eye = gaps(preset("blink", bundle.expression_names, 50), 37, 41)
    assert eye.min() < 0.25 * eye[0]
    assert (np.diff((eye < 0.3 * eye[0]).astype(int)) == 1).sum() == 2  # it blinks twice
    mouth = gaps(preset("jaw-open", bundle.expression_names, 25), 62, 66)
    assert mouth.max() > mouth[0] + 15


def test_a_component_of_the_bundle_is_a_motion(bundle):
    motion = preset("brow_raise", bundle.expression_names, 25)
    column = bundle.expression_names.index("brow_raise")
    assert np.isclose(motion.exp[:, column].max(), 1.0)
    assert motion.components == column + 1


def test_flame_knows_no_smile_but_a_jaw():
    with pytest.raises(MotionError, match=r"smile.*no names"):
        preset("smile", (), 25)
    assert np.isclose(preset("jaw-open", (), 25).jaw[:, 0].max(), WIDE)


def test_a_motion_leaves_the_subject_alone():
    rng = torch.Generator().manual_seed(0)
    source = Codes(**{name: torch.randn(value.shape, generator=rng) for name, value in Codes.zeros().items()})
    motion = Motion(np.arange(3) / 25, np.full((3, 50), 0.2, np.float32), np.full((3, 3), 0.1, np.float32))
    moved = motion.on(source)
    assert len(moved) == 3
    for name in ("shape", "tex", "cam", "light", "detail"):
        assert torch.equal(getattr(moved, name), getattr(source, name).expand_as(getattr(moved, name)))
    assert torch.equal(moved.pose[:, :3], source.pose[:, :3].expand(3, 3))
    assert torch.allclose(moved.exp, torch.tensor(0.2))
    assert torch.allclose(moved.jaw, torch.tensor(0.1))
    assert np.array_equal(Motion.of(moved, motion.times).exp, motion.exp)


def test_the_way_to_an_expression_and_back():
    still = Motion(np.zeros(1), np.zeros((1, 50), np.float32), np.zeros((1, 3), np.float32))
    aim = Motion(np.zeros(1), np.ones((1, 50), np.float32), np.ones((1, 3), np.float32))
    way = eased(aim, still, 50)
    assert np.abs(way.exp[[0, -1]]).max() == 0
    middle = (way.times >= EASE) & (way.times <= EASE + 0.5)
    assert np.allclose(way.exp[middle], 1.0)
    assert np.abs(np.diff(way.exp[:, 0])).max() < 0.06  # no jump


@pytest.mark.parametrize(
    ("times", "count"), [([0.0, 0.0], 2), ([0.1, 0.0], 2), ([-1.0, 0.0], 2), ([], 0), ([0.0, np.nan], 2), ([0.0], 2)]
)
def test_times_that_make_no_sense_are_refused(times, count):
    with pytest.raises(MotionError):
        Motion(np.array(times), np.zeros((count, 50), np.float32), np.zeros((count, 3), np.float32))
