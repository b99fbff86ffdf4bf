"""Landmark fits as training labels: shape, expression and pose for every face of a source (losses.fits)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from deca_core.augment import PLAIN
from deca_core.fitting import LandmarkHead, fit_landmarks, fittable
from deca_core.flame import FLAME
from deca_core.losses import CoarseWeights, fitted_vector
from tasks.training.datasets import EncodedFace, Source
from tasks.training.order import Ints

# Weak priors: they decide only what landmarks leave open.
WEIGHTS = CoarseWeights(shape=1e-6, exp=1e-6)
KEPT = 200_000  # fits in memory, 160 MB; beyond, a face is fitted at every read


class FittedSource:
    """A source whose faces have codes fitted to their landmarks.

    A face is fitted at its first read, some 20 ms on one core, and cached. Head rotation and shape are the same in
    every upright crop of an image, so one fit serves all crops.
    """

    fitted = True

    def __init__(self, source: Source, flame: FLAME) -> None:
        self._source, self._head = source, LandmarkHead.of(flame)
        self.fingerprint, self.index = source.fingerprint, source.index
        self._fits: dict[str, NDArray[np.float32]] = {}

    def load(self, shard: int, rows: Ints) -> dict[int, EncodedFace]:
        faces = self._source.load(shard, rows)
        known = {name: self._fits[name] for face in faces.values() if (name := face.name) in self._fits}
        known |= self._fit([face for face in faces.values() if face.name not in known])
        return {row: replace(face, fit=known.get(face.name)) for row, face in faces.items()}

    def _fit(self, faces: list[EncodedFace]) -> dict[str, NDArray[np.float32]]:
        """Fits by name; none for degenerate landmarks."""
        points = [torch.from_numpy(in_training_crop(face.landmarks)) for face in faces]
        able = [(face.name, one) for face, one in zip(faces, points, strict=True) if fittable(one[None])]
        if not able:
            return {}
        names, stack = zip(*able, strict=True)
        codes = fit_landmarks(self._head, torch.stack(stack), WEIGHTS)
        found = dict(zip(names, fitted_vector(codes).numpy(), strict=True))
        if len(self._fits) < KEPT:
            self._fits.update(found)
        return found


def in_training_crop(landmarks: NDArray) -> NDArray[np.float64]:
    """Landmarks (68,2) in pixels of any upright crop, in [-1, 1] of the training crop of mean scale."""
    low, high = landmarks.min(0).astype(np.float64), landmarks.max(0).astype(np.float64)
    half = PLAIN.scale[0] * (high - low).mean() / 2
    return (landmarks - (low + high) / 2) / max(half, np.finfo(np.float64).tiny)
