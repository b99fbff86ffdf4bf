"""The optional columns of reconstructions/, computed from codes and displacement."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deca_core import DECA, Codes, Reconstruction
from deca_core.camera import IMAGE_SIZE, project
from deca_core.export import glb, rig_of
from deca_core.export.gltf import rigged_head
from deca_core.uv import image_on_uv
from schemas.reconstruct import VERTEX_LIMIT, Output, quantise

JPEG_QUALITY = 90  # of textures and previews
PNG_LEVEL = 1  # zlib's: higher ones take several times as long for a few per cent (docs/reconstruct.md)
NEED_IMAGES: frozenset[Output] = frozenset({"texture", "mesh"})
NEED_HEAD: frozenset[Output] = frozenset({"vertices", "landmarks", "normals", "texture", "mesh", "preview"})


@torch.inference_mode()
def head_of(model: DECA, codes: Codes, displacement: Tensor) -> Reconstruction:
    """`DECA.decode` with a given displacement (B,256,256), without running F_d."""
    head = model.flame(codes.shape, codes.exp, codes.pose)
    return Reconstruction(
        vertices=head.vertices,
        projected=project(head.vertices, codes.cam),
        landmarks2d=project(head.landmarks2d, codes.cam)[..., :2],
        landmarks3d=head.landmarks3d,
        z=displacement[:, None] - model.fixed_displacement,
        displacement=displacement[:, None],
    )


@torch.inference_mode()
def columns_of_head(
    model: DECA,
    outputs: Sequence[Output],
    codes: Codes,
    head: Reconstruction,
    images: Tensor,
    transforms: NDArray[np.float64],
) -> dict[str, Any]:
    """The columns of `outputs` that need a posed head, by name. images (B,3,224,224) are the crops, transforms
    (B,2,3) from pixels of the source to pixels of the crop.
    """
    columns: dict[str, Any] = {}
    if "vertices" in outputs:
        columns["vertices"] = quantise(head.vertices.cpu().numpy(), VERTEX_LIMIT)
    if "landmarks" in outputs:
        columns["landmarks2d"] = to_source(head.landmarks2d.cpu().numpy(), transforms)
        columns["landmarks3d"] = head.landmarks3d.float().cpu().numpy()
    if "normals" in outputs:
        normals = (model.detail_normals(head) + 1) * 127.5
        columns["normals"] = normals.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    if NEED_IMAGES & set(outputs):
        on_uv = image_on_uv(model.atlas, head.projected, images)
    if "texture" in outputs:
        columns["texture"] = as_jpegs(on_uv)
    if "mesh" in outputs:
        columns["mesh"] = as_glbs(model, codes, head, on_uv)
    if "preview" in outputs:
        columns["preview"] = as_jpegs(model.render(codes, head).shaded_detail)
    return columns


def as_glbs(model: DECA, codes: Codes, head: Reconstruction, on_uv: Tensor) -> list[bytes]:
    """A GLB file of each head as `deca export` makes it, on_uv (B,3,256,256) being the images on the UV map."""
    rig = rig_of(model.bundle)
    made = []
    for place in range(len(codes)):
        one = slice(place, place + 1)
        out = Reconstruction(**{name: value[one] for name, value in vars(head).items()})
        made.append(glb(rig, rigged_head(model, codes[one], out, image=on_uv[one])))
    return made


def to_source(points: NDArray[np.float32], transforms: NDArray[np.float64]) -> NDArray[np.float32]:
    """Points (B,N,2) in the crop's [-1, 1] to pixels of the source images."""
    pixels = (points.astype(np.float64) + 1) * (IMAGE_SIZE / 2)
    back = np.linalg.inv(transforms[:, :, :2]).transpose(0, 2, 1)
    return ((pixels - transforms[:, None, :, 2]) @ back).astype(np.float32)


def as_jpegs(images: Tensor) -> list[dict[str, bytes | None]]:
    """(B,3,H,W) in [0, 1] as values of an image column."""
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [{"bytes": _jpeg(one), "path": None} for one in pixels]


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def encode_map(steps: NDArray[np.uint16]) -> bytes:
    """A displacement map (256,256) in 16-bit steps as a one-channel PNG."""
    buffer = io.BytesIO()
    Image.fromarray(steps).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()
