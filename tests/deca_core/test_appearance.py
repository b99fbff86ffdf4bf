"""Shading against a closed form, albedo against the definition, gradients."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from deca_core.appearance import albedo, sh_basis, shading
from deca_core.detail import detail_normals
from tests.deca_core.conftest import assert_close


def test_golden_shading(golden):
    answer = {name: torch.from_numpy(value) for name, value in golden("posed_head.npz").items()}
    got = shading(answer["detail_normals"], answer["light"])
    assert_close(got, answer["shading"].numpy())


def test_irradiance_of_a_directional_light():
    """The nine bands give Lambert's cosine for a distant light up to the known 2nd-order remainder (< 10 %)."""
    directions = functional.normalize(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    towards = torch.tensor([0.0, 0.0, 1.0])
    # A distant light's coefficients are the harmonics in its direction. The constants of the method hold the factors of
    # the cosine lobe (2 pi / 3 and pi / 4) for bands 1 and 2 but not pi for band 0, so it goes to the coefficient.
    unscaled = [math.pi * math.sqrt(1 / (4 * math.pi))] + [0, 0, math.sqrt(3 / (4 * math.pi))] + [0] * 4
    light = torch.tensor([*unscaled, math.sqrt(5 / (16 * math.pi)) * 2])[None, :, None].expand(1, 9, 3)
    irradiance = shading(directions, light)
    cosine = torch.einsum("bchw,c->bhw", directions, towards).clamp(min=0)
    assert (irradiance[:, 0] - cosine).abs().max() < 0.1


def test_albedo_is_linear():
    generator = torch.Generator().manual_seed(0)
    mean, basis = torch.rand(3, 8, 8, generator=generator), torch.rand(50, 3, 8, 8, generator=generator)
    tex = torch.zeros(2, 50)
    tex[1, 7] = 2.5
    maps = albedo(tex, mean, basis)
    torch.testing.assert_close(maps[0], mean)
    torch.testing.assert_close(maps[1], mean + 2.5 * basis[7])


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)
    normals = torch.randn(1, 3, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    light = torch.randn(1, 9, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert sh_basis(normals).shape == (1, 9, 3, 3)
    assert torch.autograd.gradcheck(shading, (normals, light))


def test_detail_normals_gradcheck():
    generator = torch.Generator().manual_seed(0)
    size = 16
    y, x = torch.meshgrid(torch.arange(size).double(), torch.arange(size).double(), indexing="ij")
    positions = torch.stack([x, -y, torch.zeros_like(x)])[None] / size
    normals = torch.tensor([0.0, 0, 1], dtype=torch.float64)[None, :, None, None].expand(1, 3, size, size)
    z = 0.01 * torch.randn(1, 1, size, size, generator=generator, dtype=torch.float64)
    mask = torch.rand(size, size, generator=generator, dtype=torch.float64)
    fixed = torch.zeros(size, size, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda value: detail_normals(positions, normals, value, mask, fixed), z.requires_grad_()
    )
