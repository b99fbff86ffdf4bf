"""Heads as triangle meshes: the coarse surface of eq. 1, and the detailed surface M' of eq. 10 on the UV grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from deca_core.detail import detail_surface
from deca_core.export.grid import dense_grid
from deca_core.model import DECA, Reconstruction
from deca_core.render import vertex_normals

Float = NDArray[np.float32]
Int = NDArray[np.int64]


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


@torch.inference_mode()
def coarse_mesh(model: DECA, head: Reconstruction, index: int = 0) -> Mesh:
    """Head `index` of a batch as eq. 1 gives it, posed as in its picture."""
    vertices = head.vertices[index : index + 1].float()
    normals = vertex_normals(vertices, model.faces)
    bundle = model.bundle
    return Mesh(_numpy(vertices[0]), _numpy(normals[0]), bundle.faces, bundle.uv, bundle.uv_faces)


@torch.inference_mode()
def dense_mesh(model: DECA, head: Reconstruction, index: int = 0) -> Mesh:
    """M' = M + (z mask + fixed) N of eq. 10 at the resolution of the UV map, posed as in the picture.

    One vertex a texel, at its centre. The surface ends half a texel before each seam of the atlas, and at the rim that
    DECA leaves out.
    """
    grid = dense_grid(model.bundle)
    vertices = head.vertices[index : index + 1].float()
    normals = vertex_normals(vertices, model.faces)
    surface = model.atlas(torch.cat([vertices, normals], dim=-1))
    z = head.z[index : index + 1].float()
    points = detail_surface(surface[:, :3], surface[:, 3:], z, model.mask, model.fixed_displacement)
    towards = functional.normalize(model.detail_normals(only(head, index)), dim=1)
    texels = torch.from_numpy(grid.texels)
    return Mesh(
        _numpy(points.flatten(2)[0, :, texels].T),
        _numpy(towards.flatten(2)[0, :, texels].T),
        grid.faces,
        grid.uv,
        grid.faces,
    )


def only(head: Reconstruction, index: int) -> Reconstruction:
    """A batch of the one head."""
    return Reconstruction(**{name: value[index : index + 1] for name, value in vars(head).items()})


def _numpy(values: torch.Tensor) -> Float:
    return np.ascontiguousarray(values.cpu().numpy(), np.float32)
