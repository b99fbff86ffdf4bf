"""The face's patch of the UV map, and soft symmetry (eq. 14)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from deca_core.losses.precision import full_precision

PATCH = slice(50, 206)  # texels of the 256 on both axes: the face without neck and scalp
PATCH_SIZE = 256
EROSION = 5  # side of the structuring element


def face_patch(uv_map: Tensor, size: int = PATCH_SIZE) -> Tensor:
    """The face's part of UV maps (B,C,256,256), resized bilinearly to (B,C,size,size)."""
    return functional.interpolate(uv_map[:, :, PATCH, PATCH], (size, size), mode="bilinear", align_corners=False)


def erode(visibility: Tensor) -> Tensor:
    """Minimum over a square neighbourhood, (B,1,T,T); outside of the map nothing is visible."""
    margin = EROSION // 2
    padded = functional.pad(visibility, (margin,) * 4)
    return -functional.max_pool2d(-padded, EROSION, stride=1)


def soft_symmetry(z: Tensor, visibility: Tensor) -> Tensor:
    """Soft symmetry, eq. 14: sum of (1 - erode(V)) * |D - flip(D)|, the flipped side taken as given.

    z (B,1,T,T) metres; visibility (B,1,T,T). What the image does not show looks like the other half of the face. The
    sum runs over texels and batch.
    """
    z = full_precision(z)
    return ((1 - erode(visibility)) * (z - z.flip(-1).detach()).abs()).sum()
