"""The synth flow: photographs of procedural people, and the truth about them."""

from __future__ import annotations

from functools import partial

from pipelines.stages import SUMMARY, Stage, direct, settle, store_config, stored_plan
from schemas.progress import OnUnitProgress
from schemas.world import SynthConfig, SynthSummary
from tasks.measure.synth import PHOTOS, SynthWorker, truth_dest, world_items, world_source
from tasks.models.loading import bundle_at
from tasks.store.storage import Store
from tasks.units.draft import code_version
from tasks.units.engine import RunSummary, run_units
from tasks.units.plan import Plan
from tasks.units.ray_cluster import expected_workers
from tasks.units.reasons import check_rows
from tasks.units.rounds import open_or_build
from tasks.units.shared_paths import prove_paths
from tasks.units.verify import status


def synth(config: SynthConfig, on_progress: OnUnitProgress | None = None, stage: Stage = direct) -> SynthSummary:
    """An archive of photographs as a person would find one, with truth.parquet/ beside it."""
    config = stage(settle)(config, truth_dest(config))
    stage(prove_paths)(config)
    plan = stage(freeze_world)(config)
    run = stage(take_photographs)(plan, config, on_progress)
    return stage(summarise)(plan, config, run)


def freeze_world(config: SynthConfig) -> Plan:
    """Number the pictures and cut them into units, or open the plan that is already there."""
    weights = {"bundle": bundle_at(config.bundle).hash}
    if config.existing in ("resume", "retry"):
        return stored_plan(truth_dest(config), config.existing, weights, config.ray.upgrade)
    plan = open_or_build(
        truth_dest(config),
        world_source(config),
        config=config.plan_config(),
        weights=weights,
        units=config.units,
        # A tar file is a unit: its bytes must not depend on the machine.
        workers=None if config.layout == "tar" else expected_workers(config.ray.without_gpus()),
        code=code_version(SynthWorker.__module__),
        items=world_items(config),
        mode="new" if config.existing == "new" else "auto",
        upgrade=config.ray.upgrade,
    )
    store_config(plan, config)
    return plan


def take_photographs(plan: Plan, config: SynthConfig, on_progress: OnUnitProgress | None) -> RunSummary:
    """Work the pending units on Ray."""
    run = run_units(plan, partial(SynthWorker, config), config.ray.without_gpus(), on_progress)
    check_rows(plan, run.rows, "photographs")
    return run


def summarise(plan: Plan, config: SynthConfig, run: RunSummary) -> SynthSummary:
    """Count what lies in DEST and write it beside the truth."""
    now = status(plan.dest)
    summary = SynthSummary(
        outcome="complete" if now.complete else "partial",
        photos=Store(config.dest).join(PHOTOS),
        truth=now.dest,
        identities=config.identities,
        images=now.rows,
        pending_units=now.pending,
        quarantined=now.quarantined,
        units_run=run.units_run,
        units_skipped=run.units_skipped,
        seconds=round(run.seconds, 2),
        images_per_second=round(run.rows / run.seconds, 2) if run.rows else 0.0,
        fingerprint=now.fingerprint,
    )
    plan.store.write(SUMMARY, summary.model_dump_json(indent=2).encode())
    return summary
