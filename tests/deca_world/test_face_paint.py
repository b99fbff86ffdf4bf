"""Looks and how they are painted: where paint goes, that it is the subject's own, and that it stays off the eyes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from deca_core.uv import UVAtlas
from deca_world.face_paint import FacePaint
from deca_world.looks import BEARDS, REGIONS, Beard, Brows, Looks, MakeUp, Skin, sample_looks
from deca_world.props import landmarks

BLACK = (0.05, 0.05, 0.05)
PLAIN = Looks(
    beard=None,
    brows=Brows(bare=0, density=0, thickness=3, taper=0.5, arch=0, lift=0, joined=0, colour=BLACK),
    make_up=None,
    skin=Skin(
        circles=0, circles_width=6, sockets=0, lips=(1, 1, 1), lip_line=0, redness=0, mouth_fold=0,
        regions=(0.0,) * len(REGIONS), creases=0, lid_crease=0, lid_crease_height=4, freckles=0, spots=0,
        unevenness=(0, 0, 0), symmetry=0.5,
    ),
    seed=3,
)  # fmt: skip
FULL = Beard(cheeks=0.9, jaw=0.9, chin=0.9, moustache=0.9, cheek_line=0, neck_line=0, width=1, colour=BLACK)


@pytest.fixture(scope="module")
def positions(world):
    return UVAtlas(world.bundle)(torch.from_numpy(world.bundle.v_template)[None])[0].numpy()


@pytest.fixture(scope="module")
def paint(world, positions):
    return FacePaint(world.bundle, positions)


def change(world, paint, looks: Looks) -> np.ndarray:
    """Mean darkening of every texel against the bundle's mean albedo, (T,T)."""
    return (world.bundle.albedo_mean - paint.apply(world.bundle.albedo_mean, looks)).mean(0)


def near(world, positions, landmark: int, radius: float = 0.004) -> np.ndarray:
    """Texels of the face's skin within a radius of a landmark."""
    point = landmarks(world.bundle, world.bundle.v_template)[landmark]
    distance = np.linalg.norm(positions - point[:, None, None], axis=0)
    return (distance < radius) & (world.bundle.face_eye_mask > 0.5)


def test_plain_looks_leave_the_albedo(world, paint):
    np.testing.assert_allclose(change(world, paint, PLAIN), 0, atol=1e-5)


def test_a_beard_covers_jaw_and_lip_but_neither_mouth_nor_brow(world, paint, positions):
    dark = change(world, paint, dataclasses.replace(PLAIN, beard=FULL))
    x, y = np.abs(positions[0]), positions[1]
    points = landmarks(world.bundle, world.bundle.v_template)
    face = world.bundle.face_mask > 0.9
    chin = face & (x < 0.01) & (y < points[57, 1] - 0.014) & (y > points[8, 1] + 0.004)
    lip = face & (x < 0.012) & (np.abs(y - 0.5 * (points[33, 1] + points[51, 1])) < 0.002)
    assert dark[chin].mean() > 0.25
    assert dark[lip].mean() > 0.15
    for landmark in (19, 24, 27, 57, 66):
        assert np.median(np.abs(dark[near(world, positions, landmark, 0.003)])) < 0.05
    # The eyeballs' and the mouth's own islands of the atlas have no hair.
    assert np.abs(dark[(y > points[33, 1]) & ~(world.bundle.face_eye_mask > 0)]).max() < 0.02


def test_brows_and_make_up_go_where_they_belong(world, paint, positions):
    brows = dataclasses.replace(PLAIN.brows, density=1.0, thickness=4.0)
    dark = change(world, paint, dataclasses.replace(PLAIN, brows=brows))
    assert dark[near(world, positions, 24, 0.003)].mean() > 0.02
    assert np.abs(dark[near(world, positions, 30)]).max() < 1e-3
    lipstick = MakeUp(lipstick=(0.6, 0.1, 0.1), lips=1.0, liner=0, shadow=(1, 1, 1), lids=0, blush=0)
    painted = paint.apply(world.bundle.albedo_mean, dataclasses.replace(PLAIN, make_up=lipstick))
    moved = np.abs(painted - world.bundle.albedo_mean).mean(0)
    assert moved[near(world, positions, 57, 0.003)].mean() > 5 * moved[near(world, positions, 8)].mean() + 0.01


def test_every_region_changes_a_place_of_its_own_on_both_sides(world, paint):
    places = set()
    for index in range(len(REGIONS)):
        regions = tuple(0.2 * (index == other) for other in range(len(REGIONS)))
        dark = change(world, paint, dataclasses.replace(PLAIN, skin=dataclasses.replace(PLAIN.skin, regions=regions)))
        assert dark.max() > 0.05
        assert dark[:, :128].sum() == pytest.approx(dark[:, 128:].sum(), rel=0.1)
        places.add(int(dark.argmax()))
    assert len(places) == len(REGIONS)


def test_subjects_look_different_and_stay_the_same(world):
    subjects = [world.subject(1, index) for index in range(300)]
    assert world.subject(1, 7).looks == subjects[7].looks
    men, women = ([p.looks for p in subjects if (p.shape[0] > 0) == male] for male in (True, False))
    assert not any(looks.beard for looks in women)
    assert not any(looks.make_up for looks in men)
    bearded = np.mean([looks.beard is not None for looks in men])
    share = 1 - BEARDS["shaven"].share / sum(kind.share for kind in BEARDS.values())
    assert bearded == pytest.approx(share, abs=0.12)
    assert len({looks.skin.regions for looks in men + women}) == 300


def test_looks_are_a_function_of_their_stream():
    first, second = (sample_looks(np.random.default_rng(5), (0.3, 1.0), BLACK) for _ in range(2))
    assert first == second
