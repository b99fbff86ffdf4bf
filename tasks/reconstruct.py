"""The work of one reconstruct unit: pictures to faces to codes and displacement maps, as rows of reconstructions/."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from deca_core.camera import from_pixels
from deca_core.codes import Codes
from deca_core.crop import crop_transform, square_from_landmarks, warp
from deca_core.detail import MAX_DISPLACEMENT
from deca_core.fitting import LandmarkHead, fit_landmarks
from schemas.ledger import Item, Quarantined
from schemas.reconstruct import ReconstructConfig, quantise, reconstruction_schema
from tasks.annotators import load_annotator
from tasks.engine import UnitOutput
from tasks.faces import Face, FaceFinder, columns_of, record_batch
from tasks.models import load_model, weights_hash


class EncodeError(Exception):
    """Codes that are not finite."""


@dataclass(frozen=True)
class CroppedFace:
    """A found face on its way to the networks."""

    face: Face
    transform: NDArray[np.float64]  # (2, 3) source to crop pixels
    crop: NDArray[np.float32]  # (3, 224, 224)


class ReconstructWorker:
    """Holds annotator and model; turns units into rows. One lives in each Ray actor."""

    def __init__(self, config: ReconstructConfig) -> None:
        self.config = config
        self.finder = FaceFinder(load_annotator(config.annotate), config.annotate, config.inputs.max_bytes)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_model(config).to(self.device)
        self.landmark_head = LandmarkHead.of(self.model.flame) if config.codes == "landmarks" else None
        self.checkpoint = weights_hash(config)
        self.limit = MAX_DISPLACEMENT + float(np.abs(self.model.bundle.fixed_displacement).max())
        self.schema = reconstruction_schema(self.limit)

    def process(self, items: Sequence[Item]) -> UnitOutput:
        """Rows of every face of every item, in the items' order; what failed is quarantined alone."""
        quarantine: list[Quarantined] = []
        batches: list[pa.RecordBatch] = []
        waiting: list[CroppedFace] = []
        for face in self._cropped(items, quarantine):
            waiting.append(face)
            if len(waiting) == self.config.batch_size:
                batches.append(self._encode(waiting, quarantine))
                waiting = []
        if waiting:
            batches.append(self._encode(waiting, quarantine))
        return UnitOutput(pa.Table.from_batches(batches, schema=self.schema), quarantine)

    def _cropped(self, items: Sequence[Item], quarantine: list[Quarantined]) -> Iterator[CroppedFace]:
        for found in self.finder.find(items, quarantine):
            for picture, face in found:
                try:
                    transform = crop_transform(square_from_landmarks(face.landmarks))
                    crop = warp(picture.image, transform)
                except Exception as error:  # whatever a face does to a library, it costs that face only
                    quarantine.append(Quarantined.of(face.item, "crop", error, face_index=face.index))
                    continue
                yield CroppedFace(face, transform, crop)

    @torch.inference_mode()
    def _encode(self, faces: list[CroppedFace], quarantine: list[Quarantined]) -> pa.RecordBatch:
        codes = self._codes(faces)
        displacement = self.model.displacement(codes)
        finite = torch.stack([value.flatten(1).isfinite().all(1) for _, value in codes.items()]).all(0)
        finite &= displacement.flatten(1).isfinite().all(1)
        for one, good in zip(faces, finite.tolist(), strict=True):
            if not good:
                error = EncodeError("the codes are not finite; is the checkpoint sound? Run: deca verify")
                quarantine.append(Quarantined.of(one.face.item, "encode", error, face_index=one.face.index))
        kept = [one for one, good in zip(faces, finite.tolist(), strict=True) if good]
        return self._rows(kept, codes[finite].to("cpu"), displacement[finite, 0].cpu().numpy())

    def _codes(self, faces: list[CroppedFace]) -> Codes:
        if self.landmark_head is None:
            return self.model.encode(torch.from_numpy(np.stack([one.crop for one in faces])).to(self.device))
        points = [one.face.landmarks @ one.transform[:, :2].T + one.transform[:, 2] for one in faces]
        return fit_landmarks(self.landmark_head, from_pixels(torch.from_numpy(np.stack(points)).to(self.device)))

    def _rows(self, faces: list[CroppedFace], codes: Codes, displacement: NDArray[np.float32]) -> pa.RecordBatch:
        columns: dict[str, Any] = columns_of([one.face for one in faces]) | {
            "identity_id": [None] * len(faces),
            "checkpoint": [self.checkpoint] * len(faces),
            "crop_transform": np.array([one.transform for one in faces], np.float32).reshape(-1, 2, 3),
            "displacement": quantise(displacement, self.limit),
            **{name: value.numpy() for name, value in codes.items()},
        }
        return record_batch(self.schema, columns)
