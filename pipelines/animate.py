"""The animate flow: every named head under every named motion."""

from __future__ import annotations

from itertools import islice
from typing import Any

from pipelines.unit_flow import Inputs, Lines, UnitFlow, effective_config, rate
from schemas.animate import AnimateConfig, AnimateSummary
from tasks.heads.animate import SOURCE, AnimateWorker, animation_items, model_config
from tasks.heads.cast import freeze_cast, is_dataset
from tasks.heads.selection import config_of, model_for
from tasks.models.loading import bundle_at, bundle_for, load_model, weights_hash
from tasks.store.storage import Store
from tasks.units.commits import read_commits
from tasks.units.engine import RunSummary
from tasks.units.plan import Plan
from tasks.units.verify import Status

FILES_NAMED = 12  # in the summary


def prepare(config: AnimateConfig) -> AnimateConfig:
    """Return the effective config with a model: the one given, or that of the first dataset of heads."""
    config = effective_config(config, config.dest)
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


def check_model(config: AnimateConfig) -> dict[str, str]:
    """Load the model once before any work; return its hashes."""
    model = model_config(config)
    load_model(model)
    return {"bundle": bundle_at(config.bundle).hash, "checkpoint": weights_hash(model)}


def freeze_pairs(config: AnimateConfig) -> Inputs:
    """Freeze heads and motions in DEST; return their product."""
    Store(config.dest).check_writable()
    heads, motions = freeze_cast(config, model_config(config), bundle_at(config.bundle))
    cast = {"identities": heads.pinned(), "expressions": motions.pinned()}
    return Inputs(SOURCE, animation_items(heads.names, motions.names), pinned={"cast": cast})


def worker_arguments(plan: Plan, config: AnimateConfig) -> tuple[Any, ...]:
    """Return what a worker is built from: the config and the frozen heads and motions."""
    cast = plan.record.config["cast"]
    return config, cast["identities"]["file"], cast["expressions"]["file"], cast["expressions"]["count"]


def figures(plan: Plan, config: AnimateConfig, run: RunSummary, now: Status) -> dict[str, Any]:
    """Return the summary's own fields."""
    cast = plan.record.config["cast"]
    names = (file.file for commit in read_commits(plan.dest) for file in commit.files)
    return {
        "identities": cast["identities"]["count"],
        "expressions": cast["expressions"]["count"],
        "animations": now.items,
        "frames": now.rows,
        "frames_run": run.rows,
        "frames_per_second": rate(run),
        "checkpoint": plan.record.weights["checkpoint"],
        "files": list(islice(names, FILES_NAMED)),
    }


def lines(summary: AnimateSummary) -> Lines:
    """Return the summary's own lines."""
    made = f"{summary.frames_run} by this run, {summary.frames_per_second} a second"
    return [
        ("animations", f"{summary.animations}: {summary.identities} heads, {summary.expressions} motions each"),
        ("frames", f"{summary.frames} ({made})"),
        ("checkpoint", summary.checkpoint),
        *(("file", Store(summary.dest).join(name)) for name in summary.files),
    ]


animate = UnitFlow(
    name="animate",
    worker=AnimateWorker,
    weights=check_model,
    inputs=freeze_pairs,
    summary=AnimateSummary,
    figures=figures,
    lines=lines,
    prepare=prepare,
    arguments=worker_arguments,
)
