"""How far a reconstruction is from the truth."""

from __future__ import annotations

from torch import Tensor


def normalized_mean_error(target: Tensor, points: Tensor) -> Tensor:
    """Mean distance of landmarks over the size of the face, sqrt(w h) of the true ones' box; one number a face.

    target (B,N,2) and points (B,N,2) in the same unit; returns (B,). Source: the NME of AFLW2000-3D (Zhu et al. 2016).
    """
    sides = target.amax(1) - target.amin(1)
    return (target - points).norm(dim=-1).mean(1) / sides.prod(-1).sqrt()
