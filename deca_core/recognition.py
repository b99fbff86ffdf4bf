"""Face recognition networks for the identity loss (eq. 7): frozen, in eval mode, behind one small protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from deca_core.assets.bundle import BundleError
from deca_core.assets.unpickle import load_pickle
from deca_core.camera import IMAGE_SIZE
from deca_core.checkpoint_meta import file_sha256
from deca_core.downloads import check_download
from deca_core.encoder import ResNet50
from deca_core.errors import DecaError
from deca_core.images import require_floats
from deca_core.losses.precision import full_precision

# Mean colour of VGGFace2, blue, green, red, 0 to 255.
MEAN_BGR = (91.4953, 103.8827, 131.0912)
MARGIN = 10  # pixels of the crop that are cut off on each side


class RecognitionError(DecaError):
    """Weights of a recognition network that are missing, damaged, or made for another network."""


class Recognition(Protocol):
    """A face recognition network for the identity loss: a name for logs and checkpoints, and features."""

    name: str

    def features(self, images: Tensor) -> Tensor:
        """Images (B,3,224,224), RGB in [0, 1], to features (B,D); differentiable with respect to the images."""
        ...


class VGGFace2(nn.Module):
    """ResNet50 with the strides of the VGGFace2 release, as far as the pooled features (B,2048).

    Unlike torchvision's (and the encoders'), it halves the resolution in the first 1x1 convolution of a stage, and its
    pooling layer has no margin.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.network = ResNet50()
        self.network.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
        for stage in range(2, 5):
            for layer, stride in (("conv1", 2), ("conv2", 1)):
                convolution = self.network.get_submodule(f"layer{stage}.0.{layer}")
                assert isinstance(convolution, nn.Conv2d)
                convolution.stride = (stride, stride)
        self.requires_grad_(False).eval()

    def features(self, images: Tensor) -> Tensor:
        """Numerics of the release: BGR * 255 minus the mean colour, margins off, twice minus one, back to 224."""
        images = full_precision(require_floats(images, self.name, IMAGE_SIZE))
        mean = images.new_tensor(MEAN_BGR)[:, None, None]
        inner = (images.flip(1) * 255 - mean)[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
        size = (IMAGE_SIZE, IMAGE_SIZE)
        return self.network(functional.interpolate(inner * 2 - 1, size, mode="bilinear", align_corners=False))


def load_vggface2(path: str | Path) -> VGGFace2:
    """The VGGFace2 network from its released `.pkl` (a pickled dictionary of arrays), read without executing it.

    The classifier `fc.*` is left out. Raises RecognitionError naming the file and what is missing or wrong.
    """
    source = Path(path)
    require_file(source, "resnet50_ft_weight.pkl of the VGGFace2 release in PyTorch")
    try:
        content = load_pickle(source)
    except BundleError as error:
        raise RecognitionError(f"{error}. Expected resnet50_ft_weight.pkl of the VGGFace2 release") from error
    network = VGGFace2(f"vggface2-resnet50-{file_sha256(source)[:12]}")
    state = network.network.state_dict()
    expected = [name for name in state if not name.endswith("num_batches_tracked")]
    missing = [name for name in expected if not (isinstance(content, dict) and name in content)]
    if missing:
        raise RecognitionError(
            f"{source}: no weights {', '.join(missing[:5])} ({len(missing)} missing); it is not a ResNet50 of VGGFace2"
        )
    for name in expected:
        value = np.asarray(content[name])
        if value.shape != tuple(state[name].shape) or value.dtype.kind != "f":
            raise RecognitionError(
                f"{source}: {name} is {value.dtype} {value.shape}, expected float {tuple(state[name].shape)}"
            )
        state[name] = torch.from_numpy(value.astype(np.float32))
    network.network.load_state_dict(state)
    return network


def random_recognition(seed: int = 0) -> VGGFace2:
    """An untrained ResNet50, the same for the same seed: for tests and dry runs.

    It compares colours and coarse structure, not identities; its name starts with `random-`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VGGFace2(f"random-resnet50-seed{seed}")


def require_file(path: Path, what: str) -> None:
    """Raise RecognitionError where the file is missing or has other content."""
    if not path.is_file():
        raise RecognitionError(f"{path}: no such file; expected {what}. Without it choose dlib's network")
    check_download(path, RecognitionError)
