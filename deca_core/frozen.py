"""E_c, E_d and F_d prepared for inference: norms and upsampling folded into convolutions, graphs compiled.

Batch norms are folded into their neighbours in float32, so that a half precision rounds each weight once; images go
through in channels_last.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import interpolate, pad, pixel_shuffle
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deca_core.camera import IMAGE_SIZE
from deca_core.detail import MAX_DISPLACEMENT, DetailDecoder
from deca_core.encoder import Encoder

Network = Callable[[Tensor], Tensor]

logger = logging.getLogger("deca")


def compiled(network: nn.Module, example: Tensor) -> Network:
    """The network as machine code for batches of the example's size (TorchInductor, weights frozen into it).

    Takes some seconds, ten to thirty where this machine has never compiled it. Raises RuntimeError where there is no
    compiler, or none for this graph. On a CPU that compiler is C++'s.
    """
    import torch._inductor.config as inductor

    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns wherever there is no GPU

    def call(values: Tensor) -> Tensor:
        answer: Tensor = network(values)
        return answer

    call.__code__ = call.__code__.replace()  # compilations are counted by code object, and soon refused
    # One compiling thread: no pool of processes that outlives this call. Freezing is what fuses convolutions with what
    # follows them; as an option of torch.compile it does nothing.
    with inductor.patch(compile_threads=1, freezing=True):
        made: Network = torch.compile(call, dynamic=False)
        made(example)
    return made


def traced(network: nn.Module, example: Tensor) -> Network:
    """The network as a frozen TorchScript graph, for batches of any size; as it is where that cannot express it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is called deprecated, and has no successor without a compiler
            frozen: Network = torch.jit.freeze(torch.jit.trace(network, example, check_trace=False))
        for batch in (example, example, example[:1]):  # the first two calls still optimise
            answer = frozen(batch)
        # A trace remembers constants: one with the batch's size in it would answer a single image wrongly.
        if torch.allclose(answer, network(example[:1]), rtol=1e-2, atol=1e-4 * float(answer.abs().max())):
            return frozen
    except RuntimeError:  # it says so at the call or at the trace
        pass
    network(example)
    return network


def fold_norms(network: nn.Module) -> nn.Module:
    """A copy in eval mode whose batch norms are folded into the convolutions right before them.

    A network whose forward depends on its data cannot be traced: its copy keeps its norms.
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


class FrozenEncoder(nn.Module):
    """Images (B,3,224,224) to a code vector (B,N): the features in `dtype`, the linear layers in float32.

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
            converted = images.to(self.dtype).contiguous(memory_format=torch.channels_last)
            return self.layers(self.features(converted).float())
        # Without autocast's cache of converted weights: a trace would keep it as a step of every call.
        with torch.autocast(images.device.type, self.dtype, cache_enabled=False):
            features = self.features(images.contiguous(memory_format=torch.channels_last))
        return self.layers(features.float())


