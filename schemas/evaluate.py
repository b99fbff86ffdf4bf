"""The evaluations/ dataset (one row an image and method), its settings, and the figures drawn from it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator

from schemas.annotate import AnnotateConfig
from schemas.engine import RayConfig, UnitsConfig
from schemas.parquet import fixed_field
from schemas.secrets import Uri

SCHEMA_VERSION = 1

# The rows' methods, beside those of `compare`.
Baseline = Literal["mean face", "landmark fit"]
MODEL, MEAN_FACE, FIT_METHOD = "model", "mean face", "landmark fit"
BASELINES: tuple[Baseline, ...] = get_args(Baseline)


class Metric(NamedTuple):
    """A figure of one image: column, words for the report, unit, and whether less or more is better."""

    name: str
    label: str
    unit: str
    better: Literal["less", "more"] = "less"


METRICS: tuple[Metric, ...] = (
    Metric("nme", "Landmarks, by the distance of the outer eye corners", "NME"),
    Metric("nme_box", "Landmarks, by the size of their box", "NME"),
    Metric("lids", "Gaps between the eyelids, by the distance of the outer eye corners", "NME"),
    Metric("pose_deg", "Head pose", "°"),
    Metric("jaw_deg", "Jaw pose", "°"),
    Metric("expression_mm", "Expression and jaw, on the true head", "mm"),
    Metric("shape_mm", "Vertices of the neutral face, best similarity", "mm"),
    Metric("vertex_mm", "Vertices of the posed face, best similarity", "mm"),
    Metric("albedo", "Albedo, mean absolute difference", "of 1"),
    Metric("light", "Light, relative RMS of the shading", "of 1"),
    Metric("displacement_corr", "Displacement, correlation", "r", "more"),
    Metric("displacement_mm", "Displacement, RMS difference", "mm"),
    Metric("displacement_strength", "Displacement, |1 - RMS / true RMS|", "of 1"),
    Metric("hidden_mm", "Displacement where the image does not show it, RMS difference", "mm"),
    Metric("normal_deg", "Normals of the detailed face", "°"),
    Metric("psnr_db", "Rendering against the image, on visible skin", "dB", "more"),
    Metric("transfer_vertex_mm", "Transfer: vertices of the face", "mm"),
    Metric("transfer_corr", "Transfer: displacement, correlation", "r", "more"),
    Metric("transfer_mm", "Transfer: displacement, RMS difference", "mm"),
    Metric("transfer_static_corr", "Transfer with the source's own detail: correlation", "r", "more"),
    Metric("transfer_static_mm", "Transfer with the source's own detail: RMS difference", "mm"),
    Metric("transfer_coarse_mm", "Transfer without detail: RMS difference", "mm"),
)


class EvaluateConfig(BaseModel):
    """Settings of `deca evaluate` and of the deployment `evaluate`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Folder or bucket prefix: an archive of `deca synth`, or the NoW dataset as it is distributed.
    source: Uri
    # Folder or bucket prefix that rows and report are written to.
    dest: Uri
    # What the source is. world: the truth of the images is known; now: scans of real subjects.
    benchmark: Literal["world", "now"] = "world"
    # Checkpoint folder, or "untrained". None: the weights that come with the package, as in `reconstruct`.
    checkpoint: Uri | None = None
    # More checkpoint folders by name: rows of the same table (baselines, ablations).
    compare: dict[str, Uri] = {}
    # Rows of the same table that need no network. The landmark fit takes the landmarks that a face is cropped by; NoW
    # gives boxes, so it is left out there.
    baselines: tuple[Baseline, ...] = BASELINES
    # Bundle folder. None: the procedural head. A world must have been rendered from the same one.
    bundle: Uri | None = None
    # Seed of an untrained network's weights.
    seed: int = 0
    # As in `synth`.
    existing: Literal["refuse", "resume", "retry", "new"] = "refuse"
    # What a world's faces are cropped by: the true landmarks, so that the networks alone are evaluated, or detected
    # ones, as in `reconstruct`. NoW gives boxes.
    landmarks: Literal["truth", "annotator"] = "truth"
    # The annotators of landmarks=annotator; max_pixels applies to every image.
    annotate: AnnotateConfig = AnnotateConfig()
    # NoW: which of its lists of images.
    pictures: Literal["validation", "test"] = "validation"
    # NoW: unit of the scans. auto: inferred from the distance of the outer eye corners, scan by scan.
    scan_units: Literal["auto", "m", "cm", "mm"] = "auto"
    # Faces that go through the networks at once.
    batch_size: int = Field(default=8, ge=1)
    # Images in a unit. Default 32: about a minute of one core.
    units: UnitsConfig = UnitsConfig(items_per_unit=32)
    ray: RayConfig = RayConfig()

    @field_validator("compare")
    @classmethod
    def _own_names(cls, value: dict[str, str]) -> dict[str, str]:
        if taken := {MODEL, *BASELINES} & set(value):
            raise ValueError(f"compare: the name {min(taken)!r} is taken, choose another")
        return value

    def plan_config(self) -> dict[str, Any]:
        """The settings that influence results, beside `units`. Checkpoints and truth enter a plan by hash."""
        kept = {"benchmark", "landmarks", "annotate", "pictures", "scan_units", "batch_size", "baselines"}
        return {"flow": "evaluate", **self.model_dump(mode="json", include=kept)}


def evaluations_schema() -> pa.Schema:
    """Arrow schema of evaluations/. Figures that a benchmark does not have, or that have no value, are null."""
    distances = pa.list_(pa.field("element", pa.float32(), nullable=False))
    return pa.schema(
        [
            pa.field("face_id", pa.string(), nullable=False),  # as in the truth; <subject>/<challenge>/<picture> in NoW
            pa.field("source_uri", pa.string(), nullable=False),
            pa.field("identity_id", pa.string(), nullable=False),
            pa.field("challenge", pa.string()),  # NoW's kind of image
            pa.field("method", pa.string(), nullable=False),
            *(pa.field(metric.name, pa.float32()) for metric in METRICS),
            fixed_field("shape", (100,)),
            pa.field("scan_mm", distances, nullable=False),  # NoW: every scan vertex to the predicted surface
            pa.field("scan_metrical_mm", distances, nullable=False),  # the same without scale in the alignment
        ],
        metadata={"schema_version": str(SCHEMA_VERSION), "dataset": "evaluations"},
    )


class Pooled(BaseModel):
    """Distances over all scan vertices of all images, millimetres."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    median: float | None
    mean: float | None
    std: float | None
    vertices: int


class Figure(BaseModel):
    """One metric over the images that have it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: float
    std: float
    pictures: int


class MethodFigures(BaseModel):
    """Everything about one method."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    pictures: int
    scan: Pooled
    scan_metrical: Pooled
    challenges: dict[str, Pooled] = {}  # scan, by NoW's kind of image
    metrics: dict[str, Figure] = {}
    # RMS over vertices and image pairs of the difference of neutral heads, mm: of one subject, and of two.
    shape_within_mm: float | None
    shape_between_mm: float | None
    shape_ratio: float | None


class EvaluateSummary(BaseModel):
    """What a run did and what was measured: `_report/summary.json`, beside `_report/report.html`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    outcome: Literal["complete", "partial"]
    benchmark: str
    source: str
    dest: str
    pictures: int  # of the plan; figures are over those that could be measured
    quarantined: dict[str, int]
    pending_units: int
    units_run: int
    units_skipped: int
    seconds: float
    trained: bool
    weights: dict[str, str]  # hash of every input
    fingerprint: str
    code: str
    methods: list[MethodFigures]
    report: str
