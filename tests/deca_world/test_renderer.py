"""The photographs' renderer against the method's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deca_core import DECA
from deca_core.appearance import SH_CONSTANTS, shading
from deca_core.codes import Codes
from deca_world.background import KINDS, Background, paint
from deca_world.lighting import Light, direction_of, directional, irradiance, sample_light
from deca_world.props import Prop
from deca_world.renderer import Renderer, assemble, lamp_visibility, normals_of, occlusion

SIZE = 96


@pytest.fixture(scope="module")
def model(world) -> DECA:
    return DECA(world.bundle)


@pytest.fixture(scope="module")
def codes(world) -> Codes:
    subject = world.subject(4, 0)
    return world.photograph(subject, world.shot(subject, 0), SIZE).codes


def test_detail_normals_are_those_of_the_method(world, model, codes):
    with torch.inference_mode():
        vertices = model.flame(codes.shape, codes.exp, codes.pose).vertices
        subject = world.subject(4, 0)
        displacement = world.wrinkles.displacement(subject, codes.exp[0].numpy(), codes.jaw[0].numpy())
        out = model.decode(codes)
        expected = model.detail_normals(
            type(out)(**{**vars(out), "vertices": vertices, "z": torch.from_numpy(displacement)[None, None]})
        )[0].numpy()
    points = vertices[0].numpy()
    normals = normals_of(points, world.bundle.faces.astype(np.int32))
    actual = world._surface.normals(points, normals, displacement).T.reshape(3, 256, 256)
    covered = world.bundle.face_eye_mask > 0
    np.testing.assert_allclose(actual[:, covered], expected[:, covered], atol=2e-3)
    assert np.abs(actual - expected).mean() < 1e-5


def test_without_shadow_and_props_a_photograph_is_a_rendering_of_the_method(world, model, codes):
    """Only light from all around, no occlusion: the model's own detail image at twice the size, averaged."""
    light = codes.light[0].numpy()
    nothing = np.zeros(3, np.float32)
    around = Light(light, np.zeros_like(light), np.array([0, 0, 1], np.float32), nothing, 1.0)
    with torch.inference_mode():
        out = model.decode(codes)
        large = model.render(codes, out, size=2 * SIZE).detail_images
        expected = torch.nn.functional.avg_pool2d(large, 2)[0].permute(1, 2, 0).numpy()
        albedo = model.albedo(codes)[0].numpy()
        surface = model.detail_normals(out)[0].flatten(1).T.numpy()
    assembly = assemble(world.bundle, [])
    vertices = out.vertices[0].numpy()
    frame = Renderer(world.bundle).render(
        assembly,
        vertices,
        codes.cam[0].numpy(),
        around,
        np.ones(len(vertices), np.float32),
        albedo,
        surface,
        oiliness=0.0,
        background=np.zeros((SIZE, SIZE, 3), np.float32),
    )
    error = np.abs(frame.colour - expected)[expected.sum(-1) > 0]
    # Samples of one face inside a pixel share a colour; folds seen from behind are not drawn.
    assert np.median(error) < 0.004
    assert error.mean() < 0.02


def test_directional_light_is_the_cosine_lobe():
    direction = direction_of(40, 30)
    light = directional(direction, np.array([1.0, 0.5, 0.0]))
    rng = np.random.default_rng(0)
    normals = rng.standard_normal((500, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    expected = np.maximum(normals @ direction, 0)
    actual = irradiance(normals, light)
    # Nine bands hold 99 % of the lobe's energy (Ramamoorthi & Hanrahan 2001).
    assert np.sqrt(((actual[:, 0] - expected) ** 2).mean()) < 0.05
    np.testing.assert_allclose(actual[:, 1], 0.5 * actual[:, 0], atol=1e-6)
    np.testing.assert_allclose(actual[:, 2], 0, atol=1e-6)
    images = torch.from_numpy(normals.T.reshape(1, 3, 1, -1))
    method = shading(images, torch.from_numpy(light)[None])[0, :, 0].T.numpy()
    np.testing.assert_allclose(actual, method, atol=1e-9)


def test_light_is_exposed_for_the_face():
    front = np.array([[0.0, 0.0, 1.0]])
    levels = [
        irradiance(front, sample_light(np.random.default_rng(seed)).code.astype(float)).mean() for seed in range(200)
    ]
    assert np.quantile(levels, 0.05) > 0.4
    assert np.quantile(levels, 0.95) < 1.8
    assert SH_CONSTANTS[0] > 0


def plate(height: float) -> Prop:
    """A square of 10 cm that floats at a height over the face's plane."""
    corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32) * 0.05
    weights = np.zeros((4, 5), np.float32)
    weights[:, 1] = 1
    texture = np.ones((2, 2, 4), np.float32)
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    return Prop("plate", corners + np.float32([0, 0, height]), np.array([[0, 1, 2], [0, 2, 3]]), weights, uv, texture)


def test_a_plate_before_the_face_casts_a_shadow_and_takes_light_from_around(world):
    rest = world.bundle.v_template
    free, covered = assemble(world.bundle, []), assemble(world.bundle, [plate(0.12)])
    both = np.concatenate([rest, covered.prop_vertices])
    front = direction_of(0, 0)
    nose = rest[:, 2].argmax()
    sun_free = lamp_visibility(free, rest, normals_of(rest, free.faces), front, 0.0)
    sun_covered = lamp_visibility(covered, both, normals_of(both, covered.faces), front, 0.0)
    assert sun_free[nose] > 0.95
    assert sun_covered[nose] < 0.05
    assert occlusion(covered, both)[nose] < 0.8 * occlusion(free, rest)[nose]
    assert occlusion(free, rest).min() >= 0


@pytest.mark.parametrize("kind", KINDS)
def test_backgrounds_are_images(kind):
    image = paint(Background(kind, 3, 0.5), 64)
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.float32
    assert 0 <= image.min() < image.max() <= 1
    assert not np.array_equal(image, paint(Background(kind, 4, 0.5), 64))
