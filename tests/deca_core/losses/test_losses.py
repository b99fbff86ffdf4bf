"""The losses against definitions written out, under gradcheck, on blank and masked samples, and in half precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional

from deca_core import losses
from deca_core.losses import mrf


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def landmarks() -> tuple[Tensor, Tensor]:
    target = torch.cat([random(3, 68, 2) * 2 - 1, random(3, 68, 1, seed=1)], dim=-1)
    return target, random(3, 68, 2, seed=2) * 2 - 1


VISIBLE = (random(2, 1, 8, 8, seed=9) > 0.5).double()

# Losses as functions of what they train, and a point where they are smooth.
SMOOTH: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "landmark": (lambda p: losses.landmark(landmarks()[0], p), landmarks()[1]),
    "eye_closure": (lambda p: losses.eye_closure(landmarks()[0], p), landmarks()[1]),
    "lip_distance": (lambda p: losses.lip_distance(landmarks()[0], p), landmarks()[1]),
    "photometric": (lambda p: losses.photometric(random(2, 3, 8, 8), p, VISIBLE), random(2, 3, 8, 8, seed=1)),
    "identity": (lambda f: losses.identity(random(3, 7), f), random(3, 7, seed=1)),
    "code_energy": (losses.code_energy, random(3, 5)),
    "light_colour": (losses.light_colour, random(2, 9, 3)),
    "displacement_size": (losses.displacement_size, random(2, 1, 8, 8) - 0.5),
    "shading_smoothness": (losses.shading_smoothness, random(2, 3, 8, 8)),
    "mrf_distance": (lambda f: losses.mrf_distance(f, random(2, 4, 3, 4).bfloat16().to(f)), random(2, 4, 3, 4, seed=1)),
    "face_patch": (lambda m: losses.face_patch(m, 8).square().sum(), random(1, 1, 256, 256)),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_gradcheck(name):
    loss, point = SMOOTH[name]
    assert gradcheck(loss, point.clone().requires_grad_(), fast_mode=point.numel() > 1000)


def test_symmetry_pulls_one_side_at_a_time():
    """The flipped side is taken as given: the slope is the visibility's, not that of the symmetric difference."""
    z = (random(1, 1, 10, 10) - 0.5).requires_grad_()
    visibility = torch.ones(1, 1, 10, 10).double()
    visibility[..., 5:] = 0
    losses.soft_symmetry(z, visibility).backward()
    hidden = 1 - torch.from_numpy(ndimage.binary_erosion(visibility[0, 0], torch.ones(5, 5))).double()
    expected = hidden * (z - z.flip(-1)).detach().sign()[0, 0]
    torch.testing.assert_close(z.grad[0, 0], expected)


def test_landmark_table():
    weights = losses.landmark_weights(torch.zeros(1))
    assert weights.sum() == 17 + 4 + 10 + 6 * 1.5 + 3 * 3 + 12 + 18 * 1.5 + 2 * 3
    assert weights[[0, 5, 17, 27, 30, 36, 48, 60, 67]].tolist() == [1, 2, 1, 1.5, 3, 1, 3, 1.5, 1.5]


def test_unknown_landmarks_do_not_count():
    target, predicted = landmarks()
    target[..., 2] = 1
    target[0, 37, 2] = 0
    moved = target.clone()
    moved[0, 37, :2] += 0.3
    for loss in (losses.landmark, losses.eye_closure):
        assert loss(moved, predicted) == loss(target, predicted)


def test_photometric_definition():
    image, rendering = random(2, 3, 8, 8), random(2, 3, 8, 8, seed=1)
    expected = sum(
        VISIBLE[b, 0, y, x] * (image[b, c, y, x] - rendering[b, c, y, x]).abs()
        for b in range(2)
        for c in range(3)
        for y in range(8)
        for x in range(8)
    )
    torch.testing.assert_close(losses.photometric(image, rendering, VISIBLE), expected / (2 * 3 * 8 * 8))


def test_identity_of_angles():
    features = torch.tensor([[1.0, 0], [0, 2], [3, 0]])
    other = torch.tensor([[5.0, 0], [1, 0], [-1, 0]])
    assert losses.identity(features, other) == pytest.approx((0 + 1 + 2) / 3)


def test_regularisers_by_hand():
    assert losses.code_energy(torch.tensor([[3.0, 4.0], [0.0, 2.0]])) == (25 + 4) / 2
    light = torch.zeros(1, 9, 3)
    light[0, 0] = torch.tensor([3.0, 0.0, 0.0])
    assert losses.light_colour(light) == pytest.approx((4 + 1 + 1) / 27)
    assert losses.displacement_size(torch.tensor([[[[-0.5, 0.25]]]])) == 0.375


