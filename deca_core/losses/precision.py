"""Precision of the losses: at least float32, whatever precision the networks ran in."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(value: Tensor) -> Tensor:
    """Half-precision tensors as float32, others as they are: sums over many pixels do not survive 8 bits."""
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
