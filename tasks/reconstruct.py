"""The work of one reconstruct unit: pictures to faces to codes and displacement maps, as rows of reconstructions/."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from deca_core.codes import Codes
from deca_core.crop import crop_transform, square_from_landmarks, warp
from deca_core.detail import MAX_DISPLACEMENT
from schemas.ledger import Item, Quarantined, Stage
from schemas.parquet import fixed_array
from schemas.reconstruct import ReconstructConfig, quantise, reconstruction_schema
from tasks.annotators import Annotator, Detection, load_annotator
from tasks.engine import UnitOutput
from tasks.images import decode_image
from tasks.models import load_model, weights_hash
from tasks.read import read_items


class NoFaceError(Exception):
    """A picture in which the detector found nothing (or not the face that a retry asks for)."""


class EncodeError(Exception):
    """Codes that are not finite."""


@dataclass(frozen=True)
class Face:
    """A found face on its way to the networks."""

    item: Item
    index: int  # in the picture, as the detector orders them
    size: tuple[int, int]  # width, height of the picture
    detection: Detection
    landmarks: NDArray[np.float32]  # (68, 2) source pixels
    transform: NDArray[np.float64]  # (2, 3) source to crop pixels
    crop: NDArray[np.float32]  # (3, 224, 224)


class ReconstructWorker:
    """Holds annotator and model; turns units into rows. One lives in each Ray actor."""

    def __init__(self, config: ReconstructConfig) -> None:
        self.config = config
        self.annotator = load_annotator(config.annotate)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_model(config).to(self.device)
        self.checkpoint = weights_hash(config)
        self.limit = MAX_DISPLACEMENT + float(np.abs(self.model.bundle.fixed_displacement).max())
        self.schema = reconstruction_schema(self.limit)

    def process(self, items: Sequence[Item]) -> UnitOutput:
        """Rows of every face of every item, in the items' order; what failed is quarantined alone."""
        quarantine: list[Quarantined] = []
        batches: list[pa.RecordBatch] = []
        waiting: list[Face] = []
        for face in self._faces(items, quarantine):
            waiting.append(face)
            if len(waiting) == self.config.batch_size:
                batches.append(self._encode(waiting, quarantine))
                waiting = []
        if waiting:
            batches.append(self._encode(waiting, quarantine))
        return UnitOutput(pa.Table.from_batches(batches, schema=self.schema), quarantine)

    def _faces(self, items: Sequence[Item], quarantine: list[Quarantined]) -> Iterator[Face]:
        for item, data in read_items(items, max_bytes=self.config.inputs.max_bytes):
            stage: Stage = "read"
            # Whatever a picture does to a library, it costs that picture only; its error is in the quarantine.
            try:
                if isinstance(data, Exception):
                    raise data
                stage = "decode"
                image = decode_image(data, max_pixels=self.config.annotate.max_pixels)
                stage = "detect"
                annotator = self.annotator.for_item(item)
                found = self._detect(annotator, item, image)
            except Exception as error:
                quarantine.append(Quarantined.of(item, stage, error))
                continue
            for index, detection in found:
                stage = "landmark"
                try:
                    landmarks = annotator.landmarks(image, detection)
                    stage = "crop"
                    transform = crop_transform(square_from_landmarks(landmarks))
                    crop = warp(image, transform)
                except Exception as error:
                    quarantine.append(Quarantined.of(item, stage, error, face_index=index))
                    continue
                yield Face(item, index, (image.shape[1], image.shape[0]), detection, landmarks, transform, crop)

    def _detect(self, annotator: Annotator, item: Item, image: NDArray[np.uint8]) -> list[tuple[int, Detection]]:
        found = list(enumerate(annotator.detect(image)))
        if item.face_index is not None:
            found = found[item.face_index : item.face_index + 1]
        if not found:
            height, width = image.shape[:2]
            raise NoFaceError(f"no face found in the picture of {width} x {height} pixels")
        return found

    @torch.inference_mode()
    def _encode(self, faces: list[Face], quarantine: list[Quarantined]) -> pa.RecordBatch:
        images = torch.from_numpy(np.stack([face.crop for face in faces])).to(self.device)
        codes = self.model.encode(images)
        displacement = self.model.displacement(codes)
        finite = torch.stack([value.flatten(1).isfinite().all(1) for _, value in codes.items()]).all(0)
        finite &= displacement.flatten(1).isfinite().all(1)
        for face, good in zip(faces, finite.tolist(), strict=True):
            if not good:
                error = EncodeError("the networks' output is not finite; is the checkpoint sound? Run: deca verify")
                quarantine.append(Quarantined.of(face.item, "encode", error, face_index=face.index))
        kept = [face for face, good in zip(faces, finite.tolist(), strict=True) if good]
        return self._rows(kept, codes[finite].to("cpu"), displacement[finite, 0].cpu().numpy())

    def _rows(self, faces: list[Face], codes: Codes, displacement: NDArray[np.float32]) -> pa.RecordBatch:
        fixed: dict[str, NDArray[Any]] = {
            "bbox": np.array([face.detection.bbox for face in faces], np.float32).reshape(-1, 4),
            "landmarks": np.array([face.landmarks for face in faces], np.float32).reshape(-1, 68, 2),
            "crop_transform": np.array([face.transform for face in faces], np.float32).reshape(-1, 2, 3),
            "displacement": quantise(displacement, self.limit),
            **{name: value.numpy() for name, value in codes.items()},
        }
        plain: dict[str, list[Any]] = {
            "face_id": [f"{face.item.image_id}-{face.index:02d}" for face in faces],
            "image_id": [face.item.image_id for face in faces],
            "source_uri": [face.item.source_uri for face in faces],
            "face_index": [face.index for face in faces],
            "identity_id": [None] * len(faces),
            "width": [face.size[0] for face in faces],
            "height": [face.size[1] for face in faces],
            "det_score": [face.detection.score for face in faces],
            "checkpoint": [self.checkpoint] * len(faces),
        }
        columns = [
            fixed_array(field, fixed[field.name])
            if field.name in fixed
            else pa.array(plain[field.name], type=field.type)
            for field in self.schema
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)
