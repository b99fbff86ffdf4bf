"""The reconstructions/ dataset (one row a face) and the settings of the flow that writes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.annotate import AnnotateConfig
from schemas.engine import RayConfig, SourceConfig, UnitsConfig
from schemas.faces import IMAGE, image_schema
from schemas.parquet import fixed_field
from schemas.secrets import Uri
from schemas.tracks import VideoConfig

SCHEMA_VERSION = 1
# By device: the default batch size, and the images or faces of a plan below which compiling takes longer than it saves.
# A GPU is idle below some 64 faces, takes a minute to compile for, and processes thousands of faces a second: its
# threshold is an estimate, not measured.
BATCH_SIZE = {"cpu": 8, "cuda": 64}
COMPILE_FROM = {"cpu": 2000, "cuda": 500_000}
FREEZE_FROM = 32  # images or faces of a plan: below, freezing the networks' graphs takes longer than it saves
UNTRAINED_CHECKPOINT = "untrained"  # as a checkpoint: no weights
LEVELS = 2**16 - 1  # steps of a 16-bit displacement map
FIT_CHECKPOINT = "landmark-fit"  # in the place of a checkpoint's hash
VERTEX_LIMIT = 0.5  # metres from the head's origin that a vertex column spans: steps of 15 um

Precision = Literal["auto", "fp32", "mixed", "bf16", "fp16"]
Output = Literal["codes", "displacement", "vertices", "landmarks", "normals", "texture", "mesh", "preview"]
Layout = Literal["columns", "files"]
IMAGE_OUTPUTS: tuple[Output, ...] = ("texture", "preview")


class ReconstructConfig(BaseModel):
    """Settings of `deca reconstruct` and of the deployment `reconstruct`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Folder, bucket prefix, tar, zip or single image; any fsspec URI.
    source: Uri
    # Folder or bucket prefix that the dataset is written to; any fsspec URI.
    dest: Uri
    # Where codes come from. network: a checkpoint's encoders. landmarks: fitted to the 68 landmarks of each face, which
    # say nothing about albedo and detail: those codes are zero, and the displacement is the bundle's fixed one.
    codes: Literal["network", "landmarks"] = "network"
    # Checkpoint folder (any fsspec URI), or "untrained": random weights, noted in log, metadata and report. None: the
    # shipped small weights, which are for the procedural head; on another bundle, untrained.
    checkpoint: Uri | None = None
    # Bundle folder. None: the procedural head that comes with the package.
    bundle: Uri | None = None
    # What to do with a plan in DEST: resume if it is the same and refuse another one, naming the difference (refuse);
    # resume it with its settings (resume); also plan its quarantined rows once more (retry); also plan what is new or
    # changed in the source (extend); drop it with its results (new).
    existing: Literal["refuse", "resume", "retry", "extend", "new"] = "refuse"
    # Seed of an untrained network's weights, so that even those runs can be repeated.
    seed: int = 0
    # Faces that go through the networks at once. Part of the plan: the last bits of a result depend on it. Default:
    # by the workers' device when the plan is made: 8 on a CPU, which keeps two cores busy and needs 1 GB; 64 on a GPU.
    batch_size: int | None = Field(default=None, ge=1)
    # Columns of a row beside the face and its place (docs/reconstruct.md lists their costs). Part of the plan.
    outputs: tuple[Output, ...] = Field(default=("codes", "displacement"), min_length=1)
    # Where displacement maps are stored: in a column, or as 16-bit PNG files below DEST/files/. Part of the plan.
    # Default columns: a hundredth of the objects, and readers get rows and maps together.
    layout: Layout = "columns"
    # Arithmetic of the convolutions. auto: a micro-benchmark of some seconds on a worker takes bf16 where it is faster
    # and within the limits of deca_core/inference.py; the plan keeps what it took.
    precision: Precision = "auto"
    # Compile the networks for batches of batch_size: a third to a half less time a face, after up to half a minute on
    # a machine that has not done it before; needs a C++ compiler on the workers. Part of the plan. Default None: plans
    # of COMPILE_FROM images or more by the worker's device, where there is a compiler.
    compile: bool | None = None
    # Degrees of roll from which a face is turned upright for the networks; its codes still refer to the unrotated crop
    # (docs/conventions.md). 180: never, as in the release. Part of the plan. Default None: that of the plan in DEST; in
    # a new plan 20, where the accuracy of the shipped weights begins to drop.
    upright_from: float | None = Field(default=None, ge=0, le=180)
    # Faces shown on the contact sheet.
    contact_sheet_rows: int = Field(default=8, ge=0, le=64)
    # After the rows: codes shared by the images of one identity, in DEST/consensus. identity: one shape an identity,
    # the geometric median over its images. Default none: images without identities share nothing.
    consensus: Literal["none", "identity"] = "none"
    # Share the detail code as well. Default False: wrinkles change with age and light more than the skull does.
    consensus_detail: bool = False
    # Money for an hour of a core (of a GPU, where workers hold GPUs), any currency. Default None: no price is reported.
    price_per_hour: float | None = Field(default=None, ge=0)

    # After the rows as well: subjects tracked through frames of videos, in DEST/tracks.
    video: VideoConfig = VideoConfig()

    inputs: SourceConfig = SourceConfig()
    annotate: AnnotateConfig = AnnotateConfig()
    units: UnitsConfig = UnitsConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _settings_agree(self) -> ReconstructConfig:
        if self.codes == "landmarks" and self.checkpoint is not None:
            raise ValueError("codes=landmarks uses no network: leave the checkpoint out, or codes")
        if len(set(self.outputs)) != len(self.outputs):
            raise ValueError(f"outputs names something twice: {', '.join(self.outputs)}")
        if self.layout == "files" and "displacement" not in self.outputs:
            raise ValueError("layout=files is about displacement maps, and outputs does not name displacement")
        if self.consensus_detail and self.consensus == "none":
            raise ValueError("consensus_detail goes with consensus: identity")
        if self.consensus != "none" and "codes" not in self.outputs:
            raise ValueError("consensus reads the codes of the rows, and outputs does not name codes")
        if self.video.fps is not None and self.video.tracks and "codes" not in self.outputs:
            raise ValueError("tracks are made of the codes of the rows, and outputs does not name codes")
        return self

    def plan_config(self) -> dict[str, Any]:
        """Return the settings that influence results, without `inputs` and `units`, which a plan stores anyway.

        Models and the seed enter a plan by hash.
        """
        parts = {"annotate", "batch_size", "codes", "outputs", "layout", "precision", "compile"}
        if self.codes == "network":  # nothing else uses a crop
            parts.add("upright_from")
        return {"flow": "reconstruct", **self.model_dump(mode="json", include=parts)}


