"""Every loss of the reference's golden file, against its answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from deca_core import losses


@pytest.fixture(scope="module")
def answer(golden) -> dict[str, np.ndarray]:
    return {**golden("posed_head.npz"), **golden("losses.npz")}


def tensor(answer: dict[str, np.ndarray], name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(answer[name]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "loss", "inputs"),
    [
        ("weighted_landmark", losses.landmark, ("landmarks_gt", "landmarks_pred")),
        ("eye_distance", losses.eye_closure, ("landmarks_gt", "landmarks_pred")),
        ("lip_distance", losses.lip_distance, ("landmarks_gt", "landmarks_pred")),
        ("shading_smooth", losses.shading_smoothness, ("shading",)),
        ("mrf", losses.mrf_distance, ("mrf_gen", "mrf_target")),
        ("symmetry_sum", losses.soft_symmetry, ("uv_z", "vis_mask")),
    ],
)
def test_loss(answer, name, loss, inputs, dtype):
    value = loss(*(tensor(answer, key, dtype) for key in inputs))
    assert value.dtype == dtype
    assert float(value) == pytest.approx(float(answer[name]), rel=1e-5)


def test_unweighted_landmarks(answer):
    """The table of weights divided out of the landmarks' own weights leaves the plain loss."""
    target = tensor(answer, "landmarks_gt").clone()
    target[..., 2] /= losses.landmark_weights(target)
    assert float(losses.landmark(target, tensor(answer, "landmarks_pred"))) == pytest.approx(
        float(answer["landmark"]), rel=1e-5
    )


def test_erosion(answer):
    eroded = losses.erode(tensor(answer, "vis_mask"))
    torch.testing.assert_close(1 - eroded, tensor(answer, "nonvis_mask"), rtol=0, atol=0)
