"""Losses between images: photometric (section 4.1) and identity (eq. 7)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from deca_core.losses.precision import full_precision


def photometric(image: Tensor, rendering: Tensor, visibility: Tensor) -> Tensor:
    """Photometric loss, L_pho of section 4.1: mean over all pixels and channels of V * |I - I_r|.

    image, rendering (B,3,H,W); visibility (B,1,H,W) in [0, 1]: the skin that is seen. Also the detail photometric loss
    on UV patches. The mean is over the whole image, so an image without visible skin counts as fitted.
    """
    image, rendering = full_precision(image), full_precision(rendering)
    return (visibility * (image - rendering).abs()).mean()


def identity(image_features: Tensor, rendering_features: Tensor) -> Tensor:
    """Identity loss, eq. 7: 1 - cos(f(I), f(I_r)), mean over the batch.

    image_features, rendering_features (B,D) of a face recognition network.
    """
    cosine = functional.cosine_similarity(full_precision(image_features), full_precision(rendering_features), dim=1)
    return (1 - cosine).mean()
