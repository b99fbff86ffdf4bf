"""Pictures that go with an exported head: base colour, tangent-space normals, displacement; and their bytes."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from deca_core.appearance import shading
from deca_core.assets.bundle import AssetBundle
from deca_core.codes import Codes
from deca_core.export.grid import padding, split_of, texel_faces
from deca_core.model import DECA, Reconstruction
from deca_core.raster import rasterize
from deca_core.render import fragments, sample_uv, vertex_normals
from deca_core.uv import UVAtlas

JPEG_QUALITY = 92
PNG_LEVEL = 6  # zlib's; normals shrink by a tenth against 1
LEVELS = 2**16 - 1
# Cosine between surface and viewer from which a picture begins to count, and from which it counts wholly: skin seen at
# a flat angle is a smear of few pixels. DECA itself cuts at 0.05, which leaves the smear.
GRAZING, FACING = 0.15, 0.5
BEHIND = 0.006  # metres behind what is seen in front of it: hidden. A texel at the nose's edge lies 2 mm apart
EDGE = 0.06  # share of the crop at its border over which the picture fades out
FEATHER = 6  # texels over which the picture fades out at the border of the face mask
GAIN = (0.5, 2.0)  # bounds of the brightness that the albedo is brought to


@torch.inference_mode()
def texture(model: DECA, codes: Codes, head: Reconstruction, picture: Tensor | None = None) -> Tensor:
    """Base colour on the UV map, (B,3,256,256) RGB in [0, 1]: the picture where it shows skin, else the albedo.

    picture (B,3,256,256): the photograph on the UV map (`picture_on_uv`), hidden texels included; None: albedo alone.
    The light of the photograph stays in its colours. What it does not show is the albedo A(alpha) under the light of
    the codes (eq. 3), brought to the mean colour of what it shows, so that the two meet without a step.
    """
    plain = model.albedo(codes)
    if picture is None:
        return _padded(model.bundle, plain.clamp(0, 1))
    normals = model.atlas(vertex_normals(head.vertices, model.faces))
    lit = plain * shading(functional.normalize(normals, dim=1), codes.light)
    weight = _shown(model, codes, head, normals)
    amount = weight.sum((2, 3), keepdim=True).clamp(min=1e-6)
    gain = ((picture * weight).sum((2, 3), keepdim=True) + amount * 1e-3) / (
        (lit * weight).sum((2, 3), keepdim=True).clamp(min=0) + amount * 1e-3
    )
    enough = amount > weight[0].numel() * 1e-3
    lit = lit * torch.where(enough, gain.clamp(*GAIN), torch.ones_like(gain))
    return _padded(model.bundle, (picture * weight + lit * (1 - weight)).clamp(0, 1))


def _shown(model: DECA, codes: Codes, head: Reconstruction, normals: Tensor) -> Tensor:
    """How far to trust the picture at every texel, (B,1,T,T) in [0, 1]; normals (B,3,T,T) world space."""
    size = 128  # of the picture that says what lies in front: finer shows nothing more of a head
    seen = fragments(rasterize(head.projected, model.faces, size, size), head.projected, model.faces)
    front = seen.vertex_attributes(head.projected[..., 2:], model.faces)
    places = model.atlas(head.projected)
    grid, depth = places[:, :2], places[:, 2:]
    scale = codes.cam[:, :1, None, None]  # image coordinates a metre
    hidden = (depth - sample_uv(front, grid)) / scale > BEHIND
    facing = _smooth((functional.normalize(normals, dim=1)[:, 2:] - GRAZING) / (FACING - GRAZING))
    inside = _smooth((1 - grid.abs().amax(1, keepdim=True)) / EDGE)
    visible = functional.avg_pool2d((~hidden).float(), 5, 1, 2)
    return facing * inside * (visible * 2 - 1).clamp(min=0) * _soft_mask(model.bundle)


def _smooth(value: Tensor) -> Tensor:
    """0 below 0, 1 above 1, without a kink between."""
    value = value.clamp(0, 1)
    return value * value * (3 - 2 * value)


@lru_cache(maxsize=4)
def _soft_mask(bundle: AssetBundle) -> Tensor:
    """The mask of face and eyes with a soft border on its inside, (T,T)."""
    from scipy.ndimage import distance_transform_edt

    inside = np.pad(bundle.face_eye_mask > 0.5, 1)
    depth = distance_transform_edt(inside)[1:-1, 1:-1]
    return _smooth(torch.from_numpy(depth.astype(np.float32)) / FEATHER)


@torch.inference_mode()
def tangent_normals(model: DECA, head: Reconstruction) -> Tensor:
    """Normals of the detailed surface M' in the tangent frame of the coarse one, (B,3,256,256) unit.

    x along growing u, y along growing v (up in the picture), z out of the surface: the frame of glTF. Flat (0, 0, 1)
    where the atlas is empty. The same map holds for any pose and expression of the head.
    """
    bundle = model.bundle
    normals = vertex_normals(head.vertices, model.faces)
    tangents = vertex_tangents(bundle, head.vertices, normals)
    corners = torch.from_numpy(split_of(bundle).faces[texel_faces(bundle)])  # (N, 3)
    vertex = torch.from_numpy(split_of(bundle).vertex)
    normal = functional.normalize(_at_texels(model.atlas, normals[:, vertex], corners), dim=-1)
    tangent = _at_texels(model.atlas, tangents[..., :3], corners)
    tangent = functional.normalize(tangent - normal * (tangent * normal).sum(-1, keepdim=True), dim=-1)
    side = tangents[:, corners[:, 0], 3:]
    detailed = functional.normalize(
        model.detail_normals(head).flatten(2)[:, :, model.atlas.texels].transpose(1, 2), dim=-1
    )
    frame = (tangent, torch.linalg.cross(normal, tangent, dim=-1) * side, normal)
    found = torch.stack([(detailed * axis).sum(-1) for axis in frame], dim=1)
    flat = found.new_zeros(len(found), 3, model.atlas.size**2)
    flat[:, 2] = 1
    return flat.index_copy(2, model.atlas.texels, found).unflatten(2, (model.atlas.size, model.atlas.size))


def _at_texels(atlas: UVAtlas, values: Tensor, corners: Tensor) -> Tensor:
    """Values (B,S,C) of split vertices at the covered texels, (B,N,C)."""
    return sum(values[:, corners[:, k]] * atlas.bary[:, k, None] for k in range(3))  # type: ignore[return-value]


def vertex_tangents(bundle: AssetBundle, vertices: Tensor, normals: Tensor) -> Tensor:
    """Tangents of the split vertices, (B,S,4): the direction of growing u in the surface, and the side (1 or -1).

    vertices, normals (B,V,3). cross(normal, tangent) * side is the direction of growing v.
    """
    split = split_of(bundle)
    faces, vertex = torch.from_numpy(split.faces), torch.from_numpy(split.vertex)
    uv = torch.from_numpy(bundle.uv)[torch.from_numpy(split.uv)]
    a, b, c = (vertices[:, vertex[faces[:, k]]] for k in range(3))
    ua, ub, uc = (uv[faces[:, k]] for k in range(3))
    e, f, du, dv = b - a, c - a, ub - ua, uc - ua
    area = du[:, :1] * dv[:, 1:] - du[:, 1:] * dv[:, :1]
    inverse = torch.where(area.abs() > 1e-12, 1 / area, torch.zeros_like(area))
    along_u, along_v = (e * dv[:, 1:] - f * du[:, 1:]) * inverse, (f * du[:, :1] - e * dv[:, :1]) * inverse
    size = torch.linalg.cross(e, f, dim=-1).norm(dim=-1, keepdim=True)  # larger faces say more
    total = torch.zeros(len(vertices), len(vertex), 6)
    both = torch.cat([along_u, along_v], dim=-1) * size
    for corner in range(3):
        total = total.index_add(1, faces[:, corner], both)
    normal = normals[:, vertex]
    tangent = total[..., :3] - normal * (total[..., :3] * normal).sum(-1, keepdim=True)
    lost = tangent.norm(dim=-1, keepdim=True) < 1e-12  # no face, or none with an area on the map: any direction does
    spare = torch.linalg.cross(normal, torch.where(normal[..., :1].abs() < 0.9, _axis(0), _axis(1)), dim=-1)
    tangent = functional.normalize(torch.where(lost, spare, tangent), dim=-1)
    side = (torch.linalg.cross(normal, tangent, dim=-1) * total[..., 3:]).sum(-1, keepdim=True)
    return torch.cat([tangent, torch.where(side < 0, -1.0, 1.0)], dim=-1)


def _axis(index: int) -> Tensor:
    return torch.eye(3)[index]


def _padded(bundle: AssetBundle, maps: Tensor) -> Tensor:
    """Empty texels take the colour of the nearest covered one."""
    return maps.flatten(2)[:, :, torch.from_numpy(padding(bundle))].view_as(maps)


# --- bytes ------------------------------------------------------------------------------------------------------------


def jpeg(picture: Tensor) -> bytes:
    """(3,H,W) in [0, 1] as a JPEG."""
    return _encoded(_bytes(picture), "JPEG", quality=JPEG_QUALITY)


def png_of_normals(normals: Tensor) -> bytes:
    """Unit vectors (3,H,W) as the colours of a PNG: 0.5 + n / 2."""
    return _encoded(_bytes((normals + 1) / 2), "PNG", compress_level=PNG_LEVEL)


def png_of_displacement(displacement: Tensor, limit: float) -> bytes:
    """Metres (H,W) as a 16-bit grey PNG that spans [-limit, limit]: metres = value / 65535 * 2 limit - limit."""
    steps = (displacement.double() + limit) * (LEVELS / (2 * limit))
    return _encoded(steps.round().clamp(0, LEVELS).numpy().astype(np.uint16), "PNG", compress_level=PNG_LEVEL)


def _bytes(picture: Tensor) -> NDArray[np.uint8]:
    return np.ascontiguousarray((picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())


def _encoded(pixels: NDArray, kind: str, **options: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()
