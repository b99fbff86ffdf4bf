"""The animate flow: every named head under every named motion."""

from __future__ import annotations

import logging
from functools import partial
from itertools import islice

from pipelines.stages import SUMMARY, Stage, direct, settle, store_config, stored_plan
from schemas.animate import AnimateConfig, AnimateSummary
from schemas.progress import OnUnitProgress
from tasks.heads.animate import SOURCE, AnimateWorker, animation_items, model_config
from tasks.heads.cast import freeze_cast, is_dataset
from tasks.heads.selection import config_of, model_for
from tasks.models.loading import bundle_at, bundle_for, load_model, weights_hash
from tasks.store.storage import Store
from tasks.units.commits import read_commits
from tasks.units.draft import code_version
from tasks.units.engine import RunSummary, run_units
from tasks.units.plan import Plan
from tasks.units.ray_cluster import expected_workers
from tasks.units.reasons import check_rows
from tasks.units.rounds import open_or_build
from tasks.units.shared_paths import prove_paths
from tasks.units.verify import status

FILES_NAMED = 12  # in the summary

logger = logging.getLogger("deca")


def animate(config: AnimateConfig, on_progress: OnUnitProgress | None = None, stage: Stage = direct) -> AnimateSummary:
    """Animate every head with every motion; a second call resumes."""
    config = stage(prepare)(config)
    stage(prove_paths)(config)
    plan = stage(freeze_plan)(config)
    run = stage(animate_heads)(plan, config, on_progress)
    return stage(summarise)(plan, config, run)


def prepare(config: AnimateConfig) -> AnimateConfig:
    """The effective config, with a model: the one given, or that of the first dataset whose heads are animated."""
    config = settle(config, config.dest)
    if config.existing in ("resume", "retry"):
        return config
    config = config.model_copy(update={"bundle": bundle_for(config.bundle, config.checkpoint)})
    for name in (*config.identity, *filter(None, [config.identities])):
        dest = name.partition("#")[0]
        if is_dataset(dest):
            model_for(dest, config.checkpoint, config.bundle)  # raises where it does not fit the rows
            theirs = config_of(dest)
            return config.model_copy(
                update={
                    "checkpoint": config.checkpoint or theirs.checkpoint,
                    "bundle": config.bundle or theirs.bundle,
                    "seed": theirs.seed,
                    "codes": theirs.codes,
                }
            )
    return config


def freeze_plan(config: AnimateConfig) -> Plan:
    """Freeze heads and motions in DEST and plan their product as units; or open the stored plan."""
    model = model_config(config)
    bundle = bundle_at(config.bundle)
    weights = {"bundle": bundle.hash, "checkpoint": weights_hash(model)}
    load_model(model)  # once, before any work
    if config.existing in ("resume", "retry"):
        return stored_plan(config.dest, config.existing, weights, config.ray.upgrade)
    Store(config.dest).check_writable()
    heads, motions = freeze_cast(config, model, bundle)
    cast = {"identities": heads.pinned(), "expressions": motions.pinned()}
    plan = open_or_build(
        config.dest,
        SOURCE,
        config={**config.plan_config(), "cast": cast},
        weights=weights,
        units=config.units,
        workers=expected_workers(config.ray),
        code=code_version(AnimateWorker.__module__),
        items=animation_items(heads.names, motions.names),
        mode="new" if config.existing == "new" else "auto",
        upgrade=config.ray.upgrade,
    )
    store_config(plan, config)
    logger.info("%d heads, %d motions, plan %s", len(heads.names), len(motions.names), plan.fingerprint[:8])
    return plan


def animate_heads(plan: Plan, config: AnimateConfig, on_progress: OnUnitProgress | None) -> RunSummary:
    """Run the pending units on Ray."""
    cast = plan.record.config["cast"]
    worker = partial(
        AnimateWorker, config, cast["identities"]["file"], cast["expressions"]["file"], cast["expressions"]["count"]
    )
    run = run_units(plan, worker, config.ray, on_progress)
    check_rows(plan, run.rows, "animations")
    return run


def summarise(plan: Plan, config: AnimateConfig, run: RunSummary) -> AnimateSummary:
    """Return the counts of DEST, and write them beside the data."""
    now = status(plan.dest)
    names = (file.file for commit in read_commits(plan.dest) for file in commit.files)
    cast = plan.record.config["cast"]
    summary = AnimateSummary(
        outcome="complete" if now.complete else "partial",
        dest=now.dest,
        identities=cast["identities"]["count"],
        expressions=cast["expressions"]["count"],
        animations=now.items,
        frames=now.rows,
        quarantined=now.quarantined,
        pending_units=now.pending,
        units_run=run.units_run,
        units_skipped=run.units_skipped,
        frames_run=run.rows,
        seconds=round(run.seconds, 2),
        frames_per_second=round(run.rows / run.seconds, 2) if run.rows else 0.0,
        checkpoint=plan.record.weights["checkpoint"],
        fingerprint=now.fingerprint,
        bytes=now.bytes,
        files=list(islice(names, FILES_NAMED)),
    )
    plan.store.write(SUMMARY, summary.model_dump_json(indent=2).encode())
    return summary
