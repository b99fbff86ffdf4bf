"""The losses that are ablated, the figures that show it, the config of the flow, and its summary."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.evaluate import METRICS, EvaluateConfig, Metric
from schemas.secrets import Uri
from schemas.train import StageName, TrainConfig, merged

SCHEMA_VERSION = 1

# Figures pooled over all images of a method, beside the columns of evaluations/.
SCAN_MEDIAN = Metric("scan_median", "Face surface, median over all vertices (NoW protocol)", "mm")
SHAPE_RATIO = Metric("shape_ratio", "Shape: distance within a subject over distance between subjects", "of 1")
FIGURES = {metric.name: metric for metric in (*METRICS, SCAN_MEDIAN, SHAPE_RATIO)}


class Variant(NamedTuple):
    """The full recipe without one loss: label of its row, loss weights that change, figures that the loss is for."""

    label: str
    without: dict[StageName, dict[str, float]]
    figures: tuple[str, ...]


VariantName = Literal[
    "detail_consistency", "mrf", "symmetry", "eye_closure", "identity", "skin_mask", "shape_consistency"
]


def _variant(loss: str, label: str, stages: tuple[StageName, ...], *figures: str) -> Variant:
    return Variant(f"without {label}", {stage: {loss: 0} for stage in stages}, figures)


VARIANTS: dict[VariantName, Variant] = {
    "detail_consistency": _variant(
        "detail_consistency", "detail consistency", ("detail",), "transfer_mm", "transfer_corr"
    ),
    "mrf": _variant("mrf", "ID-MRF", ("detail",), "displacement_corr", "displacement_strength"),
    "symmetry": _variant("symmetry", "symmetry", ("detail",), "hidden_mm"),
    "eye_closure": _variant("eye_closure", "eye closure", ("pretrain", "coarse"), "lids"),
    "identity": _variant("identity", "identity loss", ("coarse",), "scan_median", "shape_mm"),
    "skin_mask": _variant(
        "skin_mask", "skin mask", ("coarse", "detail"), "albedo", "expression_mm", "displacement_corr"
    ),
    "shape_consistency": _variant("shape_consistency", "shape consistency", ("coarse",), "shape_ratio"),
}

# Defaults of `train`: the laptop preset, with the identity loss that it leaves out.
FULL_RECIPE: dict[str, Any] = {"preset": "small", "weights": {"coarse": {"identity": 0.2}}}


class AblateConfig(BaseModel):
    """Config of `deca evaluate --ablations` and of the deployment `evaluate/ablations`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Archive of `deca synth` that every model is evaluated on: subjects that are not in the training set.
    source: Uri
    # What every model is trained on: a faces/ dataset, or "world".
    faces: Uri
    # Folder or bucket prefix for the models, the evaluation and the report.
    dest: Uri
    # Config of `deca train` for all models, with the full recipe's loss weights. Default: FULL_RECIPE, key by key.
    train: dict[str, Any] = {}
    # Config of `deca evaluate`.
    evaluate: dict[str, Any] = {}
    # Bundle folder. None: the procedural head.
    bundle: Uri | None = None
    # Losses to ablate, one at a time. Default: those of the paper's section 6.3, and more.
    variants: tuple[VariantName, ...] = get_args(VariantName)
    # Every model is trained once per seed. With one, intervals cover subjects only; with several, training noise too.
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    # Models in DEST: continue if the training config is the same, else refuse (refuse); continue with the stored config
    # (resume); delete everything (new).
    existing: Literal["refuse", "resume", "new"] = "refuse"

    @model_validator(mode="after")
    def _is_valid(self) -> AblateConfig:
        own = {"source", "dest", "bundle", "existing"}
        for name, group, reserved in (
            ("train", self.train, {*own, "seed"}),
            ("evaluate", self.evaluate, {*own, "benchmark", "checkpoint", "compare"}),
        ):
            if given := reserved & group.keys():
                raise ValueError(f"{name}.{min(given)}: set by the ablations themselves")
        if len(set(self.variants)) < len(self.variants) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("variants, seeds: an entry is repeated")
        self.training(self.seeds[0])
        self.evaluation(self.dest, None, {})
        return self

    def training(self, seed: int) -> TrainConfig:
        """Return the training config of the full recipe with a seed, all stages, in DEST itself."""
        places = {"source": self.faces, "dest": self.dest, "bundle": self.bundle, "seed": seed}
        return TrainConfig.model_validate({**merged(FULL_RECIPE, self.train), **places})

    def evaluation(self, dest: str, checkpoint: str | None, compare: dict[str, str]) -> EvaluateConfig:
        """Return the evaluation config of a checkpoint and of those to compare it with, by name."""
        places = {"source": self.source, "dest": dest, "bundle": self.bundle}
        models = {"checkpoint": checkpoint, "compare": compare}
        return EvaluateConfig.model_validate({**self.evaluate, **places, **models})


Verdict = Literal["worse", "no difference", "better", "too few subjects", "not measured"]


class Comparison(BaseModel):
    """One figure of the full recipe and of a variant, over the images that have it in both."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: str
    figure: str
    full: list[float]  # by seed; empty where it has no value
    ablated: list[float]
    # 95 % interval of the resampled differences (ablated - full); None with too few subjects, or nothing measured.
    low: float | None
    high: float | None
    verdict: Verdict  # of the variant


class AblateSummary(BaseModel):
    """Result of a run: `_report/ablations.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    outcome: Literal["complete", "partial"]  # of the evaluation
    source: str
    faces: str
    dest: str
    evaluation: str  # dataset of the rows
    seeds: list[int]
    people: int
    pictures: int  # planned; figures are over those that could be evaluated
    quarantined: dict[str, int]
    pending_units: int
    budget: dict[str, str]  # by stage
    networks: dict[str, str]  # pretrained loss networks
    left_out: dict[str, str]  # variant -> reason
    trained: dict[str, float]  # in this run: model -> seconds
    comparisons: list[Comparison]
    code: str
    report: str
