"""What every annotator does, and where its weights are found."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.annotate import AnnotateConfig

WEIGHTS_CACHE = Path.home() / ".cache" / "deca" / "weights"


class AnnotatorError(Exception):
    """An annotator that cannot start (a weight file is missing) or was given something that is not a picture."""


@dataclass(frozen=True)
class Detection:
    """One found face.

    bbox x0, y0, x1, y1 in source pixels, edges of the box (it may reach over the picture's border);
    score in the detector's own unit, larger is surer.
    """

    bbox: tuple[float, float, float, float]
    score: float


class Annotator(Protocol):
    """Finds and describes faces in upright (H, W, 3) uint8 RGB pictures. Pixel centres lie at whole coordinates."""

    def detect(self, image: NDArray[np.uint8]) -> list[Detection]:
        """Every face, largest first (ties: from left to right)."""
        ...

    def landmarks(self, image: NDArray[np.uint8], detection: Detection) -> NDArray[np.float32]:
        """The 68 iBUG landmarks of a detected face, (68, 2) x, y in source pixels."""
        ...

    def segment(self, image: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Visible facial skin, (H, W) of the given picture, 255 skin, 0 else.

        Give the face's crop and the landmarks in crop pixels rather than a large photograph: the mask has the size
        of the picture it is asked for.
        """
        ...

    def embed(self, image: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
        """The identity descriptor, (128,) for dlib; Euclidean distance compares two of them."""
        ...

    @property
    def versions(self) -> dict[str, str]:
        """Library version, and the first 12 hex digits of SHA-256 of each weight file, by name."""
        ...


def load_annotator(config: AnnotateConfig) -> Annotator:
    """The provider the config names, its weight files found but not yet loaded. Raises AnnotatorError."""
    from tasks.annotators.dlib_provider import DlibAnnotator  # dlib takes a quarter of a second to import

    return DlibAnnotator(config)


def find_weight(name: str, installed: Path, origin: str, weights_uri: str | None) -> Path:
    """The local path of one weight file.

    name: the file's own name; installed: folder it lies in when `origin` (a pip package) is installed;
    weights_uri: folder or bucket to take it from instead; what is not local is fetched once into the user's cache.
    Raises AnnotatorError naming the file, its origin and the option when it is not there.
    """
    if weights_uri is None:
        if (installed / name).is_file():
            return installed / name
        raise AnnotatorError(
            f"{name}: not found in {installed}. It comes with {origin}. Run: pip install --force-reinstall {origin}, "
            "or set annotate.weights_uri to a folder or bucket that holds it"
        )
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(weights_uri)
    remote = f"{root.rstrip('/')}/{name}"
    if not filesystem.isfile(remote):
        raise AnnotatorError(
            f"{name}: not found in annotate.weights_uri = {weights_uri}. It comes with {origin}: copy the file there, "
            f"or leave weights_uri out and run: pip install {origin}"
        )
    if "file" in filesystem.protocol:
        return Path(remote)
    local = WEIGHTS_CACHE / hashlib.sha256(weights_uri.encode()).hexdigest()[:12] / name
    if not local.is_file():
        local.parent.mkdir(parents=True, exist_ok=True)
        partial = local.with_name(
            f"{name}.{os.getpid()}.tmp"
        )  # several workers may fetch at once: the last rename wins
        filesystem.get_file(remote, str(partial))
        partial.replace(local)
    return local
