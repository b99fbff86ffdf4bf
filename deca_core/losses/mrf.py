"""ID-MRF (eq. 13; Wang et al. 2018): every patch of the image has its own nearest patch of the rendering."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deca_core.losses.precision import full_precision

BANDWIDTH = 0.5
NEAREST = 1e-5  # added to the smallest distance before it divides
# Square of the feature length below which a position has no direction: blank patches give 0, not 0 / 0.
NO_LENGTH = 1e-8
# Similarities held at a time (16 MiB of float32): a 64 x 64 feature map alone has 16.8 million per image.
CHUNK = 2**22


def id_mrf(rendering: Mapping[str, Tensor], target: Mapping[str, Tensor], layers: Mapping[str, float]) -> Tensor:
    """L_mrf of eq. 13: `mrf_distance` of the named layers, weighted and added up.

    rendering, target: VGG19 features by layer, (B,C,H,W) each; layers: name and weight, the paper's being
    conv3_2 with 1 and conv4_2 with 2.
    """
    return torch.stack([weight * mrf_distance(rendering[name], target[name]) for name, weight in layers.items()]).sum()


def mrf_distance(features: Tensor, target: Tensor) -> Tensor:
    """The term L_M of one layer, summed over the batch: -log of the mean, over target positions, of the best relative
    similarity that any position of `features` has with it.

    features, target (B,C,H,W). The gradient goes to `features` alone. Both lose the target's channel mean at each
    position and are scaled to length 1; d = (1 - cos) / 2, divided by its minimum over target positions; similarity
    exp((1 - d) / 0.5), normalised over target positions. Rows of the similarity matrix are independent until the
    maximum, so they are taken in chunks that the backward pass computes again: memory does not grow with H W squared.
    """
    with torch.autocast(features.device.type, enabled=False):
        features, target = full_precision(features), full_precision(target).detach()
        mean = target.mean(1, keepdim=True)
        sources = _directions(features - mean).transpose(1, 2)  # (B, HW, C)
        goals = _directions(target - mean)  # (B, C, HW)
        rows = max(1, CHUNK // (len(goals) * goals.shape[2]))
        best = [_Recomputed.apply(part, goals) for part in sources.split(rows, dim=1)]
        return -torch.stack(best).amax(0).mean(1).log().sum()


def _directions(features: Tensor) -> Tensor:
    flat = features.flatten(2)
    return flat * (flat.square().sum(1, keepdim=True) + NO_LENGTH).rsqrt()


class _Recomputed(torch.autograd.Function):
    """`_best_similarity` that saves only its inputs and recomputes its matrices in the backward pass.

    Like torch.utils.checkpoint, without the compiler that it loads at its first call (10 s).
    """

    @staticmethod
    def forward(ctx: Any, sources: Tensor, goals: Tensor) -> Tensor:
        ctx.save_for_backward(sources, goals)
        return _best_similarity(sources, goals)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        sources, goals = ctx.saved_tensors
        with torch.enable_grad(), torch.autocast(sources.device.type, enabled=False):
            sources = sources.detach().requires_grad_()
            return torch.autograd.grad(_best_similarity(sources, goals), sources, slope)[0], None


def _best_similarity(sources: Tensor, goals: Tensor) -> Tensor:
    """Largest normalised similarity of every goal with the sources: (B,R,C), (B,C,N) -> (B,N).

    exp((1 - d / n) / h) normalised over goals, with n the row's smallest distance plus 1e-5, is the softmax of
    cos / (2 n h): what is constant in a row cancels.
    """
    cosine = sources @ goals
    nearest = ((1 - cosine.amax(2, keepdim=True)) / 2).clamp(min=0) + NEAREST  # cosines may round to above 1
    return torch.softmax(cosine / (2 * BANDWIDTH * nearest), dim=2).amax(1)
