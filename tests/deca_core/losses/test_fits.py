"""The distance from landmark fits, against vertices moved by the head itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from deca_core import Codes
from deca_core.assets import procedural_head
from deca_core.flame import FLAME
from deca_core.losses import NUM_FITTED, fit_distance, fitted_vector, gram
from deca_core.losses.fits import LEVER
from deca_core.metrics import fit_similarity

FACE = torch.from_numpy(procedural_head().face_vertices)


def sampled(seed: int, count: int = 3) -> Codes:
    generator = torch.Generator().manual_seed(seed)

    def normal(size: int) -> Tensor:
        return 0.5 * torch.randn(count, size, generator=generator)

    return Codes.zeros(count).replace(shape=normal(100), exp=normal(50), pose=normal(6))


def distance(flame: FLAME, codes: Codes, fits: Tensor) -> Tensor:
    points = flame.v_template[FACE]
    return fit_distance(codes, fits, gram(flame.shape_basis[FACE], points), gram(flame.exp_basis[FACE], points))


@pytest.mark.parametrize("name", ["shape", "exp"])
def test_codes_count_by_how_far_they_move_the_aligned_face(flame, name):
    """Small differences, where a similarity is what its first order says."""
    codes, other = Codes.zeros(3), sampled(1)
    mixed = codes.replace(**{name: 0.05 * getattr(other, name)})
    heads = [flame(one.shape, one.exp, torch.zeros(3, 6)).vertices[:, FACE].double().numpy() for one in (codes, mixed)]
    left = [np.square(fit_similarity(b, a)(b) - a).sum(1).mean() ** 0.5 for a, b in zip(*heads, strict=True)]
    free = [np.square(b - a).sum(1).mean() ** 0.5 for a, b in zip(*heads, strict=True)]
    expected = torch.tensor(100 * np.mean(left), dtype=torch.float32)
    torch.testing.assert_close(distance(flame, codes, fitted_vector(mixed)), expected, rtol=2e-2, atol=4e-3)
    assert np.mean(left) < 0.95 * np.mean(free)  # there is something to align


def test_shift_turn_and_growth_cost_nothing(flame):
    points = flame.v_template[FACE].double()
    turn = torch.linalg.cross(torch.tensor([0.2, -0.5, 0.1], dtype=torch.float64).expand_as(points), points)
    moves = torch.stack([torch.ones_like(points), turn, points, points.roll(1, 1)], dim=2)
    found = gram(moves, points)
    assert found.diagonal()[:3].max() < 1e-20
    assert found[3, 3] > 1e-5


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
