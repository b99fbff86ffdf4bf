"""FLAME against the reference's answers, against smplx, and its gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deca_core.flame import FLAME, axis_angle, contour_bin, rotation_matrix
from tests.deca_core.conftest import assert_close


def test_golden_vertices_and_landmarks(mini, golden):
    answer = golden("posed_head.npz")
    head = FLAME(mini)(*(torch.from_numpy(answer[name]) for name in ("shape", "exp", "pose")))
    assert_close(head.vertices, answer["vertices"])
    assert_close(head.landmarks2d, answer["landmarks2d"])
    assert_close(head.landmarks3d, answer["landmarks3d"])


def test_agrees_with_smplx(mini):
    from smplx.lbs import lbs

    generator = torch.Generator().manual_seed(0)
    betas = torch.randn(3, 150, generator=generator, dtype=torch.float64)
    pose = 0.4 * torch.randn(3, 15, generator=generator, dtype=torch.float64)
    arrays = {name: torch.from_numpy(value) for name, value in mini.arrays().items() if value.dtype == np.float32}
    arrays = {name: value.double() for name, value in arrays.items()}
    expected, _ = lbs(
        betas,
        pose,
        arrays["v_template"],
        torch.cat([arrays["shape_basis"], arrays["exp_basis"]], dim=2),
        arrays["pose_basis"].reshape(-1, 36).T,
        arrays["joint_regressor"],
        torch.tensor([-1, 0, 1, 1, 1]),
        arrays["skin_weights"],
    )
    flame = FLAME(mini).double()
    head = flame(betas[:, :100], betas[:, 100:], pose[:, [0, 1, 2, 6, 7, 8]], neck=pose[:, 3:6], eyes=pose[:, 9:])
    assert_close(head.vertices, expected.numpy(), 1e-6)


def test_rotation_matrix_against_matrix_exponential():
    turns = torch.tensor([[0, 0, 0], [1e-5, 0, 0], [0.3, -0.2, 0.9], [3.1, 0.1, 0]], dtype=torch.float64)
    generators = torch.linalg.cross(turns[:, None], torch.eye(3, dtype=torch.float64)[None]).mT
    torch.testing.assert_close(rotation_matrix(turns), torch.linalg.matrix_exp(generators), atol=1e-9, rtol=0)


def test_axis_angle_against_scipy():
    from scipy.spatial.transform import Rotation

    turns = Rotation.random(50, rng=3).as_rotvec()
    turns[:4] = [[0, 0, 0], [1e-9, 0, 0], [0, 3.141592, 0], [-1.8, 1.8, 1.8]]  # at rest, nearly so, nearly half a turn
    found = axis_angle(torch.from_numpy(Rotation.from_rotvec(turns).as_matrix()))
    np.testing.assert_allclose(found.numpy(), turns, atol=1e-7)


def test_rotation_gradient_is_finite_at_rest():
    pose = torch.zeros(1, 3, requires_grad=True)
    rotation_matrix(pose).sum().backward()
    assert torch.isfinite(pose.grad).all()


@pytest.mark.parametrize(("degrees", "row"), [(0, 0), (10, 10), (38.8, 39), (80, 39), (-1, 40), (-25.2, 64), (-70, 78)])
def test_contour_bin_table(degrees, row):
    head = torch.zeros(1, 5, 3)
    head[0, 0, 1] = float(np.deg2rad(degrees))
    assert contour_bin(rotation_matrix(head)).item() == row


def test_gradcheck(mini):
    flame = FLAME(mini).double()
    flame.v_template = flame.v_template[::48]  # a few vertices are enough for a numeric gradient
    for name in ("shape_basis", "exp_basis", "pose_basis", "skin_weights"):
        setattr(flame, name, getattr(flame, name)[::48])
    flame.joint_regressor = flame.joint_regressor[:, ::48]
    for kind in ("static", "dynamic", "full"):
        setattr(flame, f"{kind}_triangles", getattr(flame, f"{kind}_triangles") % 12)
    generator = torch.Generator().manual_seed(1)
    codes = [0.3 * torch.randn(1, n, generator=generator, dtype=torch.float64) for n in (100, 50, 6)]

    def forward(*values):
        head = flame(*values)
        return head.vertices, head.landmarks2d, head.landmarks3d

    assert torch.autograd.gradcheck(forward, [code.requires_grad_() for code in codes])
