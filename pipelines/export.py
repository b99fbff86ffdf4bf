"""The export flow: reconstructions in, files for Blender, game engines and notebooks out."""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.stages import SUMMARY, Stage, direct, fill_in, settle, store_config, stored_plan
from schemas.export import ExportConfig, ExportSummary
from schemas.progress import OnUnitProgress
from tasks.heads.export import ExportWorker
from tasks.heads.selection import head_items, heads_plan, model_for
from tasks.store.ranges import open_checked
from tasks.units.commits import commit_table, read_parts
from tasks.units.draft import code_version
from tasks.units.engine import RunSummary, run_units
from tasks.units.plan import Plan
from tasks.units.ray_cluster import expected_workers
from tasks.units.reasons import check_rows
from tasks.units.rounds import Mode, open_or_build
from tasks.units.shared_paths import prove_paths
from tasks.units.verify import status

MODES: dict[str, Mode] = {"new": "new", "extend": "extend"}
BLOCK = 2**16  # bytes read ahead of a small column

logger = logging.getLogger("deca")


def export(config: ExportConfig, on_progress: OnUnitProgress | None = None, stage: Stage = direct) -> ExportSummary:
    """Reconstructions in, files out; calling it again goes on where it stopped.

    stage: wraps each stage, for an engine that watches them (Prefect).
    """
    config = stage(prepare)(config)
    stage(prove_paths)(config)
    weights = stage(check_model)(config)
    plan = stage(freeze_plan)(config, weights)
    run = stage(export_heads)(plan, config, on_progress)
    return stage(summarise)(plan, config, run)


def prepare(config: ExportConfig) -> ExportConfig:
    """The settings that hold: those of the plan in DEST where a run goes on with it."""
    return fill_in(settle(config, config.dest), config.dest, "sparse", False)


def check_model(config: ExportConfig) -> dict[str, str]:
    """Load the model of the rows once before any work; the hashes that the rows were made with."""
    weights = heads_plan(config.source).record.weights
    model_for(config.source, config.checkpoint, config.bundle)
    return {name: weights[name] for name in ("bundle", "checkpoint")}


def freeze_plan(config: ExportConfig, weights: dict[str, str]) -> Plan:
    """Choose the heads and cut them into units, or open the plan that is already there."""
    if config.existing in ("resume", "retry"):
        return stored_plan(config.dest, config.existing, weights, config.ray.upgrade)
    plan = open_or_build(
        config.dest,
        config.source,
        config=config.plan_config(),
        weights=weights,
        units=config.units,
        workers=expected_workers(config.ray.without_gpus()),
        code=code_version(ExportWorker.__module__),
        items=head_items(config.source, config.ids, config.where),
        mode=MODES.get(config.existing, "auto"),
        upgrade=config.ray.upgrade,
    )
    store_config(plan, config)
    logger.info("%d heads in %d units, plan %s", plan.inputs.items, plan.units, plan.fingerprint[:8])
    return plan


def export_heads(plan: Plan, config: ExportConfig, on_progress: OnUnitProgress | None) -> RunSummary:
    """Work the pending units on Ray."""
    run = run_units(plan, partial(ExportWorker, config), config.ray.without_gpus(), on_progress)
    check_rows(plan, run.rows, "heads")
    return run


def summarise(plan: Plan, config: ExportConfig, run: RunSummary) -> ExportSummary:
    """Count what lies in DEST and write it beside the data."""
    now, files = status(plan.dest), commit_table(plan, ["files_count"])["files_count"]
    colours: Counter[str] = Counter()
    for part in read_parts(plan):
        if part.rows:
            with pq.ParquetFile(open_checked(plan.store.join(part.file), None, BLOCK)) as parquet:
                colours.update(parquet.read(columns=["colours"])["colours"].to_pylist())
    if colours["albedo"] and config.formats != ("npz",):
        logger.warning(
            "%d heads have the colours of their codes: their photographs could not be read any more", colours["albedo"]
        )
    summary = ExportSummary(
        outcome="complete" if now.complete else "partial",
        source=now.source,
        dest=now.dest,
        heads=now.rows,
        formats=config.formats,
        colours=dict(sorted(colours.items())),
        files=pc.sum(files).as_py() or 0,
        bytes=now.bytes,
        quarantined=now.quarantined,
        pending_units=now.pending,
        units_run=run.units_run,
        units_skipped=run.units_skipped,
        heads_run=run.rows,
        seconds=round(run.seconds, 2),
        heads_per_second=round(run.rows / run.seconds, 2) if run.rows else 0.0,
        fingerprint=now.fingerprint,
        code=now.code,
    )
    plan.store.write(SUMMARY, summary.model_dump_json(indent=2).encode())
    return summary
