"""The evaluate flow: a benchmark and checkpoints in, figures out."""

from __future__ import annotations

import logging
from typing import Any

from deca_core.assets import AssetBundle
from pipelines.reconstruct import UNTRAINED_WARNING
from pipelines.unit_flow import Inputs, Lines, UnitFlow, effective_config
from schemas.evaluate import MODEL, EvaluateConfig, EvaluateSummary, MethodFigures
from tasks.annotate.annotators import load_annotator
from tasks.measure.evaluate import EvaluateWorker
from tasks.measure.evaluation_report import REPORT, figures, read_rows, write_report
from tasks.measure.methods import model_configs
from tasks.measure.now import NowDataset
from tasks.measure.world_truth import EvaluateError, WorldTruth
from tasks.models.loading import bundle_at, bundle_for, is_trained, load_model, weights_hash
from tasks.units.engine import RunSummary
from tasks.units.plan import Plan
from tasks.units.verify import Status

logger = logging.getLogger("deca")


def prepare(config: EvaluateConfig) -> EvaluateConfig:
    """Return the effective config with the bundle of the checkpoint."""
    config = effective_config(config, config.dest)
    return config.model_copy(update={"bundle": bundle_for(config.bundle, config.checkpoint)})


def check_inputs(config: EvaluateConfig) -> dict[str, str]:
    """Load every network once before any work, check that the truth is of the same head, and return hashes by name."""
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
    """Return a world's truth. Raises EvaluateError where it is of another head."""
    truth = WorldTruth(source)
    if truth.bundle != bundle.hash:
        raise EvaluateError(
            f"{source} was rendered from the head {truth.bundle[:12]}, this run measures against "
            f"{bundle.name!r} ({bundle.hash[:12]}). Give the bundle that the world was made with"
        )
    return truth


def benchmark_images(config: EvaluateConfig) -> Inputs:
    """Return the benchmark's images."""
    if config.benchmark == "now":
        return Inputs(config.source, NowDataset(config.source, config.pictures, config.scan_units).items())
    return Inputs(config.source, WorldTruth(config.source).items())


def read_results(plan: Plan, config: EvaluateConfig, run: RunSummary) -> Any:
    """Return all committed rows."""
    return read_rows(plan)


def summary_fields(plan: Plan, config: EvaluateConfig, run: RunSummary, now: Status, rows: Any) -> dict[str, Any]:
    """Return the summary's own fields."""
    bundle = bundle_at(config.bundle)
    return {
        "benchmark": config.benchmark,
        "pictures": now.items,
        "trained": is_trained(model_configs(config)[MODEL]),
        "weights": plan.record.weights,
        "methods": figures(rows, bundle.shape_basis[bundle.face_vertices]),
        "report": plan.store.join(REPORT),
    }


def lines(summary: EvaluateSummary) -> Lines:
    """Return the summary's own lines."""
    methods = [(method.method, _main_figures(method)) for method in summary.methods]
    return [("images", str(summary.pictures)), *methods, ("report", summary.report)]


def _main_figures(method: MethodFigures) -> str:
    """Return the two main figures in words."""
    found = []
    if method.scan.median is not None:
        found.append(f"face surface {method.scan.median:.2f} mm (median)")
    if "nme" in method.metrics:
        found.append(f"landmarks {method.metrics['nme'].mean:.3f} (NME)")
    return ", ".join(found) or "nothing measured"


evaluate = UnitFlow(
    name="evaluate",
    worker=EvaluateWorker,
    weights=check_inputs,
    inputs=benchmark_images,
    summary=EvaluateSummary,
    figures=summary_fields,
    lines=lines,
    prepare=prepare,
    after=(read_results,),
    report=write_report,
)
