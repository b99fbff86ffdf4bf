"""Encoder and displacement decoder against the reference's outputs under weights filled by name; other backbones."""

from __future__ import annotations

import copy
import sys
import zlib

import numpy as np
import pytest
import torch
from torch import nn

from deca_core.detail import DetailDecoder
from deca_core.encoder import BackboneError, Encoder, headless
from tests.deca_core.conftest import assert_close


def fill_by_name(module: nn.Module) -> None:
    """The rule of the golden file: standard normals seeded by the parameter's name, scaled by its kind."""
    for name, value in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("running_mean"):
            value.zero_()
        elif name.endswith("running_var"):
            value.fill_(1)
        else:
            noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(value.shape))
            if value.ndim >= 2:
                noise *= np.sqrt(2 / (noise.size / noise.shape[0]))
            else:
                noise = (1 if name.endswith("weight") else 0) + 0.1 * noise
            value.copy_(torch.from_numpy(noise))


@torch.no_grad()
def test_golden_encoder(golden):
    answer = golden("networks.npz")
    encoder = Encoder(236).eval()
    assert sorted(encoder.state_dict()) == sorted(answer["encoder_keys"].tolist())
    fill_by_name(encoder)
    torch.manual_seed(3)
    assert_close(encoder(torch.rand(2, 3, 224, 224)), answer["encoder_output"])


@torch.no_grad()
def test_golden_displacement(golden):
    answer = golden("networks.npz")
    decoder = DetailDecoder().eval()
    assert sorted(decoder.state_dict()) == sorted(answer["generator_keys"].tolist())
    fill_by_name(decoder)
    assert_close(decoder(torch.from_numpy(answer["detail_input"])), answer["displacement"])


# One of every family, and how many features it pools.
FAMILIES = {
    "alexnet": 9216,
    "convnext_tiny": 768,
    "densenet121": 1024,
    "efficientnet_b0": 1280,
    "googlenet": 1024,
    "inception_v3": 2048,
    "maxvit_t": 512,
    "mnasnet0_5": 1280,
    "mobilenet_v2": 1280,
    "mobilenet_v3_small": 576,
    "regnet_y_400mf": 440,
    "resnet18": 512,
    "shufflenet_v2_x0_5": 1024,
    "squeezenet1_1": 512,
    "swin_t": 768,
    "vgg11": 25088,
    "vit_b_16": 768,
}


@pytest.mark.parametrize("backbone", FAMILIES)
def test_any_classifier_is_a_backbone(backbone):
    # Shapes only. RegNet computes its widths with tensors; autocast does not know this device.
    with torch.device("cpu" if backbone.startswith("regnet") else "meta"):
        encoder = Encoder(7, backbone).train()
    encoder = encoder.to("meta")
    assert encoder.layers(encoder.encoder(torch.empty(2, 3, 224, 224, device="meta"))).shape == (2, 7)
    assert encoder.layers[0].in_features == FAMILIES[backbone]
    assert {name.split(".")[0] for name in encoder.state_dict()} == {"encoder", "layers"}
    assert not [name for name, value in encoder.named_parameters() if value.shape[0] == 1000]  # no class is left


@torch.no_grad()
@pytest.mark.parametrize(("backbone", "head"), [("resnet18", "fc"), ("mobilenet_v3_small", "classifier")])
def test_the_features_are_what_the_classifier_classifies(backbone, head):
    from torchvision.models import get_model

    torch.manual_seed(0)
    whole = get_model(backbone).eval()
    body, _ = headless(backbone)
    found = body.load_state_dict(whole.state_dict(), strict=False)
    assert not found.missing_keys
    assert {name.split(".")[0] for name in found.unexpected_keys} == {head}
    images = torch.rand(1, 3, 224, 224)
    torch.testing.assert_close(getattr(whole, head)(body.eval()(images)), whole(images))


def test_unknown_backbones_name_their_neighbours(monkeypatch):
    with pytest.raises(BackboneError, match=r"unknown backbone 'mobilnet_v3_smal'; .*mobilenet_v3_small"):
        Encoder(7, "mobilnet_v3_smal")
    with pytest.raises(BackboneError, match=r"unknown backbone 'qqq'; .*resnet18"):
        Encoder(7, "qqq")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(BackboneError, match=r"'resnet18' needs torchvision.*pip install torchvision"):
        Encoder(7, "resnet18")
    with torch.device("meta"):
        Encoder(7, "resnet50")


@pytest.mark.parametrize("backbone", ["resnet50", "mobilenet_v3_small"])
def test_bfloat16_and_channels_last_learn_the_same(backbone):
    torch.manual_seed(0)
    exact = Encoder(20, backbone).eval()
    fast = copy.deepcopy(exact).to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 224, 224)
    expected = exact(images)
    with torch.autocast("cpu", torch.bfloat16):
        got = fast(images.to(memory_format=torch.channels_last))
    assert got.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(got, expected).min() > 0.999
    for answer in (expected, got):
        answer.square().mean().backward()
    gradients = [torch.cat([p.grad.flatten() for p in e.parameters()]) for e in (exact, fast)]
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.95


def test_a_linear_start_answers_the_ridge_regression_and_leaves_other_outputs():
    """Against scikit-like normal equations on features with an offset, and beside a random encoder for the rest."""
    torch.manual_seed(0)
    encoder = Encoder(236, "mobilenet_v3_small").eval()
    before = copy.deepcopy(encoder.layers)
    generator = torch.Generator().manual_seed(1)
    inputs = encoder.layers[0].in_features
    features = torch.randn(800, inputs, generator=generator) + 0.3
    outputs = torch.tensor([0, 3, 200, 208])
    targets = features[:, :4] @ torch.randn(4, 4, generator=generator) + torch.arange(4.0)
    encoder.start_linear(features, targets, outputs, ridge=0.1)
    known, wanted = (value.double().numpy() for value in (features, targets))
    offset = known.mean(0)
    stacked = np.vstack([(known - offset) / np.sqrt(800), np.sqrt(0.1) * np.eye(inputs)])
    goal = np.vstack([(wanted - wanted.mean(0)) / np.sqrt(800), np.zeros((inputs, 4))])
    slope = np.linalg.lstsq(stacked, goal, rcond=None)[0]
    with torch.no_grad():
        answer = encoder.layers(features)
    np.testing.assert_allclose(answer[:, outputs], (known - offset) @ slope + wanted.mean(0), atol=1e-4)
    others = torch.ones(236, dtype=torch.bool)
    others[outputs] = False
    torch.testing.assert_close(encoder.layers[-1].bias[others], before[-1].bias[others])
    assert answer[:, others].std(0).min() > 0  # still what random weights make of the features
