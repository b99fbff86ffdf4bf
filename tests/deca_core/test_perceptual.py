"""VGG19 against torchvision's, its files, its names."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from deca_core import losses
from deca_core.perceptual import PerceptualError, imagenet_vgg19, load_vgg19, random_vgg19
from tests.deca_core.conftest import Call

# Index in torchvision's `features` of what a layer's name means.
TORCHVISION = {"conv3_2": 12, "conv4_2": 21, "relu3_1": 11, "relu4_1": 20, "conv1_1": 0, "relu2_2": 8}


@pytest.fixture(scope="module")
def original() -> torch.nn.Module:
    from torchvision.models import vgg19

    torch.manual_seed(0)
    network = vgg19().eval()
    del network.classifier  # 120 million unused weights
    return network


def images() -> Tensor:
    return torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_features_are_torchvisions(original, tmp_path: Path, suffix):
    path = tmp_path / f"vgg19{suffix}"
    (torch.save if suffix == ".pth" else save_file)(original.state_dict(), path)
    network = load_vgg19(path, TORCHVISION)
    assert network.name.startswith("vgg19-")
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (images() - mean[:, None, None]) / deviation[:, None, None]
    expected = {}
    for index, module in enumerate(original.features):
        x = module(x)
        expected[index] = x.clone()  # the rectifiers work in place
    found = network(images())
    assert set(found) == set(TORCHVISION)
    for layer, index in TORCHVISION.items():
        torch.testing.assert_close(found[layer], expected[index], rtol=1e-4, atol=1e-5)


def test_no_deeper_than_asked():
    assert len(random_vgg19(["conv1_1"]).features) == 1
    assert len(random_vgg19(losses.recipe("paper").detail.mrf_layers).features) == TORCHVISION["conv4_2"] + 1
    assert len(random_vgg19(losses.recipe("release").detail.mrf_layers).features) == TORCHVISION["relu4_1"] + 1
    with pytest.raises(ValueError, match="no layers \\['conv3_5'\\]"):
        random_vgg19(["conv3_5"])


def test_random_network_is_named_repeats_and_is_frozen():
    state = torch.get_rng_state()
    first, second, other = (random_vgg19(["conv2_1"], seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert first.name == "random-vgg19-seed0"
    assert torch.equal(first(images())["conv2_1"], second(images())["conv2_1"])
    assert not torch.allclose(first(images())["conv2_1"], other(images())["conv2_1"])
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_torchvisions_weights_or_a_clear_error(original, monkeypatch, tmp_path):
    """torchvision's weights where they can be had; offline, an error that names the ways out."""
    from torchvision.models import VGG19_Weights

    monkeypatch.setattr(VGG19_Weights.IMAGENET1K_V1.__class__, "get_state_dict", lambda *_, **__: original.state_dict())
    network = imagenet_vgg19(["conv1_1"])
    assert network.name == "vgg19-imagenet"
    assert torch.equal(network.features[0].weight, original.features[0].weight)

    def offline(*_: object, **__: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr(VGG19_Weights.IMAGENET1K_V1.__class__, "get_state_dict", offline)
    with pytest.raises(PerceptualError, match=r"does not answer.*no route.*Give the file, or choose random weights"):
        imagenet_vgg19(["conv1_1"])


def test_refusals(original, tmp_path):
    with pytest.raises(PerceptualError, match="no such file"):
        load_vgg19(tmp_path / "none.pth", ["conv1_1"])
    path = tmp_path / "bad.pth"
    torch.save({"features.0.weight": Call(os.system, "exit 3")}, path)
    with pytest.raises(PerceptualError, match=r"bad\.pth: not a readable file of weights"):
        load_vgg19(path, ["conv1_1"])
    torch.save({"features.0.weight": torch.zeros(3)}, path)
    with pytest.raises(
        PerceptualError, match=r"2 weights of VGG19 are missing or misshapen, such as features\.0\.weight"
    ):
        load_vgg19(path, ["conv1_1"])
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(PerceptualError, match="not a readable file"):
        load_vgg19(path, ["conv1_1"])
