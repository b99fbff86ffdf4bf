"""Coarse and dense meshes, and OBJ, PLY and NPZ as trimesh and NumPy read them."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from deca_core.detail import RIM_BOTTOM, RIM_LEFT, RIM_RIGHT, RIM_TOP
from deca_core.export.grid import charts, dense_grid, texel_faces
from deca_core.export.maps import jpeg, png_of_displacement, tangent_normals, texture
from deca_core.export.mesh import ExportError, coarse_mesh, dense_mesh
from deca_core.export.obj import mtl, npz, npz_arrays, obj, ply, vertex_colours

HEAD = 1  # of the batch


def m_prime(model, heads) -> np.ndarray:
    """M' of eq. 10 texel by texel, (256,256,3) float64, from faces and barycentrics; nan where no face is."""
    vertices = heads.vertices[HEAD].double()
    faces = model.faces
    area = torch.linalg.cross(
        vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]]
    )
    normals = torch.zeros_like(vertices)
    for corner in range(3):
        normals.index_add_(0, faces[:, corner], area)
    normals = normals / normals.norm(dim=1, keepdim=True).clamp(min=1e-6)
    corners, bary = model.atlas.triangles, model.atlas.bary.double()[..., None]
    depth = (heads.z[HEAD, 0] * model.mask + model.fixed_displacement).flatten()[model.atlas.texels].double()
    points = (vertices[corners] * bary).sum(1) + depth[:, None] * (normals[corners] * bary).sum(1)
    found = torch.full((256 * 256, 3), torch.nan, dtype=torch.float64)
    found[model.atlas.texels] = points
    return found.view(256, 256, 3).numpy()


@pytest.fixture(scope="module")
def dense(model, heads):
    return dense_mesh(model, heads, HEAD)


def boundary_edges(faces: np.ndarray) -> int:
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    return int((np.unique(edges, axis=0, return_counts=True)[1] == 1).sum())


def test_the_dense_mesh_is_m_prime(model, heads, dense):
    grid = dense_grid(model.bundle)
    expected = m_prime(model, heads).reshape(-1, 3)[grid.texels]
    assert np.abs(dense.vertices - expected).max() < 1e-6
    assert np.abs(heads.z).max() > 1e-3  # so that a lost displacement would show
    assert len(dense.vertices) > 50_000


def test_its_triangles_are_those_of_the_grid_on_one_chart(model):
    bundle, grid = model.bundle, dense_grid(model.bundle)
    chart = np.full(256 * 256, -1)
    chart[model.atlas.texels.numpy()] = charts(bundle)[texel_faces(bundle)]
    chart = chart.reshape(256, 256)
    expected = set()
    for y in range(RIM_TOP, 256 - RIM_BOTTOM):
        for x in range(RIM_LEFT, 256 - RIM_RIGHT):
            for corners in (((y, x), (y + 1, x), (y, x + 1)), ((y, x + 1), (y + 1, x), (y + 1, x + 1))):
                own = {chart[corner] for corner in corners}
                if len(own) == 1 and own != {-1}:
                    expected.add(tuple(row * 256 + column for row, column in corners))
    assert {tuple(face) for face in grid.texels[grid.faces].tolist()} == expected


def test_its_faces_look_outwards(dense):
    a, b, c = (dense.vertices[dense.faces[:, corner]].astype(np.float64) for corner in range(3))
    area = np.cross(b - a, c - a)
    facing = (area * dense.normals[dense.faces].mean(1)).sum(1) > 0
    assert np.linalg.norm(area[facing], axis=1).sum() > 0.99 * np.linalg.norm(area, axis=1).sum()


def test_obj_is_as_closed_as_the_head(model, heads, dense, tmp_path):
    mesh = coarse_mesh(model, heads, HEAD)
    (tmp_path / "head.obj").write_bytes(obj(mesh, "ann", "head.mtl"))
    (tmp_path / "head.mtl").write_bytes(mtl("texture.png", "normals.png", "displacement.png", 0.01))
    Image.new("RGB", (4, 4), "red").save(tmp_path / "texture.png")
    plain = trimesh.load(tmp_path / "head.obj", process=False, maintain_order=True)
    assert plain.visual.uv.min() >= 0
    assert plain.visual.uv.max() <= 1
    assert plain.visual.material.image.size == (4, 4)
    # trimesh cuts vertices at seams; joined by place they are the head's again.
    read = trimesh.load(tmp_path / "head.obj", skip_materials=True)
    read.merge_vertices(merge_tex=True, merge_norm=True, digits_vertex=9)
    assert boundary_edges(read.faces) == boundary_edges(model.bundle.faces)
    assert sum(part.is_watertight for part in read.split(only_watertight=False)) == 2  # the eyeballs
    places = trimesh.load(tmp_path / "head.obj", process=False, maintain_order=True).vertices
    nearest = np.linalg.norm(places[:, None, :] - mesh.vertices[None, ::40], axis=2).min(0)
    assert nearest.max() < 1e-7

    (tmp_path / "dense.obj").write_bytes(obj(dense, "ann"))
    again = trimesh.load(tmp_path / "dense.obj", process=False, maintain_order=True)
    assert np.abs(again.vertices - dense.vertices).max() < 1e-6
    assert np.array_equal(again.faces, dense.faces)


