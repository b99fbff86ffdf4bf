"""Summaries and estimates as lines of name and value, for terminal and reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipelines.places import SUMMARY
from pipelines.status import Lines, left_out_lines, megabytes, validation_words
from schemas.ablate import AblateSummary
from schemas.train import TrainSummary
from schemas.world import SynthSummary
from tasks.store.storage import Store
from tasks.units.estimate import Estimate, Use


def estimate_lines(found: Estimate, per_hour: float | None) -> Lines:
    """Return size, time and price of a plan, as far as they are known."""
    unsized = f", and {found.unsized} images of unknown size" if found.unsized else ""
    lines = [
        ("images", f"{found.images:,} in {found.units:,} units"),
        ("bytes in", megabytes(found.bytes_in) + unsized),
    ]
    sample, use = found.sample, found.use
    if sample is None or use is None:
        reason = "all units are done" if not found.left else "no unit was run: --calibrate 2"
        return [*lines, ("hours", f"not estimated, {reason}")]
    an_image = (sample.use.gpu_seconds or sample.use.core_seconds) / sample.images
    rest = f"for the {found.left:,} images that are left" if found.left < found.images else "for all"
    return [
        *lines,
        ("bytes out", f"{megabytes(found.bytes_out)} in {found.rows:,.0f} rows"),
        ("hours", hours_words(use, per_hour) + f" {rest}; starting workers is extra"),
        ("estimated from", f"{sample.images:,} images in {sample.units} units, {1000 * an_image:,.1f} ms an image"),
    ]


def hours_words(use: Use, per_hour: float | None) -> str:
    """Return hours and their price in words."""
    money = "" if per_hour is None else f" = {use.price(per_hour):,.2f} at {per_hour:g} an hour"
    return f"{use.hours:,.3g} {use.unit}{money}"


def summary_lines(summary: Any, own_lines: Callable[[Any], Lines] | None = None) -> Lines:
    """Return the outcome of a run, and where its results are. own_lines: `lines` of a unit flow."""
    if own_lines is None:
        return _training_lines(summary) if isinstance(summary, TrainSummary) else _ablation_lines(summary)
    dest = summary.truth if isinstance(summary, SynthSummary) else summary.dest
    quarantined = ", ".join(f"{count} at {stage}" for stage, count in summary.quarantined.items()) or "none"
    units = f"{summary.units_run} run, {summary.units_skipped} done before, {summary.pending_units} pending"
    return [
        ("outcome", summary.outcome),
        *own_lines(summary),
        ("units", units),
        ("quarantined", quarantined),
        *left_out_lines(summary),
        ("summary", Store(dest).join(SUMMARY)),
        *([("look closer", f"deca status {dest}")] if summary.quarantined else []),
    ]


def _ablation_lines(summary: AblateSummary) -> Lines:
    from tasks.measure.ablation_report import MARKDOWN, ablation_table  # it draws: seconds of imports

    trained = f"{len(summary.trained)} models in {sum(summary.trained.values()):.0f} s" if summary.trained else "before"
    return [
        ("outcome", summary.outcome),
        ("trained", trained),
        *((row["variant"], _comparison(row)) for row in ablation_table(summary)),
        *((variant, f"not trained: {reason}") for variant, reason in summary.left_out.items()),
        ("report", summary.report),
        ("tables", Store(summary.dest).join(MARKDOWN)),
    ]


def _comparison(row: dict[str, str]) -> str:
    from tasks.measure.ablation_report import FULL

    verdict, change = row["the variant is"], row["difference, 95 %"]
    return f"{row['figure'].split()[0]} {row[FULL]} -> {row['without']}, {change}: {verdict}"


def _training_lines(summary: TrainSummary) -> Lines:
    from tasks.training.report import CURVES, SHEETS

    store, bundle = Store(summary.dest), "" if summary.bundle is None else f" --bundle {summary.bundle}"
    lines: Lines = [("outcome", summary.outcome)]
    for stage, result in summary.stages.items():
        here = "done before"
        if stage in summary.stages_run:
            speed = (
                f"{summary.images_per_second[stage]} images/s, {summary.data_wait_share[stage]:.1%} waiting for data"
            )
            here = f"{summary.seconds[stage]:.0f} s, {speed}"
        lines.append((stage, f"{result['steps']:.0f} steps ({here}){validation_words(result)}"))
    return [
        *lines,
        *((name, network) for name, network in summary.networks.items()),
        ("curves", store.join(CURVES)),
        ("images", store.join(SHEETS.format(stage=list(summary.stages)[-1]))),
        ("summary", store.join(SUMMARY)),
        ("model", str(summary.model)),
        ("use it", f"deca reconstruct photos/ out/ --checkpoint {summary.model}{bundle}"),
    ]
