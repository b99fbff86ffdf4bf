"""Visibility kernels against the reference definition; Triton's by its interpreter, and on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deca_core.raster import rasterize

ROOT = Path(__file__).resolve().parents[2]
needs_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="triton is not installed")


def random_triangles(seed: int, count: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    centres = rng.uniform(-1.2, 1.2, (2, count, 1, 3))
    vertices = (centres + rng.normal(0, 0.15, (2, count, 3, 3))).reshape(2, -1, 3)
    return torch.from_numpy(vertices), torch.arange(3 * count).reshape(-1, 3)


def grid_mesh(cells: int, depth: NDArray) -> tuple[torch.Tensor, torch.Tensor]:
    """A square of 2 x cells^2 triangles that fills the image; depth (cells + 1, cells + 1)."""
    line = np.linspace(-1, 1, cells + 1)
    vertices = np.stack([*np.meshgrid(line, line), depth], axis=-1).reshape(1, -1, 3).astype(np.float32)
    corner = (np.arange(cells)[:, None] * (cells + 1) + np.arange(cells)).ravel()
    upper = np.stack([corner, corner + 1, corner + cells + 1], axis=-1)
    lower = np.stack([corner + 1, corner + cells + 2, corner + cells + 1], axis=-1)
    return torch.from_numpy(vertices), torch.from_numpy(np.concatenate([upper, lower]))


def cases() -> dict[str, tuple[torch.Tensor, torch.Tensor, int, int]]:
    """Meshes by name: vertices, faces, height, width."""
    rng = np.random.default_rng(5)
    found: dict[str, tuple[torch.Tensor, torch.Tensor, int, int]] = {}
    vertices, faces = random_triangles(7, 40)
    found["random"] = (vertices, faces, 12, 19)
    found["random in single precision"] = (vertices.float(), faces, 12, 19)
    # Corners on pixel centres: every pixel there is on edges of up to six faces.
    found["shared edges"] = (*grid_mesh(8, np.full((9, 9), 0.25)), 17, 17)
    found["shared edges, hilly"] = (*grid_mesh(5, rng.normal(0, 0.2, (6, 6))), 24, 24)
    # Slivers from a pixel's width down to nothing, along the diagonal and through pixel centres.
    width = torch.logspace(0, -16, 40, dtype=torch.float64) / 12
    along = torch.tensor([[-0.9, -0.9, 0], [0.9, 0.9, 0.1]], dtype=torch.float64).expand(40, 2, 3)
    tip = torch.stack([width / 2, -width / 2, -width], dim=-1)[:, None]
    found["slivers"] = (torch.cat([along, tip], 1).reshape(1, -1, 3), torch.arange(120).reshape(-1, 3), 24, 24)
    broken = vertices.clone()
    for index, value in enumerate((np.nan, np.inf, -np.inf, 1e38, 1e300)):
        broken[0, index::23, index % 3] = value
        broken[1, index::17, 2] = value
    found["not finite"] = (broken, faces, 11, 11)
    found["off the image"] = (vertices + torch.tensor([3.0, 0, 0]), faces, 12, 12)
    found["one face over all"] = (
        torch.tensor([[[-9.0, -9, 1], [9, -9, 1], [0, 9, 1]]]),
        torch.tensor([[0, 1, 2]]),
        14,
        19,
    )
    layers = torch.cat([grid_mesh(2, np.full((3, 3), depth))[0] for depth in (0.5, -0.0, 0.0, -0.5, -0.5)], dim=1)
    stacked = torch.cat([grid_mesh(2, np.zeros((3, 3)))[1] + 9 * layer for layer in (0, 2, 1, 4, 3)])
    found["equal depths"] = (layers, stacked, 12, 12)
    found["zeros of both signs"] = (layers[:, :27], stacked[:24], 12, 12)
    found["degenerate"] = (
        torch.tensor([[[0.0, 0, 0], [0, 0, 0], [0.5, 0.5, 0], [torch.nan, 0, 0], [0.9, -0.9, 0]]]),
        torch.tensor([[0, 1, 2], [2, 3, 4]]),
        8,
        8,
    )
    found["no faces"] = (vertices, faces[:0], 8, 8)
    return found


CASES = cases()
INTERPRET = """
import sys
import torch
from deca_core.raster import rasterize

