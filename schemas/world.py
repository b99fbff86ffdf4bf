"""The embedded world on disk: settings of `deca synth`, and the truth beside the images (one row an image)."""

from __future__ import annotations

from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from schemas.engine import RayConfig, UnitsConfig
from schemas.faces import IMAGE
from schemas.parquet import fixed_field
from schemas.reconstruct import LEVELS
from schemas.secrets import Uri

SCHEMA_VERSION = 1
DISPLACEMENT_LIMIT = 0.005  # metres: wrinkles stay below 4 mm


class SynthConfig(BaseModel):
    """Settings of `deca synth` and of the deployment `synth`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Folder or bucket prefix to write: photos/ and truth.parquet/.
    dest: Uri
    identities: int = Field(default=100, ge=1)
    images_per_identity: int = Field(default=5, ge=1)
    # Number of the first identity, so that a world can be continued without repeating a subject.
    first_identity: int = Field(default=0, ge=0)
    # Pixels on a side. Default 384: faces of 150 to 250 pixels.
    size: int = Field(default=384, ge=64, le=4096)
    # The world's seed: the same seed, identity and image give the same bytes anywhere.
    seed: int = Field(default=0, ge=0)
    # One folder per identity, one flat folder whose names say nothing, or tar files of a unit each.
    layout: Literal["folders", "flat", "tar"] = "folders"
    # Largest yaw of the head to either side, degrees.
    max_yaw: float = Field(default=60.0, ge=0, le=90)
    # Glasses, hands and strands before the face.
    occluders: bool = True
    # Bundle folder with an albedo model. None: the procedural head.
    bundle: Uri | None = None
    # As in `reconstruct`.
    existing: Literal["refuse", "resume", "retry", "new"] = "refuse"
    # Images in a unit. Default 64: half a minute of one core.
    units: UnitsConfig = UnitsConfig(items_per_unit=64)
    ray: RayConfig = RayConfig()

    def plan_config(self) -> dict[str, Any]:
        """Return the settings that influence results, without the items themselves."""
        kept = {"size", "seed", "layout", "max_yaw", "occluders"}
        return {"flow": "synth", **self.model_dump(mode="json", include=kept)}


class SynthSummary(BaseModel):
    """Counts of a run and of the archive after it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    outcome: Literal["complete", "partial"]
    photos: str  # folder of the images
    truth: str  # dataset of the truth
    identities: int
    images: int  # committed
    pending_units: int
    quarantined: dict[str, int]
    units_run: int
    units_skipped: int
    seconds: float
    images_per_second: float
    fingerprint: str


def truth_schema(num_vertices: int) -> pa.Schema:
    """Arrow schema of truth.parquet/ for a head of `num_vertices` vertices.

    Codes are in the method's conventions; `cam` is for the whole image; pixels are those of the image.
    """
    return pa.schema(
        [
            pa.field("face_id", pa.string(), nullable=False),  # <identity>-<image>
            pa.field("path", pa.string(), nullable=False),  # below the archive, `file.tar#member` in tars
            pa.field("sha256", pa.string(), nullable=False),  # of the JPEG
            pa.field("identity_id", pa.string(), nullable=False),
            pa.field("picture", pa.int32(), nullable=False),  # number within the identity
            pa.field("size", pa.int32(), nullable=False),
            fixed_field("landmarks", (68, 2)),
            fixed_field("shape", (100,)),
            fixed_field("tex", (50,)),
            fixed_field("exp", (50,)),
            fixed_field("pose", (6,)),
            fixed_field("cam", (3,)),
            fixed_field("light", (9, 3)),
            fixed_field("vertices", (num_vertices, 3)),  # metres, world space
            fixed_field(
                "displacement",
                (256, 256),
                pa.uint16(),
                scale=2 * DISPLACEMENT_LIMIT / LEVELS,
                offset=-DISPLACEMENT_LIMIT,
            ),
            pa.field("skin_mask", IMAGE),  # PNG, 255 on visible skin of the face
            pa.field("normals", IMAGE),  # PNG of the UV normal map, (n + 1) / 2 * 255
        ],
        metadata={"schema_version": str(SCHEMA_VERSION), "dataset": "truth"},
    )
