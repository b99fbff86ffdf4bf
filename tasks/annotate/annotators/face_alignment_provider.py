"""68 landmarks by FAN, the face alignment network of Bulat and Tzimiropoulos (2017), from the face_alignment library.

The library's network and weights are used, its crop and its way back are not: they work on whole source pixels.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from schemas.annotate import AnnotateConfig, Provider, Step
from tasks.annotate.annotators.base import AnnotatorError, Detection, check_image
from tasks.annotate.annotators.geometry import apply, box_transform, cut, invert
from tasks.annotate.annotators.weights import WeightFile, load_state, pick_device, versions

PACKAGE = "face-alignment"
# The network for points on the visible contour, as DECA was trained with, in the library's table of addresses.
FAN_KEY, FAN = "2DFAN-4", "2DFAN4-11f355bf06.pth.tar"
STACKS = 4  # hourglasses

INPUT, HEATMAP = 256, 64  # pixels

# The square that the network sees has a side of 200 / reference times (width + height) of the face's box, and lies
# 0.12 of the box's height above its middle. The reference is the library's own for the kind of box: 195 for dlib's and
# for boxes round landmarks, 165 for RetinaFace's.
CENTRE_SHIFT = 0.12
REFERENCE: dict[Provider, float] = {"dlib": 195.0, "sidecar": 195.0, "facexlib": 165.0}


class FaceAlignmentAnnotator:
    """Step landmarks of the `Annotator` protocol; the network loads at first use."""

    def __init__(self, config: AnnotateConfig, weights: dict[str, Path]) -> None:
        self._config = config
        self._weights = weights
        self._device = pick_device(config.device)
        self._reference = REFERENCE[config.provider_of("detect")]

    @staticmethod
    def weight_files(config: AnnotateConfig, steps: Sequence[Step]) -> list[WeightFile]:
        """Return the weight files of the steps, under the library's own names."""
        return [WeightFile(FAN, folder=_weights_folder, package=PACKAGE, url=weight_url)] if steps else []

    @cached_property
    def versions(self) -> dict[str, str]:
        return {PACKAGE: importlib.metadata.version(PACKAGE), **versions(self._weights)}

    def landmarks(self, image: NDArray[np.uint8], detection: Detection) -> NDArray[np.float32]:
        return self.landmarks_batch([image], [detection])[0]

    @torch.inference_mode()
    def landmarks_batch(
        self, images: Sequence[NDArray[np.uint8]], detections: Sequence[Detection]
    ) -> list[NDArray[np.float32]]:
        """As `landmarks`, for several faces; images[i] is the image of face i."""
        from face_alignment.utils import flip

        for image in images:
            check_image(image)
        frames = [self._frame(detection) for detection in detections]
        crops = [cut(image, frame, INPUT) for image, frame in zip(images, frames, strict=True)]
        batch = torch.from_numpy(np.stack(crops)).to(self._device).permute(0, 3, 1, 2).float() / 255
        maps = self._fan(batch)[-1]
        if self._config.face_alignment.flip:
            maps = maps + flip(self._fan(flip(batch))[-1], is_label=True)
        points = peaks(maps).cpu().numpy()
        return [apply(invert(frame), each).astype(np.float32) for each, frame in zip(points, frames, strict=True)]

    def _frame(self, detection: Detection) -> NDArray[np.float64]:
        x0, y0, x1, y1 = detection.bbox
        width, height = x1 - x0, y1 - y0
        if not width + height > 0:
            raise AnnotatorError(f"the face's box {detection.bbox} has no extent")
        centre = np.array([(x0 + x1) / 2, (y0 + y1) / 2 - CENTRE_SHIFT * height])
        return box_transform(centre, 200 / self._reference * (width + height), INPUT)

    def check_weights(self) -> None:
        """Read the weights once, on the CPU. Raises AnnotatorError naming the file and what is wrong with it."""
        if self._weights:
            self._read_fan()

    @cached_property
    def _fan(self) -> Any:
        return self._read_fan().to(self._device)

    def _read_fan(self) -> Any:
        from face_alignment.models import FAN as Network

        return load_state(self._weights[FAN], Network(STACKS))


def peaks(maps: torch.Tensor) -> torch.Tensor:
    """Return heat maps (B, 68, 64, 64) as points (B, 68, 2) in pixels of the network's input.

    The largest value, moved a quarter of a cell towards its larger neighbour in x and in y, as its authors do.
    """
    size = maps.shape[-1]
    best = maps.flatten(2).argmax(dim=-1)
    x, y = best % size, best // size
    inner = (x > 0) & (x < size - 1) & (y > 0) & (y < size - 1)
    flat = maps.flatten(2)

    def at(column: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        where = row.clamp(0, size - 1) * size + column.clamp(0, size - 1)
        return flat.gather(2, where[..., None])[..., 0]

    lean = torch.stack([at(x + 1, y) - at(x - 1, y), at(x, y + 1) - at(x, y - 1)], dim=-1).sign() * inner[..., None]
    cells = torch.stack([x, y], dim=-1) + 0.25 * lean
    return (cells + 0.5) * (INPUT / HEATMAP) - 0.5


def _weights_folder() -> Path:
    """Return the library's download folder."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def weight_url() -> str:
    """Return the library's URL of the network's weights."""
    from face_alignment.api import models_urls

    return str(models_urls[FAN_KEY])