cases = torch.load(sys.argv[1], weights_only=True)
torch.save({name: rasterize(*case, "triton") for name, case in cases.items()}, sys.argv[2])
"""


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory) -> dict[str, torch.Tensor]:
    """Face maps of CASES by the Triton kernel, which its interpreter runs on the CPU in a process of its own."""
    folder = tmp_path_factory.mktemp("triton")
    torch.save(CASES, folder / "cases.pt")
    command = [sys.executable, "-c", INTERPRET, folder / "cases.pt", folder / "answers.pt"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "answers.pt", weights_only=True)


@pytest.mark.parametrize("backend", ["numba", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("name", CASES)
def test_kernels_draw_what_the_reference_draws(backend, name, request):
    expected = rasterize(*CASES[name], "reference")
    got = request.getfixturevalue("interpreted")[name] if backend == "triton" else rasterize(*CASES[name], backend)
    assert got.dtype == torch.int64
    assert torch.equal(got, expected)


def test_the_reference_draws_the_cases_as_their_names_say():
    """Of equal depths the lower index wins; degenerate and non-finite triangles are not drawn."""
    seen = {name: (rasterize(*case, "reference") >= 0).float().mean() for name, case in CASES.items()}
    assert {name for name, share in seen.items() if share == 0} == {"off the image", "degenerate", "no faces"}
    for name in ("shared edges", "shared edges, hilly", "one face over all", "equal depths"):
        assert seen[name] == 1
    assert set(rasterize(*CASES["equal depths"], "reference").unique().tolist()) <= set(range(24, 32))
    assert set(rasterize(*CASES["zeros of both signs"], "reference").unique().tolist()) <= set(range(8, 16))


@pytest.mark.skipif(not importlib.util.find_spec("pytorch3d"), reason="pytorch3d is optional and not installed")
@pytest.mark.parametrize("seed", range(3))
def test_pytorch3d_agrees_with_the_reference(seed):
    vertices, faces = random_triangles(seed)
    expected = rasterize(vertices, faces, 40, 40, "reference")
    got = rasterize(vertices, faces, 40, 40, "pytorch3d")
    assert (got == expected).float().mean() >= 0.999
    assert (expected >= 0).float().mean() > 0.5


def test_unknown_backend_is_named():
    with pytest.raises(ValueError, match="unknown rasteriser 'opengl'"):
        rasterize(torch.zeros(1, 3, 3), torch.tensor([[0, 1, 2]]), 8, 8, "opengl")


@needs_triton
def test_triton_asks_for_a_gpu():
    with pytest.raises(ValueError, match=r"draws on a GPU, these vertices are on cpu; choose backend='numba'"):
        rasterize(torch.zeros(1, 3, 3), torch.tensor([[0, 1, 2]]), 8, 8, "triton")


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("capability", [75, 90])
def test_the_triton_kernel_compiles_for_gpus(capability, tmp_path, monkeypatch):
    """Down to machine code, with no GPU: one atomic minimum, and no fused multiply-add that would open cracks."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from deca_core.raster import triton_kernel as kernel

    pointers = {"vertices": "*fp32", "faces": "*i64", "words": "*i64"}
    sizes = dict.fromkeys(("num_vertices", "num_faces", "height", "width"), "i32")
    constants = {"min_area": kernel.MIN_AREA, "block": kernel.FACES, "tile": kernel.TILE}
    signature = {**pointers, **sizes, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(kernel._draw, signature, constexprs=constants)
    target = GPUTarget("cuda", capability, 32)
    made = triton.compile(source, target=target, options={**kernel.OPTIONS})
    assert set(re.findall(r"\b(?:atom|red)\.[\w.]*s64", made.asm["ptx"])) == {"atom.global.gpu.relaxed.min.s64"}
    assert not re.search(r"\bfma\.", made.asm["ptx"])
    assert len(made.asm["cubin"]) > 1000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_triton_on_a_gpu(name):
    vertices, faces, height, width = CASES[name]
    seen = rasterize(vertices.cuda(), faces.cuda(), height, width)
    assert seen.is_cuda
    assert torch.equal(seen.cpu(), rasterize(vertices, faces, height, width, "reference"))
