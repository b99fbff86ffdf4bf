"""Visibility: the nearest face of every pixel, by one of four kernels. Everything after it is differentiable torch."""

from __future__ import annotations

import importlib.util
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

Backend = Literal["auto", "numba", "triton", "pytorch3d", "reference"]


def rasterize(vertices: Tensor, faces: Tensor, height: int, width: int, backend: Backend = "auto") -> Tensor:
    """Nearest face of every pixel centre, without gradient.

    vertices (B,V,3) in image space (x right, y down in [-1, 1], smaller z nearer); faces (F,3)
    -> (B,H,W) int64 face index, -1 where nothing is seen.

    Backends agree except for pixels on an edge: "numba" (CPU kernel), "triton" (GPU kernel), "pytorch3d" (its own, if
    installed), "reference" (numpy, slow). "auto" selects triton for tensors on a GPU and numba otherwise, each
    where installed, else the reference. numba and reference compute on the CPU, wherever the tensors are.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"unknown rasteriser {backend!r}; choose one of {', '.join(get_args(Backend))}")
    if backend == "auto":
        backend = _fastest(vertices.device)
    if backend == "triton":
        return _rasterize_triton(vertices.detach(), faces, height, width)
    if backend == "pytorch3d":
        return _rasterize_pytorch3d(vertices.detach(), faces, height, width)
    points = np.ascontiguousarray(vertices.detach().cpu().numpy())
    triangles = np.ascontiguousarray(faces.cpu().numpy())
    if backend == "numba":
        from deca_core.raster.numba_kernel import rasterize_numba

        out = np.empty((len(points), height, width), np.int64)
        rasterize_numba(points, triangles, np.empty(out.shape, np.float32), out)
    else:
        from deca_core.raster.reference import rasterize_reference

        out = np.stack([rasterize_reference(image, triangles, height, width) for image in points])
    return torch.from_numpy(out).to(vertices.device)


def _fastest(device: torch.device) -> Backend:
    if device.type == "cuda" and importlib.util.find_spec("triton"):
        return "triton"
    return "numba" if importlib.util.find_spec("numba") else "reference"


def _rasterize_triton(vertices: Tensor, faces: Tensor, height: int, width: int) -> Tensor:
    try:
        from deca_core.raster.triton_kernel import rasterize_triton
    except ImportError as error:
        raise ImportError(
            "the rasteriser 'triton' was chosen but triton is not installed (it comes with torch for CUDA on Linux); "
            "choose backend='numba'"
        ) from error
    return rasterize_triton(vertices, faces, height, width)


def _rasterize_pytorch3d(vertices: Tensor, faces: Tensor, height: int, width: int) -> Tensor:
    try:
        from pytorch3d.renderer.mesh import rasterize_meshes
        from pytorch3d.structures import Meshes
    except ImportError as error:
        raise ImportError(
            "the rasteriser 'pytorch3d' was chosen but pytorch3d is not installed; "
            "install it from its own instructions or choose backend='numba'"
        ) from error
    # pytorch3d looks along +z with x to the left and y up, and drops what is behind z = 0.
    flipped = vertices * vertices.new_tensor([-1.0, -1.0, 1.0])
    flipped = torch.cat([flipped[..., :2], flipped[..., 2:] - flipped[..., 2:].amin() + 1], dim=-1)
    meshes = Meshes(verts=flipped.float(), faces=faces[None].expand(len(vertices), -1, -1))
    index = rasterize_meshes(
        meshes, image_size=(height, width), blur_radius=0.0, faces_per_pixel=1, perspective_correct=False
    )[0][..., 0]
    offset = torch.arange(len(vertices), device=index.device)[:, None, None] * len(faces)
    return torch.where(index >= 0, index - offset, index)
