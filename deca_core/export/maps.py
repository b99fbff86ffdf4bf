"""Images that go with an exported head: base colour, tangent-space normals, displacement; and their bytes."""

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
from deca_core.export.grid import displaced_grid, padding, split_of, texel_faces
from deca_core.export.mesh import MILLIMETRES, ExportError, only_head, require_finite, surface_at
from deca_core.model import DECA, Reconstruction
from deca_core.raster import rasterize
from deca_core.render import fragments, sample_uv, vertex_normals

JPEG_QUALITY = 92
PNG_LEVEL = 6  # zlib's; normals shrink by a tenth against 1
LEVELS = 2**16 - 1
# Cosine between surface and viewer from which an image begins to count, and from which it counts wholly: skin seen at
# a flat angle is a smear of few pixels. DECA itself cuts at 0.05, which leaves the smear.
GRAZING, FACING = 0.15, 0.5
BEHIND = 0.006  # metres behind what is seen in front of it: hidden. Texels at the nose's edge are 2 mm apart
EDGE = 0.06  # share of the crop at its border over which the image fades out
FEATHER = 6  # texels over which the image fades out at the border of the face mask
GAIN = (0.5, 2.0)  # bounds of the brightness that the albedo is brought to


@torch.inference_mode()
def texture(model: DECA, codes: Codes, head: Reconstruction, image: Tensor | None = None) -> Tensor:
    """Base colour on the UV map, (B,3,256,256) RGB in [0, 1]: the image where it shows skin, else the albedo.

    image (B,3,256,256): the photograph on the UV map (`image_on_uv`), hidden texels included; None: albedo alone.
    The light of the photograph stays in its colours. What it does not show is the albedo A(alpha) under the light of
    the codes (eq. 3), brought to the mean colour of what it shows, so that the two meet without a step.
    """
    if not len(codes) == len(head.vertices) == (len(codes) if image is None else len(image)):
        images = "no" if image is None else len(image)
        raise ExportError(f"texture: {len(codes)} codes, {len(head.vertices)} heads and {images} images")
    plain = model.albedo(codes)
    if image is None:
        return _padded(model.bundle, plain.clamp(0, 1))
    normals = model.atlas(vertex_normals(head.vertices, model.faces))
    lit = plain * shading(functional.normalize(normals, dim=1), codes.light)
    weight = shown(model, codes, head)
    amount = weight.sum((2, 3), keepdim=True).clamp(min=1e-6)
    gain = ((image * weight).sum((2, 3), keepdim=True) + amount * 1e-3) / (
        (lit * weight).sum((2, 3), keepdim=True).clamp(min=0) + amount * 1e-3
    )
    enough = amount > weight[0].numel() * 1e-3
    lit = lit * torch.where(enough, gain.clamp(*GAIN), torch.ones_like(gain))
    return _padded(model.bundle, (image * weight + lit * (1 - weight)).clamp(0, 1))


@torch.inference_mode()
def shown(model: DECA, codes: Codes, head: Reconstruction) -> Tensor:
    """Weight of the image at every texel, (B,1,256,256) in [0, 1].

    1 where the skin of the face looks at the camera, is inside the crop and nothing is in front of it; soft borders.
    """
    normals = model.atlas(vertex_normals(head.vertices, model.faces))
    size = 128  # of the image that finds what is in front: a finer one shows nothing more of a head
    seen = fragments(rasterize(head.projected, model.faces, size, size), head.projected, model.faces)
    front = seen.vertex_attributes(head.projected[..., 2:], model.faces)
    places = model.atlas(head.projected)
    grid, depth = places[:, :2], places[:, 2:]
    scale = codes.cam[:, :1, None, None]  # image coordinates a metre
    hidden = (depth - sample_uv(front, grid)) / scale > BEHIND
    facing = _smooth((functional.normalize(normals, dim=1)[:, 2:] - GRAZING) / (FACING - GRAZING))
    inside = _smooth((1 - grid.abs().amax(1, keepdim=True)) / EDGE)
    visible = (~hidden).float()
    visible = visible * (functional.avg_pool2d(visible, 5, 1, 2) * 2 - 1).clamp(min=0)
    return facing * inside * visible * _soft_mask(model.bundle).to(facing.device)


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
def tangent_normals(model: DECA, head: Reconstruction, index: int | None = None) -> Tensor:
    """Normals of the detailed surface M' of one head in the tangent frame of the coarse one, (3,256,256) unit.

    index: which head of a batch of several.

    x along growing u, y along growing v (up in the image), z out of the surface: the frame of glTF. Flat (0, 0, 1)
    where nothing is displaced or the atlas is empty. The same map is valid for any pose and expression of the head.
    The smooth normal is tilted by the gradient of the displacement d of eq. 10, n = N - grad d, and not taken from the
    triangles of M': those would bring the facets of the coarse mesh along.
    """
    index = only_head(len(head.vertices), index, "tangent_normals")
    bundle, size = model.bundle, model.atlas.size
    vertices = head.vertices[index : index + 1].float()
    tangents = vertex_tangents(bundle, vertices, vertex_normals(vertices * MILLIMETRES, model.faces))
    grid, split = displaced_grid(bundle), split_of(bundle)
    place = np.searchsorted(model.atlas.texels.cpu().numpy(), grid.texels)  # of the grid's vertices, of covered texels
    indices = (grid.texels, grid.faces, place, split.faces[texel_faces(bundle)[place]])
    texels, faces, rows, corners = (torch.from_numpy(index).to(vertices.device) for index in indices)
    points, normal = surface_at(model, vertices, texels)
    normal = functional.normalize(normal, dim=-1)
    depth = (head.z[index, 0].float() * model.mask + model.fixed_displacement).flatten()[texels]
    tilted = functional.normalize(normal - surface_gradient(points, depth, faces), dim=-1)

    tangent = (tangents[0, :, :3][corners] * model.atlas.bary[rows, :, None]).sum(1)
    tangent = functional.normalize(tangent - normal * (tangent * normal).sum(-1, keepdim=True), dim=-1)
    frame = (tangent, torch.linalg.cross(normal, tangent) * tangents[0, corners[:, 0], 3:], normal)
    flat = normal.new_tensor([0.0, 0.0, 1.0])[:, None].repeat(1, size**2)
    flat[:, texels] = torch.stack([(tilted * axis).sum(-1) for axis in frame])
    return flat.unflatten(1, (size, size))


