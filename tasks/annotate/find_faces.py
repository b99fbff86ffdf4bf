"""Planned images to faces with landmarks: read, decode, detect, landmarks.

One bad row never costs its neighbours: an image or face that fails is quarantined with its stage and reason, the rest
continues. `face_index` numbers the faces of an image as the detector orders them, largest first, and does not change
when a single face is retried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deca_core.errors import DecaError
from schemas.annotate import AnnotateConfig, Step
from schemas.ledger import FailureStage, Item, Quarantined
from schemas.parquet import fixed_array
from tasks.annotate.annotators import CompositeAnnotator, Detection
from tasks.annotate.turned import turned_hint
from tasks.sources.images import decode_image
from tasks.sources.read import read_items
from tasks.sources.videos import frame_of
from tasks.store.ahead import in_order

# Images are decoded and faces worked on in groups, so that networks see batches. A group is closed at this many images
# or this many pixels (three bytes each; one image alone may have more: annotate.max_pixels).
IMAGES_AT_ONCE, PIXELS_AT_ONCE = 16, 32_000_000
DECODERS = 2  # threads: one waits for the disk or the network while the other one decodes
ROWS_AT_ONCE = 8  # given to a network together: a detector's 8 images of 840 pixels take some GB of activations

Row = TypeVar("Row")
Answer = TypeVar("Answer")


class NoFaceError(DecaError):
    """No face was detected in an image (or not the one that a retry requests)."""


class LandmarkError(DecaError):
    """Landmarks that are not finite."""


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """A decoded image: image (H, W, 3) uint8 RGB, upright; and the annotator that knows its labels."""

    item: Item
    image: NDArray[np.uint8]
    annotator: CompositeAnnotator


@dataclass(frozen=True, eq=False)
class Face:
    """A detected face. Its image is held only as long as its group."""

    item: Item
    index: int  # in the image, as the detector orders them
    size: tuple[int, int]  # width, height of the image
    detection: Detection
    landmarks: NDArray[np.float32]  # (68, 2) source pixels


class FaceFinder:
    """Finds the faces of planned images with one annotator."""

    def __init__(
        self, annotator: CompositeAnnotator, config: AnnotateConfig, max_bytes: int, threads: int = DECODERS
    ) -> None:
        self.annotator = annotator
        self.config = config
        self.max_bytes = max_bytes
        self.threads = threads

    def find(self, items: Sequence[Item], quarantine: list[Quarantined]) -> Iterator[list[tuple[DecodedImage, Face]]]:
        """Yield faces in the order of items and face_index, a group of images at a time; failures go to quarantine."""
        for sources in self._groups(items, quarantine):
            yield self._faces(sources, quarantine)

    def labelled(self, step: Step) -> bool:
        """Return whether sidecar labels provide `step`: then each image has its own annotator and cannot be batched."""
        return self.config.provider_of(step) == "sidecar"

    def _groups(self, items: Sequence[Item], quarantine: list[Quarantined]) -> Iterator[list[DecodedImage]]:
        group: list[DecodedImage] = []
        pixels = 0
        # As many images as threads are decoded ahead: one may have annotate.max_pixels.
        read = read_items(items, max_bytes=self.max_bytes)
        for source in in_order(self._decode, read, self.threads, depth=self.threads):
            if isinstance(source, Quarantined):
                quarantine.append(source)
                continue
            count = source.image.shape[0] * source.image.shape[1]
            if group and (len(group) == IMAGES_AT_ONCE or pixels + count > PIXELS_AT_ONCE):
                yield group
                group, pixels = [], 0
            group.append(source)
            pixels += count
        if group:
            yield group

    def _decode(self, read: tuple[Item, bytes | Exception]) -> DecodedImage | Quarantined:
        """Decode one image; any library error quarantines that image only."""
        item, data = read
        stage: FailureStage = "read"
        try:
            if isinstance(data, Exception):
                raise data
            stage = "decode"
            image = decode_image(data, max_pixels=self.config.max_pixels, name=item.source_uri)
        except Exception as error:
            return Quarantined.of(item, stage, error)
        return DecodedImage(item, image, self.annotator.for_item(item))

    def _faces(self, sources: list[DecodedImage], quarantine: list[Quarantined]) -> list[tuple[DecodedImage, Face]]:
        found: list[tuple[DecodedImage, int, Detection]] = []
        for source, detections in zip(sources, apart(sources, self._detect), strict=True):
            try:
                found += [(source, index, detection) for index, detection in _asked_for(source, detections)]
            except Exception as error:
                hint = self._hint(source) if detections == [] else ""
                quarantine.append(Quarantined.of(source.item, "detect", error, f"{error}{hint}"))
        faces = []
        for (source, index, detection), landmarks in zip(found, apart(found, self._landmarks), strict=True):
            if not isinstance(landmarks, Exception) and not np.isfinite(landmarks).all():
                landmarks = LandmarkError("the landmarks are not finite: the face, or the weights, are damaged")
            if isinstance(landmarks, Exception):
                quarantine.append(Quarantined.of(source.item, "landmark", landmarks, face_index=index))
                continue
            height, width = source.image.shape[:2]
            faces.append((source, Face(source.item, index, (width, height), detection, landmarks)))
        return faces

    def _detect(self, sources: Sequence[DecodedImage]) -> list[list[Detection]]:
        if self.labelled("detect"):
            return [source.annotator.detect(source.image) for source in sources]
        return self.annotator.detect_batch([source.image for source in sources])

    def _hint(self, source: DecodedImage) -> str:
        """Return a hint where the image is turned; empty for labels, video frames and retried faces."""
        item = source.item
        if self.labelled("detect") or item.face_index is not None or frame_of(item.source_uri) is not None:
            return ""
        return turned_hint(source.image, self.annotator.detect_batch)

    def _landmarks(self, found: Sequence[tuple[DecodedImage, int, Detection]]) -> list[NDArray[np.float32]]:
        if self.labelled("landmarks"):
            return [source.annotator.landmarks(source.image, detection) for source, _, detection in found]
        images, detections = [source.image for source, _, _ in found], [detection for _, _, detection in found]
        return self.annotator.landmarks_batch(images, detections)


def apart(
    rows: Sequence[Row], work: Callable[[Sequence[Row]], Sequence[Answer]], at_once: int = ROWS_AT_ONCE
) -> list[Answer | Exception]:
    """Return per row the result or error of `work`, called on batches and, where that raises, row by row."""
    answers: list[Answer | Exception] = []
    for start in range(0, len(rows), at_once):
        some = rows[start : start + at_once]
        try:
            answers += work(some)
        except Exception as error:  # any library's error belongs to the rows that cause it
            answers += [error] if len(some) == 1 else apart(some, work, 1)
    return answers


def columns_of(faces: Sequence[Face]) -> dict[str, Any]:
    """Return the leading columns of every dataset of faces, by name."""
    return {
        "face_id": [f"{face.item.image_id}-{face.index:02d}" for face in faces],
        "image_id": [face.item.image_id for face in faces],
        "source_uri": [face.item.source_uri for face in faces],
        "face_index": [face.index for face in faces],
        "width": [face.size[0] for face in faces],
        "height": [face.size[1] for face in faces],
        "det_score": [face.detection.score for face in faces],
        "bbox": np.array([face.detection.bbox for face in faces], np.float32).reshape(-1, 4),
        "landmarks": np.array([face.landmarks for face in faces], np.float32).reshape(-1, 68, 2),
    }


def record_batch(schema: pa.Schema, columns: Mapping[str, Any]) -> pa.RecordBatch:
    """Return columns as Arrow: arrays (N, *shape) for fields of a fixed shape, lists for all others."""
    arrays = [
        fixed_array(field, columns[field.name])
        if isinstance(columns[field.name], np.ndarray)
        else pa.array(columns[field.name], type=field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _asked_for(source: DecodedImage, detections: list[Detection] | Exception) -> list[tuple[int, Detection]]:
    """Return the faces that the item requests, numbered. Raises NoFaceError, or the detector's error."""
    if isinstance(detections, Exception):
        raise detections
    found = list(enumerate(detections))
    if source.item.face_index is not None:
        found = found[source.item.face_index : source.item.face_index + 1]
    if not found:
        height, width = source.image.shape[:2]
        raise NoFaceError(f"no face found in the image of {width} x {height} pixels")
    return found
