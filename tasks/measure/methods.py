"""Evaluated methods: networks by checkpoint, and the baselines mean face and landmark fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deca_core import DECA, Codes
from deca_core.appearance import SH_CONSTANTS
from deca_core.camera import from_pixels
from deca_core.fitting import LandmarkHead, fit_landmarks
from deca_core.metrics import fit_similarity
from schemas.evaluate import FIT_METHOD, MEAN_FACE, MODEL, EvaluateConfig
from schemas.ledger import Item
from schemas.reconstruct import ReconstructConfig
from tasks.models.loading import load_model


@dataclass(frozen=True, eq=False)
class FaceCrop:
    """A crop as the networks get it."""

    item: Item
    transform: NDArray[np.float64]  # (2, 3) pixels of the image to pixels of the crop
    image: NDArray[np.float32]  # (3, 224, 224)
    landmarks: NDArray[np.float32] | None  # (68, 2) pixels of the image: the truth, where it is known
    found: NDArray[np.float32] | None  # (68, 2) the same, or an annotator's: what the face was cropped by

    def from_image(self, points: NDArray) -> NDArray[np.float64]:
        """Pixels of the image (N,2) to pixels of the crop."""
        return np.asarray(points, np.float64) @ self.transform[:, :2].T + self.transform[:, 2]

    def normalised(self, points: NDArray) -> Tensor:
        """Pixels of the image (N,2) to the crop as [-1, 1], float64."""
        return from_pixels(torch.from_numpy(self.from_image(points)))

    def to_image(self, points: NDArray) -> NDArray[np.float64]:
        """Pixels of the crop (N,2) to pixels of the image."""
        return (np.asarray(points, np.float64) - self.transform[:, 2]) @ np.linalg.inv(self.transform[:, :2]).T


class Method(Protocol):
    """Images to codes, and codes to displacement."""

    name: str

    def encode(self, crops: Sequence[FaceCrop]) -> Codes:
        """Codes of a batch of faces, on the CPU."""

    def detail(self, codes: Codes) -> Tensor:
        """Displacement z (B,1,256,256) in metres, without the bundle's fixed displacement."""


class Network:
    """A checkpoint."""

    def __init__(self, name: str, model: DECA, batch_size: int) -> None:
        self.name, self.batch_size = name, batch_size
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device)

    @torch.inference_mode()
    def encode(self, crops: Sequence[FaceCrop]) -> Codes:
        parts = []
        for start in range(0, len(crops), self.batch_size):
            images = np.stack([crop.image for crop in crops[start : start + self.batch_size]])
            parts.append(self.model.encode(torch.from_numpy(images).to(self.device), validate=False).to("cpu"))
        return Codes.cat(parts)

    @torch.inference_mode()
    def detail(self, codes: Codes) -> Tensor:
        return self.model.detail(codes.to(self.device)).cpu()


class MeanFace:
    """Zero codes, without detail, evenly lit, laid over the true landmarks by the best similarity of the plane."""

    name = MEAN_FACE

    def __init__(self, model: DECA) -> None:
        self.flame = model.flame

    @torch.inference_mode()
    def encode(self, crops: Sequence[FaceCrop]) -> Codes:
        codes = Codes.zeros(len(crops))
        codes.light[:, 0] = 1 / SH_CONSTANTS[0]
        for row, crop in enumerate(crops):
            if crop.landmarks is not None:
                codes.pose[row], codes.cam[row] = self._placed(crop, crop.landmarks)
        return codes

    def detail(self, codes: Codes) -> Tensor:
        return torch.zeros(len(codes), 1, 256, 256)

    def _placed(self, crop: FaceCrop, landmarks: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        """Return pose (6,) and camera (3,): a roll, a scale and a shift."""
        target = crop.normalised(landmarks).numpy() * [1, -1]  # y up
        found = fit_similarity(self._points(torch.zeros(1, 6)), target)
        pose = torch.zeros(1, 6)
        pose[0, 2] = float(np.arctan2(found.rotation[1, 0], found.rotation[0, 0]))
        shift = target.mean(axis=0) / found.scale - self._points(pose).mean(axis=0)  # heads turn about their root
        return pose[0], torch.tensor([found.scale, *shift], dtype=torch.float32)

    def _points(self, pose: Tensor) -> NDArray[np.float32]:
        zero = Codes.zeros()
        return self.flame(zero.shape, zero.exp, pose).landmarks2d[0, :, :2].numpy()


class LandmarkFit:
    """Codes fitted to the landmarks that the face was cropped by: no detail, evenly lit, mean albedo."""

    name = FIT_METHOD

    def __init__(self, model: DECA, batch_size: int) -> None:
        self.head, self.batch_size = LandmarkHead.of(model.flame), batch_size

    def encode(self, crops: Sequence[FaceCrop]) -> Codes:
        points = []
        for crop in crops:
            assert crop.found is not None  # `load_methods` leaves this method out where faces are cropped by boxes
            points.append(crop.normalised(crop.found))
        batches = torch.stack(points).split(self.batch_size)
        return Codes.cat([fit_landmarks(self.head, batch) for batch in batches])

    def detail(self, codes: Codes) -> Tensor:
        return torch.zeros(len(codes), 1, 256, 256)


def model_configs(config: EvaluateConfig) -> dict[str, ReconstructConfig]:
    """Return the reconstruct config of each network, by method."""
    checkpoints = {MODEL: config.checkpoint, **config.compare}
    return {
        name: ReconstructConfig(
            source=config.source, dest=config.dest, checkpoint=uri, bundle=config.bundle, seed=config.seed
        )
        for name, uri in checkpoints.items()
    }


def load_methods(config: EvaluateConfig, geometry: DECA) -> list[Method]:
    """Load every method of a run, the baselines last. Raises CheckpointError.

    geometry: a model on the same bundle, whose networks do not matter.
    """
    methods: list[Method] = [
        Network(name, load_model(own), config.batch_size) for name, own in model_configs(config).items()
    ]
    if MEAN_FACE in config.baselines:
        methods.append(MeanFace(geometry))
    if FIT_METHOD in config.baselines and config.benchmark == "world":
        methods.append(LandmarkFit(geometry, config.batch_size))
    return methods
