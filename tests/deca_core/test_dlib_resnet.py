"""dlib's network as a backbone: what it takes over, what its features are at the start, and that it learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from deca_core.checkpoint import load_checkpoint, save_checkpoint
from deca_core.dlib_recognition import load_dlib
from deca_core.dlib_resnet import SIDE, DlibBackbone
from deca_core.encoder import DLIB, Encoder
from deca_core.model import DECA


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Smooth colours, 24 images of 224 pixels."""
    coarse = torch.rand(24, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    return functional.interpolate(coarse, (224, 224), mode="bicubic").clamp(0, 1)


@pytest.fixture(scope="module")
def started(images) -> DlibBackbone:
    backbone = DlibBackbone()
    backbone.start_from(load_dlib().resnet, images)
    return backbone


def test_its_blocks_are_dlibs(started, images):
    dlib, small = load_dlib().resnet, functional.interpolate(images[:2], (SIDE, SIDE), mode="bilinear")
    deep: list[Tensor] = []
    handle = dlib.blocks[len(started.resnet.blocks) - 1].register_forward_hook(lambda *call: deep.append(call[2]))
    dlib(small)
    handle.remove()
    torch.testing.assert_close(started.resnet(small), deep[0])


def test_features_start_uncorrelated_and_of_variance_one(started, images):
    with torch.no_grad():
        features = started(images)
    assert features.shape == (24, DlibBackbone.features)
    over_places = features.unflatten(1, (40, -1)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(over_places.mean(1), torch.zeros(40), atol=1e-3, rtol=0)
    torch.testing.assert_close(over_places.cov(), torch.eye(40), atol=2e-3, rtol=0)


def test_images_without_variance_are_no_error():
    backbone = DlibBackbone()
    backbone.start_from(load_dlib().resnet, torch.full((2, 3, 224, 224), 0.5))
    assert backbone(torch.rand(1, 3, 224, 224)).isfinite().all()


def test_every_weight_learns(started, images):
    encoder = Encoder(5, DLIB)
    encoder.encoder.load_state_dict(started.state_dict())
    encoder(images[:2]).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_checkpoint_carries_it(tmp_path, bundle, images):
    model = DECA(bundle, DLIB)
    save_checkpoint(model, tmp_path / "model")
    again = load_checkpoint(tmp_path / "model", bundle)
    with torch.no_grad():
        torch.testing.assert_close(again.E_flame(images[:1]), model.E_flame(images[:1]))
