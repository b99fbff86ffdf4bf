"""Albedo files in every layout that their makers write, against indexing by hand; and what must not pass for albedo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deca_core.assets import BundleError
from deca_core.assets.albedo import read_albedo

SIDE, COUNT = 16, 53
NEAREST = np.arange(256) * SIDE // 256


@pytest.fixture(scope="module")
def model() -> tuple[np.ndarray, np.ndarray]:
    """Mean (S, S, 3) and components (S, S, 3, K), blue first, exact in half precision."""
    rng = np.random.default_rng(5)
    mean = rng.integers(1, 64, (SIDE, SIDE, 3)) / 64
    return mean, rng.integers(-32, 32, (SIDE, SIDE, 3, COUNT)) / 256


def as_flat(mean: np.ndarray, basis: np.ndarray) -> dict[str, np.ndarray]:
    """BFM_to_FLAME: a flat vector and a matrix."""
    return {"MU": mean.reshape(-1), "PC": basis.reshape(-1, COUNT)}


LAYOUTS: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]] = {
    "flat": as_flat,
    "row": lambda mean, basis: as_flat(mean, basis) | {"MU": mean.reshape(1, -1)},
    "column": lambda mean, basis: as_flat(mean, basis) | {"MU": mean.reshape(-1, 1)},
    "square": lambda mean, basis: {"MU": mean, "PC": basis},
    "square mean, flat components": lambda mean, basis: as_flat(mean, basis) | {"MU": mean},
    "AlbedoMM": lambda mean, basis: {"MU": mean, "PC": basis, "specMU": mean, "specPC": basis[..., :3]},
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f8"])
def test_every_layout_gives_the_same_maps(tmp_path, model, layout, order, dtype):
    path = tmp_path / "albedo.npz"
    arrays = {key: np.asarray(value, dtype, order=order) for key, value in LAYOUTS[layout](*model).items()}
    (np.savez if dtype == "f8" else np.savez_compressed)(path, **arrays)
    found = read_albedo(path)
    mean, basis = (array[np.ix_(NEAREST, NEAREST)][:, :, ::-1] for array in model)
    np.testing.assert_array_equal(found["albedo_mean"], mean.transpose(2, 0, 1).astype(np.float32))
    np.testing.assert_array_equal(found["albedo_basis"], basis[..., :50].transpose(3, 2, 0, 1).astype(np.float32))
    assert all(array.dtype == np.float32 for array in found.values())


def with_one(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.copy()
    changed.flat[0] = value
    return changed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda mu, pc: {"MU": mu * 255, "PC": pc * 255},
            r"MU lies in 3\.98 to 251, .*0 to 1 is wanted; divide MU and PC",
        ),
        (lambda mu, pc: {"MU": mu, "PC": pc * 255}, r"component \d+ of PC changes the albedo by 19\.\d .*PC by 255"),
        (lambda mu, pc: {"MU": mu / 255, "PC": pc / 255}, r"MU lies in 6\.13e-05 to 0\.00386"),
        (lambda mu, pc: {"MU": mu * 2 - 1, "PC": pc}, r"MU lies in -0\.969 to"),
        (lambda mu, pc: {"MU": mu * 0, "PC": pc}, "MU is zero everywhere"),
        (lambda mu, pc: {"MU": mu, "PC": pc * 0}, "PC is zero everywhere"),
        (lambda mu, pc: {"MU": with_one(mu, np.nan), "PC": pc}, "MU holds NaN or infinity"),
        (lambda mu, pc: {"MU": mu, "PC": with_one(pc, np.inf)}, "PC holds NaN or infinity"),
        (lambda mu, pc: {"MU": (mu * 255).astype(np.uint8), "PC": pc}, r"MU has shape \(16, 16, 3\) and type uint8"),
        (lambda mu, pc: {"MU": mu[:-1], "PC": pc}, r"MU has shape \(15, 16, 3\)"),
        (lambda mu, pc: {"MU": mu, "PC": pc[:-1]}, r"PC has shape \(15, 16, 3, 53\)"),
        (lambda mu, pc: {"MU": mu, "PC": pc[..., :49]}, r"PC has shape \(16, 16, 3, 49\) .*50 or more"),
        (lambda mu, pc: {"MU": mu.reshape(2, -1), "PC": pc}, r"MU has shape \(2, 384\)"),
        (
            lambda mu, pc: {"mean": mu * 255, "tex_dir": pc},
            r"FLAME's texture space.*Needed is FLAME_albedo_from_BFM\.npz",
        ),
        (lambda mu, pc: {"MU": mu, "texPC": pc}, r"without MU and PC \(it has MU, texPC\)"),
    ],
)
def test_what_is_no_albedo_is_named(tmp_path, model, change, says):
    path = tmp_path / "FLAME_albedo_from_BFM.npz"
    np.savez(path, **change(*model))
    with pytest.raises(BundleError, match=rf"FLAME_albedo_from_BFM\.npz: .*{says}"):
        read_albedo(path)


def test_an_archive_that_is_cut_short(tmp_path: Path, model):
    path = tmp_path / "albedo.npz"
    np.savez(path, **as_flat(*model))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(BundleError, match=r"albedo\.npz: a damaged archive: cut short after \d+ bytes"):
        read_albedo(path)
