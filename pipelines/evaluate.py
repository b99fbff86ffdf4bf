"""The evaluate flow: a benchmark and checkpoints in, figures out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial

from deca_core.assets import AssetBundle
from pipelines.reconstruct import UNTRAINED_WARNING
from pipelines.stages import SUMMARY, Stage, direct, settle, store_config, stored_plan
from schemas.evaluate import MODEL, EvaluateConfig, EvaluateSummary
from schemas.ledger import Item
from schemas.progress import OnUnitProgress
from tasks.annotate.annotators import load_annotator
from tasks.measure.evaluate import EvaluateWorker
from tasks.measure.evaluation_report import REPORT, figures, read_rows, write_report
from tasks.measure.methods import model_configs
from tasks.measure.now import NowDataset
from tasks.measure.world_truth import EvaluateError, WorldTruth
from tasks.models.loading import bundle_at, bundle_for, is_trained, load_model, weights_hash
from tasks.units.draft import code_version
from tasks.units.engine import RunSummary, run_units
from tasks.units.plan import Plan
from tasks.units.ray_cluster import expected_workers
from tasks.units.reasons import check_rows
from tasks.units.rounds import open_or_build
from tasks.units.shared_paths import prove_paths
from tasks.units.verify import status

logger = logging.getLogger("deca")


def evaluate(
    config: EvaluateConfig, on_progress: OnUnitProgress | None = None, stage: Stage = direct
) -> EvaluateSummary:
    """A benchmark and checkpoints in, figures out; calling it again goes on where it stopped.

    stage: wraps each stage, for an engine that watches them (Prefect).
    """
    config = stage(prepare)(config)
    stage(prove_paths)(config)
    weights = stage(check_inputs)(config)
    plan = stage(freeze_plan)(config, weights)
    run = stage(measure_pictures)(plan, config, on_progress)
    return stage(summarise)(plan, config, run)


def prepare(config: EvaluateConfig) -> EvaluateConfig:
    """The settings that hold, with the bundle of the checkpoint."""
    config = settle(config, config.dest)
    return config.model_copy(update={"bundle": bundle_for(config.bundle, config.checkpoint)})


def check_inputs(config: EvaluateConfig) -> dict[str, str]:
    """Load every network once before any work, and see that the truth is about the same head; hashes by name."""
    bundle = bundle_at(config.bundle)
    hashes = {"bundle": bundle.hash}
    for name, own in model_configs(config).items():
        hashes[name] = weights_hash(own)
        load_model(own)
        if not is_trained(own):
            logger.warning("%s: %s", name, UNTRAINED_WARNING)
    if config.benchmark == "now":
        return {**hashes, "truth": NowDataset(config.source, config.pictures, config.scan_units).list_hash}
    truth = open_truth(config.source, bundle)
    annotators = load_annotator(config.annotate).versions if config.landmarks == "annotator" else {}
    return {**hashes, "truth": truth.hash, **annotators}


def open_truth(source: str, bundle: AssetBundle) -> WorldTruth:
    """A world's truth, which is about this head. Raises EvaluateError."""
    truth = WorldTruth(source)
    if truth.bundle != bundle.hash:
        raise EvaluateError(
            f"{source} was photographed over the head {truth.bundle[:12]}, this run measures over "
            f"{bundle.name!r} ({bundle.hash[:12]}). Give the bundle that the world was made with"
        )
    return truth


def freeze_plan(config: EvaluateConfig, weights: dict[str, str]) -> Plan:
    """Number the benchmark's pictures and cut them into units, or open the plan that is already there."""
    if config.existing in ("resume", "retry"):
        return stored_plan(config.dest, config.existing, weights, config.ray.upgrade)
    plan = open_or_build(
        config.dest,
        config.source,
        config=config.plan_config(),
        weights=weights,
        units=config.units,
        workers=expected_workers(config.ray),
        code=code_version(EvaluateWorker.__module__),
        items=_pictures(config),
        mode="new" if config.existing == "new" else "auto",
        upgrade=config.ray.upgrade,
    )
    store_config(plan, config)
    logger.info("%d pictures in %d units, plan %s", plan.inputs.items, plan.units, plan.fingerprint[:8])
    return plan


def _pictures(config: EvaluateConfig) -> Iterator[Item]:
    if config.benchmark == "now":
        return NowDataset(config.source, config.pictures, config.scan_units).items()
    return WorldTruth(config.source).items()


def measure_pictures(plan: Plan, config: EvaluateConfig, on_progress: OnUnitProgress | None) -> RunSummary:
    """Work the pending units on Ray."""
    run = run_units(plan, partial(EvaluateWorker, config), config.ray, on_progress)
    check_rows(plan, run.rows, "images")
    return run


def summarise(plan: Plan, config: EvaluateConfig, run: RunSummary) -> EvaluateSummary:
    """Draw the figures from all committed rows; page and numbers are written beside them."""
    now, rows = status(plan.dest), read_rows(plan)
    bundle = bundle_at(config.bundle)
    summary = EvaluateSummary(
        outcome="complete" if now.complete else "partial",
        benchmark=config.benchmark,
        source=now.source,
        dest=now.dest,
        pictures=now.items,
        quarantined=now.quarantined,
        pending_units=now.pending,
        units_run=run.units_run,
        units_skipped=run.units_skipped,
        seconds=round(run.seconds, 2),
        trained=is_trained(model_configs(config)[MODEL]),
        weights=plan.record.weights,
        fingerprint=now.fingerprint,
        code=now.code,
        methods=figures(rows, bundle.shape_basis[bundle.face_vertices]),
        report=plan.store.join(REPORT),
    )
    write_report(plan, summary, rows)
    plan.store.write(SUMMARY, summary.model_dump_json(indent=2).encode())
    return summary
