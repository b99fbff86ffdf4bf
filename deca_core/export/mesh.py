"""Heads as triangle meshes: the coarse surface of eq. 1, and the detailed surface M' of eq. 10 on the UV grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from deca_core.detail import detail_surface
from deca_core.errors import DecaError
from deca_core.export.grid import dense_grid
from deca_core.model import DECA, Reconstruction
from deca_core.render import vertex_normals

MILLIMETRES = 1000  # in a metre; areas of the smallest triangles in square metres drown in the eps of `vertex_normals`

Float = NDArray[np.float32]
Int = NDArray[np.int64]


class ExportError(DecaError, ValueError):
    """Invalid input of an export: several heads where one is expected, or values that are not finite."""


def only_head(count: int, index: int | None, name: str) -> int:
    """Which of `count` heads is meant: `index`, or the only one. Raises ExportError."""
    if index is None and count != 1:
        raise ExportError(
            f"{name}: {count} heads, a file holds one. Give codes[:1] and what decode makes of them, or where the "
            "function takes one, index="
        )
    if index is not None and not 0 <= index < count:
        raise ExportError(f"{name}: there is no head {index} among {count}")
    return index or 0


def require_finite(name: str, **values: NDArray | Tensor | None) -> None:
    """Raise ExportError naming the first array that holds NaN or infinity."""
    for what, value in values.items():
        if value is not None and not torch.as_tensor(value).isfinite().all():
            raise ExportError(f"{name}: {what} is not finite. Leave the head out, or look at where its codes come from")


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles with normals and texture coordinates.

    vertices (N,3) metres, y up; normals (N,3) unit; faces (F,3) counter-clockwise seen from outside;
    uv (U,2) with u right and v up, in [0, 1]; uv_faces (F,3).
    """

    vertices: Float
    normals: Float
    faces: Int
    uv: Float
    uv_faces: Int

    def __post_init__(self) -> None:
        require_finite("mesh", vertices=self.vertices, normals=self.normals, uv=self.uv)


@torch.inference_mode()
def coarse_mesh(model: DECA, head: Reconstruction, index: int | None = None) -> Mesh:
    """The head as eq. 1 gives it, posed as in its image; index: which one of a batch of several. Raises ExportError."""
    index = only_head(len(head.vertices), index, "coarse_mesh")
    vertices = head.vertices[index : index + 1].float()
    normals = vertex_normals(vertices, model.faces)
    bundle = model.bundle
    return Mesh(_numpy(vertices[0]), _numpy(normals[0]), bundle.faces, bundle.uv, bundle.uv_faces)


@torch.inference_mode()
def dense_mesh(model: DECA, head: Reconstruction, index: int | None = None) -> Mesh:
    """M' = M + (z mask + fixed) N of eq. 10 at the resolution of the UV map, posed as in the image.

    One vertex a texel, at its centre. The surface ends half a texel before each seam of the atlas, and at the rim that
    DECA leaves out. index as in `coarse_mesh`.
    """
    index = only_head(len(head.vertices), index, "dense_mesh")
    grid = dense_grid(model.bundle)
    texels, faces = (torch.from_numpy(index).to(head.vertices.device) for index in (grid.texels, grid.faces))
    coarse, normals = surface_at(model, head.vertices[index : index + 1].float(), texels)
    maps = (head.z[index, 0].float(), model.mask, model.fixed_displacement)
    z, mask, fixed = (values.flatten()[texels, None] for values in maps)
    points = detail_surface(coarse, normals, z, mask, fixed)
    # As `detail_normals`, without the triangles there that bridge seams and holes.
    blended = vertex_normals(points[None] * MILLIMETRES, faces)[0] * mask + normals * (1 - mask)
    return Mesh(_numpy(points), _numpy(functional.normalize(blended, dim=-1)), grid.faces, grid.uv, grid.faces)


def surface_at(model: DECA, vertices: Tensor, texels: Tensor) -> tuple[Tensor, Tensor]:
    """Points (N,3) and interpolated normals (N,3) of the coarse surface at places in the flattened UV map.

    vertices (1,V,3); normals as eq. 10 takes them, a little shorter than 1 between vertices.
    """
    maps = model.atlas(torch.cat([vertices, vertex_normals(vertices, model.faces)], dim=-1)).flatten(2)[0, :, texels].T
    return maps[:, :3], maps[:, 3:]


def _numpy(values: Tensor) -> Float:
    return np.ascontiguousarray(values.detach().cpu().numpy(), np.float32)
