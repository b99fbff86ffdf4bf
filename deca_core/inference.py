"""The networks for bulk reconstruction: norms folded, graphs frozen, in the fastest accurate precision.

The same answers as `DECA.encode` and `DECA.displacement` within LIMITS, for inference alone: nothing here can be
trained, and nothing is rendered. On a CPU the graph is frozen by TorchScript, which starts at once; or, for a long run,
compiled for one batch size, which takes a C++ compiler and up to half a minute. On a GPU it runs as it is, or compiled.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from deca_core.camera import IMAGE_SIZE
from deca_core.codes import Codes
from deca_core.detail import NUM_CONDITION
from deca_core.frozen import FrozenDecoder, FrozenEncoder, Network, compiled, logger, traced
from deca_core.images import as_batch
from deca_core.model import DECA

Precision = Literal["fp32", "mixed", "bf16", "fp16"]
# Of E_c; of E_d and F_d. mixed is for weights whose head turns too far with the last bits of its pose.
DTYPES: dict[Precision, tuple[torch.dtype, torch.dtype]] = {
    "fp32": (torch.float32, torch.float32),
    "mixed": (torch.float32, torch.bfloat16),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "fp16": (torch.float16, torch.float16),
}
# What "auto" tries beside fp32. fp16 is slow on most CPUs, and its range is short for networks trained in float32.
CANDIDATES: dict[str, tuple[Precision, ...]] = {"cpu": ("bf16", "mixed"), "cuda": ("bf16", "fp16", "mixed")}
GAIN = 1.1  # times faster than fp32 that another precision must be: below, exact answers are worth more
TRIED = 4  # images that the micro-benchmark runs at once
PROBE = 256  # side of the matrices that show whether a precision has units here
# Faces at once through F_d on a CPU, however many go through the encoders: its widest maps take 4 MB a face in float32,
# and those of eight faces leave the cache from layer to layer, which costs a quarter of its time.
DECODED = 2


@dataclass(frozen=True)
class Deviation:
    """Largest deviations from float32 over a batch."""

    codes: float  # |c - c32| / |c32| of the coarse and of the detail vector
    vertices_mm: float  # between the posed heads of the two
    displacement_um: float

    def within(self, limits: Deviation) -> bool:
        """Whether every figure is a number at or below its limit."""
        pairs = zip(asdict(self).values(), asdict(limits).values(), strict=True)
        return all(math.isfinite(value) and value <= limit for value, limit in pairs)


LIMITS = Deviation(codes=0.01, vertices_mm=0.1, displacement_um=5.0)  # beyond, a precision is never chosen by itself


@dataclass(frozen=True)
class Choice:
    """Result of the micro-benchmark: the chosen precision, and the figures of every candidate."""

    precision: Precision
    milliseconds: dict[str, float]  # an image through all three networks, by precision
    deviations: dict[str, Deviation]  # from fp32, by precision


class Inference:
    """E_c, E_d and F_d of a model, frozen in one precision on one device. The model itself stays as it is.

    precision: of the convolutions. The linear layers at the end of the encoders, the first layer and the last
    convolution of F_d stay in float32: 8 bits there would move the camera by half a pixel and the surface by 20 um.
    batch: 0, or compile for batches of that many faces, which takes up to half a minute; smaller ones are padded.
    Where nothing can be compiled it says so in the log, and `compiled` is false.
    freeze: on a CPU, freeze the graphs that are not compiled: a second or two, which a handful of faces is not worth.

    >>> inference = Inference(model, "bf16")  # doctest: +SKIP
    >>> codes = inference.codes(images)  # doctest: +SKIP
    >>> maps = inference.displacement(codes)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: DECA,
        precision: Precision = "fp32",
        device: torch.device | str = "cpu",
        batch: int = 0,
        freeze: bool = True,
    ) -> None:
        self.freeze = freeze
        self.precision, self.device, self.batch = precision, torch.device(device), batch
        coarse, detail = DTYPES[precision]
        networks: list[nn.Module] = [
            FrozenEncoder(model.E_flame, coarse),
            FrozenEncoder(model.E_detail, detail),
            FrozenDecoder(model.D_detail, model.fixed_displacement, detail),
        ]
        # Faces at once through F_d; 0: as many as there are.
        self._decoded = min(batch or DECODED, DECODED) if self.device.type == "cpu" else batch
        inputs = [(batch, 3, IMAGE_SIZE, IMAGE_SIZE)] * 2 + [(self._decoded, NUM_CONDITION)]
        with torch.inference_mode():
            self._coarse, self._detail, self._decoder = (
                self._ready(network.eval().to(self.device), torch.zeros(count or 2, *size, device=self.device))
                for network, (count, *size) in zip(networks, inputs, strict=True)
            )

    @property
    def compiled(self) -> bool:
        """Whether the networks are machine code for one batch size."""
        return self.batch > 0

    def _ready(self, network: nn.Module, example: Tensor) -> Network:
        if self.batch:
            try:
                return compiled(network, example)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[0]
                logger.warning("the networks are not compiled, which makes them slower: %s", reason)
                self.batch = 0
        return traced(network, example) if self.freeze and self.device.type == "cpu" else network

    def _run(self, network: Network, values: Tensor, batch: int) -> Tensor:
        """The network's answers for any number of values (B,...), on this device, in parts of `batch` unless that is 0.

        Compiled networks take no other number: the last part is padded.
        """
        values = values.to(self.device, non_blocking=True)
        if not batch:
            return network(values)
        parts = []
        for part in values.split(batch):
            missing = batch - len(part) if self.batch else 0
            filled = torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part
            parts.append(network(filled)[: len(part)].clone())
        return torch.cat(parts)

    @torch.inference_mode()
    def codes(self, images: Any, *, validate: bool = True) -> Codes:
        """As `DECA.encode`: (B,3,224,224) RGB in [0, 1], on any device, to codes in float32 on this one's.

        validate=False: float32 images from the caller's own code are not checked. Raises ImageError.
        """
        if validate:
            images = as_batch(images, like=torch.empty(0, device=self.device), name="codes")
        return Codes.from_vectors(*(self._run(network, images, self.batch) for network in (self._coarse, self._detail)))

    @torch.inference_mode()
    def displacement(self, codes: Codes) -> Tensor:
        """As `DECA.displacement`, without its channel: z plus the fixed displacement, (B,256,256) metres, float32."""
        return self._run(self._decoder, torch.cat([codes.jaw, codes.exp, codes.detail], dim=1), self._decoded)


