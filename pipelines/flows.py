"""The Prefect flows. They add states, artifacts and schedules to the same stages that the command line runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import wraps
from typing import Any
from uuid import UUID

import httpx
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, create_table_artifact
from prefect.artifacts import update_progress_artifact as update_progress
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Completed

from pipelines.ablate import ablate as run_ablate
from pipelines.animate import animate as run_animate
from pipelines.evaluate import evaluate as run_evaluate
from pipelines.export import export as run_export
from pipelines.ingest import ingest as run_ingest
from pipelines.reconstruct import UNTRAINED_WARNING
from pipelines.reconstruct import reconstruct as run_reconstruct
from pipelines.stages import annotations_of, faces_of
from pipelines.status import left_out_lines
from pipelines.summaries import summary_lines
from pipelines.synth import synth as run_synth
from pipelines.train import train as run_train
from schemas.ablate import AblateConfig, AblateSummary
from schemas.animate import AnimateConfig, AnimateSummary
from schemas.evaluate import EvaluateConfig, EvaluateSummary
from schemas.export import ExportConfig, ExportSummary
from schemas.ingest import IngestConfig, IngestSummary
from schemas.progress import TrainProgress, UnitProgress
from schemas.reconstruct import ReconstructConfig, ReconstructSummary
from schemas.train import TrainConfig, TrainSummary
from schemas.world import SynthConfig, SynthSummary
from tasks.measure.ablation_report import ablation_table, models_table
from tasks.measure.evaluation_report import metric_table, scan_table
from tasks.reports.card import CARD, identity_sizes
from tasks.store.storage import Store
from tasks.training.report import CURVES, SHEETS
from tasks.units.plan import load_plan
from tasks.units.progress import standing
from tasks.units.reasons import quarantine_reasons

ARTIFACT_SECONDS = 5.0  # between updates: one costs 11 to 94 ms
AWAY_SECONDS = 30.0  # between updates while the server is away: a request to a lost machine waits for minutes
REPORT_SECONDS = 300.0  # that a finished run waits for a server to take its report
AGAIN_SECONDS = 5.0  # between its tries

logger = logging.getLogger("deca")


def tell(artifact: Callable[..., Any], *args: Any, patience: float = 0.0, **kwargs: Any) -> Any:
    """Make or update an artifact; None, and a warning, where the server is away for longer than `patience` seconds.

    A server that restarts must not cost a run of hours: rows and report are in storage, an artifact only shows them.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return artifact(*args, **kwargs)
        except (httpx.TransportError, PrefectHTTPStatusError) as error:
            if isinstance(error, PrefectHTTPStatusError) and error.response.status_code < 500:
                raise
            if time.monotonic() + AGAIN_SECONDS > deadline:
                logger.warning("the Prefect server did not take an artifact (%s); the run goes on", error)
                return None
            time.sleep(AGAIN_SECONDS)


