"""The worker of reconstruct: images, or rows of faces/, to rows of codes and displacement maps.

The networks run in the calling thread. Inputs (read, decode, detect, crop) are prepared ahead in threads, outputs
(columns, files, Parquet) are written in others, all in the order of the items: a unit's bytes do not depend on timing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from deca_core.camera import from_pixels
from deca_core.codes import Codes
from deca_core.crop import crop_transform, square_from_landmarks, warp
from deca_core.detail import MAX_DISPLACEMENT
from deca_core.errors import DecaError
from deca_core.fitting import LandmarkHead, fit_landmarks
from deca_core.inference import Inference
from deca_core.model import Reconstruction
from deca_core.roll import NEVER, UPRIGHT_FROM, reframed, upright_transform
from schemas.ledger import Item, Quarantined, StoredFile
from schemas.reconstruct import (
    BATCH_SIZE,
    COMPILE_FROM,
    VERTEX_LIMIT,
    ReconstructConfig,
    quantise,
    reconstruction_schema,
)
from tasks.annotate.annotators import load_annotator
from tasks.annotate.find_faces import DecodedImage, Face, FaceFinder, columns_of, record_batch
from tasks.models.loading import load_model, weights_hash
from tasks.models.outputs import NEED_HEAD, NEED_IMAGES, columns_of_head, encode_map, head_of
from tasks.people.face_rows import FaceRow, is_face_item, read_rows
from tasks.sources.images import decode_image
from tasks.sources.videos import frame_of
from tasks.store.ahead import ahead, in_order, worker_cores
from tasks.store.storage import Store
from tasks.units.commit import Rows, UnitOutput
from tasks.units.plan import FILES

BATCHES_AHEAD = 3  # for the networks: 4.6 MB each at 8 crops
DECODERS = 2  # threads that decode and crop; a worker that reserves more cores has as many
FILES_AT_ONCE = 8  # displacement files uploaded together


class EncodeError(DecaError):
    """Codes that are not finite, or a head beyond what a column holds."""


@dataclass(frozen=True, eq=False)
class CroppedFace:
    """A cropped face, input of the networks."""

    item: Item
    columns: dict[str, Any]  # of its row, known before encoding
    transform: NDArray[np.float64]  # (2, 3) source to pixels of the crop that the row is about
    seen: NDArray[np.float64]  # (2, 3) source to pixels of the crop that the networks see, turned where the face rolls
    crop: NDArray[np.float32]  # (3, 224, 224), by `seen`
    upright: NDArray[np.float32] | None  # by `transform`, where it differs and an output needs it

    @property
    def index(self) -> int:
        """face_index of the row."""
        return int(self.columns["face_index"])


@dataclass(frozen=True, eq=False)
class Encoded:
    """Outputs of the networks for a batch, on the CPU; extra: columns of outputs that need a posed head."""

    faces: list[CroppedFace]
    codes: Codes
    displacement: NDArray[np.float32]
    extra: dict[str, Any]


class ReconstructWorker:
    """Holds annotator and model, and turns units into rows; one in each Ray actor."""

    def __init__(self, config: ReconstructConfig, items: int = 0, freeze: bool = True) -> None:
        """items: of the plan, which decide whether compiling pays where the config leaves it open; freeze: as of
        `Inference`."""
        if config.precision == "auto":
            raise ValueError("precision: a plan has chosen one before a worker starts")
        self.config = config
        self.finder: FaceFinder | None = None
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.threads = max(DECODERS, int(config.ray.cpus_per_worker or worker_cores(self.device.type)))
        self.batch_size = config.batch_size or BATCH_SIZE[self.device.type]
        self.model = load_model(config).to(self.device)
        network = config.codes == "network"
        compiling = items >= COMPILE_FROM[self.device.type] if config.compile is None else config.compile
        batch = self.batch_size if compiling else 0
        self.inference = Inference(self.model, config.precision, self.device, batch, freeze) if network else None
        self.landmark_head = None if network else LandmarkHead.of(self.model.flame)
        turned = UPRIGHT_FROM if config.upright_from is None else config.upright_from
        self.upright_from = turned if network else NEVER
        self.checkpoint = weights_hash(config)
        self.limit = MAX_DISPLACEMENT + float(self.model.fixed_displacement.abs().max())
        self.schema = reconstruction_schema(
            self.limit, config.outputs, config.layout, len(self.model.bundle.v_template)
        )
        self.store = Store(config.dest)

    def process(self, items: Sequence[Item]) -> UnitOutput:
        """Rows of every face of every item, in the items' order; a failed one is quarantined alone."""
        quarantine: list[Quarantined] = []
        files: list[StoredFile] = []
        return UnitOutput(Rows(self.schema, self._batches(items, quarantine, files)), quarantine, files)

    def _batches(
        self, items: Sequence[Item], quarantine: list[Quarantined], files: list[StoredFile]
    ) -> Iterator[pa.RecordBatch]:
        with contextlib.closing(ahead(self._inputs(items, quarantine), BATCHES_AHEAD)) as inputs:
            encoded = (self._encode(faces, images, quarantine) for faces, images in inputs)
            yield from in_order(lambda batch: self._rows(batch, files), encoded, threads=1)

    # --- inputs -------------------------------------------------------------------------------------------------------

    def _inputs(
        self, items: Sequence[Item], quarantine: list[Quarantined]
    ) -> Iterator[tuple[list[CroppedFace], Tensor]]:
        """Batches of faces with their crops (B,3,224,224), pinned for a GPU."""
        waiting: list[CroppedFace] = []
        for face in chain(self._cropped(items, quarantine), [None]):
            if face is not None:
                waiting.append(face)
            if waiting and (face is None or len(waiting) == self.batch_size):
                images = torch.from_numpy(np.stack([one.crop for one in waiting]))
                yield waiting, images.pin_memory() if self.device.type == "cuda" else images
                waiting = []

    def _cropped(self, items: Sequence[Item], quarantine: list[Quarantined]) -> Iterator[CroppedFace]:
        if items and is_face_item(items[0]):
            made = in_order(self._crop_row, read_rows(items), self.threads)
        else:
            made = in_order(self._crop_found, self._found(items, quarantine), self.threads)
        for one in made:
            if isinstance(one, CroppedFace):
                yield one
            else:
                quarantine.append(one)

    def _found(self, items: Sequence[Item], quarantine: list[Quarantined]) -> Iterator[tuple[DecodedImage, Face]]:
        if self.finder is None:  # rows of faces/ need none
            config = self.config
            annotator = load_annotator(config.annotate)
            self.finder = FaceFinder(annotator, config.annotate, config.inputs.max_bytes, self.threads)
        for found in self.finder.find(items, quarantine):
            yield from found

    def _crop_found(self, found: tuple[DecodedImage, Face]) -> CroppedFace | Quarantined:
        image, face = found
        try:
            known = {name: values[0] for name, values in columns_of([face]).items()} | {"identity_id": None}
            return self._cut(face.item, known, face.landmarks, partial(warp, image.image))
        except Exception as error:  # any failure of a library costs this face only
            return Quarantined.of(face.item, "crop", error, face_index=face.index)

    def _crop_row(self, read: tuple[Item, FaceRow | Exception]) -> CroppedFace | Quarantined:
        item, row = read
        if isinstance(row, Exception):
            return Quarantined.of(item, "read", row)
        try:
            image = decode_image(row.crop, max_pixels=self.config.annotate.max_pixels)
        except Exception as error:
            return Quarantined.of(item, "decode", error)
        try:
            return self._cut(item, row.columns, row.landmarks, partial(row.warped, image))
        except Exception as error:
            return Quarantined.of(item, "crop", error)

    def _cut(
        self,
        item: Item,
        known: dict[str, Any],
        landmarks: NDArray[np.float32],
        sample: Callable[[NDArray[np.float64]], NDArray[np.float32]],
    ) -> CroppedFace:
        """The crops of a face; sample: source to crop pixels (2,3) -> crop (3,224,224)."""
        transform = crop_transform(square_from_landmarks(landmarks))
        seen = upright_transform(landmarks, self.upright_from)
        other = (seen != transform).any() and NEED_IMAGES & set(self.config.outputs)
        return CroppedFace(item, known, transform, seen, sample(seen), sample(transform) if other else None)

    # --- the networks -------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _encode(self, faces: list[CroppedFace], images: Tensor, quarantine: list[Quarantined]) -> Encoded:
        images = images.to(self.device, non_blocking=True)
        codes, displacement = self._infer(faces, images)
        head = head_of(self.model, codes, displacement) if NEED_HEAD & set(self.config.outputs) else None
        good = _finite(codes, displacement, head)
        for one, fine in zip(faces, good.tolist(), strict=True):
            if not fine:
                error = EncodeError("the codes are not finite, or no head; is the checkpoint sound? Run: deca verify")
                quarantine.append(Quarantined.of(one.item, "encode", error, face_index=one.index))
        kept = [one for one, fine in zip(faces, good.tolist(), strict=True) if fine]
        extra: dict[str, Any] = {}
        if head is not None and kept:
            codes_kept, head = codes[good], _only(head, good)
            transforms = np.array([one.transform for one in kept])
            for place, one in enumerate(faces):
                if one.upright is not None:  # codes refer to this crop
                    images[place] = torch.from_numpy(one.upright)
            extra = columns_of_head(self.model, self.config.outputs, codes_kept, head, images[good], transforms)
        return Encoded(kept, codes[good].to("cpu"), displacement[good].cpu().numpy(), extra)

    def _infer(self, faces: list[CroppedFace], images: Tensor) -> tuple[Codes, Tensor]:
        """Codes and displacement (B,256,256) of the crops, or of their landmarks."""
        if self.inference is not None:
            codes = self.inference.codes(images, validate=False)
            seen, asked = (np.stack([getattr(one, name) for one in faces]) for name in ("seen", "transform"))
            return reframed(codes, self.model.flame, seen, asked), self.inference.displacement(codes)
        assert self.landmark_head is not None
        points = [one.columns["landmarks"] @ one.transform[:, :2].T + one.transform[:, 2] for one in faces]
        codes = fit_landmarks(self.landmark_head, from_pixels(torch.from_numpy(np.stack(points)).to(self.device)))
        return codes, self.model.displacement(codes)[:, 0]

    # --- outputs -----------------------------------------------------------------------------------------------------

    def _rows(self, batch: Encoded, files: list[StoredFile]) -> pa.RecordBatch:
        faces = batch.faces
        frames = [frame_of(one.columns["source_uri"]) for one in faces]
        columns: dict[str, Any] = {name: [one.columns[name] for one in faces] for name in KNOWN} | {
            "frame": [frame and frame.number for frame in frames],
            "time": [frame and frame.seconds for frame in frames],
            "checkpoint": [self.checkpoint] * len(faces),
            "bbox": np.array([one.columns["bbox"] for one in faces], np.float32).reshape(-1, 4),
            "landmarks": np.array([one.columns["landmarks"] for one in faces], np.float32).reshape(-1, 68, 2),
            "crop_transform": np.array([one.transform for one in faces], np.float32).reshape(-1, 2, 3),
            **{name: value for name, value in batch.extra.items() if name != "mesh"},
            **{name: value.numpy() for name, value in batch.codes.items()},
        }
        if "displacement" in self.config.outputs:
            steps = quantise(batch.displacement, self.limit)
            if self.config.layout == "files":
                columns["displacement_file"] = self._publish(faces, map(encode_map, steps), ".png", files)
            else:
                columns["displacement"] = steps
        if "mesh" in batch.extra:
            columns["mesh_file"] = self._publish(faces, batch.extra["mesh"], ".glb", files)
        if not faces:  # no columns to convert
            return pa.RecordBatch.from_pylist([], schema=self.schema)
        return record_batch(self.schema, columns)

    def _publish(
        self, faces: list[CroppedFace], made: Iterable[bytes], suffix: str, files: list[StoredFile]
    ) -> list[str]:
        """Publish one file for each face; returns their names."""

        def put(pair: tuple[CroppedFace, bytes]) -> StoredFile:
            name = file_name(pair[0].columns["face_id"], suffix)
            size, sha256 = self.store.write(name, pair[1])
            return StoredFile(file=name, bytes=size, sha256=sha256)

        stored = list(in_order(put, zip(faces, made, strict=True), FILES_AT_ONCE))
        files += stored
        return [file.file for file in stored]


# Columns that a cropped face has already, without arrays.
KNOWN = ("face_id", "image_id", "source_uri", "face_index", "identity_id", "width", "height", "det_score")


def file_name(face_id: str, suffix: str) -> str:
    """Path of a face's file below DEST, in one of 256 folders to keep listings short."""
    return f"{FILES}/{face_id[:2]}/{face_id}{suffix}"


def _finite(codes: Codes, displacement: Tensor, head: Reconstruction | None) -> Tensor:
    """Which faces can be stored, (B,) bool."""
    values: Iterable[Tensor] = [*(value for _, value in codes.items()), displacement]
    good = torch.stack([value.flatten(1).isfinite().all(1) for value in values]).all(0)
    if head is not None:
        good &= (head.vertices.flatten(1).abs() <= VERTEX_LIMIT).all(1)  # false where not finite
    return good


def _only(head: Reconstruction, good: Tensor) -> Reconstruction:
    return Reconstruction(**{name: value[good] for name, value in vars(head).items()})
