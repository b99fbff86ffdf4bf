"""Fixtures of the core's tests: the small head of the golden files, the procedural head, the shipped model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from deca_core import DECA
from deca_core.assets import procedural_head
from deca_core.assets.bundle import AssetBundle
from deca_core.checkpoint import SHIPPED, load_checkpoint
from deca_core.flame import FLAME


class Call:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


def mini_bundle(head: dict[str, np.ndarray], **changes: object) -> AssetBundle:
    """FLAME-format arrays of `mini_head.npz` as an AssetBundle."""
    plain = np.zeros((256, 256), np.float32)
    arrays = {
        "v_template": head["v_template"],
        "shape_basis": head["shapedirs"][:, :, :100],
        "exp_basis": head["shapedirs"][:, :, 300:350],
        "pose_basis": head["posedirs"],
        "joint_regressor": head["J_regressor"],
        "skin_weights": head["weights"],
        "faces": head["faces"],
        "uv": head["uv"],
        "uv_faces": head["faces"],
        "static_landmark_faces": head["static_lmk_faces_idx"],
        "static_landmark_bary": head["static_lmk_bary_coords"],
        "dynamic_landmark_faces": head["dynamic_lmk_faces_idx"],
        "dynamic_landmark_bary": head["dynamic_lmk_bary_coords"],
        "full_landmark_faces": head["full_lmk_faces_idx"][0],
        "full_landmark_bary": head["full_lmk_bary_coords"][0],
        "face_mask": plain + 1,
        "face_eye_mask": plain + 1,
        "fixed_displacement": plain,
    }
    cast = {k: v.astype(np.int64 if v.dtype.kind in "iu" else np.float32) for k, v in arrays.items()}
    return AssetBundle(name="mini", source="golden", **{**cast, **changes})


@pytest.fixture(scope="session")
def mini(golden) -> AssetBundle:
    return mini_bundle(golden("mini_head.npz"))


@pytest.fixture(scope="session")
def bundle() -> AssetBundle:
    return procedural_head()


@pytest.fixture(scope="session")
def flame(bundle) -> FLAME:
    return FLAME(bundle)


@pytest.fixture(scope="session")
def shipped(bundle) -> DECA:
    return load_checkpoint(SHIPPED, bundle)


def assert_close(actual: object, expected: np.ndarray, relative: float = 1e-4) -> None:
    """Agreement relative to the largest magnitude of the answer."""
    value = actual.detach().numpy() if hasattr(actual, "detach") else np.asarray(actual)
    assert value.shape == expected.shape
    error = np.abs(value - expected).max() / np.abs(expected).max()
    assert error <= relative, f"relative error {error:.2e}"
