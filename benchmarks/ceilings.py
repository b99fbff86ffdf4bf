"""This machine's ceilings: `python -m benchmarks.ceilings`.

Matrix products, memory copies and JPEG decoding, in the same process and with the same number of threads as the work
that is compared with them. Each figure is the best of many short pieces, since other processes lower the others. The
first two need torch alone.
"""

from __future__ import annotations

import io
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import parser, save

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Side of the square matrices: the fastest of them is the ceiling. On a GPU small ones measure the launch alone.
SIDES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
PIECE = 0.02  # least seconds of a piece: shorter than a time slice of a busy machine
COPIED = {"cpu": 256 * 2**20, "cuda": 4 * 2**30}  # bytes: beyond every cache

Settings = dict[str, Any]


def gemm(dtype: str = "fp32", seconds: float = 1.0, device: str = "cpu") -> float:
    """GFLOP/s of matrix products in `dtype` ("fp32", "bf16", "fp16"), with torch's current number of threads.

    A product of two (n, n) matrices counts 2 n^3 operations. seconds: of the search for the best piece.
    """
    kind, best = torch.device(device), 0.0
    generator = torch.Generator(kind).manual_seed(0)
    sides = SIDES[kind.type]
    with torch.inference_mode():
        for side in sides:
            a, b = (torch.randn(side, side, generator=generator, device=kind).to(DTYPES[dtype]) for _ in range(2))
            out = torch.empty_like(a)
            rate = best_rate(partial(torch.mm, a, b, out=out), seconds / len(sides), device)
            best = max(best, 2 * side**3 * rate / 1e9)
            if rate * seconds < 1:  # this precision is emulated here: larger products take a minute and gain nothing
                break
    return best


def copy(seconds: float = 0.5, device: str = "cpu") -> float:
    """GB/s of a copy from memory to memory, read and written bytes counted (as STREAM does), with torch's threads."""
    kind = torch.device(device)
    source = torch.ones(COPIED[kind.type] // 4, device=kind)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 * best_rate(lambda: target.copy_(source), seconds, device) / 1e9


def jpeg_decode(seconds: float = 0.5, size: int = 512, threads: int = 1) -> float:
    """Images/s of decoding a photograph-like JPEG, size x size, quality 92; in `threads` threads of this process."""
    from torchvision.io import ImageReadMode, decode_jpeg

    data = torch.frombuffer(bytearray(jpeg(size)), dtype=torch.uint8)
    images = max(1, int(2e6 / size**2)) * threads  # some 10 ms for each thread

    def decode(_: int) -> None:
        decode_jpeg(data, mode=ImageReadMode.RGB)

    with ThreadPoolExecutor(threads) as pool:
        return images * best_rate(lambda: list(pool.map(decode, range(images))), seconds)


def jpeg(size: int, seed: int = 0, quality: int = 92) -> bytes:
    """`photograph` as a JPEG of some 2.8 bits a pixel."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(photograph(size, seed)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def photograph(size: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise (size,size,3) with the falling spectrum of a photograph."""
    generator = np.random.default_rng(seed)
    frequency = (np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]) + 1 / size) ** 1.6
    grey, colour = (np.fft.irfft2(np.fft.rfft2(generator.standard_normal((size, size))) / frequency) for _ in range(2))
    layers = [grey + share * colour for share in (0.3, 0.0, -0.3)]
    image = np.stack([128 + 45 * (layer - layer.mean()) / layer.std() for layer in layers], axis=-1)
    return image.clip(0, 255).astype(np.uint8)


def best_rate(work: Callable[[], Any], seconds: float, device: str = "cpu") -> float:
    """Calls a second of `work`, the best of pieces of at least PIECE seconds, after one call to warm up."""
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    work()
    wait()
    calls, best, end = 1, 0.0, time.perf_counter() + seconds
    while True:
        started = time.perf_counter()
        for _ in range(calls):
            work()
        wait()
        now = time.perf_counter()
        if now - started < PIECE and now < end:
            calls *= 2
            continue
        best = max(best, calls / (now - started))
        if now >= end:
            return best


def measure(seconds: float = 1.0, device: str = "cpu") -> Settings:
    """Return all ceilings by name, with the machine and the number of threads."""
    threads = torch.get_num_threads()
    return {
        "machine": torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine(),
        "threads": threads,
        **{f"gemm_{dtype}_gflops": round(gemm(dtype, seconds, device), 1) for dtype in ("fp32", "bf16")},
        "copy_gb_per_second": round(copy(seconds / 2, device), 2),
        "jpeg_512_per_second": round(jpeg_decode(seconds / 2, 512, threads), 1),
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments.add_argument("--device", default="cpu")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    figures = measure(options.seconds, options.device)
    for name, value in figures.items():
        print(f"{name:<22} {value}")
    save(options, figures)


if __name__ == "__main__":
    main()
