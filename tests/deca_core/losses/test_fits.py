"""The distance from landmark fits, against vertices moved by the head itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deca_core import Codes
from deca_core.assets import procedural_head
from deca_core.flame import FLAME
from deca_core.losses import NUM_FITTED, fit_distance, fitted_vector, gram
from deca_core.losses.fits import LEVER


@pytest.fixture(scope="module")
def flame() -> FLAME:
    return FLAME(procedural_head())


def sampled(seed: int, count: int = 3) -> Codes:
    generator = torch.Generator().manual_seed(seed)

    def normal(size: int) -> Tensor:
        return 0.5 * torch.randn(count, size, generator=generator)

    return Codes.zeros(count).replace(shape=normal(100), exp=normal(50), pose=normal(6))


def distance(flame: FLAME, codes: Codes, fits: Tensor) -> Tensor:
    return fit_distance(codes, fits, gram(flame.shape_basis), gram(flame.exp_basis))


@pytest.mark.parametrize("name", ["shape", "exp"])
def test_codes_count_by_the_vertices_that_they_move(flame, name):
    codes, other = sampled(0), sampled(1)
    mixed = codes.replace(**{name: getattr(other, name)})
    heads = [flame(one.shape, one.exp, torch.zeros(3, 6)).vertices for one in (codes, mixed)]
    expected = 100 * (heads[0] - heads[1]).square().sum(2).mean(1).sqrt().mean()
    torch.testing.assert_close(distance(flame, codes, fitted_vector(mixed)), expected, rtol=2e-3, atol=5e-3)


def test_turns_count_by_a_lever(flame):
    codes = sampled(0)
    turned = codes.replace(pose=codes.pose + torch.tensor([0.3, 0, 0, 0, 0.4, 0]))
    expected = torch.tensor(100 * LEVER * 0.5)
    torch.testing.assert_close(distance(flame, codes, fitted_vector(turned)), expected, rtol=1e-3, atol=5e-3)


def test_faces_without_a_fit_do_not_count(flame):
    codes, fits = sampled(0), fitted_vector(sampled(1))
    alone = distance(flame, codes[:1], fits[:1])
    fits[1:] = torch.nan
    torch.testing.assert_close(distance(flame, codes, fits), alone)
    shape = codes.shape.clone().requires_grad_()
    nothing = distance(flame, codes.replace(shape=shape), torch.full((3, NUM_FITTED), torch.nan))
    assert nothing == 0
    nothing.backward()
    assert shape.grad is not None
    assert (shape.grad == 0).all()


def test_at_the_fit_the_slope_is_finite(flame):
    codes = sampled(0)
    shape = codes.shape.clone().requires_grad_()
    distance(flame, codes.replace(shape=shape), fitted_vector(codes)).backward()
    assert shape.grad is not None
    assert shape.grad.isfinite().all()
