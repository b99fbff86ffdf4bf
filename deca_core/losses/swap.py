"""Exchange of codes inside a subject: shape consistency (eq. 8) and detail consistency (eq. 15)."""

from __future__ import annotations

import torch
from torch import Tensor


def swap_order(batch: int, images_per_subject: int, generator: torch.Generator) -> Tensor:
    """Index (batch,) int64 of the code that every image receives: a permutation within each subject.

    A subject's K images are adjacent. They exchange codes along a random cycle, so that no image keeps its own: an
    unswapped code would only repeat the unswapped half of the batch. With K = 1 nothing moves.
    """
    if images_per_subject < 1 or batch % images_per_subject:
        raise ValueError(f"{batch} images are not whole subjects of {images_per_subject} images each")
    order = torch.arange(batch)
    for first in range(0, batch, images_per_subject):
        circle = first + torch.randperm(images_per_subject, generator=generator)
        order[circle] = circle.roll(1)
    return order
