"""The networks as bulk reconstruction runs them: folded, frozen, in the precision that the machine is fast at.

The same answers as `DECA.encode` and `DECA.displacement` within LIMITS, for inference alone: nothing here can be
trained, and nothing is rendered. Batch norms are folded into the convolutions before them in float32, so that a half
precision rounds each weight once; pictures go through in channels_last. On a CPU the graph is traced and frozen by
TorchScript and not by torch.compile, which needs a C++ compiler that a bare machine does not have; what cannot be
traced runs as it is.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import interpolate
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deca_core.camera import IMAGE_SIZE
from deca_core.codes import Codes
from deca_core.detail import MAX_DISPLACEMENT, NUM_CONDITION, DetailDecoder
from deca_core.encoder import Encoder
from deca_core.model import DECA

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What "auto" tries beside fp32. fp16 is slow on most CPUs, and its range is short for networks trained in float32.
CANDIDATES: dict[str, tuple[Precision, ...]] = {"cpu": ("bf16",), "cuda": ("bf16", "fp16")}
GAIN = 1.1  # times faster than fp32 that another precision must be: below, exact answers are worth more
TRIED = 4  # pictures that the micro-benchmark runs at once


@dataclass(frozen=True)
class Deviation:
    """How far answers lie from float32's; the largest over the batch."""

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
    """What the micro-benchmark found, and took."""

    precision: Precision
    milliseconds: dict[str, float]  # a picture through all three networks, by precision
    deviations: dict[str, Deviation]  # from fp32, by precision


