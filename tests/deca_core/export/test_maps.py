"""Base colours and tangent-space normals against what is known about simple cases."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from deca_core.export.grid import displaced_grid, split_of
from deca_core.export.maps import (
    jpeg,
    png_of_normals,
    shown,
    surface_gradient,
    tangent_normals,
    texture,
    vertex_tangents,
)
from deca_core.export.mesh import surface_at
from deca_core.render import vertex_normals
from deca_core.uv import image_on_uv


def test_the_gradient_of_a_linear_field_is_its_slope_along_the_surface():
    """A sphere: the field s . p has the gradient s - (s . n) n."""
    import trimesh

    sphere = trimesh.creation.icosphere(subdivisions=4)
    points, faces = torch.from_numpy(sphere.vertices.copy()), torch.from_numpy(sphere.faces.astype(np.int64))
    slope = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    found = surface_gradient(points, points @ slope, faces)
    expected = slope - (points @ slope)[:, None] * points
    assert (found - expected).norm(dim=1).max() < 0.02 * slope.norm()


def test_tangents_follow_u_and_v(model, heads):
    """Along a tangent only u grows: checked on the surface by its own texels, half a centimetre apart."""
    bundle = model.bundle
    vertices = heads.vertices[:1]
    tangents = vertex_tangents(bundle, vertices, vertex_normals(vertices, model.faces))
    assert torch.allclose(tangents[..., :3].norm(dim=-1), torch.ones(1), atol=1e-5)
    assert (tangents[..., 3] == 1).all()  # no chart of this atlas is mirrored
    positions = model.atlas(vertices)[0]
    rows, columns = torch.meshgrid(torch.arange(80, 180, 7), torch.arange(80, 180, 7), indexing="ij")
    along_u = functional.normalize(positions[:, rows, columns + 1] - positions[:, rows, columns - 1], dim=0)
    place = torch.from_numpy(np.searchsorted(model.atlas.texels.numpy(), (rows * 256 + columns).numpy()))
    corner = model.atlas.triangles[place][..., 0]
    split = {int(v): i for i, v in enumerate(split_of(bundle).vertex)}
    at = torch.tensor([[split[int(v)] for v in row] for row in corner])
    cosine = (tangents[0, at, :3].permute(2, 0, 1) * along_u).sum(0)
    assert cosine.median() > 0.98
    assert (cosine > 0.5).float().mean() > 0.93  # a step may lead across the hole of an eye


def test_without_displacement_the_map_is_flat(model, heads):
    flat = dataclasses.replace(heads, z=torch.zeros_like(heads.z))
    found = tangent_normals(model, flat, 0)
    assert torch.allclose(found[2], torch.ones(()), atol=1e-4)
    assert found[:2].abs().max() < 2e-3


def test_a_slope_tilts_the_normal_downhill(model, heads):
    """Displacement that grows with u by 2 mm over the map leans normals by -dd/du / |dP/du|; along v likewise."""
    ramp = torch.linspace(0, 2e-3, 256)
    inside = (slice(90, 110), slice(100, 156))  # forehead to nose: within the mask
    positions = model.atlas(heads.vertices[:1])[0].permute(1, 2, 0)
    steps = (
        positions[90:110, 101:157] - positions[90:110, 99:155],
        positions[89:109, 100:156] - positions[91:111, 100:156],
    )
    step = ramp[1] - ramp[0]
    for axis, slope in enumerate((ramp.expand(3, 1, 256, 256), ramp.flip(0)[:, None].expand(3, 1, 256, 256))):
        found = tangent_normals(model, dataclasses.replace(heads, z=slope), 0)
        expected = -step / (steps[axis].norm(dim=-1) / 2)
        assert (found[axis][inside] / expected).median() == pytest.approx(1, abs=0.1)
        assert found[1 - axis][inside].abs().median() < 0.5 * expected.abs().median()  # u and v are not square


def test_the_map_turns_smooth_normals_into_those_of_m_prime(model, heads):
    """Independent: the triangles of M' against those of M, whose facets cancel in the difference."""
    grid = displaced_grid(model.bundle)
    texels, faces = torch.from_numpy(grid.texels), torch.from_numpy(grid.faces)
    points, normal = surface_at(model, heads.vertices[:1], texels)
    normal = functional.normalize(normal, dim=-1)
    depth = (heads.z[0, 0] * model.mask).flatten()[texels, None]
    before = vertex_normals(points[None] * 1000, faces)[0]
    after = vertex_normals((points + depth * normal)[None] * 1000, faces)[0]
    coded = tangent_normals(model, heads, 0).flatten(1)[:, texels].T
    tilt, expected = coded[:, 2].clamp(max=1).acos(), (before * after).sum(1).clamp(max=1).acos()
    middle = (model.mask.flatten()[texels] > 0.5) & (expected < 0.5)
    assert expected[middle].median() > 0.03  # radians: wrinkles that are there
    assert np.corrcoef(tilt[middle], expected[middle])[0, 1] > 0.9
    assert (tilt - expected)[middle].abs().median() < 0.2 * expected[middle].median()


