"""The reconstructions/ dataset (one row a face) and the settings of the flow that writes it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.annotate import AnnotateConfig
from schemas.engine import RayConfig, SourceConfig, UnitsConfig
from schemas.parquet import fixed_field

SCHEMA_VERSION = 1
UNTRAINED = "untrained"  # as a checkpoint: no weights
LEVELS = 2**16 - 1  # steps of a 16-bit displacement map


class ReconstructConfig(BaseModel):
    """Settings of `deca reconstruct` and of the deployment `reconstruct`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Folder, bucket prefix, tar, zip or single picture; any fsspec URI.
    source: str
    # Folder or bucket prefix that the dataset is written to; any fsspec URI.
    dest: str
    # Checkpoint folder (any fsspec URI), or "untrained": random weights, said in log, metadata and report. None: the
    # small weights that come with the package, which are for the procedural head; on another bundle, untrained.
    checkpoint: str | None = None
    # Bundle folder. None: the procedural head that comes with the package.
    bundle: str | None = None
    # What to do with a plan that DEST holds: go on if it is the same and refuse another one, naming the difference
    # (refuse); go on with it as it is (resume); also plan its quarantined rows once more (retry); also plan what is new
    # or changed in the source (extend); drop it with its results (new).
    existing: Literal["refuse", "resume", "retry", "extend", "new"] = "refuse"
    # Seed of an untrained network's weights, so that even those runs can be repeated.
    seed: int = 0
    # Faces that go through the networks at once. Part of the plan: the last bits of a result depend on it. 8 keeps two
    # cores busy and needs 1 GB.
    batch_size: int = Field(default=8, ge=1)
    # Faces shown on the contact sheet.
    contact_sheet_rows: int = Field(default=8, ge=0, le=64)
    # After the rows: what the pictures of one person share, in DEST/consensus. identity: one shape a person, the
    # geometric median over the pictures. Default none: pictures of nobody known have nothing to share.
    consensus: Literal["none", "identity"] = "none"
    # Share the detail code as well. Default False: wrinkles change with age and light more than skulls do.
    consensus_detail: bool = False
    # Money for an hour of a core (of a GPU, where workers hold GPUs), any currency. Default None: no price is said.
    price_per_hour: float | None = Field(default=None, ge=0)

    inputs: SourceConfig = SourceConfig()
    annotate: AnnotateConfig = AnnotateConfig()
    units: UnitsConfig = UnitsConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _detail_is_shared_with_the_shape(self) -> ReconstructConfig:
        if self.consensus_detail and self.consensus == "none":
            raise ValueError("consensus_detail goes with consensus: identity")
        return self

    def plan_config(self) -> dict[str, Any]:
        """The settings that influence results, beside `inputs` and `units`, which a plan knows by itself.

        Models and the seed enter a plan by hash.
        """
        return {"flow": "reconstruct", **self.model_dump(mode="json", include={"annotate", "batch_size"})}


class ReconstructSummary(BaseModel):
    """What a run did and where the dataset stands: `_report/summary.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    outcome: Literal["complete", "partial"]  # partial: something is quarantined or pending
    source: str
    dest: str
    images: int
    faces: int
    quarantined: dict[str, int]  # rows that stand, by stage
    pending_units: int
    units_run: int  # by this run; the next four as well
    units_skipped: int  # committed before
    faces_run: int
    seconds: float
    faces_per_second: float
    trained: bool
    checkpoint: str  # hash, or "untrained-<seed>"
    bundle: str  # hash
    fingerprint: str
    code: str
    bytes: int  # of the committed parts
    contact_sheet: str | None
    # What this run held: its workers times its seconds, starting and waiting included.
    core_seconds: float = 0.0
    gpu_seconds: float = 0.0
    price_per_hour: float | None = None  # of a GPU where workers held GPUs, else of a core
    price: float | None = None  # of these seconds
    identities: int | None = None  # people of the consensus; None: none was asked for


def reconstruction_schema(displacement_limit: float) -> pa.Schema:
    """Arrow schema of reconstructions/.

    displacement_limit: largest displacement that can occur, metres; the 16-bit map spans [-limit, limit].
    """
    return pa.schema(
        [
            pa.field("face_id", pa.string(), nullable=False),
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("source_uri", pa.string(), nullable=False),
            pa.field("face_index", pa.int32(), nullable=False),
            pa.field("identity_id", pa.string()),
            pa.field("width", pa.int32(), nullable=False),  # of the upright source picture, pixels
            pa.field("height", pa.int32(), nullable=False),
            fixed_field("bbox", (4,)),  # left, top, right, bottom, source pixels
            pa.field("det_score", pa.float32(), nullable=False),
            fixed_field("landmarks", (68, 2)),  # source pixels
            fixed_field("crop_transform", (2, 3)),  # source pixels to pixels of the 224 crop
            fixed_field("shape", (100,)),
            fixed_field("tex", (50,)),
            fixed_field("exp", (50,)),
            fixed_field("pose", (6,)),
            fixed_field("cam", (3,)),
            fixed_field("light", (9, 3)),
            fixed_field("detail", (128,)),
            fixed_field(
                "displacement",
                (256, 256),
                pa.uint16(),
                scale=2 * displacement_limit / LEVELS,
                offset=-displacement_limit,
            ),
            pa.field("checkpoint", pa.string(), nullable=False),  # hash of the weights, or "untrained-<seed>"
        ],
        metadata={"schema_version": str(SCHEMA_VERSION), "dataset": "reconstructions"},
    )


def quantise(displacement: NDArray[np.float32], limit: float) -> NDArray[np.uint16]:
    """Metres in [-limit, limit] to 16-bit steps; the error is at most half a step, limit / 65535."""
    steps = (displacement.astype(np.float64) + limit) * (LEVELS / (2 * limit))
    return np.clip(np.rint(steps), 0, LEVELS).astype(np.uint16)
