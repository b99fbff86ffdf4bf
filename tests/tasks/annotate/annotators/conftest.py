"""A mirror of weight files of the right architecture: networks with random weights of a fixed seed."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch


def save_half(network: torch.nn.Module, path: Path) -> None:
    """In half precision, which loads into any network and writes half as much."""
    torch.save(
        {name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()},
        path,
    )


@pytest.fixture(scope="session")
def mirror(tmp_path_factory) -> Path:
    """Every file of facexlib and face_alignment under the library's own name (the names are facts)."""
    from face_alignment.models import FAN
    from facexlib.detection.retinaface import RetinaFace
    from facexlib.parsing import BiSeNet, ParseNet
    from facexlib.recognition.arcface_arch import Backbone

    folder = tmp_path_factory.mktemp("mirror")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind, name in (
            ("resnet50", "detection_Resnet50_Final.pth"),
            ("mobile0.25", "detection_mobilenet0.25_Final.pth"),
        ):
            network = RetinaFace(network_name=kind, device="cpu")
            spread_scores(network)
            torch.save(network.state_dict(), folder / name)  # the scaled heads leave the range of half precision
    save_half(BiSeNet(num_class=19), folder / "parsing_bisenet.pth")
    save_half(ParseNet(512, 512, parsing_ch=19), folder / "parsing_parsenet.pth")
    save_half(Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se"), folder / "recognition_arcface_ir_se50.pth")
    save_half(FAN(4), folder / "2DFAN4-11f355bf06.pth.tar")
    return folder


@torch.inference_mode()
def spread_scores(network: torch.nn.Module) -> None:
    """Give the heads of an untrained RetinaFace outputs as spread as a trained one's.

    Scores about 0 with a deviation of 2, regressions with one of 1, over the places of an image.
    """
    image = torch.from_numpy(portrait_pixels()).permute(2, 0, 1)[None].float() - 110
    taken: list[torch.Tensor] = []
    for heads, spread in ((network.ClassHead, 1.4), (network.BboxHead, 1.0)):
        for head in heads:
            layer = head.conv1x1
            hook = layer.register_forward_hook(lambda _, given, made: taken.append(made))
            network(image)
            hook.remove()
            made = taken.pop()
            deviation = made.std(dim=(0, 2, 3))
            layer.weight *= (spread / deviation)[:, None, None, None]
            layer.bias.copy_((layer.bias - made.mean(dim=(0, 2, 3))) * spread / deviation)


def portrait_pixels() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[40:200, 120:328])


@pytest.fixture(scope="session")
def face() -> np.ndarray:
    """160 x 208 pixels with one frontal face."""
    return portrait_pixels()
