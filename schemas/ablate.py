"""Ablations: which loss is taken away, what shows that it is missing, the settings of the flow, and its figures."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.evaluate import METRICS, EvaluateConfig, Metric
from schemas.secrets import Uri
from schemas.train import StageName, TrainConfig, merged

SCHEMA_VERSION = 1

# Figures of all pictures of a method together, beside the columns of evaluations/.
SCAN_MEDIAN = Metric("scan_median", "Face surface, median over all vertices (NoW protocol)", "mm")
SHAPE_RATIO = Metric("shape_ratio", "Shape: one person's pictures apart, over two people's", "of 1")
FIGURES = {metric.name: metric for metric in (*METRICS, SCAN_MEDIAN, SHAPE_RATIO)}
# Of what E_d and F_d say: a model without a detail stage has none of them.
DETAIL_FIGURES = {"displacement_corr", "displacement_strength", "hidden_mm", "transfer_corr", "transfer_mm"}


class Variant(NamedTuple):
    """The full recipe without one loss: its row, the weights that change, and the figures that the loss is for."""

    label: str
    without: dict[StageName, dict[str, float]]
    figures: tuple[str, ...]


VariantName = Literal[
    "detail_consistency", "mrf", "symmetry", "eye_closure", "identity", "skin_mask", "shape_consistency"
]
VARIANTS: dict[VariantName, Variant] = {
    "detail_consistency": Variant(
        "without detail consistency", {"detail": {"detail_consistency": 0}}, ("transfer_mm", "transfer_corr")
    ),
    "mrf": Variant("without ID-MRF", {"detail": {"mrf": 0}}, ("displacement_corr", "displacement_strength")),
    "symmetry": Variant("without symmetry", {"detail": {"symmetry": 0}}, ("hidden_mm",)),
    "eye_closure": Variant(
        "without eye closure", {"pretrain": {"eye_closure": 0}, "coarse": {"eye_closure": 0}}, ("lids",)
    ),
    "identity": Variant("without identity loss", {"coarse": {"identity": 0}}, ("scan_median", "shape_mm")),
    "skin_mask": Variant(
        "without skin mask",
        {"coarse": {"skin_mask": 0}, "detail": {"skin_mask": 0}},
        ("albedo", "expression_mm", "displacement_corr"),
    ),
    "shape_consistency": Variant("without shape consistency", {"coarse": {"shape_consistency": 0}}, ("shape_ratio",)),
}


# What is not given of the settings of training: a laptop's, but with the loss that it leaves out to save time.
FULL_RECIPE: dict[str, Any] = {"preset": "small", "weights": {"coarse": {"identity": 0.2}}}


class AblateConfig(BaseModel):
    """Settings of `deca evaluate --ablations` and of the deployment `evaluate/ablations`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Archive of `deca synth` that every model is measured on: people whom training does not see.
    source: Uri
    # What every model is trained on: a faces/ dataset, or "world".
    faces: Uri
    # Folder or bucket prefix for the models, the evaluation and the report.
    dest: Uri
    # Settings of `deca train` for all models, the full recipe's weights among them. Default: FULL_RECIPE, setting by
    # setting.
    train: dict[str, Any] = {}
    # Settings of `deca evaluate`.
    evaluate: dict[str, Any] = {}
    # Bundle folder. None: the procedural head.
    bundle: Uri | None = None
    # Which losses are taken away, one at a time. Default: all that the paper's section 6.3 takes away, and more.
    variants: tuple[VariantName, ...] = get_args(VariantName)
    # Every model is trained once for each. One tells people from people; only several tell training from luck.
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    # What to do with the models that DEST holds: go on if they are trained in the same way and refuse otherwise
    # (refuse); go on with the stored settings (resume); drop everything (new).
    existing: Literal["refuse", "resume", "new"] = "refuse"

    @model_validator(mode="after")
    def _settings_are_known(self) -> AblateConfig:
        own = {"source", "dest", "bundle", "existing"}
        for name, taken in (
            ("train", {*own, "seed"}),
            ("evaluate", {*own, "benchmark", "checkpoint", "compare"}),
        ):
            if given := taken & set(getattr(self, name)):
                raise ValueError(f"{name}.{min(given)}: the ablations settle that themselves")
        if repeated := [
            name for name in ("variants", "seeds") if len(set(getattr(self, name))) < len(getattr(self, name))
        ]:
            raise ValueError(f"{repeated[0]}: something is named twice")
        self.training(self.seeds[0])
        self.evaluation(self.dest, None, {})
        return self

    def training(self, seed: int) -> TrainConfig:
        """All stages of the full recipe with a seed, in DEST itself."""
        places = {"source": self.faces, "dest": self.dest, "bundle": self.bundle, "seed": seed}
        return TrainConfig.model_validate({**merged(FULL_RECIPE, self.train), **places})

    def evaluation(self, dest: str, checkpoint: str | None, compare: dict[str, str]) -> EvaluateConfig:
        """The evaluation of a model and of those it is compared with."""
        places = {"source": self.source, "dest": dest, "bundle": self.bundle}
        models = {"checkpoint": checkpoint, "compare": compare}
        return EvaluateConfig.model_validate({**self.evaluate, **places, **models})


Verdict = Literal["worse", "no difference", "better", "too few people", "not measured"]


class Comparison(BaseModel):
    """One figure of the full recipe and of a variant, over the pictures that have it in both."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: str
    figure: str
    full: list[float]  # by seed; none where it has no value
    ablated: list[float]
    # Ends of 95 % of the resampled differences (ablated - full); None with too few people, or nothing measured.
    low: float | None
    high: float | None
    verdict: Verdict  # on the variant


class ModelFigures(BaseModel):
    """A row of the table of all models: figures by name, a value a seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    figures: dict[str, list[float]]


class AblateSummary(BaseModel):
    """What a run did and what was found: `_report/ablations.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    outcome: Literal["complete", "partial"]  # of the evaluation
    source: str
    faces: str
    dest: str
    evaluation: str  # dataset of the rows
    seeds: list[int]
    people: int
    pictures: int  # of the plan; figures are over those that could be measured
    quarantined: dict[str, int]
    pending_units: int
    budget: dict[str, str]  # by stage
    networks: dict[str, str]  # that judged
    left_out: dict[str, str]  # variant -> reason
    trained: dict[str, float]  # by this run: model -> seconds
    comparisons: list[Comparison]
    models: list[ModelFigures]
    code: str
    report: str