def surface_gradient(points: Tensor, values: Tensor, faces: Tensor) -> Tensor:
    """Gradient of values (N,) along the surface at its vertices, (N,3): the mean over the faces of each by their area.

    On a face it is sum_i values_i (n x e_i) / 2A, e_i the edge opposite to corner i; area times gradient stays finite
    however thin the face is.
    """
    a, b, c = (points[faces[:, corner]] for corner in range(3))
    area = torch.linalg.cross(b - a, c - a)
    normal = functional.normalize(area, dim=-1, eps=1e-12)
    total, weight = torch.zeros_like(points), points.new_zeros(len(points), 1)
    edges = ((c - b) * values[faces[:, :1]], (a - c) * values[faces[:, 1:2]], (b - a) * values[faces[:, 2:]])
    slope, size = torch.linalg.cross(normal, sum(edges)), area.norm(dim=-1, keepdim=True)
    for corner in range(3):
        total = total.index_add(0, faces[:, corner], slope)
        weight = weight.index_add(0, faces[:, corner], size)
    return total / weight.clamp(min=1e-12)


def vertex_tangents(bundle: AssetBundle, vertices: Tensor, normals: Tensor) -> Tensor:
    """Tangents of the split vertices, (B,S,4): the direction of growing u in the surface, and the side (1 or -1).

    vertices, normals (B,V,3). cross(normal, tangent) * side is the direction of growing v; the side is -1 where the
    atlas shows the surface mirrored.
    """
    split = split_of(bundle)
    arrays = (split.faces, split.vertex, bundle.uv[split.uv])
    faces, vertex, uv = (torch.from_numpy(array).to(vertices.device) for array in arrays)
    a, b, c = (vertices[:, vertex[faces[:, corner]]] for corner in range(3))
    ua, ub, uc = (uv[faces[:, corner]] for corner in range(3))
    ab, ac = ub - ua, uc - ua
    area = ab[:, :1] * ac[:, 1:] - ab[:, 1:] * ac[:, :1]  # on the map, twice
    # dP/du of every face times that area, which stays finite however thin the face is on the map.
    along = (b - a) * ac[:, 1:] - (c - a) * ab[:, 1:]
    total = vertices.new_zeros(len(vertices), len(vertex), 4)
    both = torch.cat([along, area.expand(len(vertices), -1, -1)], dim=-1)
    for corner in range(3):
        total = total.index_add(1, faces[:, corner], both)
    side = torch.where(total[..., 3:] < 0, -1.0, 1.0)
    normal = normals[:, vertex]
    tangent = total[..., :3] * side
    tangent = tangent - normal * (tangent * normal).sum(-1, keepdim=True)
    x_axis, y_axis = normal.new_tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    lost = tangent.norm(dim=-1, keepdim=True) < 1e-12  # no face, or none with an area on the map: any direction does
    spare = torch.linalg.cross(normal, torch.where(normal[..., :1].abs() < 0.9, x_axis, y_axis), dim=-1)
    return torch.cat([functional.normalize(torch.where(lost, spare, tangent), dim=-1), side], dim=-1)


def _padded(bundle: AssetBundle, maps: Tensor) -> Tensor:
    """Empty texels take the colour of the nearest covered one."""
    nearest = torch.from_numpy(padding(bundle)).to(maps.device)
    return maps.flatten(2)[:, :, nearest].view_as(maps)


# --- bytes ------------------------------------------------------------------------------------------------------------


def jpeg(image: Tensor) -> bytes:
    """(3,H,W) in [0, 1] as a JPEG."""
    return _encoded(_bytes(image), "JPEG", quality=JPEG_QUALITY)


def png_of_normals(normals: Tensor) -> bytes:
    """Unit vectors (3,H,W) as the colours of a PNG: 0.5 + n / 2."""
    return _encoded(_bytes((normals + 1) / 2), "PNG", compress_level=PNG_LEVEL)


def png_of_displacement(displacement: Tensor, limit: float) -> bytes:
    """Metres (H,W) as a 16-bit grey PNG that spans [-limit, limit]: metres = value / 65535 * 2 limit - limit.

    Raises ExportError for what is not finite or further out than `limit` (by more than half a step).
    """
    require_finite("png_of_displacement", displacement=displacement)
    if (farthest := float(displacement.abs().max())) > limit * (1 + 1 / LEVELS):
        raise ExportError(f"png_of_displacement: {farthest:.4g} m lies outside the limit of {limit:.4g} m")
    steps = (displacement.detach().double() + limit) * (LEVELS / (2 * limit))
    return _encoded(steps.round().clamp(0, LEVELS).cpu().numpy().astype(np.uint16), "PNG", compress_level=PNG_LEVEL)


def _bytes(image: Tensor) -> NDArray[np.uint8]:
    if image.ndim != 3 or image.shape[0] != 3:
        raise ExportError(f"an image of the shape {tuple(image.shape)}, expected one image (3, H, W)")
    require_finite("image", values=image)
    return np.ascontiguousarray(
        (image.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    )


def _encoded(pixels: NDArray, kind: str, **options: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()
