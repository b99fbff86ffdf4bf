"""The Prefect flows. They add states, artifacts and schedules to the same stages that the command line runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any
from uuid import UUID

import httpx
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, create_table_artifact
from prefect.artifacts import update_progress_artifact as update_progress
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Completed

from pipelines.places import annotations_of, faces_of
from pipelines.reconstruct import UNTRAINED_WARNING
from pipelines.status import left_out_lines
from pipelines.summaries import summary_lines
from schemas.ablate import AblateConfig
from schemas.animate import AnimateConfig
from schemas.evaluate import EvaluateConfig
from schemas.export import ExportConfig
from schemas.ingest import IngestConfig, IngestSummary
from schemas.progress import TrainProgress, UnitProgress
from schemas.reconstruct import ReconstructConfig
from schemas.train import TrainConfig, TrainSummary
from schemas.world import SynthConfig
from tasks.measure.ablation_report import ablation_table
from tasks.measure.evaluation_report import metric_table, scan_table
from tasks.reports.card import CARD, identity_sizes
from tasks.store.storage import Store
from tasks.training.report import CURVES, SHEETS
from tasks.units.plan import load_plan
from tasks.units.progress import progress_state
from tasks.units.reasons import quarantine_reasons

ARTIFACT_SECONDS = 5.0  # between updates: one costs 11 to 94 ms
AWAY_SECONDS = 30.0  # between updates while the server is away: a request to a lost machine waits for minutes
REPORT_SECONDS = 300.0  # that a finished run waits for a server to take its report
AGAIN_SECONDS = 5.0  # between its tries

logger = logging.getLogger("deca")


def tell(artifact: Callable[..., Any], *args: Any, patience: float = 0.0, **kwargs: Any) -> Any:
    """Make or update an artifact; None, with a warning, where the server stays away for `patience` seconds.

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
                logger.warning("the Prefect server did not take an artifact (%s); the run continues", error)
                return None
            time.sleep(AGAIN_SECONDS)


def report(artifact: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Make an artifact of a finished run, waiting a while for a server that restarts."""
    tell(artifact, *args, patience=REPORT_SECONDS, **kwargs)


def as_task(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a stage as a Prefect task. Never cached: the commits in storage say what is done."""

    @wraps(function)
    def named(*args: Any, **kwargs: Any) -> Any:
        return task(name=function.__name__, cache_policy=NO_CACHE, persist_result=False)(function)(*args, **kwargs)

    return named


class ProgressArtifact:
    """`on_progress` of a flow: a progress bar in Prefect's UI, updated every few seconds."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.artifact: UUID | None = None
        self.next = 0.0

    def __call__(self, progress: UnitProgress | TrainProgress) -> None:
        at = progress_state("", progress)
        if time.monotonic() < self.next and not at.last:
            return
        percent = 100.0 * at.done / max(at.total, 1)
        note = f"{at.title.lstrip(', ')} {at.done} of {at.total} {at.unit}, {at.note}".lstrip()
        if self.artifact is None:
            made = self.artifact = tell(create_progress_artifact, percent, key=self.key, description=note)
        else:
            made = tell(update_progress, self.artifact, percent, description=note)
        self.next = time.monotonic() + (AWAY_SECONDS if made is None else ARTIFACT_SECONDS)


def _run(name: str, config: Any, key: str | None = None) -> Any:
    """Run pipelines/<name>.py with a progress bar and its stages as tasks; return the summary, also as a table."""
    run = getattr(import_module(f"pipelines.{name}"), name)
    key = key or name
    summary = run(config, on_progress=ProgressArtifact(f"{key}-progress"), as_task=as_task)
    rows = [{"what": field, "value": str(value)} for field, value in summary.model_dump(mode="json").items()]
    report(create_table_artifact, rows, key=f"{key}-summary", description=f"{key} in {config.dest}")
    return summary


def _state(summary: Any) -> Any:
    """Return the flow's last state, with the summary as its data."""
    if summary.outcome == "complete":
        return Completed(data=summary)
    quarantined = sum(summary.quarantined.values())
    message = f"{quarantined} rows in quarantine, {summary.pending_units} units pending"
    message += "".join(f", {name}: {value}" for name, value in left_out_lines(summary))
    return Completed(name="Partial", message=message, data=summary)


@flow(name="reconstruct")
def reconstruct(config: ReconstructConfig) -> Any:
    """Images in, codes and displacement maps out: see `deca reconstruct --help`. The call's result is the summary."""
    summary = _run("reconstruct", config)
    if not summary.trained:
        report(create_markdown_artifact, f"**{UNTRAINED_WARNING}**", key="reconstruct-untrained")
    return _state(summary)


@flow(name="ingest")
def ingest(config: IngestConfig) -> Any:
    """Any archive in, faces sorted by identity out: see `deca ingest --help`. The call's result is the summary."""
    summary = _run("ingest", config)
    report(create_markdown_artifact, _ingest_report(summary), key="ingest-report", description=summary.dest)
    return _state(summary)


def _ingest_report(summary: IngestSummary) -> str:
    """Return identity sizes, faces left out and the quarantine by reason, as Markdown."""
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
    """Figures of a checkpoint: see `deca evaluate --help`. The call's result is the summary."""
    summary = _run("evaluate", config)
    for key, table in (("evaluate-scan", scan_table), ("evaluate-metrics", metric_table)):
        report(create_table_artifact, table(summary.methods), key=key, description=summary.report)
    return _state(summary)


@flow(name="evaluate")
def ablate(config: AblateConfig) -> Any:
    """What each loss contributes: see `deca evaluate --help`. The call's result is the summary."""
    summary = _run("ablate", config, "ablations")
    report(create_table_artifact, ablation_table(summary), key="ablations", description=summary.report)
    return _state(summary)


@flow(name="export")
def export(config: ExportConfig) -> Any:
    """Reconstructions in, files for other programs out: see `deca export --help`. The call's result is the summary."""
    return _state(_run("export", config))


@flow(name="synth")
def synth(config: SynthConfig) -> Any:
    """Images of procedural subjects with their truth: see `deca synth --help`. The call's result is the summary."""
    return _state(_run("synth", config))


@flow(name="animate")
def animate(config: AnimateConfig) -> Any:
    """Heads with the motion of others: see `deca animate --help`. The call's result is the summary."""
    return _state(_run("animate", config))


@flow(name="train")
def train(config: TrainConfig) -> Any:
    """Faces in, a trained model out: see `deca train --help`. The call's result is the summary."""
    summary = _run("train", config)
    report(create_markdown_artifact, _train_report(summary), key="train-report", description=summary.model)
    return Completed(data=summary)


def _train_report(summary: TrainSummary) -> str:
    """Return links to curves and validation sheets, and the result of every stage, as Markdown."""
    store = Store(summary.dest)
    places = {
        "curves": CURVES,
        **{f"validation faces, {stage}": SHEETS.format(stage=stage) for stage in summary.stages},
    }
    links = [f"- [{name}]({store.join(place)})" for name, place in places.items()]
    lines = [f"| {name} | {value} |" for name, value in summary_lines(summary)]
    return "\n".join([f"## Model `{summary.model}`", *links, "", "| | |", "| --- | --- |", *lines])
