"""The hot path on a GPU: `python -m benchmarks.gpu`, from the checkout, with nothing but torch (numpy comes with it).

Images/s of the encoders, of F_d, of both, and of the whole path: JPEG bytes in memory, decoded (by torchvision, on the
GPU; without it the path begins at decoded images), cropped, encoded, displacement, 16-bit steps, back in pinned memory,
with two batches in flight so that copies overlap with computing. Weights are random, which costs the same. The networks
are those of deca_core/frozen.py in bf16 (--precision), linear layers in float32. Each runs eagerly and as a CUDA graph,
with --compile also by torch.compile (needs a C compiler). Shares are of the matrix products of that precision in the
same process. `--device cpu --quick` only shows that it runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import ceilings
from benchmarks.common import parser, save
from deca_core.codes import NUM_COARSE, NUM_DETAIL, Codes
from deca_core.detail import MAX_DISPLACEMENT, DetailDecoder
from deca_core.encoder import RESNET50, Encoder
from deca_core.frozen import FrozenDecoder, FrozenEncoder

SIZE, CROP = 512, 224  # pixels on a side of an image and of its crop
LEVELS = 2**16 - 1
IN_FLIGHT = 2  # batches

try:
    from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg
except ImportError:
    decode_jpeg = None

Work = Callable[[], Any]


class Networks(nn.Module):
    """E_c, E_d and F_d as the product runs them, from crops to 16-bit steps."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.coarse, self.fine = (
            FrozenEncoder(Encoder(outputs, RESNET50), dtype) for outputs in (NUM_COARSE, NUM_DETAIL)
        )
        self.decoder = FrozenDecoder(DetailDecoder(), torch.zeros(256, 256), dtype)
        self.eval().requires_grad_(False).to(device)

    def encode(self, images: Tensor) -> Tensor:
        """Crops (B,3,224,224) in [0, 1] to all codes (B,364)."""
        return torch.cat([self.coarse(images), self.fine(images)], dim=1)

    def levels(self, vectors: Tensor) -> Tensor:
        """Codes (B,364) to displacement maps (B,256,256) in 16-bit steps."""
        codes = Codes.from_vectors(*vectors.split([NUM_COARSE, NUM_DETAIL], dim=1))
        z = self.decoder(torch.cat([codes.jaw, codes.exp, codes.detail], dim=1))
        return ((z / MAX_DISPLACEMENT + 1) * (LEVELS / 2)).round().clamp(0, LEVELS).to(torch.int32).to(torch.uint16)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        vectors = self.encode(images)
        return vectors, self.levels(vectors)


