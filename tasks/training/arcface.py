"""facexlib's ArcFace as the network of the identity loss."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from deca_core.camera import IMAGE_SIZE
from deca_core.checkpoint_meta import file_sha256
from deca_core.downloads import read_tensors
from deca_core.images import require_floats
from deca_core.losses.precision import full_precision
from deca_core.recognition import MARGIN, RecognitionError, require_file

ARCFACE_FILE = "recognition_arcface_ir_se50.pth"
ARCFACE_SIZE = 112


class ArcFace(nn.Module):
    """facexlib's ArcFace (IR-SE50), (B,512) of length 1. Input: faces 112 pixels wide, BGR, in [-1, 1]."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.name = name
        self.network = network
        self.requires_grad_(False).eval()

    def features(self, images: Tensor) -> Tensor:
        images = full_precision(require_floats(images, self.name, IMAGE_SIZE))
        inner = images.flip(1)[..., MARGIN:-MARGIN, MARGIN:-MARGIN] * 2 - 1
        small = functional.interpolate(inner, (ARCFACE_SIZE, ARCFACE_SIZE), mode="bilinear", antialias=True)
        return self.network(small.contiguous())  # it flattens by view, which channels_last does not allow


def load_arcface(folder: str | Path) -> ArcFace:
    """facexlib's ArcFace from a folder that holds its weights under the library's own name.

    Raises RecognitionError naming the file and what is missing or wrong.
    """
    from facexlib.recognition.arcface_arch import Backbone

    source = Path(folder) / ARCFACE_FILE
    require_file(source, f"{ARCFACE_FILE} of facexlib's releases")
    state = read_tensors(source, RecognitionError)
    network = Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se")
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise RecognitionError(f"{source}: not the weights of facexlib's ArcFace ({error}). Copy it again") from error
    return ArcFace(network, f"arcface-ir-se50-{file_sha256(source)[:12]}")
