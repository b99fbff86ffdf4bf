"""The annotator protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deca_core.errors import DecaError


class AnnotatorError(DecaError):
    """An annotator that cannot start (a weight file is missing), or input that is not an image."""


@dataclass(frozen=True)
class Detection:
    """One found face.

    bbox x0, y0, x1, y1 in source pixels, edges of the box: pixel i reaches from i to i + 1 (the box may reach over the
    image's border); score in the detector's own unit, larger is surer.
    """

    bbox: tuple[float, float, float, float]
    score: float

    @property
    def area(self) -> float:
        return (self.bbox[2] - self.bbox[0]) * (self.bbox[3] - self.bbox[1])


class Annotator(Protocol):
    """Finds and describes faces in upright (H, W, 3) uint8 RGB images. Pixel centres lie at whole coordinates.

    An instance belongs to one thread.
    """

    def detect(self, image: NDArray[np.uint8]) -> list[Detection]:
        """Return every face, largest first (ties: from left to right)."""
        ...

    def landmarks(self, image: NDArray[np.uint8], detection: Detection) -> NDArray[np.float32]:
        """Return the 68 iBUG landmarks of a detected face, (68, 2) x, y in source pixels."""
        ...

    def segment(self, image: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return visible facial skin, (H, W) of the given image, 255 skin, 0 else.

        The work depends on the face and not on the image's size. All but `sidecar`, whose masks are of the whole
        image, accept a crop and the landmarks in crop pixels.
        """
        ...

    def embed(self, image: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the descriptor, compared by Euclidean distance: (128,) for dlib, unit length (512,) for ArcFace."""
        ...

    @property
    def embedding_size(self) -> int:
        """Length of the identity descriptor."""
        ...

    @property
    def versions(self) -> dict[str, str]:
        """Library version, and the first 12 hex digits of SHA-256 of each weight file, by name."""
        ...


def largest_first(faces: list[Detection], limit: int) -> list[Detection]:
    """Return faces in the order of face_index, which does not depend on the order of the input."""
    return sorted(faces, key=lambda face: (-face.area, face.bbox))[:limit]


def check_image(image: NDArray[np.uint8]) -> None:
    """Raise AnnotatorError for arrays that are not RGB images."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise AnnotatorError(f"expected an image of shape (H, W, 3) and type uint8, got {image.shape} {image.dtype}")