class ReconstructSummary(BaseModel):
    """Counts of a run and of the dataset after it: `_report/summary.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    outcome: Literal["complete", "partial"]  # partial: something is quarantined, pending or left out
    source: str
    dest: str
    images: int
    faces: int
    quarantined: dict[str, int]  # rows still in quarantine, by stage
    images_left_out: dict[str, int] = Field(default_factory=dict)  # images that no decoder here reads, by ending
    pending_units: int
    units_run: int  # by this run; the next four as well
    units_skipped: int  # committed before
    faces_run: int
    seconds: float
    faces_per_second: float
    trained: bool  # false: the codes come from random weights and mean nothing
    checkpoint: str  # as in the rows
    bundle: str  # hash
    precision: Precision
    batch_size: int | None = None
    workers: str | None = None  # of this run, with the resources of each; None: it ran no unit
    fingerprint: str
    code: str
    bytes: int  # of the committed parts
    contact_sheet: str | None
    # Resources of this run: its workers times its seconds, starting and waiting included.
    core_seconds: float = 0.0
    gpu_seconds: float = 0.0
    price_per_hour: float | None = None  # of a GPU where workers held GPUs, else of a core
    price: float | None = None  # of these seconds
    identities: int | None = None  # of the consensus; None: not requested
    tracks: int | None = None  # of subjects in videos; None: the rows are no frames


def reconstruction_schema(
    displacement_limit: float,
    outputs: Sequence[Output] = ("codes", "displacement"),
    layout: Layout = "columns",
    vertices: int = 0,
) -> pa.Schema:
    """Arrow schema of reconstructions/.

    displacement_limit: largest displacement that can occur, metres; the 16-bit map spans [-limit, limit].
    vertices: of the head, where `outputs` names them.
    """
    scale, offset = 2 * displacement_limit / LEVELS, -displacement_limit
    in_file = pa.field(
        "displacement_file",
        pa.string(),
        nullable=False,
        metadata=_as_text(shape=[256, 256], scale=scale, offset=offset),
    )
    columns: dict[Output, list[pa.Field]] = {
        "codes": [
            fixed_field("shape", (100,)),
            fixed_field("tex", (50,)),
            fixed_field("exp", (50,)),
            fixed_field("pose", (6,)),
            fixed_field("cam", (3,)),
            fixed_field("light", (9, 3)),
            fixed_field("detail", (128,)),
        ],
        "displacement": [
            in_file
            if layout == "files"
            else fixed_field("displacement", (256, 256), pa.uint16(), scale=scale, offset=offset)
        ],
        "vertices": [  # metres, world space, posed
            fixed_field("vertices", (vertices, 3), pa.uint16(), scale=2 * VERTEX_LIMIT / LEVELS, offset=-VERTEX_LIMIT)
        ],
        "landmarks": [
            fixed_field("landmarks2d", (68, 2)),  # of the head, source pixels
            fixed_field("landmarks3d", (68, 3)),  # metres, world space
        ],
        "normals": [fixed_field("normals", (256, 256, 3), pa.uint8(), scale=2 / 255, offset=-1.0)],  # detailed, on UV
        "texture": [pa.field("texture", IMAGE)],  # JPEG, 256 x 256: the image warped to UV
        "mesh": [pa.field("mesh_file", pa.string(), nullable=False)],  # a GLB file below the dataset
        "preview": [pa.field("preview", IMAGE)],  # JPEG, 224 x 224: the detailed head as in the crop
    }
    fields = [
        pa.field("face_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("face_index", pa.int32(), nullable=False),
        pa.field("identity_id", pa.string()),
        pa.field("frame", pa.int64()),  # of a video: number from 0, and seconds since its first frame
        pa.field("time", pa.float64()),
        pa.field("width", pa.int32(), nullable=False),  # of the upright source image, pixels
        pa.field("height", pa.int32(), nullable=False),
        fixed_field("bbox", (4,)),  # left, top, right, bottom, source pixels
        pa.field("det_score", pa.float32(), nullable=False),
        fixed_field("landmarks", (68, 2)),  # source pixels
        fixed_field("crop_transform", (2, 3)),  # source pixels to pixels of the 224 crop
        *(field for name, own in columns.items() if name in outputs for field in own),
        pa.field("checkpoint", pa.string(), nullable=False),  # hash, "untrained-<seed>" or "landmark-fit"
    ]
    if set(outputs) & set(IMAGE_OUTPUTS):
        return image_schema("reconstructions", fields, SCHEMA_VERSION)
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION), "dataset": "reconstructions"})


def _as_text(**values: Any) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def quantise(metres: NDArray[np.float32], limit: float) -> NDArray[np.uint16]:
    """Return metres in [-limit, limit] as 16-bit steps; the error is at most half a step, limit / 65535."""
    steps = (metres.astype(np.float64) + limit) * (LEVELS / (2 * limit))
    return np.clip(np.rint(steps), 0, LEVELS).astype(np.uint16)
