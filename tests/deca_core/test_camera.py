"""Projection against the reference's answers; the gradient of the camera."""

from __future__ import annotations

import torch

from deca_core.camera import fit_camera, from_pixels, project, to_pixels
from tests.deca_core.conftest import assert_close


def test_golden_projection(golden):
    answer = golden("posed_head.npz")
    vertices = torch.from_numpy(answer["vertices"])
    assert_close(project(vertices, torch.from_numpy(answer["cam"])), answer["projected"])


def test_pixels_of_the_image_corners():
    assert to_pixels(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [0, 112, 224]
    assert from_pixels(torch.tensor([0.0, 112.0, 224.0])).tolist() == [-1, 0, 1]


def test_the_fitted_camera_is_the_one_that_took_the_image_and_the_best_one_else():
    generator = torch.Generator().manual_seed(1)
    points = 0.1 * torch.randn(3, 68, 3, dtype=torch.float64, generator=generator)
    cam = torch.tensor([[8.0, 0.01, -0.02], [5.0, 0.0, 0.03], [7.0, -0.05, 0.0]], dtype=torch.float64)
    seen = project(points, cam)[..., :2]
    torch.testing.assert_close(fit_camera(points, seen), cam)
    noisy = seen + 0.1 * torch.randn(seen.shape, dtype=torch.float64, generator=generator)
    best = fit_camera(points, noisy).requires_grad_()
    (project(points, best)[..., :2] - noisy).square().sum().backward()
    assert best.grad.abs().max() < 1e-9


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    cam = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(project, (points, cam))
