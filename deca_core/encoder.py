"""The encoders E_c and E_d (paper sections 4.1, 4.2): ResNet50 features and two linear layers.

Parameter names are those of torchvision's ResNet and of the released checkpoint: `encoder.*`, `layers.{0,2}.*`. Any
other classifier of torchvision can take ResNet50's place, under its own parameter names behind `encoder.`, and so can
dlib's recognition network.
"""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from deca_core.dlib_resnet import DlibBackbone
from deca_core.errors import DecaError

DLIB = "dlib"  # DlibBackbone
RESNET50 = "resnet50"  # the paper's backbone, and the only one that needs no torchvision
NUM_FEATURES, NUM_HIDDEN = 2048, 1024
NO_SPREAD = 1e-9
# How torchvision calls what follows the features; every classifier has one of these.
HEADS = ("fc", "classifier", "heads", "head")
# Two of its oldest have further classifiers half way, which training would leave without a gradient.
SETTINGS = {name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")}


class BackboneError(DecaError, ValueError):
    """A backbone that nobody knows, or that needs a package which is not installed."""


class Bottleneck(nn.Module):
    """Residual block 1x1, 3x3 (with the stride), 1x1 (He et al. 2016, the variant with the stride on the 3x3)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    """Images (B,3,H,W) to globally averaged features (B,2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        inputs = 64
        for stage, (width, blocks) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True), start=1):
            layers = []
            for block in range(blocks):
                layers.append(Bottleneck(inputs, width, stride=2 if stage > 1 and block == 0 else 1))
                inputs = 4 * width
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)  # blocks start as the identity (Goyal et al. 2017)

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return x.mean((2, 3))


def headless(name: str) -> tuple[nn.Module, int]:
    """A torchvision classifier up to its pooled features, with random weights; and the number of features.

    What stands before the head's first weights (a pooling, a norm) stays; dropout goes. Raises BackboneError.
    """
    try:
        from torchvision import models
    except ImportError as error:
        raise BackboneError(
            f"backbone {name!r} needs torchvision, which is not installed ({error}). Run: pip install torchvision; "
            f"or choose {RESNET50!r}"
        ) from error
    names = models.list_models(models)
    if name not in names:
        close = ", ".join(difflib.get_close_matches(name, names)) or ", ".join(names)
        raise BackboneError(f"unknown backbone {name!r}; there are {RESNET50}, {DLIB}, and of torchvision {close}")
    model = models.get_model(name, weights=None, **SETTINGS.get(name, {}))
    place = next(head for head in HEADS if hasattr(model, head))
    head = getattr(model, place)
    layers: list[Any] = list(head) if isinstance(head, nn.Sequential) else [head]
    first = next(index for index, layer in enumerate(layers) if isinstance(layer, (nn.Linear, nn.Conv2d)))
    kept = [layer for layer in layers[:first] if not isinstance(layer, nn.Dropout)]
    if isinstance(layers[first], nn.Conv2d):  # SqueezeNet pools after its head
        features = layers[first].in_channels
        kept.append(nn.AdaptiveAvgPool2d(1))
    else:
        features = layers[first].in_features
    setattr(model, place, nn.Sequential(*kept))
    return model, features


def _features(backbone: str) -> tuple[nn.Module, int]:
    """A backbone by name, with random weights, and the number of its features. Raises BackboneError."""
    if backbone == RESNET50:
        return ResNet50(), NUM_FEATURES
    if backbone == DLIB:
        return DlibBackbone(), DlibBackbone.features
    return headless(backbone)


class Encoder(nn.Module):
    """Backbone, Linear(features, 1024), ReLU, Linear(1024, outputs): images (B,3,224,224) in [0, 1] -> (B, outputs).

    backbone: "resnet50", "dlib", or the name of another torchvision classifier. The linear layers answer in float32
    inside autocast too: rounded to 8 bits, the camera alone would shift a face by half a pixel.
    """

    def __init__(self, outputs: int, backbone: str = RESNET50) -> None:
        super().__init__()
        self.encoder, features = _features(backbone)
        self.layers = nn.Sequential(nn.Linear(features, NUM_HIDDEN), nn.ReLU(), nn.Linear(NUM_HIDDEN, outputs))

    def forward(self, images: Tensor) -> Tensor:
        features = self.encoder(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.layers(features.to(self.layers[0].weight.dtype))

    @torch.no_grad()
    def start_linear(self, features: Tensor, targets: Tensor, outputs: Tensor, ridge: float) -> None:
        """Make an untrained encoder answer, as those `outputs` (K,), the ridge regression of targets (N,K) on features
        (N,F). features: of variance about 1, which `ridge` is measured by.

        Hidden units hold each answer, of mean 0 and variance 1, twice: as it is and negated, of which ReLU lets pass
        one. The other hidden units are left for what is not linear.
        """
        first, last, count = self.layers[0], self.layers[-1], targets.shape[1]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        centre, mean = features.double().mean(0), targets.double().mean(0)
        spread = targets.double().std(0).clamp(min=NO_SPREAD)
        known, wanted = features.double() - centre, (targets.double() - mean) / spread
        penalty = ridge * torch.eye(len(centre), dtype=centre.dtype, device=centre.device)
        slope = torch.linalg.solve(known.T @ known / len(known) + penalty, known.T @ wanted / len(known)).T  # (K, F)
        for sign, rows in ((1, slice(0, count)), (-1, slice(count, 2 * count))):
            first.weight[rows], first.bias[rows] = sign * slope, -sign * (slope @ centre)
        last.weight[:, : 2 * count] = 0
        last.weight[outputs] = 0
        last.weight[outputs, : 2 * count] = torch.cat([spread.diag(), -spread.diag()], dim=1).to(last.weight)
        last.bias[outputs] = mean.to(last.bias)

    @torch.no_grad()
    def start_at(self, prior: Tensor) -> None:
        """Make an untrained encoder answer `prior` (outputs,) plus a tenth of its random guess."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        last.weight.mul_(0.1)
        last.bias.copy_(prior)
