"""True displacement: bounded, inside the face, personal, and driven by expressions."""

from __future__ import annotations

import numpy as np
import pytest

from deca_world import Subject, World
from deca_world.wrinkles import DRIVERS, GROUPS

SUBJECTS = range(5)
STILL = np.zeros(3, np.float32)


def code(world: World, **components: float) -> np.ndarray:
    exp = np.zeros(50, np.float32)
    for name, value in components.items():
        exp[world.bundle.expression_names.index(name)] = value
    return exp


def change(world: World, subject: Subject, **components: float) -> np.ndarray:
    """Displacement of an expression minus that of the relaxed face, (256,256) metres."""
    rest = world.wrinkles.displacement(subject, code(world), STILL)
    return world.wrinkles.displacement(subject, code(world, **components), STILL) - rest


def place(world: World, landmark: int, reach: float) -> np.ndarray:
    """Texels (256,256) within `reach` metres of a landmark of the mean head."""
    bundle = world.bundle
    corners = bundle.v_template[bundle.faces[bundle.full_landmark_faces[landmark]]]
    centre = bundle.full_landmark_bary[landmark] @ corners
    near = np.zeros(256 * 256, bool)
    near[world.wrinkles.texels] = np.linalg.norm(world.wrinkles.points - centre, axis=1) < reach
    return near.reshape(256, 256)


def test_bounds_and_mask(world):
    drawn = np.random.default_rng(0).uniform(-1, 2, (5, 50)).astype(np.float32)
    for index in SUBJECTS:
        height = world.wrinkles.displacement(world.subject(0, index), drawn[index], np.float32([0.3, 0, 0]))
        assert height.dtype == np.float32
        assert 1e-4 < np.abs(height).max() < 4e-3
        assert not height[world.bundle.face_mask == 0].any()


# Expression, and a landmark beside which it must fold the skin: mouth corner to wing (54), outer canthus (45), root of
# the nose (27), inner brow (22), chin (8).
FOLDS = [
    ({"smile": 1.0}, 54, 0.025),
    ({"smile": 1.0, "cheek_raise": 0.8}, 45, 0.022),
    ({"brow_lower": 1.0}, 27, 0.022),
    ({"nose_wrinkle": 1.0}, 27, 0.020),
    ({"brow_raise": 1.0}, 24, 0.045),
    ({"chin_raise": 1.0}, 8, 0.028),
]


@pytest.mark.parametrize(("components", "landmark", "reach"), FOLDS)
def test_expressions_deepen_their_folds_and_leave_the_rest_alone(world, components, landmark, reach):
    near = place(world, landmark, reach)
    for index in SUBJECTS:
        folded = change(world, world.subject(0, index), **components)
        assert folded[near].min() < -1e-4, index
    far = place(world, 8 if landmark != 8 else 27, 0.015)
    if "smile" not in components:
        assert np.abs(folded[far]).max() < 2e-5


def test_one_sided_expressions_fold_one_side(world):
    subject = world.subject(0, 1)
    folded = change(world, subject, smile_left=1.0)
    left, right = place(world, 54, 0.025), place(world, 48, 0.025)
    assert folded[left].min() < 4 * folded[right].min() < 1e-9 or np.abs(folded[right]).max() < 2e-5
    assert folded[left].min() < -1e-4


def test_jaw_changes_folds_and_statics_stay(world):
    subject = world.subject(0, 2)
    pattern = world.wrinkles.pattern(subject)
    closed = world.wrinkles.displacement(subject, code(world), STILL)
    opened = world.wrinkles.displacement(subject, code(world), np.float32([0.35, 0, 0]))
    assert np.abs(opened - closed).max() > 1e-5
    # Where this subject has no crease, nothing moves whatever the face does.
    calm = np.zeros(256 * 256, bool)
    calm[world.wrinkles.texels[np.abs(pattern.creases).max(axis=0) < 1e-7]] = True
    calm = calm.reshape(256, 256)
    smiling = world.wrinkles.displacement(subject, code(world, smile=1.0, brow_raise=1.0), STILL)
    assert calm.sum() > 5000
    np.testing.assert_allclose(smiling[calm], closed[calm], atol=2e-7)
    assert np.abs(closed[calm]).max() > 1e-5  # pores, moles


def test_two_subjects_wrinkle_differently(world):
    first, second = (change(world, world.subject(0, index), smile=1.0, brow_raise=1.0) for index in (1, 2))
    folds = (first < -1e-4) | (second < -1e-4)
    shared = (first < -1e-4) & (second < -1e-4)
    assert shared.sum() < 0.6 * folds.sum()


def test_every_driver_is_a_component_of_the_head(world):
    known = set(world.bundle.expression_names)
    assert {name for drivers in DRIVERS.values() for name in drivers} <= known
    assert len(GROUPS) == len(DRIVERS)


def test_a_pattern_is_fast_once_drawn(world):
    import time

    subject = world.subject(0, 3)
    world.wrinkles.displacement(subject, code(world), STILL)
    started = time.process_time()
    for _ in range(20):
        world.wrinkles.displacement(subject, code(world, smile=0.7), STILL)
    assert (time.process_time() - started) / 20 < 0.02  # 1 ms on a quiet machine
