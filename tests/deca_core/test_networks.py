"""Encoder and displacement decoder against the reference's outputs under weights filled by name; other backbones."""

from __future__ import annotations

import copy
import sys
import zlib

import numpy as np
import pytest
import torch
from torch import nn

from deca_core import DECA
from deca_core.checkpoint import load_checkpoint, save_checkpoint
from deca_core.detail import DetailDecoder
from deca_core.encoder import BACKBONES, BackboneError, Encoder, register_backbone
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


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_feeds_the_linear_layers(backbone):
    encoder = Encoder(7, backbone).eval()
    with torch.inference_mode():
        assert encoder(torch.rand(1, 3, 224, 224)).shape == (1, 7)
    assert {name.split(".")[0] for name in encoder.state_dict()} == {"encoder", "layers"}
    assert not [name for name, value in encoder.named_parameters() if value.shape[0] == 1000]  # no classifier is left


@torch.no_grad()
def test_mobilenets_features_are_what_its_classifier_takes():
    from torchvision.models import get_model

    torch.manual_seed(0)
    whole = get_model("mobilenet_v3_small").eval()
    body = Encoder(7, "mobilenet_v3_small").encoder.eval()
    found = body.load_state_dict(whole.state_dict(), strict=False)
    assert not found.missing_keys
    assert {name.split(".")[0] for name in found.unexpected_keys} == {"classifier"}
    images = torch.rand(1, 3, 224, 224)
    torch.testing.assert_close(whole.classifier(body(images)), whole(images))


def test_unknown_backbones_name_the_known_ones_and_the_hook(monkeypatch):
    with pytest.raises(BackboneError, match=r"unknown backbone 'resnet18'; there are resnet50, dlib, mobilenet_v3"):
        Encoder(7, "resnet18")
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(BackboneError, match=r"'mobilenet_v3_small' needs torchvision.*pip install torchvision"):
        Encoder(7, "mobilenet_v3_small")
    with torch.device("meta"):
        Encoder(7, "resnet50")


def test_a_registered_backbone_is_built_saved_and_loaded(monkeypatch, mini, tmp_path):
    monkeypatch.setattr("deca_core.encoder.BACKBONES", dict(BACKBONES))
    register_backbone("tiny", lambda: nn.Sequential(nn.Conv2d(3, 5, 7, 56), nn.AvgPool2d(4), nn.Flatten()), features=5)
    model = DECA(mini, "tiny")
    again = load_checkpoint(save_checkpoint(model, tmp_path / "tiny"), mini)
    images = torch.rand(1, 3, 224, 224)
    torch.testing.assert_close(again.encode(images).shape, model.encode(images).shape)


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
