"""Albedo and light: A(alpha) of section 4.1 and the shaded texture of eq. 3."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Constants of the real spherical harmonics times those of the cosine lobe (Ramamoorthi & Hanrahan 2001), for the basis
# 1, x, y, z, xy, xz, yz, x^2 - y^2, 3z^2 - 1.
_A0 = 1 / math.sqrt(4 * math.pi)
_A1 = (2 * math.pi / 3) * math.sqrt(3 / (4 * math.pi))
_A2 = (math.pi / 4) * math.sqrt(5 / (12 * math.pi))
SH_CONSTANTS = (
    _A0,
    *(_A1,) * 3,
    *(3 * _A2,) * 3,
    1.5 * _A2,
    (math.pi / 4) * 0.5 * math.sqrt(5 / (4 * math.pi)),
)


def albedo(tex: Tensor, mean: Tensor, basis: Tensor) -> Tensor:
    """Linear albedo model: tex (B,50), mean (3,T,T), basis (50,3,T,T) -> RGB (B,3,T,T)."""
    return mean + (tex @ basis.flatten(1)).unflatten(1, mean.shape)


def sh_basis(normals: Tensor) -> Tensor:
    """The nine spherical-harmonics bands of unit normals: (B,3,H,W) -> (B,9,H,W)."""
    x, y, z = normals.unbind(1)
    bands = torch.stack([torch.ones_like(x), x, y, z, x * y, x * z, y * z, x * x - y * y, 3 * z * z - 1], dim=1)
    return bands * bands.new_tensor(SH_CONSTANTS)[:, None, None]


def shading(normals: Tensor, light: Tensor) -> Tensor:
    """Irradiance sum_k l_k H_k(N) of eq. 3: normals (B,3,H,W) unit, world space; light (B,9,3) -> RGB (B,3,H,W)."""
    return torch.einsum("bkhw,bkc->bchw", sh_basis(normals), light)
