"""Differentiable rendering after visibility (paper eq. 2, 3 and 11): barycentric interpolation, texture, shading."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deca_core.appearance import shading


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Area-weighted vertex normals: (B,V,3), (F,3) -> (B,V,3) unit."""
    a, b, c = vertices[:, faces].unbind(2)
    area = torch.linalg.cross(b - a, c - a, dim=-1)  # (B, F, 3)
    total = torch.zeros_like(vertices)
    for corner in range(3):
        total = total.index_add(1, faces[:, corner], area)
    return functional.normalize(total, dim=-1, eps=1e-6)


@dataclass(frozen=True)
class Fragments:
    """The N visible pixels of a batch of pictures.

    pixels (N,3) = batch, row, column; face (N,); bary (N,3), differentiable with respect to the vertices.
    """

    pixels: Tensor
    face: Tensor
    bary: Tensor
    shape: tuple[int, int, int]  # batch, height, width

    def interpolate(self, corners: Tensor) -> Tensor:
        """Attributes of the faces' corners (N,3,C) to pictures (B,C,H,W), zero where nothing is seen."""
        values = (corners * self.bary[..., None]).sum(1)
        picture = values.new_zeros(*self.shape, values.shape[-1])
        return picture.index_put(tuple(self.pixels.unbind(1)), values).permute(0, 3, 1, 2)

    def vertex_attributes(self, attributes: Tensor, faces: Tensor) -> Tensor:
        """Attributes of vertices (B,V,C) to pictures (B,C,H,W)."""
        return self.interpolate(attributes[self.pixels[:, :1], faces[self.face]])


def fragments(face_map: Tensor, projected: Tensor, faces: Tensor) -> Fragments:
    """Barycentric coordinates of what `rasterize` found visible.

    face_map (B,H,W) int64; projected (B,V,3) image space; faces (F,3). The gradient flows through the barycentrics to
    the vertices; visibility itself has none.
    """
    batch, height, width = face_map.shape
    pixels = (face_map >= 0).nonzero()
    face = face_map[tuple(pixels.unbind(1))]
    centre = (pixels[:, [2, 1]] * 2 + 1).to(projected) / projected.new_tensor([width, height]) - 1
    a, b, c = projected[pixels[:, :1], faces[face], :2].unbind(1)  # (N, 2) each

    def cross(p: Tensor, q: Tensor) -> Tensor:
        return p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]

    area = cross(b - a, c - a)
    weight_b, weight_c = cross(centre - a, c - a) / area, cross(b - a, centre - a) / area
    bary = torch.stack([1 - weight_b - weight_c, weight_b, weight_c], dim=-1)
    return Fragments(pixels, face, bary, (batch, height, width))


def sample_uv(texture: Tensor, grid: Tensor) -> Tensor:
    """Texture (B,C,T,T) looked up at the UV position of every pixel, grid (B,2,H,W) in [-1, 1] -> (B,C,H,W)."""
    return functional.grid_sample(texture, grid.permute(0, 2, 3, 1), align_corners=False)


# Fixed lights of the grey shape pictures: direction towards the light (world space) and strength.
STUDIO_LIGHTS = ((-0.6, 0.5, 0.8, 0.55), (0.7, 0.3, 0.8, 0.40), (0.0, -0.6, 0.8, 0.12))
STUDIO_AMBIENT, STUDIO_GREY = 0.12, 0.85


def studio_shading(normals: Tensor) -> Tensor:
    """A grey clay picture under three fixed lamps: normals (B,3,H,W) world space -> (B,3,H,W) in [0, 1]."""
    lights = normals.new_tensor(STUDIO_LIGHTS)
    direction = functional.normalize(lights[:, :3], dim=1)
    lambert = torch.einsum("lc,bchw->blhw", direction, normals).clamp(min=0)
    grey = STUDIO_GREY * (STUDIO_AMBIENT + (lambert * lights[:, 3, None, None]).sum(1, keepdim=True))
    return grey.clamp(max=1).expand(-1, 3, -1, -1)


@dataclass(frozen=True)
class Rendering:
    """Pictures of a batch of heads, (B,3,H,W) but for alpha (B,1,H,W); zero outside the head.

    images = albedo * shading (eq. 2); detail_images the same with the normals of M' (eq. 11);
    shape and shaded_detail: grey clay of the coarse and of the detailed surface; normals in world space.
    """

    images: Tensor
    albedo: Tensor
    shading: Tensor
    normals: Tensor
    alpha: Tensor
    detail_normals: Tensor
    detail_images: Tensor
    shape: Tensor
    shaded_detail: Tensor


def render_surface(
    visible: Fragments, faces: Tensor, uv_corners: Tensor, normals: Tensor, uv_albedo: Tensor, light: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Albedo, shading, normals, alpha and UV grid of what is visible (eq. 2 without the product).

    faces (F,3); uv_corners (F,3,2) grid coordinates; normals (B,V,3); uv_albedo (B,3,T,T); light (B,9,3).
    """
    grid = visible.interpolate(uv_corners[visible.face])
    alpha = visible.interpolate(torch.ones_like(visible.bary)[..., None])
    normal_picture = visible.vertex_attributes(normals, faces)
    albedo = sample_uv(uv_albedo, grid) * alpha
    return albedo, shading(normal_picture, light) * alpha, normal_picture, alpha, grid
