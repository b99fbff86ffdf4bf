"""Sampled faces as panels for the report on reconstructions, with notes on what is unavailable.

Nothing here is needed for the data: an image whose source has gone, a head without its bundle, a dataset that stores
no displacement each leave a panel out, and a note says why.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image

from deca_core import DECA, Codes, Reconstruction
from deca_core.assets import BundleError
from deca_core.checkpoint import CheckpointError
from deca_core.codes import CODE_NAMES
from schemas.parquet import fixed_values
from schemas.reconstruct import ReconstructConfig
from tasks.draw.panels import grey_map, to_bytes, with_points
from tasks.models.loading import GeometryModel, bundle_at, load_model, weights_hash
from tasks.models.outputs import head_of
from tasks.reports.contact_sheet import Sample, crop_of
from tasks.store.storage import StorageError, Store
from tasks.units.plan import Plan

JPEG_QUALITY = 84
OVERLAY = 0.7  # of the shape on the image
TITLES = {
    "image": "image",
    "landmarks": "68 landmarks",
    "overlay": "overlay",
    "shape": "shape",
    "detail": "detail",
    "displacement": "displacement",
    "texture": "texture",
}


@dataclass(frozen=True, eq=False)
class Shown:
    """A sampled face, with the parts that are available."""

    face_id: str
    source: str
    note: str
    panels: dict[str, str]  # data URI by name of TITLES
    crop: NDArray[np.float32] | None  # (3, 224, 224)
    codes: Codes | None
    head: Reconstruction | None
    displacement: NDArray[np.float32] | None  # (256, 256) metres, as stored or as F_d makes it


@dataclass
class Gallery:
    """Sampled faces, and notes on what is missing."""

    faces: list[Shown] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def titles(self) -> dict[str, str]:
        """Return the titles of panels that any face has, in order."""
        there = {name for face in self.faces for name in face.panels}
        return {name: title for name, title in TITLES.items() if name in there}


class Sculptor:
    """Decodes heads of rows with the bundle and checkpoint that are available; `notes` name those that are not."""

    def __init__(self, plan: Plan, config: ReconstructConfig) -> None:
        self.plan, self.notes = plan, []  # type: tuple[Plan, list[str]]
        self.model: DECA | None = None
        self.decodes = False  # whether F_d is the one of the rows
        if "codes" not in config.outputs:
            self.notes.append("The dataset holds no codes (--outputs), so there are no heads to draw.")
            return
        self.model = self._geometry(config)
        if self.model is not None and "displacement" not in config.outputs:
            self.model = self._decoder(config) or self.model

    def _geometry(self, config: ReconstructConfig) -> DECA | None:
        try:
            bundle = bundle_at(config.bundle)
        except (BundleError, StorageError, OSError) as error:
            self.notes.append(f"The head's bundle is not at hand, so there are no heads to draw: {error}")
            return None
        # The embedded head's last bits differ between processors; another bundle of one's own is another head.
        if config.bundle is not None and bundle.hash != self.plan.record.weights["bundle"]:
            self.notes.append(f"{config.bundle} holds another head than the rows were made with: none is drawn.")
            return None
        return GeometryModel(bundle)

    def _decoder(self, config: ReconstructConfig) -> DECA | None:
        """The model with the rows' F_d, for datasets that store no displacement."""
        if config.codes == "landmarks":
            self.notes.append("Fitted to landmarks: there is no detail.")
            return None
        try:
            if weights_hash(config) != self.plan.record.weights["checkpoint"]:
                raise CheckpointError(f"{config.checkpoint} holds other weights than the rows were made with")
            model = load_model(config)
        except (CheckpointError, StorageError, OSError) as error:
            self.notes.append(f"Displacement is not stored, and the checkpoint is not at hand: no detail. {error}")
            return None
        self.decodes = True
        return model

    def codes(self, row: pa.Table) -> Codes | None:
        """Codes of a row of reconstructions/."""
        if self.model is None:
            return None
        return Codes(**{name: torch.from_numpy(fixed_values(row, name).copy()) for name in CODE_NAMES})

    @torch.inference_mode()
    def displacement(self, row: pa.Table, codes: Codes | None) -> NDArray[np.float32] | None:
        """Return the displacement of a row (256,256), metres: from its column, its file, or F_d."""
        if "displacement" in row.column_names:
            return fixed_values(row, "displacement")[0].astype(np.float32)
        if "displacement_file" in row.column_names:
            return self._from_file(row)
        if self.decodes and self.model is not None and codes is not None:
            return self.model.displacement(codes)[0, 0].numpy()
        return None

    def _from_file(self, row: pa.Table) -> NDArray[np.float32] | None:
        name, column = row["displacement_file"][0].as_py(), row.schema.field("displacement_file")
        try:
            steps = np.asarray(Image.open(io.BytesIO(Store(self.plan.dest).read(name))))
        except (FileNotFoundError, OSError) as error:
            self.notes.append(f"{name} cannot be read: {error}")
            return None
        scale, offset = (float(column.metadata[key]) for key in (b"scale", b"offset"))
        return steps.astype(np.float32) * scale + offset

    @torch.inference_mode()
    def head(self, codes: Codes, displacement: NDArray[np.float32] | None) -> Reconstruction:
        """Return the posed head; without a displacement, the coarse one."""
        assert self.model is not None
        fixed = self.model.fixed_displacement
        return head_of(self.model, codes, (fixed if displacement is None else torch.from_numpy(displacement))[None])


