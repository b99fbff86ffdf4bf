"""The train flow: the paper's stages one after the other; each resumes from its last checkpoint."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

from pydantic import ValidationError

from deca_core.checkpoint import META_FILE, WEIGHTS_FILE, save_checkpoint
from pipelines.places import SUMMARY, find_faces
from pipelines.unit_flow import AsTask, direct
from schemas.progress import OnTrainProgress, Timing
from schemas.train import STAGES, CheckpointRecord, StageName, StageRecord, TrainConfig, TrainPlan, TrainSummary
from tasks.models.loading import bundle_for
from tasks.people.versions import open_faces
from tasks.store.scratch import temp_folder
from tasks.store.storage import Store
from tasks.training.board import BOARD
from tasks.training.checkpoints import prune, read_state
from tasks.training.inputs import WORLD, first_model, input_hashes
from tasks.training.ranks import prove_rank_paths, train_stage
from tasks.training.records import (
    FOLDER,
    MODEL,
    STAGE_FOLDER,
    TRAIN,
    checkpoint_at,
    finished_stages,
    is_published,
    stage_file,
    stored_plan,
)
from tasks.training.report import CURVES, REPORT, draw_curves, draw_sheets
from tasks.training.stage import FAILED, METRICS, StageJob
from tasks.units.draft import code_version, flat_settings
from tasks.units.metrics_server import watched
from tasks.units.plan import CONFIG, PlanError

RANDOM = "random-"  # prefix of the names of loss networks without pretrained weights

logger = logging.getLogger("deca")


def train(
    config: TrainConfig, on_progress: OnTrainProgress | None = None, as_task: AsTask[Any] = direct
) -> TrainSummary:
    """Faces in, a trained DECA out: pretrain, coarse, detail; calling it again resumes.

    as_task: wraps each stage, for an engine that watches them (Prefect).
    """
    config = as_task(effective_config)(config)
    as_task(prove_rank_paths)(config)
    plan = as_task(freeze_run)(config)
    timings: dict[StageName, Timing] = {}
    for name, function in zip(STAGES, (pretrain, coarse, detail), strict=True):
        timing = as_task(function)(config, plan, on_progress)
        if timing is not None:
            timings[name] = timing
    as_task(publish_model)(config, plan)
    as_task(draw_report)(config, bool(timings))
    return as_task(summarise)(config, plan, timings)


def effective_config(config: TrainConfig) -> TrainConfig:
    """Effective config: a stored run's version of the data wins, and with `resume` all of its settings but Ray's."""
    stored = _stored_config(config.dest) if config.existing != "new" else None
    if config.existing == "resume":
        if stored is None:
            raise PlanError(f"{config.dest}: there is no run to resume. Start one without --resume")
        return stored.model_copy(update={"existing": "resume", "dest": config.dest, "ray": config.ray})
    config = config.model_copy(update={"bundle": bundle_for(config.bundle, config.start)})
    if config.source == WORLD:
        return config
    config = config.model_copy(update={"source": find_faces(config.source) or config.source})
    if config.version is not None:
        return config
    same = stored is not None and stored.source == config.source
    version = stored.version if stored and same else open_faces(config.source).version.version
    return config.model_copy(update={"version": version})


def freeze_run(config: TrainConfig) -> TrainPlan:
    """Load every input of training once, before any work, and return the run's plan.

    Raises PlanError where DEST holds another run, naming what differs.
    """
    store = Store(config.dest)
    first_model(config)  # raises for an unknown backbone or weights that do not fit
    plan = _plan(config)
    earlier = stored_plan(store)
    if config.existing == "new" and earlier is not None:
        store.delete(TRAIN)
        for folder in (FOLDER, METRICS, BOARD, STAGE_FOLDER, REPORT, FAILED):
            store.delete_folder(folder)  # the model stays until the new one takes its place
        earlier = None
    if earlier is not None and earlier.fingerprint != plan.fingerprint:
        before, after = ({**flat_settings(p.config), **p.inputs} for p in (earlier, plan))
        changed = [f"{key} {before.get(key)} -> {after.get(key)}" for key in after if before.get(key) != after[key]]
        raise PlanError(
            f"{store.uri} holds another run: {'; '.join(changed)}. Resume with the stored settings with --resume, or "
            "start over with --new"
        )
    for name in sorted(name for name in plan.inputs.values() if name.startswith(RANDOM)):
        logger.warning("%s is a loss network with RANDOM weights: its loss means nothing", name)
    if earlier is None:
        store.check_writable()
        store.write(CONFIG, config.model_dump_json(indent=2).encode())
        store.write(TRAIN, plan.model_dump_json(indent=2).encode())
    store.sweep()
    return plan


def pretrain(config: TrainConfig, plan: TrainPlan, on_progress: OnTrainProgress | None) -> Timing | None:
    """Train E_c on landmarks alone."""
    return _run("pretrain", config, plan, on_progress)


def coarse(config: TrainConfig, plan: TrainPlan, on_progress: OnTrainProgress | None) -> Timing | None:
    """Train E_c on images (section 4.1)."""
    return _run("coarse", config, plan, on_progress)


def detail(config: TrainConfig, plan: TrainPlan, on_progress: OnTrainProgress | None) -> Timing | None:
    """Train E_d and F_d with E_c frozen (section 4.2)."""
    return _run("detail", config, plan, on_progress)


def _run(name: StageName, config: TrainConfig, plan: TrainPlan, on_progress: OnTrainProgress | None) -> Timing | None:
    """Train a stage unless it is finished or left out; None if there was nothing to do."""
    store = Store(config.dest)
    if not config.stage(name).steps:
        return None
    if store.exists(stage_file(name)):
        prune(store, name, config.keep_last, config.keep_best)  # a stale listing may have hidden some
        return None
    before = [earlier for earlier in STAGES[: STAGES.index(name)] if config.stage(earlier).steps]
    job = StageJob(config.dest, config, plan, name, _result(config, before[-1]) if before else None)
    last = train_stage(job, config.ray, watched(on_progress))
    record = _result(config, name)
    finished = StageRecord(
        fingerprint=plan.fingerprint,
        stage=name,
        steps=record.step,
        checkpoint=f"{record.step:08d}.json",
        validation=record.validation,
    )
    store.write(stage_file(name), finished.model_dump_json(indent=2).encode())
    return last.timing if last else None


def publish_model(config: TrainConfig, plan: TrainPlan) -> str:
    """Write the last stage's mean weights as a checkpoint for `deca reconstruct --checkpoint`; return its URI."""
    store = Store(Store(config.dest).join(MODEL))
    if is_published(Store(config.dest), plan):
        return store.uri
    last = [name for name in STAGES if config.stage(name).steps][-1]
    state = read_state(Store(config.dest), _result(config, last))
    model = first_model(config)
    model.load_state_dict({**state.weights, **state.mean})
    networks = {name: value for name, value in plan.inputs.items() if name in ("identity", "perceptual")}
    model.info = {
        "trained": "yes",
        "recipe": config.recipe,
        "stages": " ".join(f"{name} {config.stage(name).steps}" for name in STAGES),
        "data": plan.inputs["data"],
        "run": plan.fingerprint,
        **networks,
    }
    with temp_folder(MODEL) as folder:
        saved = save_checkpoint(model, folder / MODEL)
        for name in (WEIGHTS_FILE, META_FILE):  # the record of the weights' hash last
            store.write(name, (saved / name).read_bytes())
    return store.uri


