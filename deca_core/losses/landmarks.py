"""Losses on 68 landmarks in [-1, 1]: re-projection, eye closure (eq. 6) and lip distance.

All take `target` (B,68,3): x, y and a weight that is 0 where a landmark is not known, and `predicted` (B,68,2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from deca_core.losses.precision import full_precision

# Landmarks that count more than 1 (0-based): the jaw's corners, the nose with its tip and wings, the mouth and its
# corners.
HEAVY_LANDMARKS: dict[float, tuple[int, ...]] = {
    2.0: (5, 6, 10, 11),
    1.5: (*range(27, 36), *range(48, 68)),
    3.0: (30, 31, 35, 48, 54),
}
EYELIDS = ((37, 41), (38, 40), (43, 47), (44, 46))  # upper and lower lid
LIPS = ((61, 67), (62, 66), (63, 65))  # inner edge of the upper and of the lower lip

# Squared distances below this are no distance: the root's slope stays finite where two points coincide.
NO_DISTANCE = 1e-12


def landmark_weights(like: Tensor) -> Tensor:
    """Weight of every landmark, (68,) in the dtype and on the device of `like`."""
    weights = torch.ones(68, dtype=like.dtype, device=like.device)
    for weight, points in HEAVY_LANDMARKS.items():
        weights[list(points)] = weight
    return weights


def landmark(target: Tensor, predicted: Tensor) -> Tensor:
    """Landmark re-projection, eq. 5: sum w |k - (s Pi(M) + t)|_1 / (2 sum w).

    w, the release's addition, is the table of `landmark_weights` times the landmark's own weight. 0 where no landmark
    is known.
    """
    target, predicted = full_precision(target), full_precision(predicted)
    weights = target[..., 2] * landmark_weights(target)
    distance = (target[..., :2] - predicted).abs().sum(-1)
    return (weights * distance).sum() / (2 * weights.sum()).clamp(min=torch.finfo(weights.dtype).tiny)


def eye_closure(target: Tensor, predicted: Tensor) -> Tensor:
    """Eye closure, eq. 6: how far the gap between upper and lower lid is off, mean over both eyes' lid pairs.

    The difference of distances, unlike that of points, does not suffer from an imprecise head pose.
    """
    return _gaps(target, predicted, EYELIDS)


def lip_distance(target: Tensor, predicted: Tensor) -> Tensor:
    """As eye closure (eq. 6), between the inner edges of the lips. Part of the release, not of the paper."""
    return _gaps(target, predicted, LIPS)


def _gaps(target: Tensor, predicted: Tensor, pairs: tuple[tuple[int, int], ...]) -> Tensor:
    target, predicted = full_precision(target), full_precision(predicted)
    first, second = (list(points) for points in zip(*pairs, strict=True))

    def gap(points: Tensor) -> Tensor:
        return ((points[:, first, :2] - points[:, second, :2]).square().sum(-1) + NO_DISTANCE).sqrt()

    weights = target[:, first, 2] * target[:, second, 2]  # a pair counts where both its points are known
    error = weights * (gap(target) - gap(predicted)).abs()
    return error.sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
