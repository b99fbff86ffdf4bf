"""What a person wants to know about a run, as lines of name and value."""

from __future__ import annotations

from pipelines.stages import SUMMARY, faces_of
from pipelines.status import Lines, left_out_lines, megabytes, validation_words
from schemas.ablate import AblateSummary
from schemas.animate import AnimateSummary
from schemas.evaluate import EvaluateSummary, MethodFigures
from schemas.export import ExportSummary
from schemas.ingest import IngestSummary
from schemas.reconstruct import ReconstructSummary
from schemas.tracks import TRACKS_FOLDER
from schemas.train import TrainSummary
from schemas.world import SynthSummary
from tasks.store.storage import Store
from tasks.units.estimate import Estimate, Use
from tasks.units.plan import FILES


def estimate_lines(found: Estimate, per_hour: float | None) -> Lines:
    """What a plan will take, as far as it is known."""
    unsized = f", and {found.unsized} pictures of unknown size" if found.unsized else ""
    lines = [
        ("pictures", f"{found.images:,} in {found.units:,} units"),
        ("bytes in", megabytes(found.bytes_in) + unsized),
    ]
    sample, use = found.sample, found.use
    if sample is None or use is None:
        reason = "all units are done" if not found.left else "no unit was run: --calibrate 2"
        return [*lines, ("hours", f"not estimated, {reason}")]
    a_picture = (sample.use.gpu_seconds or sample.use.core_seconds) / sample.images
    rest = f"for the {found.left:,} pictures that are left" if found.left < found.images else "for all"
    return [
        *lines,
        ("bytes out", f"{megabytes(found.bytes_out)} in {found.rows:,.0f} rows"),
        ("hours", _hours(use, per_hour) + f" {rest}; starting workers comes on top"),
        ("estimated from", f"{sample.images:,} pictures in {sample.units} units, {1000 * a_picture:,.1f} ms a picture"),
    ]


def _hours(use: Use, per_hour: float | None) -> str:
    """Hours and their price."""
    money = "" if per_hour is None else f" = {use.price(per_hour):,.2f} at {per_hour:g} an hour"
    return f"{use.hours:,.3g} {use.unit}{money}"


def summary_lines(
    summary: ReconstructSummary
    | IngestSummary
    | SynthSummary
    | TrainSummary
    | EvaluateSummary
    | AblateSummary
    | ExportSummary
    | AnimateSummary,
) -> Lines:
    """The outcome of a run, and where to look next."""
    if isinstance(summary, TrainSummary):
        return _training_lines(summary)
    if isinstance(summary, AblateSummary):
        return _ablation_lines(summary)
    dest = summary.truth if isinstance(summary, SynthSummary) else summary.dest
    quarantined = ", ".join(f"{count} at {stage}" for stage, count in summary.quarantined.items()) or "none"
    units = f"{summary.units_run} run, {summary.units_skipped} done before, {summary.pending_units} pending"
    return [
        ("outcome", summary.outcome),
        *_own_lines(summary),
        ("units", units),
        ("quarantined", quarantined),
        *left_out_lines(summary),
        ("summary", Store(dest).join(SUMMARY)),
        *([("look closer", f"deca status {dest}")] if summary.quarantined else []),
    ]


def _own_lines(
    summary: ReconstructSummary | IngestSummary | SynthSummary | EvaluateSummary | ExportSummary | AnimateSummary,
) -> Lines:
    if isinstance(summary, ExportSummary):
        rate = f"{summary.heads_run} by this run, {summary.heads_per_second} heads/s"
        colours = ", ".join(f"{count} from the {name}" for name, count in summary.colours.items()) or "none"
        return [
            ("heads", f"{summary.heads} as {', '.join(summary.formats)} ({rate})"),
            ("files", f"{summary.files} in {Store(summary.dest).join(FILES)}, {megabytes(summary.bytes)}"),
            ("colours", colours),
        ]
    if isinstance(summary, AnimateSummary):
        rate = f"{summary.frames_run} by this run, {summary.frames_per_second} a second"
        return [
            ("animations", f"{summary.animations}: {summary.identities} heads, {summary.expressions} motions each"),
            ("frames", f"{summary.frames} ({rate})"),
            ("checkpoint", summary.checkpoint),
            *(("file", Store(summary.dest).join(name)) for name in summary.files),
        ]
    if isinstance(summary, EvaluateSummary):
        return [
            ("pictures", str(summary.pictures)),
            *((method.method, _figures(method)) for method in summary.methods),
            ("report", summary.report),
        ]
    if isinstance(summary, SynthSummary):
        return [
            ("photographs", f"{summary.images} of {summary.identities} people ({summary.images_per_second} a second)"),
            ("folder", summary.photos),
            ("truth", summary.truth),
        ]
    rate = f"{summary.faces_run} by this run, {summary.faces_per_second} faces/s"
    if isinstance(summary, ReconstructSummary):
        return [
            ("pictures", str(summary.images)),
            ("faces", f"{summary.faces} ({rate})"),
            *([] if summary.identities is None else [("consensus", f"one skull each for {summary.identities} people")]),
            *(
                []
                if summary.tracks is None
                else [("tracks", f"{summary.tracks} in {Store(summary.dest).join(TRACKS_FOLDER)}")]
            ),
            ("took", _hours(Use(summary.core_seconds, summary.gpu_seconds), summary.price_per_hour)),
            ("checkpoint", summary.checkpoint),
            ("precision", f"{summary.precision}, {summary.batch_size} faces at once"),
            *([("workers", summary.workers)] if summary.workers else []),
            ("contact sheet", summary.contact_sheet or "none: no face, or no columns of codes and displacement"),
        ]
    from tasks.reports.card import CARD

    left_out = ", ".join(f"{count} by {reason}" for reason, count in summary.left_out.items()) or "none"
    faces = faces_of(summary.dest)
    return [
        ("pictures", str(summary.images)),
        ("annotated", f"{summary.annotated} faces ({rate})"),
        ("faces", f"{summary.faces} of {summary.identities} identities in {faces}"),
        ("left out", left_out),
        ("version", f"{summary.version}, {'new' if summary.new_version else 'as before'}"),
        ("card", Store(faces).join(CARD)),
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


def _figures(method: MethodFigures) -> str:
    """The two figures that a person asks for first."""
    found = []
    if method.scan.median is not None:
        found.append(f"face surface {method.scan.median:.2f} mm (median)")
    if "nme" in method.metrics:
        found.append(f"landmarks {method.metrics['nme'].mean:.3f} (NME)")
    return ", ".join(found) or "nothing measured"


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
        ("pictures", store.join(SHEETS.format(stage=list(summary.stages)[-1]))),
        ("summary", store.join(SUMMARY)),
        ("model", str(summary.model)),
        ("use it", f"deca reconstruct photos/ out/ --checkpoint {summary.model}{bundle}"),
    ]
