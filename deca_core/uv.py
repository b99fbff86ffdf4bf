"""The UV atlas: face and barycentric point of every texel. Fixed per bundle, so it is computed once."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from deca_core.assets.bundle import UV_SIZE, AssetBundle
from deca_core.raster.reference import barycentric, rasterize_reference


def uv_to_grid(uv: np.ndarray) -> np.ndarray:
    """Texture coordinates (u right, v up, [0, 1]) to `grid_sample` coordinates (x right, y down, [-1, 1])."""
    return np.stack([uv[..., 0] * 2 - 1, 1 - uv[..., 1] * 2], axis=-1)


class UVAtlas(nn.Module):
    """Transfers vertex attributes to the UV map by a precomputed gather.

    >>> uv_positions = atlas(vertices)  # (B,V,3) -> (B,3,256,256)  # doctest: +SKIP
    """

    triangles: Tensor  # (N, 3) vertex indices of every covered texel
    bary: Tensor  # (N, 3)
    texels: Tensor  # (N,) position in the flattened map

    def __init__(self, bundle: AssetBundle, size: int = UV_SIZE) -> None:
        super().__init__()
        self.size = size
        for name, value in zip(("triangles", "bary", "texels"), _gather(bundle, size), strict=True):
            self.register_buffer(name, torch.from_numpy(value), persistent=False)

    def forward(self, attributes: Tensor) -> Tensor:
        """Vertex attributes (B,V,C) to UV maps (B,C,T,T), barycentrically interpolated; zero where there is no face."""
        batch, _, channels = attributes.shape
        rows = attributes.transpose(1, 2).flatten(0, 1)  # (B C, V): whole rows of texels at a time
        values = rows.index_select(1, self.triangles.T.flatten()).unflatten(1, (3, -1))
        values = (values * self.bary.T.contiguous()).sum(1)  # (B C, N)
        out = values.new_zeros(len(values), self.size * self.size).index_copy(1, self.texels, values)
        return out.view(batch, channels, self.size, self.size)


def image_on_uv(atlas: UVAtlas, projected: Tensor, images: Tensor) -> Tensor:
    """Images (B,3,H,W) warped to the UV map, (B,3,T,T): what the camera sees at every texel, hidden ones included.

    projected (B,V,3): vertices in image space. Black where the atlas is empty and where a texel is outside an image.
    """
    surface = atlas(torch.cat([projected[..., :2], torch.ones_like(projected[..., :1])], dim=-1))
    grid, covered = surface[:, :2].permute(0, 2, 3, 1), surface[:, 2:]
    return functional.grid_sample(images, grid, align_corners=False) * covered


@lru_cache(maxsize=4)
def _gather(bundle: AssetBundle, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices (N,3), barycentrics (N,3) and place (N,) of the covered texels; a second's work, the same every time."""
    corners = uv_to_grid(bundle.uv.astype(np.float64))[bundle.uv_faces]  # (F, 3, 2)
    flat = np.concatenate([corners, np.zeros_like(corners[..., :1])], axis=-1).reshape(-1, 3)
    own_faces = np.arange(len(flat)).reshape(-1, 3)
    face = rasterize_reference(flat, own_faces, size, size).ravel()
    texels = np.flatnonzero(face >= 0)
    centre = np.stack([texels % size, texels // size], axis=-1) * (2 / size) + (1 / size - 1)
    bary = barycentric(corners[face[texels]], centre)
    return bundle.faces[face[texels]], bary.astype(np.float32), texels