def report(artifact: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """What a finished run says: it waits a while for a server that restarts."""
    tell(artifact, *args, patience=REPORT_SECONDS, **kwargs)


def as_task(function: Callable[..., Any]) -> Callable[..., Any]:
    """A stage as a Prefect task. Never cached: the commits in storage say what is done."""

    @wraps(function)
    def named(*args: Any, **kwargs: Any) -> Any:
        return task(name=function.__name__, cache_policy=NO_CACHE, persist_result=False)(function)(*args, **kwargs)

    return named


class ProgressArtifact:
    """`on_progress` of a flow: a progress bar in Prefect's pages, updated every few seconds."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.artifact: UUID | None = None
        self.next = 0.0

    def __call__(self, progress: UnitProgress | TrainProgress) -> None:
        at = standing("", progress)
        if time.monotonic() < self.next and not at.ends:
            return
        percent = 100.0 * at.done / max(at.total, 1)
        note = f"{at.title.lstrip(', ')} {at.done} of {at.total} {at.unit}, {at.note}".lstrip()
        if self.artifact is None:
            told = self.artifact = tell(create_progress_artifact, percent, key=self.key, description=note)
        else:
            told = tell(update_progress, self.artifact, percent, description=note)
        self.next = time.monotonic() + (AWAY_SECONDS if told is None else ARTIFACT_SECONDS)


@flow(name="reconstruct")
def reconstruct(config: ReconstructConfig) -> Any:
    """Photos in, codes and displacement maps out: see `deca reconstruct --help`. The call's result is the summary."""
    summary = run_reconstruct(config, on_progress=ProgressArtifact("reconstruct-progress"), stage=as_task)
    if not summary.trained:
        report(create_markdown_artifact, f"**{UNTRAINED_WARNING}**", key="reconstruct-untrained")
    return _finish("reconstruct", f"reconstructions in {summary.dest}", summary)


@flow(name="ingest")
def ingest(config: IngestConfig) -> Any:
    """Any archive in, faces sorted by identity out: see `deca ingest --help`. The call's result is the summary."""
    summary = run_ingest(config, on_progress=ProgressArtifact("ingest-progress"), stage=as_task)
    report(
        create_markdown_artifact, _ingest_report(summary), key="ingest-report", description=f"faces in {summary.dest}"
    )
    return _finish("ingest", f"faces in {summary.dest}", summary)


def _ingest_report(summary: IngestSummary) -> str:
    """Identity sizes, faces left out and the quarantine by reason, as Markdown."""
    faces = faces_of(summary.dest)
    rows = [("Identities of this many faces", size, count) for size, count in identity_sizes(faces).items() if count]
    rows += [("Faces left out by", reason, count) for reason, count in summary.left_out.items()]
    reasons = quarantine_reasons(load_plan(annotations_of(summary.dest)))
    rows += [("In quarantine at", f"{reason.stage}: {reason.error}", reason.rows) for reason in reasons]
    lines = [f"| {what} | {which} | {count} |" for what, which, count in rows]
    title = f"Version {summary.version}: {summary.faces} faces of {summary.identities} identities"
    return "\n".join(
        [f"## {title}", f"Card: `{Store(faces).join(CARD)}`", "", "| | | |", "| --- | --- | --- |", *lines]
    )


@flow(name="evaluate")
def evaluate(config: EvaluateConfig) -> Any:
    """How good a checkpoint is: see `deca evaluate --help`. The call's result is the summary."""
    summary = run_evaluate(config, on_progress=ProgressArtifact("evaluate-progress"), stage=as_task)
    for key, table in (("evaluate-scan", scan_table), ("evaluate-metrics", metric_table)):
        report(create_table_artifact, table(summary.methods), key=key, description=summary.report)
    return _finish("evaluate", f"figures in {summary.dest}", summary)


@flow(name="evaluate")
def ablate(config: AblateConfig) -> Any:
    """What every loss is worth: see `deca evaluate --help`. The call's result is the summary."""
    summary = run_ablate(config, on_progress=ProgressArtifact("ablations-progress"), stage=as_task)
    for key, table in (("ablations", ablation_table), ("ablations-models", models_table)):
        report(create_table_artifact, table(summary), key=key, description=summary.report)
    return _finish("ablations", f"models and figures in {summary.dest}", summary)


@flow(name="export")
def export(config: ExportConfig) -> Any:
    """Reconstructions in, files for other programs out: see `deca export --help`. The call's result is the summary."""
    summary = run_export(config, on_progress=ProgressArtifact("export-progress"), stage=as_task)
    return _finish("export", f"heads in {summary.dest}", summary)


@flow(name="synth")
def synth(config: SynthConfig) -> Any:
    """Photographs of procedural people with their truth: see `deca synth --help`. The call's result is the summary."""
    summary = run_synth(config, on_progress=ProgressArtifact("synth-progress"), stage=as_task)
    return _finish("synth", f"photographs in {summary.photos}", summary)


@flow(name="animate")
def animate(config: AnimateConfig) -> Any:
    """Heads that move as others do: see `deca animate --help`. The call's result is the summary."""
    summary = run_animate(config, on_progress=ProgressArtifact("animate-progress"), stage=as_task)
    return _finish("animate", f"animations in {summary.dest}", summary)


@flow(name="train")
def train(config: TrainConfig) -> Any:
    """Faces in, a trained model out: see `deca train --help`. The call's result is the summary."""
    summary = run_train(config, on_progress=ProgressArtifact("train-progress"), stage=as_task)
    report(
        create_markdown_artifact, _train_report(summary), key="train-report", description=f"model in {summary.model}"
    )
    return _finish("train", f"model in {summary.model}", summary)


def _train_report(summary: TrainSummary) -> str:
    """Where curves and pictures lie, and what every stage came to, as Markdown."""
    store = Store(summary.dest)
    places = {"curves": CURVES, **{f"pictures, {stage}": SHEETS.format(stage=stage) for stage in summary.stages}}
    links = [f"- [{name}]({store.join(place)})" for name, place in places.items()]
    lines = [f"| {name} | {value} |" for name, value in summary_lines(summary)]
    return "\n".join([f"## Model `{summary.model}`", *links, "", "| | |", "| --- | --- |", *lines])


def _finish(
    name: str,
    description: str,
    summary: ReconstructSummary
    | IngestSummary
    | SynthSummary
    | TrainSummary
    | EvaluateSummary
    | AblateSummary
    | ExportSummary
    | AnimateSummary,
) -> Any:
    """The summary as a table artifact, and the flow's last state."""
    rows = [{"what": key, "value": str(value)} for key, value in summary.model_dump(mode="json").items()]
    report(create_table_artifact, rows, key=f"{name}-summary", description=description)
    if isinstance(summary, TrainSummary) or summary.outcome == "complete":
        return Completed(data=summary)
    quarantined = sum(summary.quarantined.values())
    message = f"{quarantined} rows in quarantine, {summary.pending_units} units pending"
    message += "".join(f", {name}: {value}" for name, value in left_out_lines(summary))
    return Completed(name="Partial", message=message, data=summary)