def choose_precision(model: DECA, device: torch.device | str = "cpu", batch: int = TRIED) -> Choice:
    """The fastest precision on this machine whose answers stay within LIMITS: a micro-benchmark of some seconds.

    Compared on smooth random images, with the model's own weights; times are the best of four batches. A precision that
    the processor only emulates is skipped: it is fifty times slower, so trying it would take a quarter of a minute.
    """
    images = smooth_images(batch)
    exact = Inference(model, "fp32", device)
    milliseconds: dict[str, float] = {"fp32": milliseconds_of(exact, images)}
    deviations: dict[str, Deviation] = {}
    chosen: Precision = "fp32"
    best = milliseconds["fp32"] / GAIN
    for precision in CANDIDATES.get(torch.device(device).type, ()):
        try:
            if emulated(DTYPES[precision][1], device):
                continue
            tried = Inference(model, precision, device)
        except RuntimeError:  # no kernel for it here
            continue
        milliseconds[precision] = milliseconds_of(tried, images)
        deviations[precision] = deviation(model, exact, tried, images)
        if milliseconds[precision] < best and deviations[precision].within(LIMITS):
            chosen, best = precision, milliseconds[precision]
    return Choice(chosen, {name: round(value, 2) for name, value in milliseconds.items()}, deviations)


@torch.inference_mode()
def deviation(model: DECA, exact: Inference, other: Inference, images: Tensor) -> Deviation:
    """Deviation of `other` from `exact` on these images; `model` poses the heads in float32."""
    home = model.fixed_displacement.device
    expected, got = (frozen.codes(images).to(home) for frozen in (exact, other))
    relative = max(_relative(*(_vector(codes, names) for codes in (got, expected))) for names in VECTORS)
    heads = [model.flame(codes.shape, codes.exp, codes.pose).vertices for codes in (got, expected)]
    maps = other.displacement(got).to(home) - exact.displacement(expected).to(home)
    return Deviation(relative, float((heads[0] - heads[1]).norm(dim=-1).max()) * 1e3, float(maps.abs().max()) * 1e6)


def smooth_images(count: int) -> Tensor:
    """Random images without grain, (count,3,224,224) in [0, 1]: what networks for photographs answer sensibly."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 14, 14, generator=generator)
    return interpolate(coarse, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic").clamp(0, 1)


VECTORS: tuple[tuple[str, ...], ...] = (("shape", "tex", "exp", "pose", "cam", "light"), ("detail",))


def _vector(codes: Codes, names: Sequence[str]) -> Tensor:
    return torch.cat([getattr(codes, name).flatten(1) for name in names], dim=1).double()


def _relative(value: Tensor, expected: Tensor) -> float:
    return float(((value - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1e-12)).max())


def milliseconds_of(inference: Inference, images: Tensor) -> float:
    """Best time of an image, codes and displacement."""
    return _seconds(lambda: inference.displacement(inference.codes(images)), inference.device) / len(images) * 1e3


def emulated(dtype: torch.dtype, device: torch.device | str = "cpu") -> bool:
    """Whether the device only emulates this type: a small matrix product takes over four times as long as float32's.

    Raises RuntimeError where there is no kernel for it at all.
    """
    home = torch.device(device)
    own, exact = (torch.ones(PROBE, PROBE, dtype=kind, device=home) for kind in (dtype, torch.float32))
    return _seconds(lambda: own @ own, home) > 4 * _seconds(lambda: exact @ exact, home)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Best time of four calls; the first one still allocates."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    best = math.inf
    for _ in range(4):
        wait()
        started = time.perf_counter()
        work()
        wait()
        best = min(best, time.perf_counter() - started)
    return best
