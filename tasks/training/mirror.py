"""Mirror images as further subjects: twice the subjects from the same photographs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from schemas.faces import CROP_SIZE
from tasks.training.datasets import EncodedFace, Source
from tasks.training.order import Index, Ints

# The landmark that each of the 68 becomes in the mirror: contour, brows, nose, eyes, outer and inner lips.
_PAIRS = (
    *((point, 16 - point) for point in range(8)),
    *((17 + point, 26 - point) for point in range(5)),
    *((31, 35), (32, 34)),
    *((36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46)),
    *((48, 54), (49, 53), (50, 52), (55, 59), (56, 58)),
    *((60, 64), (61, 63), (65, 67)),
)
TWINS = np.arange(68)
TWINS[[a for a, _ in _PAIRS]], TWINS[[b for _, b in _PAIRS]] = (np.array(_PAIRS).T)[::-1]


class MirroredSource:
    """A source and its mirror image: every shard twice, the second time with other subjects.

    No face is symmetric, so the mirror image is another subject, and one sample never mixes the two.
    """

    def __init__(self, source: Source) -> None:
        self._source, self.fitted = source, source.fitted
        self.fingerprint = f"{source.fingerprint}-mirrored"
        plain = source.index
        self._shards = int(plain.shard.max()) + 1
        self.index = Index(
            np.concatenate([plain.shard, plain.shard + self._shards]),
            np.concatenate([plain.first_row, plain.first_row]),
            np.concatenate([plain.rows, plain.rows]),
        )

    def load(self, shard: int, rows: Ints) -> dict[int, EncodedFace]:
        faces = self._source.load(shard % self._shards, rows)
        return faces if shard < self._shards else {row: _mirrored(face) for row, face in faces.items()}


def _mirrored(face: EncodedFace) -> EncodedFace:
    """The mirrored face; its pixels are flipped on decoding."""
    return replace(
        face, name=f"{face.name} mirrored", mirrored=True, landmarks=mirrored_landmarks(face.landmarks), fit=None
    )


def mirrored_landmarks(landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Landmarks (68,2) in pixels of the stored crop, in its mirror image."""
    edge, sign = np.array([[CROP_SIZE - 1, 0], [-1, 1]], np.float32)
    return edge + sign * landmarks[TWINS]
