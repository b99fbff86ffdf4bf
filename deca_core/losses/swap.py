"""Exchange of codes inside a subject: shape consistency (eq. 8) and detail consistency (eq. 15)."""

from __future__ import annotations

import torch
from torch import Tensor


def swap_order(batch: int, images_per_subject: int, generator: torch.Generator) -> Tensor:
    """Whose code every image gets: a permutation (batch,) int64 that leaves no subject.

    A subject's K images lie side by side. They pass their codes on in a random circle, so that no image keeps its
    own: a code that stays would add what the unswapped half already says. With K = 1 nothing moves.
    """
    if images_per_subject < 1 or batch % images_per_subject:
        raise ValueError(f"{batch} images are not whole subjects of {images_per_subject} images each")
    order = torch.arange(batch)
    for first in range(0, batch, images_per_subject):
        circle = first + torch.randperm(images_per_subject, generator=generator)
        order[circle] = circle.roll(1)
    return order