class FrozenDecoder(nn.Module):
    """F_d of conditions (B,181) with the fixed displacement: (B,256,256) metres. Its convolutions are in `dtype`."""

    def __init__(self, decoder: DetailDecoder, fixed: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        norm, *blocks, last, _ = list[Any](copy.deepcopy(decoder).eval().conv_blocks)
        self.dtype = dtype
        (first,) = list[Any](decoder.l1)
        self.first = _scaled(first, norm)
        layers: list[Any] = []
        for doubling, conv, conv_norm, activation in zip(*[iter(blocks)] * 4, strict=True):
            layers += [doubling, fuse_conv_bn_eval(conv, conv_norm), activation]
        if dtype != torch.float32:  # float32 is bound by its products, and gains nothing
            layers[-3:-1] = [DoubledConv(layers[-2])]
        self.blocks = _channels_last(nn.Sequential(*layers).to(dtype=dtype))
        self.last = TapConv(last)
        self.register_buffer("fixed", fixed.clone())

    def forward(self, condition: Tensor) -> Tensor:
        seed = self.first(condition).unflatten(1, (-1, 8, 8))
        features = self.blocks(seed.to(self.dtype).contiguous(memory_format=torch.channels_last))
        return self.last(features).tanh() * MAX_DISPLACEMENT + self.fixed


def _scaled(linear: nn.Linear, norm: Any) -> nn.Linear:
    """The linear layer with the norm of its answer, (B, channels * texels), folded in."""
    linear = copy.deepcopy(linear).float()
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - norm.running_mean * scale
    texels = linear.out_features // norm.num_features
    scale, shift = scale.repeat_interleave(texels), shift.repeat_interleave(texels)
    linear.weight.data.mul_(scale[:, None])
    linear.bias.data.mul_(scale).add_(shift)
    return linear


# Bilinear doubling makes pixel 2i of 0.25 x[i-1] + 0.75 x[i], and 2i+1 of 0.75 x[i] + 0.25 x[i+1]. So tap k (0, 1, 2)
# of a convolution at pixel 2i + a sees pixel i - 1 + d of the map before it with the weight MIX[a][d][k].
MIX = [
    [[0.75, 0.25, 0.0], [0.25, 0.75, 0.75], [0.0, 0.0, 0.25]],
    [[0.25, 0.0, 0.0], [0.75, 0.75, 0.25], [0.0, 0.25, 0.75]],
]


class DoubledConv(nn.Module):
    """Bilinear doubling and a 3 x 3 convolution in one: (B,C,H,W) to (B,N,2H,2W), without the doubled map.

    Each of the four pixels that a pixel becomes is a 3 x 3 convolution of the map before: one convolution of four times
    as many channels, which half-precision units like better than a wide map of few. At the rim, where the doubled map
    would be padded by zeros, the two steps are done for the outermost pixels.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        outputs, inputs = conv.weight.shape[:2]
        mix = conv.weight.new_tensor(MIX, dtype=torch.float64)
        phases = torch.einsum("ayk,bxl,nckl->nabcyx", mix, mix, conv.weight.detach().double())
        assert conv.bias is not None
        self.conv, self.phases = conv, nn.Conv2d(inputs, 4 * outputs, 3)
        state = {"weight": phases.reshape(4 * outputs, inputs, 3, 3), "bias": conv.bias.detach().repeat_interleave(4)}
        self.phases.load_state_dict(state)

    def forward(self, x: Tensor) -> Tensor:
        answer = pixel_shuffle(self.phases(pad(x, (1, 1, 1, 1), mode="replicate")), 2)
        answer[:, :, 0] = self._plain(x[:, :, :2])[:, :, 0]
        answer[:, :, -1] = self._plain(x[:, :, -2:])[:, :, -1]
        answer[:, :, :, 0] = self._plain(x[:, :, :, :2])[:, :, :, 0]
        answer[:, :, :, -1] = self._plain(x[:, :, :, -2:])[:, :, :, -1]
        return answer

    def _plain(self, x: Tensor) -> Tensor:
        return self.conv(interpolate(x, scale_factor=2, mode="bilinear"))


class TapConv(nn.Module):
    """A 3 x 3 convolution to one channel in float32: (B,C,H,W) of any precision to (B,H,W).

    The nine taps as one matrix product, then shifted sums: a tenth of what a general convolution takes here. Its answer
    is never rounded to half precision, which would move the surface by 20 um.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.register_buffer("taps", conv.weight.detach()[0].flatten(1).T.float().contiguous())  # (9, C)
        assert conv.bias is not None
        self.register_buffer("bias", conv.bias.detach().float())

    taps: Tensor
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2).float()  # as channels_last is in memory
        seen = pad((self.taps @ pixels.transpose(1, 2)).unflatten(2, (height, width)), (1, 1, 1, 1))
        parts = [seen[:, 3 * y + x, y : y + height, x : x + width] for y in range(3) for x in range(3)]
        return sum(parts, self.bias)


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
