"""Visibility kernels against the reference definition."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from deca_core.raster import rasterize


def random_triangles(seed: int, count: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    centres = rng.uniform(-1.2, 1.2, (2, count, 1, 3))
    vertices = (centres + rng.normal(0, 0.15, (2, count, 3, 3))).reshape(2, -1, 3)
    return torch.from_numpy(vertices), torch.arange(3 * count).reshape(-1, 3)


@pytest.mark.parametrize("backend", ["numba", "pytorch3d"])
@pytest.mark.parametrize("seed", range(3))
def test_backends_agree_with_the_reference(backend, seed):
    if backend == "pytorch3d" and not importlib.util.find_spec("pytorch3d"):
        pytest.skip("pytorch3d is optional and not installed")
    vertices, faces = random_triangles(seed)
    expected = rasterize(vertices, faces, 40, 40, "reference")
    got = rasterize(vertices, faces, 40, 40, backend)
    assert (got == expected).float().mean() >= 0.999
    assert (expected >= 0).float().mean() > 0.5


def test_nearest_face_wins_and_ties_go_to_the_lower_index():
    square = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    layers = [torch.cat([square, torch.full((4, 1), depth)], dim=1) for depth in (0.5, -0.5, -0.5)]
    vertices = torch.cat(layers)[None]
    faces = torch.cat([torch.tensor([[0, 1, 2], [0, 2, 3]]) + 4 * layer for layer in range(3)])
    for backend in ("numba", "reference"):
        seen = rasterize(vertices, faces, 8, 8, backend)
        assert set(seen.unique().tolist()) <= {2, 3}
        assert (seen >= 0).all()


def test_degenerate_and_non_finite_triangles_are_not_seen():
    vertices = torch.tensor([[[0.0, 0, 0], [0, 0, 0], [0.5, 0.5, 0], [float("nan"), 0, 0], [0.9, -0.9, 0]]])
    faces = torch.tensor([[0, 1, 2], [2, 3, 4]])
    for backend in ("numba", "reference"):
        assert (rasterize(vertices, faces, 8, 8, backend) == -1).all()


def test_unknown_backend_is_named():
    with pytest.raises(ValueError, match="unknown rasteriser 'opengl'"):
        rasterize(torch.zeros(1, 3, 3), torch.tensor([[0, 1, 2]]), 8, 8, "opengl")