def graphed(work: Work) -> Work:
    """Return the work as a CUDA graph; its inputs and outputs keep their addresses."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


# --- from bytes to bytes ----------------------------------------------------------------------------------------------


def images_in_memory(count: int, device: torch.device) -> list[Tensor]:
    """Return JPEG bytes, or without torchvision decoded images (3,512,512) on the device."""
    decoded = [torch.from_numpy(ceilings.photograph(SIZE, seed)).permute(2, 0, 1).contiguous() for seed in range(4)]
    if decode_jpeg is None:
        return [decoded[number % 4].to(device) for number in range(count)]
    packed = [encode_jpeg(image, quality=92) for image in decoded]
    return [packed[number % 4] for number in range(count)]


def crop(images: Tensor, transforms: Tensor) -> Tensor:
    """Return crops (B,3,224,224) in [0, 1] of images (B,3,H,W) of bytes; transforms (B,2,3) as in affine_grid."""
    grid = affine_grid(transforms, [len(images), 3, CROP, CROP], align_corners=False)
    return grid_sample(images.float() / 255, grid, align_corners=False)


@dataclass
class Slot:
    """One batch in flight."""

    images: Tensor
    run: Work
    host: tuple[Tensor, Tensor]
    stream: Any


class WholePath:
    """JPEG bytes to codes and maps in host memory, a batch per call."""

    def __init__(self, networks: Networks, batch: int, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"
        self.data = images_in_memory(batch, device)
        self.transforms = torch.tensor([[0.6, 0.1, 0.0], [-0.1, 0.6, 0.05]], device=device).expand(batch, 2, 3)
        self.slots = [self.slot(networks, batch) for _ in range(IN_FLIGHT)]
        self.calls = 0

    def slot(self, networks: Networks, batch: int) -> Slot:
        images = torch.zeros(batch, 3, CROP, CROP, device=self.device)
        run: Work = lambda: networks(images)  # noqa: E731
        if self.cuda:
            run = graphed(run)
        shapes = ((batch, NUM_COARSE + NUM_DETAIL), torch.float32), ((batch, 256, 256), torch.uint16)
        codes, maps = (torch.empty(shape, dtype=dtype, pin_memory=self.cuda) for shape, dtype in shapes)
        return Slot(images, run, (codes, maps), torch.cuda.Stream() if self.cuda else None)

    def decode(self) -> Tensor:
        if decode_jpeg is None:
            return torch.stack(self.data)
        if self.cuda:
            return torch.stack(decode_jpeg(self.data, mode=ImageReadMode.RGB, device=self.device))
        return torch.stack([decode_jpeg(one, mode=ImageReadMode.RGB) for one in self.data])

    def __call__(self) -> tuple[Tensor, Tensor]:
        slot = self.slots[self.calls % IN_FLIGHT]
        self.calls += 1
        if slot.stream is None:
            self.fill(slot)
            return slot.host
        slot.stream.synchronize()  # its last batch is in host memory and was read
        with torch.cuda.stream(slot.stream):
            self.fill(slot)
        return slot.host

    def fill(self, slot: Slot) -> None:
        slot.images.copy_(crop(self.decode(), self.transforms))
        for target, result in zip(slot.host, slot.run(), strict=True):
            target.copy_(result, non_blocking=True)


# --- the table --------------------------------------------------------------------------------------------------------


def count_flops(work: Work) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the images/s and share of the matrix products, by part and mode."""
    torch.manual_seed(0)
    device, batch = torch.device(options.device), options.batch
    ceiling = ceilings.gemm(options.precision, options.seconds, options.device) * 1e9
    networks = Networks(device, ceilings.DTYPES[options.precision])
    images = torch.rand(batch, 3, CROP, CROP, device=device)
    vectors = networks.encode(images)
    path = WholePath(networks, batch, device)
    parts: dict[str, Work] = {
        "encode": lambda: networks.encode(images),
        "F_d": lambda: networks.levels(vectors),
        "encode + F_d": lambda: networks(images),
    }
    rows = []

    def note(part: str, how: str, work: Work, flops: float) -> None:
        rate = batch * ceilings.best_rate(work, options.seconds, options.device)
        share = round(rate * flops / ceiling, 4) if flops else None
        rows.append({"part": part, "how": how, "images_per_second": round(rate, 1), "share_of_gemm": share})
        print(f"{part:<14} {how:<10} {rate:>12,.1f} images/s {share or '':>8}", flush=True)

    for part, work in parts.items():
        flops = count_flops(work) / batch
        note(part, "eager", work, flops)
        if path.cuda:
            note(part, "graph", graphed(work), flops)
        if options.compile:
            note(part, "compiled", torch.compile(work), flops)
    note("decode", "torchvision" if decode_jpeg else "none", path.decode, 0)
    decoded = path.decode()
    note("crop", "eager", lambda: crop(decoded, path.transforms), 0)
    note("whole path", "graph" if path.cuda else "eager", path, flops)
    return {
        "machine": torch.cuda.get_device_name(device) if path.cuda else "cpu",
        "torch": torch.__version__,
        "batch": batch,
        "begins_with": f"JPEG bytes, {SIZE} px" if decode_jpeg else f"decoded images, {SIZE} px: no torchvision",
        "precision": options.precision,
        "gemm_tflops": round(ceiling / 1e12, 2),
        "gflop_an_image": round(flops / 1e9, 2),
        "rows": rows,
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--batch", type=int, default=256)
    arguments.add_argument("--precision", choices=ceilings.DTYPES, help="default: bf16, and fp32 on a CPU")
    arguments.add_argument("--seconds", type=float, default=3.0, help="for each line")
    arguments.add_argument("--compile", action="store_true", help="torch.compile as well")
    arguments.add_argument("--quick", action="store_true", help="two images, a moment each: does it run at all?")
    options = arguments.parse_args()
    if options.quick:
        options.batch, options.seconds = 2, 0.05
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device here. See nvidia-smi, or try: --device cpu --quick")
    options.precision = options.precision or ("fp32" if options.device == "cpu" else "bf16")
    torch.backends.cudnn.benchmark = True
    figures = measure(options)
    print({name: value for name, value in figures.items() if name != "rows"})
    save(options, figures)


if __name__ == "__main__":
    main()
