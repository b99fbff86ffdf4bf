"""Recognition networks: reading released files safely, preprocessing, the network's strides, names."""

from __future__ import annotations

import copy
import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from deca_core.recognition import (
    RecognitionError,
    VGGFace2,
    load_vggface2,
    random_recognition,
)
from tests.deca_core.conftest import Call


@pytest.fixture(scope="module")
def untrained() -> VGGFace2:
    return random_recognition(3)


def released_format(network: VGGFace2, empty: bool = False) -> dict[str, np.ndarray]:
    """VGGFace2's file: arrays by name, with the classifier; `empty`: scalars under the same names."""
    generator = np.random.default_rng(0)
    content = {
        name: np.zeros((), np.float32) if empty else generator.random(tuple(value.shape), np.float32)
        for name, value in network.network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    return content | {"fc.weight": np.zeros((10, 2048), np.float32), "fc.bias": np.zeros(10, np.float32)}


def images(batch: int) -> torch.Tensor:
    return torch.rand(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def test_released_file(untrained, tmp_path):
    content = released_format(untrained)
    path = tmp_path / "resnet50_ft_weight.pkl"
    path.write_bytes(pickle.dumps(content, protocol=2))
    network = load_vggface2(path)
    for name, value in network.network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(value.numpy(), content[name])
    assert network.name.startswith("vggface2-resnet50-")
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(module.training for module in network.modules())


def test_network_is_that_of_the_release(untrained):
    """Against torchvision's ResNet50 with what differs set from outside: the stride's place and the pooling."""
    from torchvision.models import resnet50

    network = copy.deepcopy(untrained.network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.5, 0.1)
    with torch.device("meta"):
        other = resnet50()
    other.fc = nn.Identity()
    other.maxpool = nn.MaxPool2d(3, 2, padding=0, ceil_mode=True)
    for stage in (other.layer2, other.layer3, other.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    other.load_state_dict(network.state_dict(), assign=True)
    features = network(images(1))
    assert features.shape == (1, 2048)
    torch.testing.assert_close(features, other.eval()(images(1)))


def test_preprocessing(untrained):
    """Numerics of the release, on numpy arrays: BGR * 255 - mean, 10 pixels off each side, * 2 - 1, to 224."""
    seen = []
    hook = untrained.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    untrained.features(images(1))
    hook.remove()
    bgr = images(1)[0].numpy()[::-1] * 255 - np.array([91.4953, 103.8827, 131.0912])[:, None, None]
    inner = torch.from_numpy(bgr[:, 10:214, 10:214] * 2 - 1)[None]
    expected = functional.interpolate(inner, size=(224, 224), mode="bilinear")
    torch.testing.assert_close(seen[0], expected.float(), rtol=1e-4, atol=0.02)  # of +-500


def test_random_network_is_named_and_repeats(untrained):
    assert untrained.name == "random-resnet50-seed3"
    state = torch.get_rng_state()
    again, other = random_recognition(3), random_recognition(4)
    assert torch.equal(state, torch.get_rng_state())  # the global generator is not advanced
    for name, value in untrained.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(untrained.network.conv1.weight, other.network.conv1.weight)


def test_gradient_reaches_the_image(untrained):
    image = images(1).requires_grad_()
    untrained.features(image).sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()
    assert (image.grad != 0).any()


def test_refusals(untrained, tmp_path):
    def refused(content: object, match: str) -> None:
        path = tmp_path / "some.pkl"
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(RecognitionError, match=match):
            load_vggface2(path)

    content = released_format(untrained, empty=True)
    refused(
        {**content, "bn1.weight": Call(os.system, "exit 3")},
        r"some\.pkl: refused: it wants to use \w+\.system.*nothing was executed",
    )
    refused(content, r"conv1\.weight is float32 \(\), expected float \(64, 3, 7, 7\)")
    content.pop("layer4.2.bn3.bias")
    refused(content, r"no weights layer4\.2\.bn3\.bias \(1 missing\)")
    refused([1, 2], "not a ResNet50 of VGGFace2")
    with pytest.raises(RecognitionError, match=r"none\.pkl: no such file; expected resnet50_ft_weight"):
        load_vggface2(tmp_path / "none.pkl")
