"""Landmark fitting against heads whose codes are known, and against the losses as training computes them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from deca_core import Codes, losses
from deca_core.camera import project, to_pixels
from deca_core.fitting import FitError, LandmarkHead, fit_landmarks
from deca_core.flame import FLAME, rotation_matrix
from deca_core.losses import CoarseWeights, recipe
from deca_core.metrics import aligned_distance, normalized_mean_error, rotation_error

PAPER, RELEASE = recipe("paper").pretrain, recipe("release").pretrain


@pytest.fixture(scope="module")
def head(flame) -> LandmarkHead:
    return LandmarkHead.of(flame)


def sampled(flame: FLAME, yaw: float, count: int = 4, expression: float = 0.4) -> tuple[Codes, Tensor]:
    """Heads turned by `yaw` degrees and a little otherwise, with their landmarks (B,68,2) as an inference crop."""
    generator = torch.Generator().manual_seed(int(yaw) + 100)

    def normal(size: int, spread: float) -> Tensor:
        return spread * torch.randn(count, size, generator=generator)

    turn = torch.tensor([0, math.radians(yaw), 0]) + normal(3, 0.1)
    codes = Codes.zeros(count).replace(
        shape=normal(100, 0.8), exp=normal(50, expression), pose=torch.cat([turn, normal(3, 0.05).abs()], dim=1)
    )
    points = flame(codes.shape, codes.exp, codes.pose).landmarks2d[..., :2]
    low, high = points.amin(1), points.amax(1)
    codes = codes.replace(cam=torch.cat([2 / (1.375 * (high - low).mean(1, keepdim=True)), -(low + high) / 2], dim=1))
    return codes, seen(flame, codes)


def seen(flame: FLAME, codes: Codes) -> Tensor:
    return project(flame(codes.shape, codes.exp, codes.pose).landmarks2d, codes.cam)[..., :2]


def with_weight(points: Tensor) -> Tensor:
    return torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)


def objective(flame: FLAME, codes: Codes, target: Tensor, weights: CoarseWeights = PAPER) -> Tensor:
    """What training minimises, of every face as a batch of its own (B,)."""
    points, target = seen(flame, codes), with_weight(target)
    return torch.stack(
        [
            weights.landmark * losses.landmark(target[[row]], points[[row]])
            + weights.eye_closure * losses.eye_closure(target[[row]], points[[row]])
            + weights.lip_distance * losses.lip_distance(target[[row]], points[[row]])
            + weights.shape * losses.code_energy(codes.shape[row])
            + weights.exp * losses.code_energy(codes.exp[row])
            for row in range(len(codes))
        ]
    )


@pytest.mark.parametrize("yaw", [0, 30, -45, 60, -60])
def test_known_heads_from_their_own_landmarks(flame, head, yaw):
    truth, points = sampled(flame, yaw)
    found = fit_landmarks(head, points)
    assert normalized_mean_error(points, seen(flame, found)).max() < 0.005
    # Better than the codes that made the points: those pay more to the priors.
    assert (objective(flame, found, points) < objective(flame, truth, points)).all()
    assert rotation_error(found.pose[:, :3], truth.pose[:, :3]).max() < 3
    # Nearer to the true neutral heads, in depth as well, than the mean face is.
    zero = Codes.zeros(len(truth))
    neutral, true, mean = (
        flame(codes.shape, zero.exp, zero.pose).landmarks3d.numpy() for codes in (found, truth, zero)
    )
    off = sum(aligned_distance(one, other) for one, other in zip(neutral, true, strict=True))
    assert off < 0.7 * sum(aligned_distance(one, other) for one, other in zip(mean, true, strict=True))
    assert all(not getattr(found, name).any() for name in ("tex", "detail"))


def noisy(flame: FLAME) -> Tensor:
    """Landmarks that no head has: two pixels off."""
    _, points = sampled(flame, 20, count=2)
    return points + 0.02 * torch.randn(points.shape, generator=torch.Generator().manual_seed(2))


def test_every_fit_is_the_best_by_its_own_losses(flame, head):
    """The losses are those of training, with the weights that are asked for: others lead to worse codes."""
    points = noisy(flame)
    choices = [
        PAPER,
        RELEASE,
        dataclasses.replace(PAPER, landmark=3.0),
        dataclasses.replace(PAPER, eye_closure=0.0),
        dataclasses.replace(PAPER, shape=5e-3),
        dataclasses.replace(PAPER, exp=5e-3),
    ]
    fits = [fit_landmarks(head, points, weights) for weights in choices]
    for own, weights in enumerate(choices):
        reached = [objective(flame, codes, points, weights).sum() for codes in fits]
        assert all(reached[own] < 0.99 * other for number, other in enumerate(reached) if number != own)
    assert torch.equal(fits[0].shape, fit_landmarks(head, points).shape)


def test_nothing_near_is_better(flame, head):
    """Adam on the losses and the layer of training, from where the fit ended."""
    points = noisy(flame)
    found = fit_landmarks(head, points)
    reached = objective(flame, found, points)
    free = {name: getattr(found, name).clone().requires_grad_() for name in ("shape", "exp", "pose", "cam")}
    optimizer = torch.optim.Adam(free.values(), lr=5e-4)
    best = reached.clone()
    for _ in range(30):
        optimizer.zero_grad()
        loss = objective(flame, found.replace(**free), points)
        loss.sum().backward()
        optimizer.step()
        best = torch.minimum(best, loss.detach())
    assert (best > 0.97 * reached).all()


def test_lids_are_not_met_the_wrong_way_round(flame, head):
    """Expressions strong enough that lids nearly change places."""
    _, points = sampled(flame, 5, count=24, expression=0.8)
    assert normalized_mean_error(points, seen(flame, fit_landmarks(head, points))).max() < 0.005


def test_landmarks_without_weight_do_not_count(flame, head):
    truth, points = sampled(flame, 30)
    known = with_weight(points)
    known[:, :17, 2] = 0
    known[1, 37:40, 2] = 0
    hidden = known[..., 2] == 0
    first, second = known.clone(), known.clone()
    first[..., :2][hidden], second[..., :2][hidden] = torch.nan, 7.0
    found, again = fit_landmarks(head, first), fit_landmarks(head, second)
    for (name, one), (_, other) in zip(found.items(), again.items(), strict=True):
        assert torch.equal(one, other), name
    error = (seen(flame, found) - points).norm(dim=-1)[~hidden].mean()
    assert error < 0.005
    assert rotation_error(found.pose[:, :3], truth.pose[:, :3]).max() < 5


def test_a_batch_gives_what_its_images_give_alone(flame, head):
    points = torch.cat([sampled(flame, yaw, count=2)[1] for yaw in (0, 30, 60)])
    together, again = fit_landmarks(head, points), fit_landmarks(head, points)
    alone = Codes.cat([fit_landmarks(head, points[[row]]) for row in range(len(points))])
    for (name, one), (_, two), (_, other) in zip(together.items(), again.items(), alone.items(), strict=True):
        assert torch.equal(one, two), name
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_head_upside_down_is_the_same_head(flame, head):
    """|x| + |y| does not change with a half turn, so nothing but pose and camera may."""
    _, points = sampled(flame, 30)
    upright, turned = fit_landmarks(head, points), fit_landmarks(head, -points)
    torch.testing.assert_close(turned.shape, upright.shape, atol=1e-3, rtol=0)
    torch.testing.assert_close(turned.exp, upright.exp, atol=1e-3, rtol=0)
    half = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    expected = half @ rotation_matrix(upright.pose[:, :3])
    torch.testing.assert_close(rotation_matrix(turned.pose[:, :3]), expected, atol=1e-3, rtol=0)


def test_points_without_information_are_refused(flame, head):
    good = with_weight(sampled(flame, 0, count=2)[1])
    for spoil in ("one point", "none known", "not finite"):
        points = good.clone()
        if spoil == "one point":
            points[1, :, :2] = 0.25
        elif spoil == "none known":
            points[1, :, 2] = 0
        else:
            points[1, 40, 0] = torch.nan
        with pytest.raises(FitError, match="face 1 of 2"):
            fit_landmarks(head, points)


def test_points_of_another_shape_or_in_pixels_are_refused(flame, head):
    points = sampled(flame, 0, count=2)[1]
    with pytest.raises(FitError, match=r"from_pixels of deca_core\.camera"):
        fit_landmarks(head, to_pixels(points))
    unknown = with_weight(points)
    unknown[1, 3] = torch.tensor([1e4, 1e4, 0])  # weight 0: not a landmark
    assert fit_landmarks(head, unknown).cam.isfinite().all()
    for wrong in (points[0], points[:, :51], torch.zeros(2, 68, 4)):
        with pytest.raises(FitError, match="expected \\(B, 68, 2\\)"):
            fit_landmarks(head, wrong)
    assert torch.equal(fit_landmarks(head, points.numpy()).exp, fit_landmarks(head, points).exp)


def test_poor_points_give_finite_codes(flame, head):
    points = with_weight(sampled(flame, 0, count=5)[1])
    points[0, :, 1] = 0  # all on a line
    points[1, 2:, 2] = 0  # two known
    points[2, :, :2] *= 5
    points[3, :, :2] = torch.rand(68, 2, generator=torch.Generator().manual_seed(1))
    points[4, :, 0] *= -1  # mirrored
    found = fit_landmarks(head, points)
    assert all(value.isfinite().all() for _, value in found.items())
    assert (found.cam[:, 0] > 0).all()
