"""The export flow: reconstructions in, files for Blender, game engines and notebooks out."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.status import megabytes
from pipelines.unit_flow import Inputs, Lines, UnitFlow, effective_config, fill_in, rate
from schemas.export import ExportConfig, ExportSummary
from tasks.heads.export import ExportWorker
from tasks.heads.selection import head_items, heads_plan, model_for
from tasks.store.ranges import open_checked
from tasks.store.storage import Store
from tasks.units.commits import commit_table, read_parts
from tasks.units.engine import RunSummary
from tasks.units.plan import FILES, Plan
from tasks.units.verify import Status

BLOCK = 2**16  # bytes read ahead of a small column

logger = logging.getLogger("deca")


def prepare(config: ExportConfig) -> ExportConfig:
    """Return the effective config."""
    return fill_in(effective_config(config, config.dest), config.dest, "sparse", False)


def check_model(config: ExportConfig) -> dict[str, str]:
    """Load the model of the rows once before any work; return the hashes that the rows were made with."""
    weights = heads_plan(config.source).record.weights
    model_for(config.source, config.checkpoint, config.bundle)
    return {name: weights[name] for name in ("bundle", "checkpoint")}


def select_heads(config: ExportConfig) -> Inputs:
    """Return the selected rows of the source."""
    return Inputs(config.source, head_items(config.source, config.ids, config.where))


def figures(plan: Plan, config: ExportConfig, run: RunSummary, now: Status) -> dict[str, Any]:
    """Return the summary's own fields."""
    files = commit_table(plan, ["files_count"])["files_count"]
    colours: Counter[str] = Counter()
    for part in read_parts(plan):
        if part.rows:
            with pq.ParquetFile(open_checked(plan.store.join(part.file), None, BLOCK)) as parquet:
                colours.update(parquet.read(columns=["colours"])["colours"].to_pylist())
    if colours["albedo"] and config.formats != ("npz",):
        logger.warning(
            "%d heads have the colours of their codes: their images could not be read any more", colours["albedo"]
        )
    return {
        "heads": now.rows,
        "formats": config.formats,
        "colours": dict(sorted(colours.items())),
        "files": pc.sum(files).as_py() or 0,
        "heads_run": run.rows,
        "heads_per_second": rate(run),
    }


def lines(summary: ExportSummary) -> Lines:
    """Return the summary's own lines."""
    made = f"{summary.heads_run} by this run, {summary.heads_per_second} heads/s"
    colours = ", ".join(f"{count} from the {name}" for name, count in summary.colours.items()) or "none"
    return [
        ("heads", f"{summary.heads} as {', '.join(summary.formats)} ({made})"),
        ("files", f"{summary.files} in {Store(summary.dest).join(FILES)}, {megabytes(summary.bytes)}"),
        ("colours", colours),
    ]


export = UnitFlow(
    name="export",
    worker=ExportWorker,
    weights=check_model,
    inputs=select_heads,
    summary=ExportSummary,
    figures=figures,
    lines=lines,
    prepare=prepare,
    ray=lambda config: config.ray.without_gpus(),
)
