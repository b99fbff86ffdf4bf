"""The exports/ dataset (one row a head, its files beside it) and the settings of the flow that writes it."""

from __future__ import annotations

from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.engine import RayConfig, UnitsConfig
from schemas.secrets import Uri

SCHEMA_VERSION = 1

Format = Literal["glb", "obj", "ply", "npz"]
Joint = Literal["neck", "jaw", "left_eye", "right_eye"]


class ExportConfig(BaseModel):
    """Settings of `deca export` and of the deployment `export`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # A reconstructions/ dataset; any fsspec URI.
    source: Uri
    # Folder or bucket prefix that files and rows are written to; any fsspec URI.
    dest: Uri
    # Which files a head becomes. Part of the plan.
    formats: tuple[Format, ...] = Field(default=("glb",), min_length=1)
    # obj, ply and npz: also the detailed surface M' at the resolution of the UV map, 57,000 vertices. Part of the plan.
    dense: bool = False
    # Heads by face_id, image_id or identity_id. None: all.
    ids: tuple[str, ...] | None = Field(default=None, min_length=1)
    # A filter over the columns, such as "det_score > 0.9" (tasks/heads/filters.py). None: all.
    where: str | None = None
    # glb: expression components with a morph target of their own, the first ones of 50; the effect of the others on
    # the photographed face is one more target. Default 10: 0.7 MB a head. Part of the plan.
    expressions: int = Field(default=10, ge=0, le=50)
    # glb: joints whose pose correctives become morph targets. Default jaw: DECA moves no other below the root. A joint
    # costs one small target over the procedural head, up to nine full ones over FLAME. Part of the plan.
    correctives: tuple[Joint, ...] = ("jaw",)
    # glb: morph targets name only the vertices that they move, which takes 0.4 MB a head less at 10 targets and which
    # some importers refuse (docs/export.md). Part of the plan. Default None: that of the plan in DEST; in a new plan
    # false, so that every importer reads the files.
    sparse: bool | None = None
    # Where checkpoint and bundle of the rows are now. None: where they were when the rows were made.
    checkpoint: Uri | None = None
    bundle: Uri | None = None
    # As in `reconstruct`; extend: also export what the selection has gained.
    existing: Literal["refuse", "resume", "retry", "extend", "new"] = "refuse"
    # Heads in a unit. Default 64: some seconds of one core.
    units: UnitsConfig = UnitsConfig(items_per_unit=64)
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _what_formats_store(self) -> ExportConfig:
        for name, values in (("formats", self.formats), ("correctives", self.correctives)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} names something twice: {', '.join(values)}")
        if self.dense and self.formats == ("glb",):
            raise ValueError(
                "dense: glb stores the detail in its normal map, because morph targets of 57,000 vertices would be 7 "
                "MB a head. Add obj, ply or npz to formats, or leave dense out"
            )
        return self

    def plan_config(self) -> dict[str, Any]:
        """The settings that influence results, beside `units`. The rows and models enter a plan by hash."""
        parts = {"formats", "dense", "expressions", "correctives", "sparse"}
        return {"flow": "export", **self.model_dump(mode="json", include=parts)}


def exports_schema() -> pa.Schema:
    """Arrow schema of exports/."""
    return pa.schema(
        [
            pa.field("face_id", pa.string(), nullable=False),
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("identity_id", pa.string()),
            pa.field("source_uri", pa.string(), nullable=False),  # the row of reconstructions/
            pa.field("checkpoint", pa.string(), nullable=False),  # as in that row
            # picture: base colours from the photograph; albedo: from the codes, the photograph is gone.
            pa.field("colours", pa.string(), nullable=False),
            pa.field("files", pa.list_(pa.field("element", pa.string(), nullable=False)), nullable=False),  # below DEST
            pa.field("bytes", pa.int64(), nullable=False),  # of these files
        ],
        metadata={"schema_version": str(SCHEMA_VERSION), "dataset": "exports"},
    )


class ExportSummary(BaseModel):
    """Counts of a run and of the dataset after it: `_report/summary.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    outcome: Literal["complete", "partial"]
    source: str
    dest: str
    heads: int  # exported, with those of earlier runs
    formats: tuple[Format, ...]
    colours: dict[str, int]  # heads by where their base colours come from
    files: int
    bytes: int  # of the files and of the rows about them
    quarantined: dict[str, int]
    pending_units: int
    units_run: int  # by this run; the next four as well
    units_skipped: int
    heads_run: int
    seconds: float
    heads_per_second: float
    fingerprint: str
    code: str