def make_gallery(sculptor: Sculptor, rows: Sequence[Sample], config: ReconstructConfig) -> Gallery:
    """Return panels of sampled rows, in their order."""
    gallery = Gallery([_shown(sculptor, sample, config) for sample in rows])
    gallery.notes += sculptor.notes
    gone = sum(face.crop is None for face in gallery.faces)
    if gone:
        gallery.notes.append(
            f"{gone} of the {len(gallery.faces)} images cannot be read where they were: moved, changed or forbidden. "
            "The data is complete without them."
        )
    return gallery


def _shown(sculptor: Sculptor, sample: Sample, config: ReconstructConfig) -> Shown:
    row = sample.row
    crop, codes = crop_of(sample, config), sculptor.codes(row)
    displacement = sculptor.displacement(row, codes)
    head = None if codes is None else sculptor.head(codes, displacement)
    plain = row.select(["face_id", "source_uri", "identity_id", "det_score"]).to_pylist()[0]
    identity = f"{plain['identity_id']}, " if plain["identity_id"] else ""
    return Shown(
        face_id=plain["face_id"],
        source=plain["source_uri"],
        note=f"{identity}score {plain['det_score']:.2f}",
        panels={name: _jpeg(panel) for name, panel in _panels(sculptor, row, crop, codes, head, displacement)},
        crop=crop,
        codes=codes,
        head=head,
        displacement=displacement,
    )


@torch.inference_mode()
def _panels(
    sculptor: Sculptor,
    row: pa.Table,
    crop: NDArray[np.float32] | None,
    codes: Codes | None,
    head: Reconstruction | None,
    displacement: NDArray[np.float32] | None,
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    transform = fixed_values(row, "crop_transform")[0]
    if crop is not None:
        yield "image", to_bytes(crop)
        points = fixed_values(row, "landmarks")[0] @ transform[:, :2].T + transform[:, 2]
        yield "landmarks", with_points(to_bytes(crop), points)
    if codes is not None and head is not None and sculptor.model is not None:
        images = sculptor.model.render(codes, head)
        alpha, shape = images.alpha[0].numpy(), images.shape[0].numpy()
        if crop is not None:
            yield "overlay", to_bytes(crop * (1 - OVERLAY * alpha) + OVERLAY * shape * alpha)
        yield "shape", to_bytes(shape)
        if displacement is not None:
            yield "detail", to_bytes(images.shaded_detail[0].numpy())
    elif "preview" in row.column_names:
        yield "detail", _stored(row, "preview")
    if displacement is not None:
        yield "displacement", grey_map(displacement)
    if "texture" in row.column_names:
        yield "texture", _stored(row, "texture")


def _stored(row: pa.Table, column: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(row[column][0].as_py()["bytes"])).convert("RGB"))


def _jpeg(panel: NDArray[np.uint8]) -> str:
    return data_uri(Image.fromarray(panel), JPEG_QUALITY)


def data_uri(image: Image.Image, quality: int) -> str:
    """Return an image as a JPEG data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
