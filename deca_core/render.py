"""Differentiable rendering after visibility (paper eq. 2, 3 and 11): barycentric interpolation, texture, shading."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deca_core.appearance import shading

# Twice the area of a visible face, in square pixels, below which its barycentrics stop growing: float32 coordinates
# (1e-5 pixels) no longer say what such a face covers, and its gradient, one over its width, would swamp all others.
SLIVER_AREA = 1e-3


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Area-weighted vertex normals: (B,V,3), (F,3) -> (B,V,3) unit."""
    a, b, c = (vertices.index_select(1, faces[:, corner]) for corner in range(3))
    area = torch.linalg.cross(b - a, c - a, dim=-1)  # (B, F, 3)
    total = torch.zeros_like(vertices)
    for corner in range(3):
        total = total.index_add(1, faces[:, corner], area)
    return functional.normalize(total, dim=-1, eps=1e-6)


@dataclass(frozen=True)
class Fragments:
    """The N visible pixels of a batch of images.

    place (N,): position in the flattened (B,H,W) images; face (N,); bary (3,N), differentiable with respect to the
    vertices. Attributes are held channel by channel, (C,3,N): vectors of pixels are what a CPU is fast at.
    """

    place: Tensor
    face: Tensor
    bary: Tensor
    shape: tuple[int, int, int]  # batch, height, width

    @property
    def alpha(self) -> Tensor:
        """Mask of the visible pixels: (B,1,H,W), 0 or 1, without gradient."""
        return self._paint(torch.ones_like(self.bary[:1].detach()))

    def vertex_attributes(self, attributes: Tensor, faces: Tensor) -> Tensor:
        """Attributes of vertices (B,V,C) to images (B,C,H,W), zero where nothing is seen."""
        corners = faces[self.face].T + _image(self.place, self.shape) * attributes.shape[1]
        return self._interpolate(attributes.flatten(0, 1), corners)

    def corner_attributes(self, attributes: Tensor) -> Tensor:
        """Attributes of the corners of faces (F,3,C), the same in every image, to images (B,C,H,W)."""
        corners = self.face * 3 + torch.arange(3, device=self.face.device)[:, None]
        return self._interpolate(attributes.flatten(0, 1), corners)

    def _interpolate(self, rows: Tensor, corners: Tensor) -> Tensor:
        """rows (M,C), the row of every corner (3,N) -> (B,C,H,W)."""
        values = rows.T.contiguous().index_select(1, corners.flatten()).unflatten(1, (3, -1))  # (C, 3, N)
        return self._paint((values * self.bary).sum(1))

    def _paint(self, values: Tensor) -> Tensor:
        """Values of the visible pixels, (C,N) -> (B,C,H,W)."""
        images = values.new_zeros(len(values), math.prod(self.shape)).index_copy(1, self.place, values)
        return images.unflatten(1, self.shape).transpose(0, 1)


def _image(place: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Index of the image of a flattened position."""
    return place // (shape[1] * shape[2])


def fragments(face_map: Tensor, projected: Tensor, faces: Tensor) -> Fragments:
    """Barycentric coordinates of what `rasterize` found visible.

    face_map (B,H,W) int64; projected (B,V,3) image space; faces (F,3). The gradient flows through the barycentrics to
    the vertices; visibility itself has none. Finite on any visible face, see SLIVER_AREA.
    """
    batch, height, width = face_map.shape
    shape = (batch, height, width)
    flat = face_map.flatten()
    place = (flat >= 0).nonzero()[:, 0]
    face = flat[place]
    pixel_x = ((place % width) * 2 + 1).to(projected) / width - 1
    pixel_y = ((place // width % height) * 2 + 1).to(projected) / height - 1
    corners = faces[face].T + _image(place, shape) * projected.shape[1]  # (3, N)
    points = projected[..., :2].flatten(0, 1).T.contiguous().index_select(1, corners.flatten())
    (ax, bx, cx), (ay, by, cy) = points.unflatten(1, (3, -1)).unbind(0)

    floor = SLIVER_AREA * 4 / (width * height)
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    area = torch.where(area.abs() < floor, torch.full_like(area, floor).copysign(area.detach()), area)
    weight_b = ((pixel_x - ax) * (cy - ay) - (pixel_y - ay) * (cx - ax)) / area
    weight_c = ((bx - ax) * (pixel_y - ay) - (by - ay) * (pixel_x - ax)) / area
    return Fragments(place, face, torch.stack([1 - weight_b - weight_c, weight_b, weight_c]), shape)


def sample_uv(texture: Tensor, grid: Tensor) -> Tensor:
    """Texture (B,C,T,T) looked up at the UV position of every pixel, grid (B,2,H,W) in [-1, 1] -> (B,C,H,W)."""
    return functional.grid_sample(texture, grid.permute(0, 2, 3, 1), align_corners=False)


# Fixed lights of the grey shape images: direction towards the light (world space) and strength.
STUDIO_LIGHTS = ((-0.6, 0.5, 0.8, 0.55), (0.7, 0.3, 0.8, 0.40), (0.0, -0.6, 0.8, 0.12))
STUDIO_AMBIENT, STUDIO_GREY = 0.12, 0.85


def studio_shading(normals: Tensor) -> Tensor:
    """A grey clay image under three fixed lamps: normals (B,3,H,W) world space -> (B,3,H,W) in [0, 1]."""
    lights = normals.new_tensor(STUDIO_LIGHTS)
    direction = functional.normalize(lights[:, :3], dim=1)
    lambert = torch.einsum("lc,bchw->blhw", direction, normals).clamp(min=0)
    grey = STUDIO_GREY * (STUDIO_AMBIENT + (lambert * lights[:, 3, None, None]).sum(1, keepdim=True))
    return grey.clamp(max=1).expand(-1, 3, -1, -1)


@dataclass(frozen=True)
class Rendering:
    """Images of a batch of heads, (B,3,H,W) but for alpha (B,1,H,W); zero outside the head.

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
    grid, alpha = visible.corner_attributes(uv_corners), visible.alpha
    normal_image = visible.vertex_attributes(normals, faces)
    albedo = sample_uv(uv_albedo, grid) * alpha
    return albedo, shading(normal_image, light) * alpha, normal_image, alpha, grid
