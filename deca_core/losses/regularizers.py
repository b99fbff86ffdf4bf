"""Regularisers of codes, light, displacement and shading (sections 4.1 and 4.2)."""

from __future__ import annotations

from torch import Tensor

from deca_core.losses.precision import full_precision


def code_energy(code: Tensor) -> Tensor:
    """E_beta, E_psi, E_alpha: |code|^2 / 2, summed over coefficients and batch, for shape, exp and tex codes (B,N)."""
    return full_precision(code).square().sum() / 2


def light_colour(light: Tensor) -> Tensor:
    """Light is near white: mean of (mean over RGB - l)^2, light (B,9,3)."""
    light = full_precision(light)
    return (light.mean(dim=2, keepdim=True) - light).square().mean()


def displacement_size(z: Tensor) -> Tensor:
    """Detail regulariser L_regD: mean |z|, z (B,1,T,T) metres."""
    return full_precision(z).abs().mean()


def shading_smoothness(shading: Tensor) -> Tensor:
    """Light on the detailed surface changes slowly: mean (dS/dx)^2 + mean (dS/dy)^2 in texels, S (B,3,T,T).

    The outermost row and column of texels along the other axis do not count. Part of the release.
    """
    shading = full_precision(shading)
    across = shading[:, :, 1:-1].diff(dim=3).square().mean()
    along = shading[..., 1:-1].diff(dim=2).square().mean()
    return across + along
