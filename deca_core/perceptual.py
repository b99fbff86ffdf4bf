"""VGG19 features for ID-MRF (eq. 13): frozen, and no deeper than the requested layers."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn

from deca_core.downloads import AGAIN, check_download, read_tensors
from deca_core.errors import DecaError
from deca_core.images import require_floats
from deca_core.losses.precision import full_precision

# Convolutions of each stage, and their channels (Simonyan & Zisserman 2015, configuration E).
STAGES = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))
# Mean and deviation of ImageNet's RGB in [0, 1].
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PerceptualError(DecaError):
    """Weights of VGG19 that are missing, damaged, or made for another network."""


class VGG19(nn.Module):
    """Features of the named layers: "conv3_2" before, "relu3_2" after the rectifier of stage 3's 2nd convolution.

    Parameter names are torchvision's, `features.N.*`.

    >>> features = random_vgg19(["conv3_2", "conv4_2"])(images)  # doctest: +SKIP
    """

    def __init__(self, layers: Iterable[str], name: str) -> None:
        super().__init__()
        self.name, self.layers = name, tuple(layers)
        modules: list[nn.Module] = []
        self._place: dict[str, int] = {}  # index in `features` of every named layer
        channels = 3
        for stage, (convolutions, width) in enumerate(STAGES, start=1):
            for index in range(1, convolutions + 1):
                self._place[f"conv{stage}_{index}"] = len(modules)
                self._place[f"relu{stage}_{index}"] = len(modules) + 1
                # Not in place: it would change what was read out before it.
                modules += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            modules.append(nn.MaxPool2d(2, 2))
        unknown = [layer for layer in self.layers if layer not in self._place]
        if unknown or not self.layers:
            raise ValueError(f"VGG19 has no layers {unknown}; name some of conv1_1, relu1_1, ... relu5_4")
        self.features = nn.Sequential(*modules[: max(self._place[layer] for layer in self.layers) + 1])
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B,3,H,W), RGB in [0, 1], to features by layer; stage n has 1 / 2^(n-1) of the resolution."""
        images = full_precision(require_floats(images, self.name))
        x = (images - images.new_tensor(MEAN)[:, None, None]) / images.new_tensor(DEVIATION)[:, None, None]
        wanted = {self._place[layer]: layer for layer in self.layers}
        found = {}
        for index, module in enumerate(self.features):
            x = module(x)
            if index in wanted:
                found[wanted[index]] = x
        return found


def imagenet_vgg19(layers: Iterable[str]) -> VGG19:
    """VGG19 with torchvision's ImageNet weights, from torch's cache folder or, where there are none, from their URL.

    Raises PerceptualError naming the URL where neither has them.
    """
    from torchvision.models import VGG19_Weights

    weights = VGG19_Weights.IMAGENET1K_V1
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except pickle.UnpicklingError as error:
        raise PerceptualError(
            f"VGG19's weights in {torch.hub.get_dir()}/checkpoints are damaged, or an error page. Delete "
            f"{weights.url.rpartition('/')[2]} there: it is then fetched again"
        ) from error
    except (URLError, OSError, RuntimeError) as error:
        raise PerceptualError(
            f"VGG19's weights are not in {torch.hub.get_dir()}/checkpoints, and {weights.url} does not answer "
            f"({error}). Give the file, or choose random weights"
        ) from error
    return _filled(VGG19(layers, "vgg19-imagenet"), dict(state), weights.url)


def load_vgg19(path: str | Path, layers: Iterable[str]) -> VGG19:
    """VGG19 from a file with torchvision's names: `.safetensors`, or a `torch.save`d dictionary of tensors.

    Raises PerceptualError naming the file and what is missing or wrong.
    """
    source = Path(path)
    if not source.is_file():
        raise PerceptualError(f"{source}: no such file; expected vgg19-dcbb9e9d.pth of torchvision, or random weights")
    state = _read(source)
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    return _filled(VGG19(layers, f"vgg19-{digest}"), state, str(source))


def random_vgg19(layers: Iterable[str], seed: int = 0) -> VGG19:
    """An untrained VGG19, the same for the same seed: for machines without weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VGG19(layers, f"random-vgg19-seed{seed}")


def _read(source: Path) -> object:
    if source.suffix != ".safetensors":
        return read_tensors(source, PerceptualError)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_download(source, PerceptualError, "not a readable file of weights")
    try:
        return load_file(source)
    except SafetensorError as error:
        raise PerceptualError(f"{source}: not a readable file of weights ({error}). {AGAIN}") from error


def _filled(network: VGG19, state: object, where: str) -> VGG19:
    own = network.state_dict()
    wrong = [
        name
        for name, value in own.items()
        if not isinstance(state, dict) or getattr(state.get(name), "shape", None) != value.shape
    ]
    if wrong or not isinstance(state, dict):
        raise PerceptualError(
            f"{where}: {len(wrong)} weights of VGG19 are missing or misshapen, such as {', '.join(wrong[:3])}"
        )
    network.load_state_dict({name: state[name] for name in own})
    return network
