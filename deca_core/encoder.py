"""The encoders E_c and E_d (paper sections 4.1, 4.2): ResNet50 features and two linear layers.

Parameter names are those of torchvision's ResNet and of the released checkpoint: `encoder.*`, `layers.{0,2}.*`.
Smaller backbones: dlib's recognition network, and MobileNetV3-small; others by `register_backbone`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from deca_core.dlib_resnet import DlibBackbone
from deca_core.errors import DecaError

RESNET50, DLIB, MOBILENET = "resnet50", "dlib", "mobilenet_v3_small"
NUM_HIDDEN = 1024
NO_SPREAD = 1e-9


class BackboneError(DecaError, ValueError):
    """An unknown backbone, or one that needs a package which is not installed."""


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


def mobilenet_v3_small() -> nn.Module:
    """torchvision's MobileNetV3-small up to its pooled features (B,576), with random weights. Raises BackboneError."""
    try:
        from torchvision.models import mobilenet_v3_small as classifier
    except ImportError as error:
        raise BackboneError(
            f"backbone {MOBILENET!r} needs torchvision, which is not installed ({error}). Run: pip install "
            f"torchvision; or choose {RESNET50!r}"
        ) from error
    model = classifier(weights=None)
    model.classifier = nn.Identity()
    return model


# Factory and number of features of every backbone.
BACKBONES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    RESNET50: (ResNet50, 2048),
    DLIB: (DlibBackbone, DlibBackbone.features),
    MOBILENET: (mobilenet_v3_small, 576),
}


def register_backbone(name: str, factory: Callable[[], nn.Module], features: int) -> None:
    """Make `name` a backbone of DECA, checkpoints and configs; every process that builds the model must call it.

    factory: builds a module with random weights that takes images (B,3,224,224), RGB in [0, 1], to (B,features).

    >>> register_backbone("resnet18", lambda: nn.Sequential(*list(resnet18().children())[:-1], nn.Flatten()), 512)
    ... # doctest: +SKIP
    """
    BACKBONES[name] = (factory, features)


class Encoder(nn.Module):
    """Backbone, Linear(features, 1024), ReLU, Linear(1024, outputs): images (B,3,224,224) in [0, 1] -> (B, outputs).

    backbone: a name in BACKBONES. The linear layers compute in float32 inside autocast too: with 8 bits of mantissa the
    camera alone would shift a face by half a pixel. Raises BackboneError.
    """

    def __init__(self, outputs: int, backbone: str = RESNET50) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise BackboneError(
                f"unknown backbone {backbone!r}; there are {', '.join(BACKBONES)}. Add others with "
                "deca_core.encoder.register_backbone"
            )
        factory, features = BACKBONES[backbone]
        self.encoder = factory()
        self.layers = nn.Sequential(nn.Linear(features, NUM_HIDDEN), nn.ReLU(), nn.Linear(NUM_HIDDEN, outputs))

    def forward(self, images: Tensor) -> Tensor:
        features = self.encoder(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.layers(features.to(self.layers[0].weight.dtype))

    @torch.no_grad()
    def start_linear(self, features: Tensor, targets: Tensor, outputs: Tensor, ridge: float) -> None:
        """Initialise the linear layers: `outputs` (K,) are the ridge regression of targets (N,K) on features (N,F).

        features: of variance about 1, the unit of `ridge`. Two hidden units hold each output, normalised: itself and
        its negative, of which ReLU passes one. The other hidden units keep their random weights.
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
        """Initialise the last layer so that the output is `prior` (outputs,) plus a tenth of the random output."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        last.weight.mul_(0.1)
        last.bias.copy_(prior)
