"""The animations/ dataset (one row a frame of a head under a motion) and the settings of `deca animate`."""

from __future__ import annotations

from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.annotate import AnnotateConfig
from schemas.engine import RayConfig, UnitsConfig
from schemas.parquet import fixed_field
from schemas.reconstruct import LEVELS
from schemas.secrets import DriverUri, Uri

SCHEMA_VERSION = 1
CAST_FOLDER = "_cast"  # heads and motions, frozen with the plan

AnimateOutput = Literal["codes", "displacement", "clip", "glb", "npz"]
# Settings that are gone, with their defaults; stored configs may hold them.
REMOVED_SETTINGS = (("expressions", None), ("expressions_where", None), ("stills", "ease"))
View = Literal["shape", "detail", "image"]


class AnimateConfig(BaseModel):
    """Settings of `deca animate` and of the deployment `animate`. docs/animate.md lists the drivers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Folder or bucket prefix that the dataset is written to; any fsspec URI.
    dest: Uri
    # Heads: HEADS#ID, HEADS, an image or a video. Each gives one.
    identity: tuple[DriverUri, ...] = ()
    # Motions: the same, or a preset such as smile. Each gives one.
    expression: tuple[DriverUri, ...] = ()
    # A reconstructions/ dataset: all of its tracks, or all of its faces where it has none.
    identities: DriverUri | None = None
    # Filter over its rows, as `deca export --where`; gives faces, not tracks.
    identities_where: str | None = None
    # The model. None: that of the first dataset among the identities, else the shipped one.
    checkpoint: Uri | None = None
    bundle: Uri | None = None
    seed: int = 0
    # Also set by the first dataset: `landmarks` for rows of `deca fit`, which have no detail.
    codes: Literal["network", "landmarks"] = "network"
    # What is written. codes: the rows; displacement: a column of them, 65 kB a frame; clip, glb, npz: files.
    outputs: tuple[AnimateOutput, ...] = Field(default=("codes", "displacement", "clip", "glb"), min_length=1)
    # Frames a second of presets and of the way to single expressions. Videos keep theirs.
    fps: float = Field(default=25.0, gt=0, le=240)
    # Pixels on a side of a clip's views, and which, from left to right.
    size: int = Field(default=384, ge=32, le=2048)
    views: tuple[View, ...] = Field(default=("detail", "image"), min_length=1)
    # What to do with a stored plan; as in `deca reconstruct`.
    existing: Literal["refuse", "resume", "retry", "new"] = "refuse"

    # Face detection in images and videos that are named.
    annotate: AnnotateConfig = AnnotateConfig()
    # Animations in a unit. Default 8: some minutes of one core where clips are drawn.
    units: UnitsConfig = UnitsConfig(items_per_unit=8, least_items=1)
    ray: RayConfig = RayConfig()

    @model_validator(mode="before")
    @classmethod
    def _stored_by_earlier_versions(cls, values: Any) -> Any:
        """Drop removed settings at their defaults, which stored configs of earlier versions hold."""
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if (name, value) not in REMOVED_SETTINGS}

    @model_validator(mode="after")
    def _has_heads_and_motions(self) -> AnimateConfig:
        if self.existing in ("resume", "retry"):
            return self
        if not self.identity and not self.identities:
            raise ValueError("no head is named: give identity or identities")
        if not self.expression:
            raise ValueError("no motion is named: give expression")
        for name in ("outputs", "views"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} names something twice: {', '.join(values)}")
        return self

    def plan_config(self) -> dict[str, Any]:
        """The settings that influence results, without the cast."""
        kept = {"outputs", "fps", "size", "views", "codes"}
        return {"flow": "animate", "stills": "ease", **self.model_dump(mode="json", include=kept)}


class AnimateSummary(BaseModel):
    """Counts of a run and of the dataset after it: `_report/summary.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    outcome: Literal["complete", "partial"]
    dest: str
    identities: int
    expressions: int
    animations: int  # of the plan
    frames: int  # committed rows
    quarantined: dict[str, int]
    pending_units: int
    units_run: int
    units_skipped: int
    frames_run: int
    seconds: float
    frames_per_second: float
    checkpoint: str
    fingerprint: str
    bytes: int
    files: list[str]  # the first clips and other files, by name


_NAMES = [
    pa.field("number", pa.int32(), nullable=False),
    pa.field("name", pa.string(), nullable=False),  # as named, or HEADS#ID
    pa.field("error", pa.string()),  # null; earlier versions: why the name has no codes
]
_CODES = [
    fixed_field("shape", (100,)),
    fixed_field("tex", (50,)),
    fixed_field("exp", (50,)),
    fixed_field("pose", (6,)),
    fixed_field("cam", (3,)),
    fixed_field("light", (9, 3)),
    fixed_field("detail", (128,)),
]
# _cast/identities-<sha8>.parquet: one row a head.
IDENTITIES_SCHEMA = pa.schema(
    [*_NAMES, *_CODES], metadata={"schema_version": str(SCHEMA_VERSION), "dataset": "identities"}
)
# _cast/expressions-<sha8>.parquet: one row a frame of a motion, a row group a motion.
EXPRESSIONS_SCHEMA = pa.schema(
    [*_NAMES, pa.field("time", pa.float64(), nullable=False), fixed_field("exp", (50,)), fixed_field("jaw", (3,))],
    metadata={"schema_version": str(SCHEMA_VERSION), "dataset": "expressions"},
)


def animation_schema(outputs: tuple[AnimateOutput, ...], displacement_limit: float) -> pa.Schema:
    """Arrow schema of animations/. displacement_limit: metres that the 16-bit maps span to either side."""
    scale, offset = 2 * displacement_limit / LEVELS, -displacement_limit
    fields = [
        pa.field("face_id", pa.string(), nullable=False),  # <animation_id>-<frame>
        pa.field("animation_id", pa.string(), nullable=False),
        pa.field("identity", pa.string(), nullable=False),
        pa.field("expression", pa.string(), nullable=False),
        pa.field("frame", pa.int64(), nullable=False),
        pa.field("time", pa.float64(), nullable=False),  # seconds since the motion's first frame
    ]
    if "codes" in outputs:
        fields += _CODES
    if "displacement" in outputs:
        fields.append(fixed_field("displacement", (256, 256), pa.uint16(), scale=scale, offset=offset))
    fields += [pa.field(name, pa.string()) for name in ("clip", "glb", "npz") if name in outputs]  # below the dataset
    fields.append(pa.field("checkpoint", pa.string(), nullable=False))
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION), "dataset": "animations"})