def draw_report(config: TrainConfig, trained: bool) -> None:
    """Draw loss curves and validation faces beside the data, unless nothing was trained since the last ones."""
    if not trained and Store(config.dest).exists(CURVES):
        return
    draw_sheets(config)
    draw_curves(config)  # last: it marks the report as complete


def summarise(config: TrainConfig, plan: TrainPlan, timings: dict[StageName, Timing]) -> TrainSummary:
    """Return the summary of DEST, and write it there."""
    store = Store(config.dest)
    records = finished_stages(store).values()
    summary = TrainSummary(
        outcome="complete",
        dest=store.uri,
        model=store.join(MODEL),
        bundle=config.bundle,
        stages={record.stage: {"steps": record.steps, **record.validation} for record in records},
        stages_run=list(timings),
        seconds={name: round(timing.seconds, 1) for name, timing in timings.items()},
        images_per_second={name: round(timing.images_per_second, 2) for name, timing in timings.items()},
        data_wait_share={name: round(timing.data_wait_share, 3) for name, timing in timings.items()},
        networks={name: value for name, value in plan.inputs.items() if name in ("identity", "perceptual")},
        fingerprint=plan.fingerprint,
        code=code_version(),
    )
    store.write(SUMMARY, summary.model_dump_json(indent=2).encode())
    return summary


def _plan(config: TrainConfig) -> TrainPlan:
    settings, inputs = config.plan_config(), input_hashes(config)
    canonical = json.dumps({"config": settings, "inputs": inputs}, sort_keys=True)
    return TrainPlan(config=settings, inputs=inputs, fingerprint=hashlib.sha256(canonical.encode()).hexdigest())


def _stored_config(dest: str) -> TrainConfig | None:
    store = Store(dest)
    try:
        return TrainConfig.model_validate_json(store.read(CONFIG))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise PlanError(f"{store.join(CONFIG)} is damaged or of another version. Start over with --new") from error


def _result(config: TrainConfig, name: StageName) -> CheckpointRecord:
    """Return the last checkpoint of a finished stage."""
    store = Store(config.dest)
    try:
        return checkpoint_at(store, name, config.stage(name).steps)
    except FileNotFoundError as error:
        raise PlanError(
            f"{store.uri}: the stage {name} is finished but its last checkpoint is gone. Start over with --new"
        ) from error
