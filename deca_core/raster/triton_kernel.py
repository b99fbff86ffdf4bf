"""Visibility on the GPU: every face is drawn into one 64-bit word a pixel, and the smallest word is the nearest face.

A word is the depth in its upper half and the face index in its lower half: one atomic minimum settles both, and the
answer does not depend on the order of the threads. The arithmetic is that of `rasterize_numba`, step by step.
"""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

from deca_core.raster.reference import MIN_AREA

# A program draws FACES neighbouring faces, each in squares of TILE x TILE pixels. The faces of a head (10 000 at 224
# pixels) lie in boxes of some 4 x 4 pixels, so most take one step. That is two tests a thread, in 94 registers; 64
# faces would take 255 and spill.
FACES, TILE = 16, 4
# Without fused multiply-add an edge is the same number seen from both its faces: no cracks between them.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
FARTHEST = torch.iinfo(torch.int64).max  # beyond every depth; its lower half reads as face -1


@triton.jit
def _span(a: tl.tensor, b: tl.tensor, c: tl.tensor, size: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """First pixel and number of pixels that the corners span along one axis; meaningless where one is not finite."""
    first = tl.ceil(tl.minimum(tl.minimum(a, b), c) - 0.5)
    last = tl.floor(tl.maximum(tl.maximum(a, b), c) - 0.5)
    # Held to the image before they become integers, which cannot hold any float.
    first = tl.minimum(tl.maximum(first, 0.0), size).to(tl.int32)
    last = tl.minimum(tl.maximum(last, -1.0), size - 1).to(tl.int32)
    return first, tl.maximum(last - first + 1, 0)


@triton.jit
def _edge(ax: tl.tensor, ay: tl.tensor, bx: tl.tensor, by: tl.tensor, x: tl.tensor, y: tl.tensor) -> tl.tensor:
    """Twice the signed area of (a, b, pixel): a, b of the faces, pixels (faces, pixels)."""
    return (ax[:, None] - x) * (by[:, None] - y) - (ay[:, None] - y) * (bx[:, None] - x)


@triton.jit
def _draw(
    vertices: tl.tensor,
    faces: tl.tensor,
    words: tl.tensor,
    num_vertices: int,
    num_faces: int,
    height: int,
    width: int,
    min_area: tl.constexpr,
    block: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """`block` faces of one image: vertices (B,V,3) float, faces (F,3) int64, words (B,H,W) int64."""
    image = tl.program_id(1).to(tl.int64)
    face = tl.program_id(0) * block + tl.arange(0, block)
    exists = face < num_faces
    corner = faces + face.to(tl.int64) * 3
    a = vertices + (image * num_vertices + tl.load(corner, mask=exists, other=0)) * 3
    b = vertices + (image * num_vertices + tl.load(corner + 1, mask=exists, other=0)) * 3
    c = vertices + (image * num_vertices + tl.load(corner + 2, mask=exists, other=0)) * 3
    # Pixels, in double precision as on the CPU: neighbours then agree on which of them covers a pixel.
    ax, ay = (tl.load(a).to(tl.float64) + 1) * width * 0.5, (tl.load(a + 1).to(tl.float64) + 1) * height * 0.5
    bx, by = (tl.load(b).to(tl.float64) + 1) * width * 0.5, (tl.load(b + 1).to(tl.float64) + 1) * height * 0.5
    cx, cy = (tl.load(c).to(tl.float64) + 1) * width * 0.5, (tl.load(c + 1).to(tl.float64) + 1) * height * 0.5
    az, bz, cz = tl.load(a + 2).to(tl.float64), tl.load(b + 2).to(tl.float64), tl.load(c + 2).to(tl.float64)

    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    drawn = exists & (tl.abs(area) > min_area) & (tl.abs(area) < float("inf"))  # false on NaN
    inverse = 1.0 / tl.where(drawn, area, 1.0)
    left, columns = _span(tl.where(drawn, ax, 0.0), tl.where(drawn, bx, 0.0), tl.where(drawn, cx, 0.0), width)
    top, rows = _span(tl.where(drawn, ay, 0.0), tl.where(drawn, by, 0.0), tl.where(drawn, cy, 0.0), height)
    across = (columns + tile - 1) // tile
    steps = tl.where(drawn, across * ((rows + tile - 1) // tile), 0)
    across = tl.maximum(across, 1)
    pixel = tl.arange(0, tile * tile)

    step, most = 0, tl.max(steps, axis=0)
    while step < most:
        x = (left + step % across * tile)[:, None] + (pixel % tile)[None, :]
        y = (top + step // across * tile)[:, None] + (pixel // tile)[None, :]
        inside = (step < steps)[:, None] & (x < (left + columns)[:, None]) & (y < (top + rows)[:, None])
        px, py = x.to(tl.float64) + 0.5, y.to(tl.float64) + 0.5
        wa = _edge(bx, by, cx, cy, px, py) * inverse[:, None]
        wb = _edge(cx, cy, ax, ay, px, py) * inverse[:, None]
        wc = _edge(ax, ay, bx, by, px, py) * inverse[:, None]
        depth = (wa * az[:, None] + wb * bz[:, None] + wc * cz[:, None]).to(tl.float32)
        inside = inside & (wa >= 0) & (wb >= 0) & (wc >= 0) & (tl.abs(depth) < float("inf"))
        # The bits of a positive float are ordered as an integer's; those of a negative one the other way round.
        bits = tl.where(depth == 0, 0.0, depth).to(tl.int32, bitcast=True)  # -0 is no nearer than +0
        order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
        place = (image * height + y) * width + x
        tl.atomic_min(words + place, (order << 32) | face[:, None].to(tl.int64), mask=inside, sem="relaxed")
        step += 1


def rasterize_triton(vertices: Tensor, faces: Tensor, height: int, width: int) -> Tensor:
    """Nearest face of every pixel, on the tensors' own device: vertices (B,V,3), faces (F,3) -> (B,H,W) int64.

    Same rules as `rasterize_reference`. Raises ValueError for tensors that are not on a GPU, but for Triton's
    interpreter (TRITON_INTERPRET=1 before Triton is imported), which takes those of the CPU.
    """
    compiled = isinstance(_draw, triton.JITFunction)
    if compiled and not vertices.is_cuda:
        raise ValueError(
            f"the rasteriser 'triton' draws on a GPU, these vertices are on {vertices.device}; choose backend='numba'"
        )
    vertices, faces = vertices.contiguous(), faces.to(vertices.device).contiguous()
    words = torch.full((len(vertices), height, width), FARTHEST, device=vertices.device)
    if words.numel() and len(faces):
        grid = (triton.cdiv(len(faces), FACES), len(vertices))
        sizes = (vertices.shape[1], len(faces), height, width)
        with torch.cuda.device(vertices.device) if compiled else contextlib.nullcontext():
            _draw[grid](vertices, faces, words, *sizes, MIN_AREA, FACES, TILE, **OPTIONS)
    return words << 32 >> 32  # the lower half, with its sign
