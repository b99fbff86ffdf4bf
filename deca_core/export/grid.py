"""Topology of the dense mesh on a bundle's UV atlas: the same for every head, computed once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deca_core.assets.bundle import UV_SIZE, AssetBundle
from deca_core.detail import RIM_BOTTOM, RIM_LEFT, RIM_RIGHT, RIM_TOP
from deca_core.uv import UVAtlas

Int = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """Vertices cut along the seams of the atlas, for formats with one texture coordinate a vertex.

    vertex (S,) and uv (S,): which of the bundle's vertices and texture coordinates each one is; faces (F,3).
    """

    vertex: Int
    uv: Int
    faces: Int


@lru_cache(maxsize=4)
def split_of(bundle: AssetBundle) -> Split:
    """Every pair of vertex and texture coordinate that a face has, once."""
    key = bundle.faces * len(bundle.uv) + bundle.uv_faces
    pairs, faces = np.unique(key, return_inverse=True)
    return Split(pairs // len(bundle.uv), pairs % len(bundle.uv), faces.reshape(-1, 3))


@lru_cache(maxsize=4)
def texel_faces(bundle: AssetBundle, size: int = UV_SIZE) -> Int:
    """The face of every covered texel, (N,) in the order of `UVAtlas.texels`."""
    corners = UVAtlas(bundle, size).triangles.numpy()

    def key(triangles: Int) -> Int:
        count = len(bundle.v_template)
        return (triangles[:, 0] * count + triangles[:, 1]) * count + triangles[:, 2]

    known = key(bundle.faces)
    order = np.argsort(known)
    return np.asarray(order[np.searchsorted(known[order], key(corners))])


def charts(bundle: AssetBundle) -> Int:
    """The chart of every face, (F,): faces that are joined on the atlas have one number."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    a, b = np.concatenate([bundle.uv_faces[:, :2], bundle.uv_faces[:, 1:]]).T
    joined = coo_matrix((np.ones(len(a)), (a, b)), shape=(len(bundle.uv),) * 2)
    return np.asarray(connected_components(joined, directed=False)[1][bundle.uv_faces[:, 0]], np.int64)


@dataclass(frozen=True, eq=False)
class DenseGrid:
    """Triangles over the texels of the UV map: texels (N,) places in the flattened map, faces (F,3) into them."""

    texels: Int
    faces: Int
    uv: NDArray[np.float32]  # (N, 2) of the texels' centres, u right, v up


@lru_cache(maxsize=4)
def dense_grid(bundle: AssetBundle) -> DenseGrid:
    """The triangles of `deca_core.detail.grid_normals`, rim left out, as far as a head covers them.

    A cell (y, x) has (y,x) (y+1,x) (y,x+1) and (y,x+1) (y+1,x) (y+1,x+1). Kept are triangles with all corners on one
    chart: across a seam or an empty texel there is no surface. On a mirrored chart they are turned over, so
    that all are counter-clockwise seen from outside.
    """
    size = UV_SIZE
    atlas, face = UVAtlas(bundle), texel_faces(bundle)
    chart = np.full(size * size, -1)
    chart[atlas.texels.numpy()] = charts(bundle)[face]
    rows = np.arange(RIM_TOP, size - RIM_BOTTOM)
    columns = np.arange(RIM_LEFT, size - RIM_RIGHT)
    p00 = (rows[:, None] * size + columns).ravel()
    p01, p10, p11 = p00 + 1, p00 + size, p00 + size + 1
    cells = np.stack([np.stack([p00, p10, p01], 1), np.stack([p01, p10, p11], 1)], 1).reshape(-1, 3)
    own = chart[cells]
    kept = cells[(own[:, 0] >= 0) & (own == own[:, :1]).all(1)]

    mirrored = np.zeros(size * size, bool)
    a, b, c = (bundle.uv[bundle.uv_faces[:, corner]] for corner in range(3))
    turned = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0] < 0
    mirrored[atlas.texels.numpy()] = turned[face]
    over = mirrored[kept].sum(1) >= 2
    kept[over] = kept[over][:, ::-1]

    texels, faces = np.unique(kept, return_inverse=True)
    uv = np.stack([(texels % size + 0.5) / size, 1 - (texels // size + 0.5) / size], 1)
    return DenseGrid(texels, faces.reshape(-1, 3), uv.astype(np.float32))


@lru_cache(maxsize=4)
def displaced_grid(bundle: AssetBundle) -> DenseGrid:
    """The part of `dense_grid` that a displacement can move: a third of it on a whole head."""
    grid = dense_grid(bundle)
    moving = ((bundle.face_eye_mask > 0) | (bundle.fixed_displacement != 0)).ravel()[grid.texels]
    used, faces = np.unique(grid.faces[moving[grid.faces].any(axis=1)], return_inverse=True)
    return DenseGrid(grid.texels[used], faces.reshape(-1, 3), grid.uv[used])


@lru_cache(maxsize=4)
def padding(bundle: AssetBundle, size: int = UV_SIZE) -> Int:
    """For every texel the nearest covered one, (size * size,): what is filtered at a seam is then skin, not black."""
    from scipy.ndimage import distance_transform_edt

    empty = np.ones(size * size, bool)
    empty[UVAtlas(bundle, size).texels.numpy()] = False
    rows, columns = distance_transform_edt(empty.reshape(size, size), return_distances=False, return_indices=True)
    return np.asarray((rows * size + columns).ravel(), np.int64)
