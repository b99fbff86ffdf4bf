"""Settings of the ingest flow: filters of faces, identity assignment and shards; and its summary."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from schemas.annotate import AnnotateConfig
from schemas.engine import RayConfig, SourceConfig, UnitsConfig
from schemas.secrets import DriverUri, Uri

SCHEMA_VERSION = 1


class FilterConfig(BaseModel):
    """Which annotated faces enter faces/. The others stay in annotations/, so a changed limit needs no new detection.

    None switches a limit off.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Pixels between the eyes' centres. Default 16: a face some 40 pixels wide, the smallest that dlib finds; below, a
    # 224 crop is enlarged more than fivefold and shows no wrinkle.
    min_eye_distance: float | None = Field(default=16.0, ge=0)
    # Variance of the Laplacian on the face scaled to a common size. Default 4: rounding to 8 bits alone gives 1.7, a
    # blur of 3 % of the face 2 to 2.7, a sharp image of 40 pixels at least 5, a photograph 40 to 190.
    min_sharpness: float | None = Field(default=4.0, ge=0)
    # Degrees, estimated from the landmarks. Default 75: beyond, half of the landmarks are guessed.
    max_yaw: float | None = Field(default=75.0, gt=0, le=180)
    # Skin inside the landmarks' outline, 0 to 1. Default 0.5: dlib's masks give 0.95 on a bare face and 0.76 with
    # glasses, hair and hands before it; below a half there is little face to learn from.
    min_mask_coverage: float | None = Field(default=0.5, ge=0, le=1)


class IdentityConfig(BaseModel):
    """Identity assignment."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # auto: path where `pattern` is given, table where `table` is, sidecar where annotate.sidecar.identity is, else
    # cluster. none: every face is an identity of its own.
    method: Literal["auto", "path", "table", "sidecar", "cluster", "none"] = "auto"
    # Where an image's path (below the source; `archive.tar#member` inside archives) names the identity, as in
    # "{identity}/{image}" or "people/{identity}_{image}.jpg". {identity} must occur; {image} stands for anything
    # within one folder, {any} for anything.
    pattern: str | None = None
    # CSV, TSV or Parquet with columns path (or uri) and identity_id (or identity, label), any fsspec URI.
    table: DriverUri | None = None
    # Which faces of a labelled image get its label. Default largest: a label names one subject, most likely the largest
    # face. The others are left out.
    labelled_faces: Literal["largest", "all"] = "largest"

    # --- cluster ---
    # Largest Euclidean distance between two descriptors of one identity. None: 0.5 for dlib's, 1.1 for ArcFace's.
    max_distance: float | None = Field(default=None, gt=0)
    # Nearest neighbours searched per face. Should exceed the images of one identity, or its cluster is split.
    neighbours: int = Field(default=64, ge=2)
    # Drop the identities of the current version and cluster everything again.
    regroup: bool = False

    @field_validator("pattern")
    @classmethod
    def _names_the_identity(cls, pattern: str | None) -> str | None:
        if pattern is not None and "{identity}" not in pattern:
            raise ValueError("must contain {identity}, as in '{identity}/{image}'")
        return pattern

    @model_validator(mode="after")
    def _method_has_what_it_reads(self) -> IdentityConfig:
        if self.method == "path" and self.pattern is None:
            raise ValueError("method path needs a pattern: --pattern '{identity}/{image}'")
        if self.method == "table" and self.table is None:
            raise ValueError("method table needs a table: --set identity.table=people.csv")
        return self


class ShardConfig(BaseModel):
    """How faces/ is cut."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Faces in a shard, about. Default 4096: some 150 MB, one PUT, and fine enough for many ranks.
    faces_per_shard: int = Field(default=4096, ge=1)
    # Smallest number of faces an identity needs. Default 1 keeps all; shape consistency needs pairs, but training
    # skips lone faces by itself.
    min_images: int = Field(default=1, ge=1)
    # Share of the identities held back for validation, chosen by a hash of identity_id.
    val_fraction: float = Field(default=0.05, ge=0, lt=1)


class IngestConfig(BaseModel):
    """Settings of `deca ingest` and of the deployments `ingest`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Folder, pattern, bucket prefix, archive, table or list; any fsspec URI.
    source: Uri
    # Folder or bucket prefix that gets annotations/ and faces/; any fsspec URI.
    dest: Uri
    # What to do with annotations in DEST: plan what is new or changed in the source (extend), resume the stored plan
    # (resume), also plan quarantined rows once more (retry), drop everything (new), or refuse a source that differs
    # (refuse). Default extend, unlike reconstruct: ingest is for archives that grow.
    existing: Literal["refuse", "resume", "retry", "extend", "new"] = "extend"

    inputs: SourceConfig = SourceConfig()
    annotate: AnnotateConfig = AnnotateConfig()
    filters: FilterConfig = FilterConfig()
    identity: IdentityConfig = IdentityConfig()
    shards: ShardConfig = ShardConfig()
    units: UnitsConfig = UnitsConfig()
    ray: RayConfig = RayConfig()

    def plan_config(self) -> dict[str, Any]:
        """Return the settings that influence annotations, without `inputs` and `units`, which a plan stores anyway."""
        return {"flow": "ingest", **self.model_dump(mode="json", include={"annotate"})}


class IngestSummary(BaseModel):
    """Counts of a run and of the dataset after it: `_report/summary.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    outcome: Literal["complete", "partial"]  # partial: something is quarantined, pending or left out
    source: str
    dest: str
    images: int
    annotated: int  # faces in annotations/
    faces: int  # in faces/
    identities: int
    left_out: dict[str, int]  # annotated faces that are not in faces/, by reason
    quarantined: dict[str, int]  # rows still in quarantine, by stage
    images_left_out: dict[str, int] = Field(default_factory=dict)  # images that no decoder here reads, by ending
    pending_units: int
    version: int
    new_version: bool  # whether this run published it
    units_run: int  # by this run; the next three as well
    units_skipped: int
    faces_run: int
    seconds: dict[str, float]  # by stage of the flow
    faces_per_second: float  # annotated by this run
    fingerprint: str  # of the annotations' plan
    code: str
