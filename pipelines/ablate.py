"""The ablations: the full recipe and what it is without each of its losses, trained alike and measured together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pipelines.evaluate import evaluate, open_truth
from pipelines.stages import Stage, direct, find_faces
from pipelines.train import train
from schemas.ablate import DETAIL_FIGURES, SCAN_MEDIAN, VARIANTS, AblateConfig, AblateSummary, ModelFigures, VariantName
from schemas.evaluate import MODEL, EvaluateSummary
from schemas.train import STAGES, StageName, TrainConfig, TrainSummary
from tasks.measure.ablation_report import FULL, PAGE, MeasuredRows, compare, figures_of, write_report
from tasks.measure.evaluation_report import read_rows
from tasks.measure.world_truth import EvaluateError
from tasks.models.loading import bundle_at, bundle_for
from tasks.people.versions import open_faces
from tasks.store.storage import Store
from tasks.training.inputs import WORLD, stage_weights
from tasks.training.records import MODEL as MODEL_FOLDER
from tasks.units.draft import code_version, flat_settings
from tasks.units.plan import CONFIG, PlanConflict, PlanError, load_plan

MODELS, EVALUATION = "models", "evaluation"
OnUnitProgress = Callable[[Any], None]  # of training and of measuring
Weights = dict[StageName, dict[str, float]]

logger = logging.getLogger("deca")


@dataclass(frozen=True)
class Run:
    """A model to train, with a seed: some stages, from the model of an earlier run. `label`: its row of the tables."""

    label: str
    seed: int
    config: TrainConfig

    @property
    def model(self) -> str:
        """The checkpoint that it publishes."""
        return Store(self.config.dest).join(MODEL_FOLDER)

    @property
    def name(self) -> str:
        """The method of its rows."""
        return f"{self.label}, seed {self.seed}"


def ablate(config: AblateConfig, on_progress: OnUnitProgress | None = None, stage: Stage = direct) -> AblateSummary:
    """What every loss is worth; calling it again goes on where it stopped, and draws the report anew.

    stage: wraps each stage, for an engine that watches them (Prefect).
    """
    config = stage(settle_ablations)(config)
    runs, left_out = stage(plan_runs)(config)
    trained = {run.name: stage(train_model)(run, on_progress) for run in runs}
    measured = stage(measure_models)(config, runs, on_progress)
    return stage(compare_models)(config, runs, left_out, trained, measured)


def settle_ablations(config: AblateConfig) -> AblateConfig:
    """The settings that hold, stored beside the models: all of them are trained on one version of the faces.

    Raises PlanError where DEST holds models trained in another way; variants, seeds and evaluation may change.
    """
    store = Store(config.dest)
    stored = _stored_config(store) if config.existing != "new" else None
    if config.existing == "resume":
        if stored is None:
            raise PlanError(f"{store.uri}: there are no ablations to resume. Start them without --resume")
        groups = {name: (getattr(stored, name), getattr(config, name)) for name in ("train", "evaluate")}
        kept = {name: {**own, "ray": given.get("ray", {})} for name, (own, given) in groups.items()}
        return stored.model_copy(update={"dest": config.dest, **kept})
    config = config.model_copy(update={"bundle": bundle_for(config.bundle, config.training(config.seeds[0]).start)})
    if config.faces != WORLD:
        faces = find_faces(config.faces) or config.faces
        same = stored is not None and stored.faces == faces
        default = stored.train["version"] if stored and same else open_faces(faces).version.version
        config = config.model_copy(update={"faces": faces, "train": {"version": default, **config.train}})
    if stored is not None:
        before, after = (flat_settings(_same_for_all(each)) for each in (stored, config))
        differing = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
        if changed := [f"{key} {before.get(key)} -> {after.get(key)}" for key in differing]:
            raise PlanError(
                f"{store.uri} holds models trained otherwise: {'; '.join(changed)}. Go on with the stored settings "
                "with --resume, or start over with --new"
            )
    return config


def _same_for_all(config: AblateConfig) -> dict[str, Any]:
    training = config.training(0)
    return {**training.plan_config(), "version": training.version}


def _stored_config(store: Store) -> AblateConfig | None:
    try:
        return AblateConfig.model_validate_json(store.read(CONFIG))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise PlanError(f"{store.join(CONFIG)} is damaged or of another flow. Start over with --new") from error


def plan_runs(config: AblateConfig) -> tuple[list[Run], dict[str, str]]:
    """Every model in the order of training; and the variants that cannot be trained, with the reason.

    Raises EvaluateError before any work where the world cannot be measured on.
    """
    first = config.training(config.seeds[0])
    truth = open_truth(config.source, bundle_at(config.bundle))
    seen = [name for name in truth.identities if truth.seed == first.world.seed and int(name) < first.world.people]
    if config.faces == WORLD and seen:
        raise EvaluateError(
            f"{config.source} shows {len(set(seen))} of the people that would be trained on: world {truth.seed}. "
            f"Train on others: --set train.world.seed={truth.seed + 1}"
        )
    changed = {name: changed_stages(first, VARIANTS[name].without) for name in config.variants}
    runs = [run for seed in config.seeds for run in _runs_of(config, seed, changed)]
    store = Store(config.dest)
    store.check_writable()
    if config.existing == "new":
        store.delete_folder(MODELS)
    store.sweep()
    store.write(CONFIG, config.model_copy(update={"existing": "refuse"}).model_dump_json(indent=2).encode())
    reason = "the full recipe has no such loss in a stage that is trained"
    return runs, {VARIANTS[name].label: reason for name, stages in changed.items() if not stages}


def changed_stages(config: TrainConfig, without: Weights) -> list[StageName]:
    """The stages that a loss takes part in."""
    less = config.model_copy(update={"weights": _without(config.weights, without)})
    return [name for name in _trained(config) if stage_weights(config, name) != stage_weights(less, name)]


def _trained(config: TrainConfig) -> list[StageName]:
    return [name for name in STAGES if config.stage(name).steps]


def _without(weights: Weights, less: Weights) -> Weights:
    return {name: {**weights.get(name, {}), **less.get(name, {})} for name in {**weights, **less}}


def _runs_of(config: AblateConfig, seed: int, changed: dict[VariantName, list[StageName]]) -> list[Run]:
    """The models of a seed: the full recipe stage by stage, and each variant from where it parts from that."""
    base, folder = config.training(seed), Store(config.dest).join(f"{MODELS}/seed-{seed}")
    stages = _trained(base)
    start, starts, runs = base.start, dict[StageName, str | None](), list[Run]()
    for name in stages:
        starts[name] = start
        label = FULL if name == stages[-1] else f"{name} only"
        run = Run(label, seed, _part(base, f"{folder}/{name}", [name], start))
        runs.append(run)
        start = run.model
    for variant, parts in changed.items():
        if parts:
            own = stages[stages.index(parts[0]) : stages.index(parts[-1]) + 1]
            less = base.model_copy(update={"weights": _without(base.weights, VARIANTS[variant].without)})
            part = _part(less, f"{folder}/without-{variant.replace('_', '-')}", own, starts[own[0]])
            runs.append(Run(VARIANTS[variant].label, seed, part))
    return runs


def _part(config: TrainConfig, dest: str, stages: list[StageName], start: str | None) -> TrainConfig:
    """Some of the stages of a training, from a model."""
    rest: dict[str, Any] = {
        name: config.stage(name).model_copy(update={"steps": 0}) for name in STAGES if name not in stages
    }
    return config.model_copy(update={"dest": dest, "start": start, **rest})


def train_model(run: Run, on_progress: OnUnitProgress | None) -> TrainSummary:
    """Train one model, as far as it is not trained already."""
    logger.info("training: %s", run.name)
    return train(run.config, on_progress)


def measure_models(config: AblateConfig, runs: list[Run], on_progress: OnUnitProgress | None) -> EvaluateSummary:
    """Every model on the same pictures: one evaluation. Models other than those of before are all measured anew."""
    full, *others = sorted(runs, key=lambda run: run.label != FULL)
    dest = Store(config.dest).join(EVALUATION)
    own = config.evaluation(dest, full.model, {run.name: run.model for run in others})
    if config.existing == "new":
        return evaluate(own.model_copy(update={"existing": "new"}), on_progress)
    try:
        return evaluate(own, on_progress)
    except PlanConflict as conflict:
        logger.info("measured anew, because of: %s", "; ".join(conflict.differences))
        return evaluate(own.model_copy(update={"existing": "new"}), on_progress)


def compare_models(
    config: AblateConfig,
    runs: list[Run],
    left_out: dict[str, str],
    trained: dict[str, TrainSummary],
    measured: EvaluateSummary,
) -> AblateSummary:
    """What the rows say of every loss; page, Markdown and numbers are written beside the models."""
    bundle, rows = bundle_at(config.bundle), read_rows(load_plan(measured.dest))
    if rows is None:
        raise EvaluateError(f"{measured.dest}: nothing could be measured. Look closer: deca status {measured.dest}")
    table = MeasuredRows(rows, bundle.shape_basis[bundle.face_vertices])
    methods = {(run.label, run.seed): run.name for run in runs}
    methods[FULL, config.seeds[0]] = MODEL
    comparisons = [
        compare(
            table,
            VARIANTS[name].label,
            figure,
            [(methods[FULL, seed], methods[VARIANTS[name].label, seed]) for seed in config.seeds],
        )
        for name in config.variants
        if VARIANTS[name].label not in left_out
        for figure in VARIANTS[name].figures
    ]
    base = config.training(config.seeds[0])
    budget = {name: base.stage(name) for name in _trained(base)}
    summary = AblateSummary(
        outcome=measured.outcome,
        source=measured.source,
        faces=config.faces,
        dest=Store(config.dest).uri,
        evaluation=measured.dest,
        seeds=list(config.seeds),
        people=len(table.identities),
        pictures=measured.pictures,
        quarantined=measured.quarantined,
        pending_units=measured.pending_units,
        budget={name: f"{part.steps} steps of {part.subjects} x {part.images}" for name, part in budget.items()},
        networks={name: value for one in trained.values() for name, value in one.networks.items()},
        left_out=left_out,
        trained={name: sum(one.seconds.values()) for name, one in trained.items() if one.stages_run},
        comparisons=comparisons,
        models=_model_rows(config, runs, methods, measured),
        code=code_version(),
        report=Store(config.dest).join(PAGE),
    )
    write_report(summary)
    return summary


def _model_rows(
    config: AblateConfig, runs: list[Run], methods: dict[tuple[str, int], str], measured: EvaluateSummary
) -> list[ModelFigures]:
    """A row a model and baseline; figures of the detail only where a model has a trained one, or needs no training."""
    asked = [figure for name in config.variants for figure in VARIANTS[name].figures]
    names = list(dict.fromkeys(["nme", SCAN_MEDIAN.name, *asked]))
    by_method = {method.method: method for method in measured.methods}
    rows: dict[str, list[dict[str, float]]] = {}
    for run in runs:
        method = by_method.pop(methods[run.label, run.seed], None)
        has_detail = run.config.detail.steps > 0
        if method is not None:
            own = [name for name in names if has_detail or name not in DETAIL_FIGURES]
            rows.setdefault(run.label, []).append(figures_of(method, own))
    rows |= {name: [figures_of(method, names)] for name, method in by_method.items()}  # mean face, ...
    return [
        ModelFigures(
            model=label,
            figures={name: [one[name] for one in found if name in one] for name in names if name in found[0]},
        )
        for label, found in rows.items()
    ]
