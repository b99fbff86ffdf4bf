"""Photographs: the same bytes anywhere, and truth that is true."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from deca_core.assets.bundle import BundleError
from deca_core.camera import project, to_pixels
from deca_core.flame import FLAME
from deca_core.raster import rasterize
from deca_world import Limits, Photograph, World
from deca_world.occluders import Occluder
from deca_world.subject import TRUNCATION

ROOT = Path(__file__).resolve().parents[2]
SIZE = 160


def take(world: World, subject: int = 3, image: int = 1, **limits: object) -> Photograph:
    identity = world.subject(11, subject)
    return world.photograph(identity, world.shot(identity, image, Limits(**limits)), SIZE)  # type: ignore[arg-type]


def digest(taken: Photograph) -> str:
    truth = (taken.image, taken.landmarks, taken.skin_mask, taken.displacement)
    return hashlib.sha256(b"".join(array.tobytes() for array in truth)).hexdigest()


OTHER_PROCESS = """
from deca_core.assets import procedural_head
from deca_world import World
from tests.deca_world.test_photograph import digest, take
print(digest(take(World(procedural_head()))))
"""


@pytest.mark.slow
def test_another_process_and_another_order_give_the_same_bytes(world):
    take(world, subject=9)
    here = digest(take(world))
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", OTHER_PROCESS]
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=True)
    assert done.stdout.strip() == here
    assert digest(take(world, image=2)) != here


@pytest.mark.parametrize("subject", range(4))
def test_landmarks_and_vertices_follow_from_the_codes(world, subject):
    taken = take(world, subject)
    codes = taken.codes
    head = FLAME(world.bundle)(codes.shape, codes.exp, codes.pose)
    expected = to_pixels(project(head.landmarks2d, codes.cam)[0, :, :2], SIZE).numpy()
    # The eyes of the photograph are turned, the codes have no gaze; lids follow the eyes by a millimetre or so.
    assert np.abs(expected - taken.landmarks).max() < 0.5
    still = world.bundle.skin_weights[:, 3:].max(axis=1) == 0
    moved = np.linalg.norm(head.vertices[0].numpy() - taken.vertices, axis=1)[still]
    assert moved.max() < 2e-3
    assert np.median(moved) < 1e-6


def test_the_skin_mask_is_face_skin_and_nothing_else(world):
    for subject in range(4):
        taken = take(world, subject, occluders=False)
        projected = project(FLAME(world.bundle)(*_geometry(taken)).vertices, taken.codes.cam)
        faces = world._flame.static_triangles.new_tensor(world.bundle.faces)
        shown = rasterize(projected, faces, SIZE, SIZE)[0].numpy()
        uv = world.bundle.uv[world.bundle.uv_faces].mean(1)
        column, row = (uv[:, 0] * 255.9).astype(int), ((1 - uv[:, 1]) * 255.9).astype(int)
        skin = (shown >= 0) & (world.bundle.face_mask[row, column] > 0)[shown]
        mask = taken.skin_mask > 0
        assert set(np.unique(taken.skin_mask)) == {0, 255}
        # Half a face at the least, unless hair falls over it; a pixel at the edge may go either way.
        assert 0.3 * skin.sum() < mask.sum()
        assert not (mask & ~binary_dilation(skin, iterations=2)).any()


def _geometry(taken: Photograph) -> tuple:
    return taken.codes.shape, taken.codes.exp, taken.codes.pose


def test_what_hides_the_face_is_cut_out_of_the_mask(world):
    identity = world.subject(11, 5)
    shot = world.shot(identity, 0, Limits(yaw=(0, 5), occluders=False))
    free = world.photograph(identity, shot, SIZE)
    hand = world.photograph(identity, dataclasses.replace(shot, occluders=(Occluder("hand", "", 4),)), SIZE)
    hidden = (free.skin_mask > 0) & (hand.skin_mask == 0)
    assert hidden.sum() > 50
    assert not ((free.skin_mask == 0) & (hand.skin_mask > 0)).any()
    changed = np.abs(free.image.astype(int) - hand.image).max(-1) > 8
    assert changed[hidden].mean() > 0.8


def test_the_face_is_where_the_shot_says(world):
    identity = world.subject(11, 6)
    shot = dataclasses.replace(world.shot(identity, 0), offset=(0.25, -0.1))
    taken = world.photograph(identity, shot, SIZE)
    static = FLAME(world.bundle)(*_geometry(taken)).landmarks3d[:, 17:]
    middle = project(static, taken.codes.cam)[0, :, :2].mean(0).numpy()
    np.testing.assert_allclose(middle, shot.offset, atol=1e-3)


def test_subjects_are_standard_normal_and_differ(world):
    subjects = [world.subject(1, index) for index in range(200)]
    shapes, textures = np.stack([p.shape for p in subjects]), np.stack([p.tex for p in subjects])
    assert abs(shapes.mean()) < 0.02
    assert abs(textures.mean()) < 0.02
    # Truncated at 2.2 a standard normal has a deviation of 0.92.
    assert shapes[:, 1:].std() == pytest.approx(0.92, abs=0.03)
    assert np.abs(shapes[:, 1:]).max() <= TRUNCATION
    assert len({p.hair.family for p in subjects}) > 8
    again = world.subject(1, 7)
    np.testing.assert_array_equal(again.shape, subjects[7].shape)
    assert (again.hair, again.clothing) == (subjects[7].hair, subjects[7].clothing)


def test_limits_hold_over_many_shots(world):
    identity = world.subject(2, 0)
    limits = Limits(yaw=(15, 30), pitch=5, roll=3, occluders=False, expressions=False)
    for image in range(50):
        shot = world.shot(identity, image, limits)
        rotation = _matrix(shot.head)
        yaw = np.degrees(np.arctan2(-rotation[2, 0], np.hypot(rotation[0, 0], rotation[1, 0])))
        assert 14.7 <= abs(yaw) <= 30.1
        assert shot.occluders == ()
        assert not shot.exp.any()
        assert not shot.jaw.any()


def _matrix(axis_angle: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_rotvec(axis_angle).as_matrix()


def test_jpeg_is_the_image(world):
    taken = take(world)
    decoded = np.asarray(Image.open(io.BytesIO(taken.jpeg())))
    assert decoded.shape == (SIZE, SIZE, 3)
    assert np.abs(decoded.astype(int) - taken.image).mean() < 8


def test_a_bundle_without_albedo_is_refused(world):
    bare = dataclasses.replace(world.bundle, albedo_mean=None, albedo_basis=None)
    with pytest.raises(BundleError, match="no albedo model"):
        World(bare)