class Inference:
    """E_c, E_d and F_d of a model, frozen in one precision on one device. The model itself stays as it is.

    precision: of the convolutions. The linear layers at the end of the encoders, the first layer and the last
    convolution of F_d stay in float32: 8 bits there would move the camera by half a pixel and the surface by 20 um.

    >>> inference = Inference(model, "bf16")  # doctest: +SKIP
    >>> codes = inference.codes(images)  # doctest: +SKIP
    >>> maps = inference.displacement(codes)  # doctest: +SKIP
    """

    def __init__(self, model: DECA, precision: Precision = "fp32", device: torch.device | str = "cpu") -> None:
        self.precision, self.device = precision, torch.device(device)
        dtype = DTYPES[precision]
        pictures = torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE, device=self.device)
        conditions = torch.zeros(2, NUM_CONDITION, device=self.device)
        with torch.inference_mode():
            self._coarse, self._detail = (
                self._frozen(_FrozenEncoder(encoder, dtype), pictures) for encoder in (model.E_flame, model.E_detail)
            )
            decoder = _FrozenDecoder(model.D_detail, model.fixed_displacement, dtype)
            self._decoder = self._frozen(decoder, conditions)

    @torch.inference_mode()
    def codes(self, images: Tensor) -> Codes:
        """As `DECA.encode`: (B,3,224,224) float RGB in [0, 1], on any device, to codes in float32 on this one's."""
        if images.ndim != 4 or images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(f"codes: images have shape {tuple(images.shape)}, expected (B, 3, 224, 224)")
        images = images.to(self.device, non_blocking=True)
        return Codes.from_vectors(self._coarse(images), self._detail(images))

    @torch.inference_mode()
    def displacement(self, codes: Codes) -> Tensor:
        """As `DECA.displacement`, without its channel: z plus the fixed displacement, (B,256,256) metres, float32."""
        return self._decoder(torch.cat([codes.jaw, codes.exp, codes.detail], dim=1).to(self.device))

    def _frozen(self, network: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
        """The network ready to run on this device, warm."""
        network = network.eval().to(self.device)
        if self.device.type != "cpu":
            network(example)
            return network
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TorchScript is called deprecated, and has no successor without gcc
                frozen = torch.jit.freeze(torch.jit.trace(network, example, check_trace=False))
            for batch in (example, example, example[:1]):  # the first two calls still compile
                answer = frozen(batch)
            # A trace remembers constants: one that holds the batch's size would answer a single picture wrongly.
            if torch.allclose(answer, network(example[:1]), rtol=1e-2, atol=1e-4 * float(answer.abs().max())):
                return frozen
        except RuntimeError:  # a graph that TorchScript cannot express; it says so at the call or at the trace
            pass
        network(example)
        return network


def choose_precision(model: DECA, device: torch.device | str = "cpu", batch: int = TRIED) -> Choice:
    """The fastest precision on this machine whose answers stay within LIMITS: a micro-benchmark of some seconds.

    Compared on smooth random pictures, with the model's own weights; times are the best of three batches.
    """
    images = smooth_pictures(batch)
    exact = Inference(model, "fp32", device)
    milliseconds: dict[str, float] = {"fp32": milliseconds_of(exact, images)}
    deviations: dict[str, Deviation] = {}
    chosen: Precision = "fp32"
    best = milliseconds["fp32"] / GAIN
    for precision in CANDIDATES.get(torch.device(device).type, ()):
        try:
            tried = Inference(model, precision, device)
        except RuntimeError:  # no kernel for it here
            continue
        # Processors without half-precision units take a hundred times as long: one picture tells.
        single = milliseconds_of(tried, images[:1], repeats=1)
        if single > 4 * milliseconds["fp32"]:
            milliseconds[precision] = single
            continue
        milliseconds[precision] = milliseconds_of(tried, images)
        deviations[precision] = deviation(model, exact, tried, images)
        if milliseconds[precision] < best and deviations[precision].within(LIMITS):
            chosen, best = precision, milliseconds[precision]
    return Choice(chosen, {name: round(value, 2) for name, value in milliseconds.items()}, deviations)


@torch.inference_mode()
def deviation(model: DECA, exact: Inference, other: Inference, images: Tensor) -> Deviation:
    """How far `other` lies from `exact` on these pictures; the heads are posed by `model` in float32."""
    expected, got = exact.codes(images), other.codes(images)
    relative = max(_relative(*(_vector(codes, names) for codes in (got, expected))) for names in VECTORS)
    home = model.fixed_displacement.device
    heads = [model.flame(codes.shape, codes.exp, codes.pose).vertices for codes in (got.to(home), expected.to(home))]
    maps = other.displacement(got).to(home) - exact.displacement(expected).to(home)
    return Deviation(relative, float((heads[0] - heads[1]).norm(dim=-1).max()) * 1e3, float(maps.abs().max()) * 1e6)


def smooth_pictures(count: int, seed: int = 0) -> Tensor:
    """Random pictures without grain, (count,3,224,224) in [0, 1]: what networks for photographs answer sensibly."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 14, 14, generator=generator)
    return interpolate(coarse, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic").clamp(0, 1)


def fold_norms(network: nn.Module) -> nn.Module:
    """A copy in eval mode whose batch norms are folded into the convolutions right before them.

    A network whose forward depends on its data cannot be looked through: its copy keeps its norms.
    """
    network = copy.deepcopy(network).eval()
    try:
        traced = fx.symbolic_trace(network)
    except Exception:  # fx raises whatever a forward makes of a placeholder
        return network
    modules = dict(traced.named_modules())
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        norm, conv = modules[str(node.target)], modules[str(before.target)]
        if type(norm) is not nn.BatchNorm2d or type(conv) is not nn.Conv2d or calls.count(before.target) > 1:
            continue
        traced.set_submodule(str(before.target), fuse_conv_bn_eval(conv, norm))
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


class _FrozenEncoder(nn.Module):
    """Pictures (B,3,224,224) to a code vector (B,N): the features in `dtype`, the linear layers in float32.

    Weights are converted. A backbone with a step that half precision does not know (an antialiased resize) keeps its
    weights and runs under autocast, which decides step by step.
    """

    def __init__(self, encoder: Encoder, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        folded = fold_norms(encoder.encoder)
        self.features = _lowered(copy.deepcopy(folded), dtype)
        self.layers = copy.deepcopy(encoder.layers).float()
        self.mixed = False
        if dtype != torch.float32:
            try:
                self(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, device=next(self.layers.parameters()).device))
            except RuntimeError:
                self.mixed, self.features = True, _channels_last(folded)

    def forward(self, images: Tensor) -> Tensor:
        if not self.mixed:
            pictures = images.to(self.dtype).contiguous(memory_format=torch.channels_last)
            return self.layers(self.features(pictures).float())
        # Without autocast's cache of converted weights: a trace would keep it as a step of every call.
        with torch.autocast(images.device.type, self.dtype, cache_enabled=False):
            features = self.features(images.contiguous(memory_format=torch.channels_last))
        return self.layers(features.float())


class _FrozenDecoder(nn.Module):
    """Conditions (B,181) to the exported displacement (B,256,256)."""

    def __init__(self, decoder: DetailDecoder, fixed: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        *blocks, last, _ = decoder.conv_blocks
        self.dtype = dtype
        self.first = copy.deepcopy(decoder.l1).float()
        self.blocks = _lowered(fold_norms(nn.Sequential(*blocks)), dtype)
        self.last = _channels_last(copy.deepcopy(last).float())
        self.register_buffer("fixed", fixed.clone())

    def forward(self, condition: Tensor) -> Tensor:
        seed = self.first(condition).unflatten(1, (128, 8, 8))
        features = self.blocks(seed.to(self.dtype).contiguous(memory_format=torch.channels_last))
        return self.last(features.float()).tanh().squeeze(1) * MAX_DISPLACEMENT + self.fixed


def _channels_last(network: nn.Module) -> nn.Module:
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _lowered(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network with weights in `dtype`, but for what is left of its batch norms: they sum, and stay in float32."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    exact = [copy.deepcopy(norm.state_dict()) for norm in norms]
    network = _channels_last(network.to(dtype=dtype))
    for norm, state in zip(norms, exact, strict=True):
        norm.float().load_state_dict(state)
    return network


VECTORS: tuple[tuple[str, ...], ...] = (("shape", "tex", "exp", "pose", "cam", "light"), ("detail",))


def _vector(codes: Codes, names: Sequence[str]) -> Tensor:
    return torch.cat([getattr(codes, name).flatten(1) for name in names], dim=1).double()


def _relative(value: Tensor, expected: Tensor) -> float:
    return float(((value - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1e-12)).max())


def milliseconds_of(inference: Inference, images: Tensor, repeats: int = 3) -> float:
    """Best time of a picture, codes and displacement."""
    wait = torch.cuda.synchronize if inference.device.type == "cuda" else lambda: None
    best = math.inf
    for _ in range(repeats + 1):  # the first one still allocates
        wait()
        started = time.perf_counter()
        inference.displacement(inference.codes(images))
        wait()
        best = min(best, time.perf_counter() - started)
    return best / len(images) * 1e3
