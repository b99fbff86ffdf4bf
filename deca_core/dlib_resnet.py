"""The residual network of dlib's face recognition (D. King 2017): 29 convolutions, trained on three million faces.

The whole network is the identity loss's (`dlib_recognition`). Its first 21 convolutions are a backbone of the encoders:
a start from weights trained on real faces, as the paper starts from a trained ResNet50.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# Channels of the residual blocks, and whether a block halves the resolution.
BLOCKS = (
    *[(32, False)] * 3,
    (64, True),
    *[(64, False)] * 3,
    (128, True),
    *[(128, False)] * 2,
    (256, True),
    *[(256, False)] * 2,
    (256, True),
)
COLOUR_SCALE = 256  # by which colours of 0 to 255 are divided, less their mean
BACKBONE_BLOCKS = 10  # those before the last 256 channels: the place on the face is still seen, and 2 MB
# Pixels on a side of what the backbone sees: faces in crops of 1.6 face sizes are then as large as in dlib's own chips.
SIDE = 192
PLACES = 6  # on a side, of the backbone's features
CHANNELS = 40  # of the backbone's features, of 128; with them both encoders and F_d fit into 16 MB of float16
NO_VARIANCE = 1e-6


class Residual(nn.Module):
    """Two 3x3 convolutions beside their input; where the block halves, the input is averaged over 2x2 pixels.

    dlib pads by half the kernel at stride 1 and not at all otherwise. A sum of unequal sizes has the larger one in
    every dimension, the smaller term being 0 beyond its end: new channels get no input, and where the input has a row
    more than the convolutions left over, that row is the input alone.
    """

    def __init__(self, inputs: int, width: int, halves: bool) -> None:
        super().__init__()
        self.halves = halves
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=2 if halves else 1, padding=0 if halves else 1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(functional.relu(self.conv1(x)))
        if self.halves:
            x = functional.avg_pool2d(x, 2)
            rows, columns = (x.shape[axis] - out.shape[axis] for axis in (2, 3))
            out = functional.pad(out, (0, columns, 0, rows))
            x = functional.pad(x, (0, 0, 0, 0, 0, out.shape[1] - x.shape[1]))
        return functional.relu(out + x)


class DlibResNet(nn.Module):
    """Images (B,3,H,W), RGB in [0, 1], to the features of the first `depth` blocks (B,channels,h,w).

    dlib follows every convolution by a gain and an offset for each channel; here they are part of the convolution.
    """

    mean: Tensor  # (3,) mean colour, RGB, 0 to 255

    def __init__(self, depth: int = len(BLOCKS)) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.channels = BLOCKS[0][0]
        self.first = nn.Conv2d(3, self.channels, 7, stride=2)
        self.blocks = nn.ModuleList()
        for width, halves in BLOCKS[:depth]:
            self.blocks.append(Residual(self.channels, width, halves))
            self.channels = width

    def forward(self, images: Tensor) -> Tensor:
        x = (images * 255 - self.mean[:, None, None]) / COLOUR_SCALE
        x = functional.max_pool2d(functional.relu(self.first(x)), 3, stride=2)
        for block in self.blocks:
            x = block(x)
        return x


class DlibBackbone(nn.Module):
    """Images (B,3,224,224), RGB in [0, 1], to features (B,1440): 40 channels at 6x6 places of the image.

    Not averaged over the image, unlike a ResNet50's: the encoder needs the positions of landmarks.
    """

    features = CHANNELS * PLACES**2

    def __init__(self) -> None:
        super().__init__()
        self.resnet = DlibResNet(BACKBONE_BLOCKS)
        self.reduce = nn.Conv2d(self.resnet.channels, CHANNELS, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.reduce(self._seen(images)).flatten(1)

    def _seen(self, images: Tensor) -> Tensor:
        """(B,128,6,6)."""
        images = functional.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)
        return functional.avg_pool2d(self.resnet(images), 2, ceil_mode=True)

    @torch.no_grad()
    def start_from(self, trained: DlibResNet, images: Tensor) -> None:
        """Take over the trained network, and keep of its features what varies most over images (B,3,224,224).

        The features' principal components, each of mean 0 and variance 1: dlib's own are all positive and alike, and
        what follows would learn slowly from them.
        """
        kept = self.resnet.state_dict()
        self.resnet.load_state_dict({name: value for name, value in trained.state_dict().items() if name in kept})
        seen = self._seen(images).permute(0, 2, 3, 1).flatten(0, 2).double()
        variance, axes = torch.linalg.eigh(seen.T.cov())
        whitening = (axes[:, -CHANNELS:] / variance[-CHANNELS:].clamp(min=NO_VARIANCE).sqrt()).T
        self.reduce.weight.copy_(whitening[..., None, None])
        assert self.reduce.bias is not None
        self.reduce.bias.copy_(-whitening @ seen.mean(0))
