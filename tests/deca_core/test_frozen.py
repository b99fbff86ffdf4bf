"""Networks made ready for inference: the same answers from folded norms, doubled convolutions and frozen graphs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from deca_core.detail import DetailDecoder
from deca_core.encoder import Encoder
from deca_core.frozen import DoubledConv, FrozenDecoder, TapConv, compiled, fold_norms, traced
from deca_core.inference import smooth_images

SMALL = "mobilenet_v3_small"


def stir(network: nn.Module) -> None:
    """Norms as training leaves them: with statistics of their own."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
            module.weight.data.add_(0.2 * torch.rand(module.weight.shape, generator=generator))
            module.bias.data.add_(0.1)


@torch.inference_mode()
@pytest.mark.parametrize("backbone", [SMALL, "resnet50", "norm first"])
def test_folding_changes_no_answer(backbone):
    torch.manual_seed(0)
    norm_first = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    network = norm_first if backbone == "norm first" else Encoder(1, backbone).encoder
    stir(network.eval())
    folded = fold_norms(network)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) == (backbone == "norm first")
    images = smooth_images(1)
    torch.testing.assert_close(folded(images), network(images), rtol=1e-4, atol=1e-4)


class Twice(nn.Module):
    """One convolution under two norms, and a branch that depends on the data."""

    def __init__(self, branch: bool) -> None:
        super().__init__()
        self.branch = branch
        self.conv = nn.Conv2d(3, 3, 1)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.branch and x.sum() > 0:
            return self.first(self.conv(x))
        return self.second(self.conv(self.first(self.conv(x))))


@torch.inference_mode()
@pytest.mark.parametrize("branch", [False, True])
def test_what_cannot_be_folded_is_left(branch):
    network = Twice(branch).eval()
    stir(network)
    images = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(fold_norms(network)(images), network(images))


@torch.inference_mode()
@pytest.mark.parametrize("size", [(6, 7), (2, 2)])
def test_a_doubled_convolution_is_the_two_steps(size):
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 4, 3, padding=1)
    x = torch.randn(2, 5, *size)
    expected = conv(interpolate(x, scale_factor=2, mode="bilinear"))
    torch.testing.assert_close(DoubledConv(conv)(x), expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_taps_are_the_convolution():
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 1, 3, padding=1)
    x = torch.randn(2, 16, 5, 7)
    torch.testing.assert_close(TapConv(conv)(x), conv(x)[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "metres"), [(torch.float32, 1e-7), (torch.bfloat16, 5e-5)])
def test_the_frozen_decoder_is_the_decoder(dtype, metres):
    """With norms as training leaves them and a relief of a millimetre."""
    torch.manual_seed(0)
    decoder = DetailDecoder().eval()
    stir(decoder)
    decoder.conv_blocks[-2].weight.mul_(100)
    fixed = 1e-3 * torch.rand(256, 256)
    condition = torch.randn(2, 181)
    expected = decoder(condition)[:, 0] + fixed
    assert expected.std() > 1e-4
    frozen = FrozenDecoder(decoder, fixed, dtype).eval()
    assert (frozen(condition) - expected).abs().max() < metres
    if dtype != torch.float32:
        assert (compiled(frozen, condition)(condition) - expected).abs().max() < metres


def test_a_trace_that_remembers_the_batch_is_not_used():
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :5] * int(x.shape[0])

    assert isinstance(traced(Fixed().eval(), torch.ones(2, 3, 4, 4)), Fixed)
    assert not isinstance(traced(nn.Flatten().eval(), torch.ones(2, 3, 4, 4)), nn.Flatten)
