"""Annotate units: images to faces with crop, skin mask, descriptor, label and quality."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from deca_core.crop import LANDMARK_MARGIN, CropError, crop_transform, square_from_landmarks
from deca_core.errors import DecaError
from schemas.faces import CROP_SCALE, CROP_SIZE, QUALITY, annotations_schema
from schemas.ingest import IngestConfig
from schemas.ledger import Item, Quarantined
from tasks.annotate.annotators import load_annotator
from tasks.annotate.annotators.geometry import cut
from tasks.annotate.annotators.sidecar import SidecarAnnotator
from tasks.annotate.find_faces import DecodedImage, Face, FaceFinder, apart, columns_of, record_batch
from tasks.annotate.quality import Quality, measure
from tasks.sources.images import encode_png
from tasks.units.engine import UnitOutput

JPEG_QUALITY = 95

# Side of the window round a face that `segment` is given, in sizes of the face: it contains the crop and the portrait
# frame of face parsers at any rotation, and the work depends on the face and not on the image.
WINDOW_SCALE = 3.0


class EmbedError(DecaError):
    """A descriptor that is not finite."""


@dataclass(frozen=True, eq=False)
class CroppedFace:
    """A face and its square: side 2.0 (w + h) / 2 of the landmarks' box, about the box's middle."""

    source: DecodedImage
    face: Face
    transform: NDArray[np.float64]  # (2, 3) source to crop pixels; its values are exact in float32, as they are stored
    crop: NDArray[np.uint8]  # (CROP_SIZE, CROP_SIZE, 3)


@dataclass(frozen=True, eq=False)
class Described:
    """A face with all its annotations."""

    cropped: CroppedFace
    label: str | None
    mask: NDArray[np.uint8]  # (CROP_SIZE, CROP_SIZE)
    quality: Quality
    embedding: NDArray[np.float32]


class AnnotateWorker:
    """Turns units into rows of annotations/ with one annotator per Ray actor."""

    def __init__(self, config: IngestConfig) -> None:
        self.annotator = load_annotator(config.annotate)
        self.finder = FaceFinder(self.annotator, config.annotate, config.inputs.max_bytes)
        self.sidecar = SidecarAnnotator(config.annotate)
        self.schema = annotations_schema(self.annotator.embedding_size)

    def process(self, items: Sequence[Item]) -> UnitOutput:
        """Return a row per face, in the order of the items; failed faces are quarantined."""
        quarantine: list[Quarantined] = []
        batches = []
        for found in self.finder.find(items, quarantine):
            batches.append(self._rows(self._describe(found, quarantine)))
        return UnitOutput(pa.Table.from_batches(batches, schema=self.schema), quarantine)

    def _describe(self, found: list[tuple[DecodedImage, Face]], quarantine: list[Quarantined]) -> list[Described]:
        labels = self._labels(list(dict.fromkeys(source for source, _ in found)), quarantine)
        cropped: list[CroppedFace] = []
        for source, face in found:
            if source not in labels:
                continue
            try:
                cropped.append(crop_face(source, face))
            except Exception as error:  # as everywhere: what a face does to a library costs that face only
                quarantine.append(Quarantined.of(face.item, "crop", error, face_index=face.index))
        described = []
        masks, codes = apart(cropped, self._segment), apart(cropped, self._embed)
        for one, segmented, code in zip(cropped, masks, codes, strict=True):
            if isinstance(segmented, Exception):
                quarantine.append(Quarantined.of(one.face.item, "segment", segmented, face_index=one.face.index))
            elif isinstance(code, Exception):
                quarantine.append(Quarantined.of(one.face.item, "embed", code, face_index=one.face.index))
            else:
                described.append(Described(one, labels[one.source], *segmented, code))
        return described

    def _labels(self, sources: list[DecodedImage], quarantine: list[Quarantined]) -> dict[DecodedImage, str | None]:
        """Return the sidecar identity of each image; an image with a damaged label is quarantined."""
        read = apart(sources, lambda some: [self.sidecar.for_item(source.item).identity() for source in some], 1)
        labels = {}
        for source, label in zip(sources, read, strict=True):
            if isinstance(label, Exception):
                quarantine.append(Quarantined.of(source.item, "read", label))
            else:
                labels[source] = label
        return labels

    def _segment(self, faces: Sequence[CroppedFace]) -> list[tuple[NDArray[np.uint8], Quality]]:
        """Return the skin mask of each face in crop pixels, and the figures that need it."""
        if self.finder.labelled("segment"):  # a mask of the whole image, which is released at once
            masks = [
                _mask_crop(one.source.annotator.segment(one.source.image, one.face.landmarks), one.transform)
                for one in faces
            ]
        else:
            windows = [_window(one) for one in faces]
            points = [one.face.landmarks - origin for one, (_, origin) in zip(faces, windows, strict=True)]
            made = self.annotator.segment_batch([image for image, _ in windows], points)
            masks = [
                _mask_crop(mask, _moved(one.transform, origin))
                for one, mask, (_, origin) in zip(faces, made, windows, strict=True)
            ]
        return [
            (mask, measure(one.crop, mask, one.face.landmarks, one.transform, one.face.size))
            for one, mask in zip(faces, masks, strict=True)
        ]

    def _embed(self, faces: Sequence[CroppedFace]) -> list[NDArray[np.float32] | Exception]:
        images, points = [one.source.image for one in faces], [one.face.landmarks for one in faces]
        codes = self.annotator.embed_batch(images, points)
        error = EmbedError("the descriptor is not finite: are the weights sound?")
        return [code if np.isfinite(code).all() else error for code in codes]

    def _rows(self, faces: Sequence[Described]) -> pa.RecordBatch:
        size = self.annotator.embedding_size
        figures = [asdict(one.quality) for one in faces]
        columns: dict[str, Any] = columns_of([one.cropped.face for one in faces]) | {
            "crop_transform": np.array([one.cropped.transform for one in faces], np.float32).reshape(-1, 2, 3),
            "crop": [{"bytes": _encode_jpeg(one.cropped.crop), "path": None} for one in faces],
            "skin_mask": [{"bytes": encode_png(one.mask), "path": None} for one in faces],
            "embedding": np.array([one.embedding for one in faces], np.float32).reshape(-1, size),
            "label": [one.label for one in faces],
            **{name: [figure[name] for figure in figures] for name in QUALITY},
        }
        return record_batch(self.schema, columns)


def crop_face(source: DecodedImage, face: Face) -> CroppedFace:
    """Return the stored crop of a face, low-passed where it is reduced, black outside the image.

    Training crops (w + h) / 2 times 1.4 to 1.8, without the margin of 1.1 that inference has: at 2.0 there is room for
    a shift of a tenth of the face's size to every side. Raises CropError for a face without extent or wholly outside.
    """
    width, height = face.size
    if (face.landmarks.max(axis=0) < 0).any() or (face.landmarks.min(axis=0) > [width - 1, height - 1]).any():
        raise CropError(f"the landmarks lie outside the image of {width} x {height} pixels")
    square = square_from_landmarks(face.landmarks, CROP_SCALE / LANDMARK_MARGIN)
    transform = crop_transform(square, CROP_SIZE).astype(np.float32).astype(np.float64)
    return CroppedFace(source, face, transform, cut(source.image, transform, CROP_SIZE))


def _window(one: CroppedFace) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the window of the image that `segment` needs for a face, and its origin in source pixels."""
    square = square_from_landmarks(one.face.landmarks, WINDOW_SCALE / LANDMARK_MARGIN)
    centre, half = np.array(square.center), square.size / 2
    x0, y0 = np.maximum(np.floor(centre - half), 0).astype(int)
    x1, y1 = np.ceil(centre + half).astype(int) + 1
    return one.source.image[y0:y1, x0:x1], np.array([x0, y0], np.float32)


def _moved(transform: NDArray[np.float64], origin: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the same transform for a window of the image at `origin`."""
    return np.column_stack([transform[:, :2], transform @ [*origin, 1.0]])


def _mask_crop(mask: NDArray[np.uint8], transform: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the mask in crop pixels, sampled as the image is; skin from 0.5."""
    return (cut(mask, transform, CROP_SIZE) >= 128) * np.uint8(255)


def _encode_jpeg(crop: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(crop).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