def test_bytes_read_back(model, heads):
    normals = tangent_normals(model, heads, 0)
    read = np.asarray(Image.open(io.BytesIO(png_of_normals(normals)))).transpose(2, 0, 1) / 255 * 2 - 1
    assert np.abs(read - normals.numpy()).max() <= 1 / 255 + 1e-6
    image = functional.interpolate(torch.rand(1, 3, 8, 8), (64, 64), mode="bilinear")[0]
    read = np.asarray(Image.open(io.BytesIO(jpeg(image)))).transpose(2, 0, 1) / 255
    assert np.abs(read - image.numpy()).mean() < 0.02


@pytest.fixture(scope="module")
def turned(model, codes):
    """One face turned by 45 degrees to its left, under a green photograph."""
    own = codes[:1].replace(pose=torch.tensor([[0.0, np.pi / 4, 0, 0, 0, 0]]), exp=torch.zeros(1, 50))
    with torch.inference_mode():
        out = model.decode(own)
    green = torch.tensor([0.1, 0.9, 0.1])[None, :, None, None].expand(1, 3, 224, 224)
    return own, out, image_on_uv(model.atlas, out.projected, green)


def test_an_image_is_trusted_where_skin_faces_the_camera(model, turned):
    own, out, _ = turned
    weight = shown(model, own, out)[0, 0]
    facing = functional.normalize(model.atlas(vertex_normals(out.vertices, model.faces)), dim=1)[0, 2]
    on_face = model.mask > 0.99
    assert weight[on_face & (facing > 0.7)].median() == 1
    assert (weight[facing < 0.1] == 0).all()
    assert (weight[model.mask < 0.5] == 0).all()
    near = own.replace(cam=torch.tensor([[20.0, 0, 0]]))  # so near that the crop shows a nose
    with torch.inference_mode():
        beyond = model.decode(near)
    outside = model.atlas(beyond.projected)[0, :2].abs().amax(0) > 1
    assert outside.float().mean() > 0.3
    assert (shown(model, near, beyond)[0, 0][outside] == 0).all()


def test_what_another_part_hides_is_not_trusted(model, turned):
    """Independent: for skin that faces the camera, every triangle is tested for being in front of it."""
    own = turned[0].replace(pose=torch.tensor([[0.0, 1.0, 0, 0, 0, 0]]))
    with torch.inference_mode():
        out = model.decode(own)
    surface = model.atlas(torch.cat([out.vertices, vertex_normals(out.vertices, model.faces)], dim=-1))[0]
    facing = functional.normalize(surface[3:], dim=0)[2]
    rows, columns = torch.nonzero((model.mask > 0.99) & (facing > 0.55), as_tuple=True)
    points = surface[:3, rows, columns].T.double()[::5]
    a, b, c = (out.vertices[0, model.faces[:, corner]].double() for corner in range(3))
    nearer = torch.zeros(len(points), dtype=torch.float64)
    for index, point in enumerate(points):
        weights = torch.stack([_twice_area(point, b, c), _twice_area(point, c, a), _twice_area(point, a, b)])
        total = weights.sum(0)
        inside = (weights / total >= 0).all(0) & (total.abs() > 1e-14)
        depth = (weights * torch.stack([a[:, 2], b[:, 2], c[:, 2]])).sum(0) / total
        nearer[index] = (depth[inside] - point[2]).max() if inside.any() else 0
    weight = shown(model, own, out)[0, 0, rows, columns][::5]
    hidden, free = nearer > 0.008, nearer < 0.002
    assert hidden.sum() > 10
    assert (weight[hidden] < 0.05).float().mean() > 0.95
    assert (weight[free] > 0.5).float().mean() > 0.85


def _twice_area(point: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Of the triangles (point, b, c) seen along z."""
    return (b[:, 0] - point[0]) * (c[:, 1] - point[1]) - (b[:, 1] - point[1]) * (c[:, 0] - point[0])


def test_colours_are_the_images_and_meet_the_albedo_without_a_step(model, turned):
    own, out, image = turned
    found, weight = texture(model, own, out, image)[0], shown(model, own, out)[0]
    assert torch.allclose(found[:, weight[0] == 1], image[0][:, weight[0] == 1])
    covered = model.atlas(torch.ones_like(out.vertices))[0, 0] > 0
    assert (found[:, covered].amax(0) > 0.02).float().mean() > 0.99  # nothing is left black
    # Where the image begins to fade, the colour beyond is near it: the albedo is brought to it.
    rim = (weight[0] == 0) & (functional.max_pool2d(weight, 15, 1, 7)[0] > 0.5) & (model.mask > 0.5)
    assert (found[:, rim].mean(1) - torch.tensor([0.1, 0.9, 0.1])).abs().max() < 0.35


def test_without_an_image_it_is_the_albedo(model, codes, heads):
    found = texture(model, codes, heads)
    covered = (model.atlas(torch.ones_like(heads.vertices)) > 0).expand_as(found)
    assert torch.equal(found[covered], model.albedo(codes).clamp(0, 1)[covered])
    assert (found.amax(1) > 0).all()  # empty texels take a neighbour's colour