def test_ply_contains_normals_and_colours(model, heads, tmp_path):
    mesh = coarse_mesh(model, heads, HEAD)
    image = np.zeros((256, 256, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(256)[None], np.arange(256)[:, None]
    colours = vertex_colours(mesh, image)
    (tmp_path / "head.ply").write_bytes(ply(mesh, colours))
    read = trimesh.load(tmp_path / "head.ply", process=False)
    assert np.array_equal(read.vertices.astype(np.float32), mesh.vertices)
    assert np.array_equal(read.faces, mesh.faces)
    assert np.array_equal(read.visual.vertex_colors[:, :3], colours)
    assert np.allclose(read.vertex_normals, mesh.normals, atol=1e-3)
    # The tip of the nose is in the middle of the map; red and green encode its place.
    tip = colours[mesh.vertices[:, 2].argmax()]
    u, v = mesh.uv[mesh.uv_faces[mesh.faces == mesh.vertices[:, 2].argmax()][0]]
    assert np.abs(tip[:2].astype(float) - [u * 256, (1 - v) * 256]).max() <= 1
    (tmp_path / "plain.ply").write_bytes(ply(mesh))
    assert np.array_equal(trimesh.load(tmp_path / "plain.ply", process=False).faces, mesh.faces)


def test_npz_contains_everything_and_is_the_same_twice(model, heads, codes, dense):
    values = {name: value[HEAD].numpy() for name, value in codes.items()}
    arrays = npz_arrays(coarse_mesh(model, heads, HEAD), dense, heads.displacement[HEAD, 0].numpy(), values)
    data = npz(arrays)
    assert data == npz(arrays)
    with np.load(io.BytesIO(data), allow_pickle=False) as read:
        assert {"vertices", "uv_faces", "dense_vertices", "displacement", "shape", "light"} <= set(read.files)
        assert np.array_equal(read["vertices"], heads.vertices[HEAD].numpy())
        assert np.array_equal(read["dense_faces"], dense.faces)
        assert np.array_equal(read["exp"], values["exp"])


def test_several_heads_and_what_is_not_finite_make_no_file(model, heads, codes):
    for make in (coarse_mesh, dense_mesh, tangent_normals):
        with pytest.raises(ExportError, match=f"{make.__name__}: 3 heads, a file holds one"):
            make(model, heads)
        with pytest.raises(ExportError, match="no head 3 among 3"):
            make(model, heads, 3)
    spoilt = dataclasses.replace(heads, vertices=heads.vertices * torch.tensor(float("nan")))
    with pytest.raises(ExportError, match="mesh: vertices is not finite"):
        coarse_mesh(model, spoilt, HEAD)
    mesh = coarse_mesh(model, heads, HEAD)
    values = {name: value[HEAD].numpy() for name, value in codes.items()}
    with pytest.raises(ExportError, match="npz: displacement is not finite"):
        npz_arrays(mesh, None, heads.displacement[HEAD, 0].numpy() * np.nan, values)
    with pytest.raises(ExportError, match="npz: light is not finite"):
        npz_arrays(mesh, None, heads.displacement[HEAD, 0].numpy(), values | {"light": np.full((9, 3), np.inf)})
    with pytest.raises(ExportError, match="expected uint8"):
        ply(mesh, np.ones_like(mesh.vertices))
    with pytest.raises(ExportError, match="lies outside the limit"):
        png_of_displacement(torch.full((4, 4), 0.011), 0.01)
    with pytest.raises(ExportError, match="expected one image"):
        jpeg(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ExportError, match="not finite"):
        jpeg(torch.full((3, 8, 8), float("nan")))
    with pytest.raises(ExportError, match="3 codes, 3 heads and 2 images"):
        texture(model, codes, heads, torch.zeros(2, 3, 256, 256))


def test_displacement_pngs_are_metres_by_the_words_of_the_material(heads):
    limit = 0.01
    read = np.asarray(Image.open(io.BytesIO(png_of_displacement(heads.displacement[HEAD, 0], limit))))
    assert read.dtype == np.uint16
    words = next(line for line in mtl("a", "b", "c", limit).decode().splitlines() if line.startswith("disp")).split()
    base, gain = float(words[2]), float(words[3])
    assert np.abs(base + gain * (read / 65535) - heads.displacement[HEAD, 0].numpy()).max() <= gain / 65535 / 2 * 1.01


def test_modules_need_nothing_but_torch_and_numpy_at_import():
    folder = Path(dense_mesh.__code__.co_filename).parent
    for path in folder.glob("*.py"):
        top = [
            line.split()[1].split(".")[0]
            for line in path.read_text().splitlines()
            if line.startswith(("import ", "from "))
        ]
        assert not set(top) & {"PIL", "scipy", "trimesh", "pygltflib"}, path
