"""The renderer against the reference's images; interpolation's gradient; UV transfer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deca_core.appearance import shading
from deca_core.detail import detail_normals, grid_normals
from deca_core.raster import rasterize
from deca_core.render import fragments, render_surface, vertex_normals
from deca_core.uv import UVAtlas, uv_to_grid
from tests.deca_core.conftest import assert_close


def share_within(actual: torch.Tensor, expected: np.ndarray) -> float:
    """Share of pixels whose every channel agrees to 1e-3."""
    error = np.abs(actual.detach().numpy() - expected).max(axis=1)
    return float((error <= 1e-3).mean())


def test_golden_images(mini, golden):
    answer = golden("posed_head.npz")
    projected, faces = torch.from_numpy(answer["projected"]), torch.from_numpy(mini.faces)
    normals = vertex_normals(torch.from_numpy(answer["vertices"]), faces)
    assert_close(normals, answer["vertex_normals"])
    visible = fragments(rasterize(projected, faces, 96, 96), projected, faces)
    uv_corners = torch.from_numpy(uv_to_grid(mini.uv)[mini.uv_faces])
    albedo, light, normal_image, alpha, grid = render_surface(
        visible, faces, uv_corners, normals, torch.from_numpy(answer["albedo"]), torch.from_numpy(answer["light"])
    )
    assert share_within(alpha, answer["alpha_images"]) >= 0.999
    assert share_within(grid, answer["grid"].transpose(0, 3, 1, 2)) >= 0.999
    assert share_within(normal_image, answer["normal_images"]) >= 0.999
    assert share_within(albedo, answer["albedo_images"]) >= 0.999
    shading_images = answer["shading_images"] * answer["alpha_images"]
    assert share_within(light, shading_images) >= 0.999
    assert share_within(albedo * light, answer["albedo_images"] * shading_images) >= 0.999


def test_golden_uv_transfer(mini, golden):
    answer = golden("posed_head.npz")
    positions = UVAtlas(mini, size=64)(torch.from_numpy(answer["vertices"])).numpy()
    # The reference leaves a hole where a texel's centre is exactly on an edge (here: one diagonal); ours does not.
    covered = np.abs(answer["uv_vertices"]).sum(axis=1) > 0
    assert covered.mean() > 0.7
    error = np.abs(positions - answer["uv_vertices"]).max(axis=1)[covered]
    assert (error <= 1e-5).mean() >= 0.999


def test_golden_detail_normals(golden):
    answer = {name: torch.from_numpy(value) for name, value in golden("posed_head.npz").items()}
    got = detail_normals(
        answer["uv_vertices"],
        answer["uv_normals"],
        answer["uv_z"],
        answer["mask"][0, 0],
        answer["fixed_displacement"],
    )
    assert_close(got, answer["detail_normals"].numpy())


def test_interpolation_gradcheck():
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor([[-0.8, -0.9, 0], [0.9, -0.7, 0.1], [-0.1, 0.8, -0.1], [0.9, 0.9, 0]], dtype=torch.float64)
    projected = corners[None].clone().requires_grad_()
    attributes = torch.randn(1, 4, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    faces = torch.tensor([[0, 1, 2], [1, 3, 2]])
    face_map = rasterize(projected, faces, 6, 6, backend="reference")
    assert (face_map == 0).any()
    assert (face_map == 1).any()

    def rendered(points, values):
        return fragments(face_map, points, faces).vertex_attributes(values, faces)

    assert torch.autograd.gradcheck(rendered, (projected, attributes))


def test_attributes_of_corners_and_of_vertices_are_the_same_where_no_seam_is():
    vertices, faces = bumpy_sheet()
    visible = fragments(rasterize(vertices, faces, 20, 30), vertices, faces)
    values = torch.randn(9, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    by_vertex = visible.vertex_attributes(values.expand(2, -1, -1), faces)
    assert torch.equal(visible.corner_attributes(values[faces]), by_vertex)
    assert torch.equal(visible.alpha > 0, (by_vertex != 0).any(1, keepdim=True))


def bumpy_sheet() -> tuple[torch.Tensor, torch.Tensor]:
    """Two 3 x 3 sheets in image space (2,9,3), float64, and their eight faces."""
    generator = torch.Generator().manual_seed(4)
    line = torch.linspace(-0.8, 0.8, 3, dtype=torch.float64)
    flat = torch.stack([*torch.meshgrid(line, line, indexing="xy"), torch.zeros(3, 3)], dim=-1).reshape(1, 9, 3)
    bumps = torch.randn(2, 9, 3, generator=generator, dtype=torch.float64) * 0.1
    corner = torch.tensor([0, 1, 3, 4])
    upper = torch.stack([corner, corner + 1, corner + 3], dim=1)
    lower = torch.stack([corner + 1, corner + 4, corner + 3], dim=1)
    return flat + bumps, torch.cat([upper, lower])


def test_gradient_of_an_image_by_finite_differences():
    """From vertices, albedo and light to the shaded image, at fixed visibility: what photometric training descends."""
    generator = torch.Generator().manual_seed(5)
    vertices, faces = bumpy_sheet()
    uv_corners = (vertices[0, :, :2] * 0.9)[faces]
    albedo = torch.rand(2, 3, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    light = torch.randn(2, 9, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    face_map = rasterize(vertices, faces, 7, 7)
    assert set(face_map.unique().tolist()) >= set(range(8))

    def rendered(points, colours, lamps):
        visible = fragments(face_map, points, faces)
        normals = vertex_normals(points, faces)
        colour, shade, *_ = render_surface(visible, faces, uv_corners, normals, colours, lamps)
        return colour * shade

    assert torch.autograd.gradcheck(rendered, (vertices.requires_grad_(), albedo, light))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slivers_have_finite_gradients(dtype):
    """A face of any thinness under a pixel, down to a line and to a point: a gradient no steeper than SLIVER_AREA's."""
    size = 224
    heights = torch.cat([torch.logspace(0, -20, 41), torch.zeros(2)]).to(dtype) / size
    # Each is across the centre of pixel (100, 100), some pixels long; the last one is a point.
    centre = torch.tensor([201 / size - 1, 201 / size - 1], dtype=dtype)
    corners = torch.tensor([[-0.02, -0.01], [0.03, 0.015], [0.001, 0.0005]], dtype=dtype).repeat(43, 1, 1)
    corners[:, 2, 1] += heights
    corners[-1] = 0
    vertices = torch.cat([corners + centre, torch.zeros(43, 3, 1, dtype=dtype)], dim=-1).requires_grad_()
    face_map = torch.full((43, size, size), -1)
    face_map[:, 100, 100] = 0
    visible = fragments(face_map, vertices, torch.tensor([[0, 1, 2]]))
    assert torch.isfinite(visible.bary).all()
    torch.testing.assert_close(visible.bary.sum(0), torch.ones(43, dtype=dtype))
    assert visible.bary.abs().max() < 2
    values = torch.tensor([[0.0], [1.0], [0.5]], dtype=dtype).expand(43, 3, 1)
    visible.vertex_attributes(values, torch.tensor([[0, 1, 2]])).sum().backward()
    assert vertices.grad is not None
    assert torch.isfinite(vertices.grad).all()
    edge, floor = 0.06, 1e-3 * 4 / size**2
    assert vertices.grad.abs().max() < 4 * edge / floor
    assert (vertices.grad[:5].abs().amax((1, 2)) > 0).all()  # those of some width do change the image


def test_an_empty_image_is_black_and_its_gradient_zero():
    vertices, faces = bumpy_sheet()
    vertices = (vertices + 5).requires_grad_()
    albedo = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    face_map = rasterize(vertices, faces, 6, 6)
    assert (face_map == -1).all()
    visible = fragments(face_map, vertices, faces)
    uv_corners, normals = vertices[0, :, :2].detach()[faces], vertex_normals(vertices, faces)
    light = torch.ones(2, 9, 3, dtype=torch.float64)
    colour, shade, normal_image, alpha, _ = render_surface(visible, faces, uv_corners, normals, albedo, light)
    assert not (colour * shade).any()
    assert not alpha.any()
    ((colour * shade).sum() + shading(normal_image, light).sum()).backward()
    assert not albedo.grad.any()
    assert vertices.grad is None or not vertices.grad.any()


def test_normals_of_a_point_have_a_finite_gradient():
    points = torch.zeros(1, 3, 16, 16, requires_grad=True)
    normals = grid_normals(points)
    assert not normals.any()
    normals.sum().backward()
    assert torch.isfinite(points.grad).all()