def test_mrf_definition(monkeypatch):
    """Against eq. 13 written out for whole matrices, in one chunk and in many."""
    features, target = random(2, 6, 4, 5), random(2, 6, 4, 5, seed=1)
    mean = target.mean(1, keepdim=True)
    f, g = (functional.normalize(t - mean, dim=1).flatten(2) for t in (features, target))
    distance = (1 - torch.einsum("bci,bcj->bij", f, g)) / 2
    relative = distance / (distance.min(2, keepdim=True).values + 1e-5)
    similarity = torch.exp((1 - relative) / 0.5)
    best = (similarity / similarity.sum(2, keepdim=True)).max(1).values
    expected = -best.mean(1).log().sum()
    torch.testing.assert_close(losses.mrf_distance(features, target), expected, rtol=1e-6, atol=0)
    monkeypatch.setattr(mrf, "CHUNK", 2 * 20 * 3)  # three of twenty rows at a time
    torch.testing.assert_close(losses.mrf_distance(features, target), expected, rtol=1e-6, atol=0)


def test_mrf_weighs_layers():
    maps = {"a": random(1, 4, 3, 3), "b": random(1, 4, 2, 2)}
    goal = {"a": random(1, 4, 3, 3, seed=1), "b": random(1, 4, 2, 2, seed=1)}
    expected = losses.mrf_distance(maps["a"], goal["a"]) + 2 * losses.mrf_distance(maps["b"], goal["b"])
    torch.testing.assert_close(losses.id_mrf(maps, goal, {"a": 1.0, "b": 2.0}), expected)


@pytest.mark.parametrize("blank", ["features", "target", "both", "equal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mrf_of_blank_patches(blank, dtype):
    features, target = random(2, 8, 6, 6).to(dtype), random(2, 8, 6, 6, seed=1).to(dtype)
    constant = torch.full_like(features[:1], 0.5)
    if blank in ("features", "both"):
        features[:1] = constant
    if blank in ("target", "both"):
        target[:1] = constant
    if blank == "equal":
        features = target.clone()
    features.requires_grad_()
    value = losses.mrf_distance(features, target)
    value.backward()
    assert value.isfinite()
    assert features.grad.isfinite().all()


def test_nothing_known_nothing_visible():
    """Samples without landmarks, without skin or without content: zero, with slopes of zero."""
    predicted = torch.zeros(2, 68, 2, requires_grad=True)
    unknown = torch.zeros(2, 68, 3)
    known = unknown.clone()
    known[..., 2] = 1
    rendering = torch.rand(2, 3, 8, 8, requires_grad=True)
    features = torch.zeros(2, 5, requires_grad=True)
    values = [
        loss(target, predicted)
        for loss in (losses.landmark, losses.eye_closure, losses.lip_distance)
        for target in (unknown, known)
    ]
    values.append(losses.photometric(torch.rand(2, 3, 8, 8), rendering, torch.zeros(2, 1, 8, 8)))
    assert all(value == 0 for value in values)
    sum(values, losses.identity(torch.zeros(2, 5), features)).backward()
    for slope in (predicted.grad, rendering.grad, features.grad):
        assert slope.isfinite().all()
    assert (rendering.grad == 0).all()


@pytest.mark.parametrize("name", [name for name in SMOOTH if name != "face_patch"])
def test_half_precision_is_summed_in_full(name):
    """Under autocast and on half-precision inputs, each loss is a float32 near the one in double precision."""
    loss, point = SMOOTH[name]
    half = point.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(half)
    assert value.dtype in (torch.float32, torch.float64)
    assert float(value) == pytest.approx(float(loss(half.double())), rel=1e-4)


def test_swap_stays_in_the_subject():
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(50):
        order = losses.swap_order(12, 4, generator)
        assert sorted(order.tolist()) == list(range(12))
        assert (order // 4 == torch.arange(12) // 4).all()
        assert (order != torch.arange(12)).all()
        seen.add(tuple(order[:4].tolist()))
    assert len(seen) == 6  # all circles of four


def test_swap_repeats_and_refuses():
    orders = [losses.swap_order(6, 3, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*orders)
    assert losses.swap_order(3, 1, torch.Generator()).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="7 images are not whole subjects of 2"):
        losses.swap_order(7, 2, torch.Generator())


def test_recipes():
    paper, release = losses.recipe("paper"), losses.recipe("release")
    assert (paper.coarse.lit, release.coarse.lit) == (True, False)
    assert (paper.coarse.lip_distance, release.coarse.lip_distance) == (0, 0.5)
    assert release.detail.mrf_layers == {"relu3_1": 1.0, "relu4_1": 2.0}
    for recipe in (paper, release):
        assert recipe.pretrain.photometric == recipe.pretrain.identity == recipe.pretrain.tex == 0
        assert recipe.pretrain.landmark == 1
        assert recipe.coarse.photometric == 2
        assert recipe.detail.mrf == pytest.approx(2 * 0.05)
    with pytest.raises(ValueError, match="unknown recipe 'best'; choose paper or release"):
        losses.recipe("best")
