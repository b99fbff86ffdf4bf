"""Errors against numbers worked out by hand."""

from __future__ import annotations

import torch

from deca_core.metrics import normalized_mean_error


def test_landmark_error_is_relative_to_the_size_of_the_face() -> None:
    square = torch.tensor([[[0.0, 0.0], [4.0, 0.0], [4.0, 9.0], [0.0, 9.0]]])  # sqrt(4 * 9) = 6
    moved = square + torch.tensor([3.0, 4.0])
    assert normalized_mean_error(square, square).tolist() == [0]
    both = normalized_mean_error(torch.cat([square, 10 * square]), torch.cat([moved, 10 * moved]))
    assert torch.allclose(both, torch.tensor([5 / 6, 5 / 6]))
