"""DECA as a user calls it: encode, decode, render, animate."""

from __future__ import annotations

import pytest
import torch

from deca_core import DECA, Codes
from deca_core.codes import NUM_COARSE, NUM_DETAIL, CodesError
from deca_core.images import ImageError
from deca_core.inference import Inference


@pytest.fixture(scope="module")
def model(mini) -> DECA:
    torch.manual_seed(0)
    return DECA(mini)


@pytest.fixture(scope="module")
def codes(model) -> Codes:
    with torch.no_grad():
        return model.encode(torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)))


def test_code_order():
    vector = torch.arange(NUM_COARSE).float()[None]
    codes = Codes.from_vectors(vector, torch.zeros(1, NUM_DETAIL))
    firsts = {name: value.flatten()[0].item() for name, value in codes.items() if name != "detail"}
    assert firsts == {"shape": 0, "tex": 100, "exp": 150, "pose": 200, "cam": 206, "light": 209}
    assert codes.light[0, 1].tolist() == [212, 213, 214]  # a row is a band, a column a colour


@torch.no_grad()
def test_shapes(model, codes):
    out = model.decode(codes)
    vertices = model.bundle.num_vertices
    assert out.vertices.shape == out.projected.shape == (2, vertices, 3)
    assert out.landmarks2d.shape == (2, 68, 2)
    assert out.landmarks3d.shape == (2, 68, 3)
    assert out.displacement.shape == (2, 1, 256, 256)
    rendering = model.render(codes, out, size=64)
    assert rendering.images.shape == rendering.shaded_detail.shape == (2, 3, 64, 64)
    assert rendering.alpha.mean() > 0.2


@torch.no_grad()
def test_untrained_model_starts_at_the_mean_face_in_the_crop(model, codes):
    landmarks = model.decode(codes).landmarks2d
    assert landmarks.abs().max() < 1.2
    assert (landmarks.amax(1) - landmarks.amin(1)).mean() > 1


@torch.no_grad()
def test_detail_images_equal_coarse_ones_without_displacement(model, codes):
    out = model.decode(codes)
    flat = type(out)(**{**vars(out), "z": torch.zeros_like(out.z)})
    bumpy = model.render(codes, out, size=96)
    assert not torch.allclose(bumpy.detail_normals, bumpy.normals, atol=1e-2)
    smooth = model.render(codes, flat, size=96)
    # Inside, flat detail shows the facets that interpolated vertex normals hide: close, not equal.
    assert (smooth.detail_normals - smooth.normals).abs().median() < 0.02


@torch.no_grad()
def test_animate_keeps_the_subject(model, codes):
    mixed = Codes.animate(codes[:1], codes[1:])
    for name in ("shape", "tex", "detail", "cam", "light"):
        assert torch.equal(getattr(mixed, name), getattr(codes, name)[:1])
    assert torch.equal(mixed.exp, codes.exp[1:])
    assert torch.equal(mixed.pose, torch.cat([codes.pose[:1, :3], codes.pose[1:, 3:]], dim=1))
    assert len(Codes.animate(codes[:1], codes)) == 2
    with pytest.raises(ValueError, match="driver has 2 faces"):
        Codes.animate(Codes.zeros(3), codes)


def test_bundle_stays_out_of_the_state(model):
    assert {name.split(".")[0] for name in model.state_dict()} == {"E_flame", "E_detail", "D_detail"}


def test_wrong_image_size_is_named(model):
    with pytest.raises(ValueError, match=r"\(1, 3, 100, 100\), expected \(B, 3, 224, 224\)"):
        model.encode(torch.zeros(1, 3, 100, 100))


@pytest.mark.slow
@torch.no_grad()
def test_encode_takes_what_has_one_meaning_and_no_more(model, codes):
    """Unconverted uint8 moves vertices by 21 mm, floats in 0-255 by 338 mm."""
    crops = torch.randint(256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    expected = model.encode(crops.float() / 255)
    for same in (crops, crops.permute(0, 2, 3, 1).numpy(), list(crops.numpy()), (crops.double() / 255)):
        torch.testing.assert_close(model.encode(same).pose, expected.pose, atol=1e-6, rtol=1e-5)
    for wrong in (crops.float(), crops.float() / 127.5 - 1, torch.full((1, 3, 224, 224), torch.nan)):
        with pytest.raises(ImageError, match="encode: "):
            model.encode(wrong)
        model.encode(wrong, validate=False)  # the hot path checks nothing
    with pytest.raises(ImageError, match=r"codes: .*divide by 255"):
        Inference(model).codes(crops.float())


@torch.no_grad()
def test_codes_that_are_none_are_named(model, codes):
    with pytest.raises(
        CodesError, match="shape is Tensor \\(100,\\), expected a tensor \\(B, 100\\); one face is codes"
    ):
        codes[0]
    with pytest.raises(CodesError, match="exp is ndarray"):
        codes.replace(exp=codes.exp.numpy())
    with pytest.raises(CodesError, match=r"different numbers of faces: .*exp 1"):
        codes.replace(exp=codes.exp[:1])
    spoilt = codes.replace(light=codes.light.clone())
    spoilt.light[1, 2, 0] = torch.inf
    with pytest.raises(CodesError, match="light of face 1 of 2 is not finite"):
        model.decode(spoilt)
    with pytest.raises(CodesError, match="render: 1 codes and 2 heads"):
        model.render(codes[:1], model.decode(codes))


def test_gradient_reaches_every_network(mini):
    model = DECA(mini)
    model.train()
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    codes = model.encode(images)
    rendering = model.render(codes, model.decode(codes), size=32)
    (rendering.detail_images.square().mean() + rendering.images.square().mean()).backward()
    for part in (model.E_flame, model.E_detail, model.D_detail):
        gradients = [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
        assert gradients
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_autocast_reaches_the_networks_only(mini):
    torch.manual_seed(0)
    model = DECA(mini, backbone="mobilenet_v3_small").to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        codes = model.encode(images)
        out = model.decode(codes)
        rendering = model.render(codes, out, size=32)
    exact = model.decode(codes)
    assert torch.equal(out.vertices, exact.vertices)
    assert torch.equal(out.projected, exact.projected)
    assert {value.dtype for value in (*vars(codes).values(), *vars(out).values(), *vars(rendering).values())} == {
        torch.float32
    }
    assert (out.z - exact.z).abs().max() < 0.03 * exact.z.abs().max()
    rendering.detail_images.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.E_flame.parameters() if p.grad is not None)


def test_a_head_out_of_sight(mini):
    model = DECA(mini, backbone="mobilenet_v3_small")
    codes = Codes.zeros(2).replace(cam=torch.tensor([[8.0, 9.0, 0.0]]).repeat(2, 1).requires_grad_())
    rendering = model.render(codes, model.decode(codes), size=16)
    assert not rendering.images.any()
    rendering.images.sum().backward()
    assert not codes.cam.grad.any()
