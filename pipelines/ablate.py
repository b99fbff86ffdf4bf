"""Loss ablations: the full recipe and a variant without each loss, trained alike and evaluated together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import ValidationError

from pipelines.evaluate import evaluate, open_truth
from pipelines.places import find_faces
from pipelines.train import train
from pipelines.unit_flow import AsTask, direct
from schemas.ablate import VARIANTS, AblateConfig, AblateSummary
from schemas.evaluate import MODEL, EvaluateSummary
from schemas.train import STAGES, StageName, TrainConfig, TrainSummary
from tasks.measure.ablation_report import FULL, PAGE, MeasuredRows, compare, write_report
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
NO_SUCH_LOSS = "the full recipe has no such loss in a stage that is trained"
OnUnitProgress = Callable[[Any], None]  # of training and of evaluation
LossWeights = dict[StageName, dict[str, float]]

logger = logging.getLogger("deca")


class Run(NamedTuple):
    """One training: some stages, from the model of an earlier run. label: its row of the tables."""

    label: str
    seed: int
    config: TrainConfig

    @property
    def model(self) -> str:
        """URI of the checkpoint that it publishes."""
        return Store(self.config.dest).join(MODEL_FOLDER)

    @property
    def name(self) -> str:
        """Its method name in evaluations/."""
        return f"{self.label}, seed {self.seed}"


def ablate(
    config: AblateConfig, on_progress: OnUnitProgress | None = None, as_task: AsTask[Any] = direct
) -> AblateSummary:
    """Return the comparison of the full recipe with each variant. A repeated call resumes and rewrites the report.

    as_task: wraps each stage, for an engine that watches them (Prefect).
    """
    config = as_task(effective_config)(config)
    runs = as_task(plan_runs)(config)
    trained = {}
    for run in runs:
        logger.info("training: %s", run.name)
        trained[run.name] = as_task(train)(run.config, on_progress)
    measured = as_task(measure_models)(config, runs, on_progress)
    return as_task(compare_models)(config, runs, trained, measured)


def effective_config(config: AblateConfig) -> AblateConfig:
    """Return the config with bundle and faces version fixed; on resume the stored one, except per-run fields.

    Raises PlanError where DEST holds models of another training config; variants, seeds and evaluation may change.
    """
    store = Store(config.dest)
    stored = _stored_config(store) if config.existing != "new" else None
    if config.existing == "resume":
        if stored is None:
            raise PlanError(f"{store.uri}: there are no ablations to resume. Start them without --resume")
        groups = {"train": (stored.train, config.train), "evaluate": (stored.evaluate, config.evaluate)}
        kept = {name: {**own, "ray": given.get("ray", {})} for name, (own, given) in groups.items()}
        return stored.model_copy(update={"dest": config.dest, **kept})
    config = config.model_copy(update={"bundle": bundle_for(config.bundle, config.training(config.seeds[0]).start)})
    if config.faces != WORLD:
        faces = find_faces(config.faces) or config.faces
        same = stored is not None and stored.faces == faces
        version = stored.train["version"] if stored and same else open_faces(faces).version.version
        config = config.model_copy(update={"faces": faces, "train": {"version": version, **config.train}})
    if stored is not None:
        trainings = [each.training(0) for each in (stored, config)]
        before, after = (flat_settings({**each.plan_config(), "version": each.version}) for each in trainings)
        differing = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
        if changed := [f"{key} {before.get(key)} -> {after.get(key)}" for key in differing]:
            raise PlanError(
                f"{store.uri} holds models of another training config: {'; '.join(changed)}. Continue with the stored "
                "config with --resume, or start over with --new"
            )
    return config


def _stored_config(store: Store) -> AblateConfig | None:
    try:
        return AblateConfig.model_validate_json(store.read(CONFIG))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise PlanError(f"{store.join(CONFIG)} is damaged or of another flow. Start over with --new") from error


def plan_runs(config: AblateConfig) -> list[Run]:
    """Return every training, in order, and store the config. A variant whose loss is in no trained stage has none.

    Raises EvaluateError before any work where the world cannot be evaluated on.
    """
    first = config.training(config.seeds[0])
    truth = open_truth(config.source, bundle_at(config.bundle))
    seen = {name for name in truth.identities if truth.seed == first.world.seed and int(name) < first.world.people}
    if config.faces == WORLD and seen:
        raise EvaluateError(
            f"{config.source} has {len(seen)} subjects of the training set: world {truth.seed}. "
            f"Train on others: --set train.world.seed={truth.seed + 1}"
        )
    runs = [run for seed in config.seeds for run in _runs_of(config, seed)]
    store = Store(config.dest)
    store.check_writable()
    if config.existing == "new":
        store.delete_folder(MODELS)
    store.sweep()
    store.write(CONFIG, config.model_copy(update={"existing": "refuse"}).model_dump_json(indent=2).encode())
    return runs


def _runs_of(config: AblateConfig, seed: int) -> list[Run]:
    """Return the trainings of a seed: full recipe stage by stage, variants from their first differing stage."""
    base, folder = config.training(seed), Store(config.dest).join(f"{MODELS}/seed-{seed}")
    stages = [name for name in STAGES if base.stage(name).steps]
    start, starts, runs = base.start, dict[StageName, str | None](), list[Run]()
    for name in stages:
        starts[name] = start
        label = FULL if name == stages[-1] else f"{name} only"
        runs.append(Run(label, seed, _part(base, f"{folder}/{name}", [name], start)))
        start = runs[-1].model
    for variant in config.variants:
        if parts := changed_stages(base, VARIANTS[variant].without):
            own = stages[stages.index(parts[0]) : stages.index(parts[-1]) + 1]
            less = _without(base, VARIANTS[variant].without)
            part = _part(less, f"{folder}/without-{variant.replace('_', '-')}", own, starts[own[0]])
            runs.append(Run(VARIANTS[variant].label, seed, part))
    return runs


def changed_stages(config: TrainConfig, without: LossWeights) -> list[StageName]:
    """Return the trained stages in which the loss has a weight."""
    less = _without(config, without)
    trained = [name for name in STAGES if config.stage(name).steps]
    return [name for name in trained if stage_weights(config, name) != stage_weights(less, name)]


def _without(config: TrainConfig, less: LossWeights) -> TrainConfig:
    weights = {name: {**config.weights.get(name, {}), **less.get(name, {})} for name in {**config.weights, **less}}
    return config.model_copy(update={"weights": weights})


def _part(config: TrainConfig, dest: str, stages: list[StageName], start: str | None) -> TrainConfig:
    """Return the training config of some stages alone, starting from a checkpoint."""
    off: dict[str, Any] = {
        name: config.stage(name).model_copy(update={"steps": 0}) for name in STAGES if name not in stages
    }
    return config.model_copy(update={"dest": dest, "start": start, **off})


def measure_models(config: AblateConfig, runs: list[Run], on_progress: OnUnitProgress | None) -> EvaluateSummary:
    """Evaluate all models in one dataset; another set of models than before is evaluated from scratch."""
    full, *others = sorted(runs, key=lambda run: run.label != FULL)
    dest = Store(config.dest).join(EVALUATION)
    own = config.evaluation(dest, full.model, {run.name: run.model for run in others})
    try:
        if config.existing != "new":
            return evaluate(own, on_progress)
    except PlanConflict as conflict:
        logger.info("evaluated from scratch, because of: %s", "; ".join(conflict.differences))
    return evaluate(own.model_copy(update={"existing": "new"}), on_progress)


def compare_models(
    config: AblateConfig, runs: list[Run], trained: dict[str, TrainSummary], measured: EvaluateSummary
) -> AblateSummary:
    """Return the comparisons; page, Markdown and JSON are written beside the models."""
    bundle, rows = bundle_at(config.bundle), read_rows(load_plan(measured.dest))
    if rows is None:
        raise EvaluateError(f"{measured.dest}: no image could be evaluated. Run: deca status {measured.dest}")
    table = MeasuredRows(rows, bundle.shape_basis[bundle.face_vertices])
    methods = {(run.label, run.seed): run.name for run in runs} | {(FULL, config.seeds[0]): MODEL}
    variants = [VARIANTS[name] for name in config.variants]
    left_out = [one.label for one in variants if (one.label, config.seeds[0]) not in methods]
    base = config.training(config.seeds[0])
    budget = {name: part for name in STAGES if (part := base.stage(name)).steps}
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
        left_out=dict.fromkeys(left_out, NO_SUCH_LOSS),
        trained={name: sum(one.seconds.values()) for name, one in trained.items() if one.stages_run},
        comparisons=[
            compare(
                table, one.label, figure, [(methods[FULL, seed], methods[one.label, seed]) for seed in config.seeds]
            )
            for one in variants
            if one.label not in left_out
            for figure in one.figures
        ],
        code=code_version(),
        report=Store(config.dest).join(PAGE),
    )
    write_report(summary)
    return summary
