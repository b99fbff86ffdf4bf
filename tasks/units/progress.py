"""Show the progress of a run: a bar in a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from schemas.flows import UNIT_FLOWS
from schemas.progress import TrainProgress, UnitProgress
from tasks.store.logs import EVENTS, as_json

LINE_SECONDS = 30.0

events = logging.getLogger(EVENTS)


@dataclass(frozen=True)
class ProgressState:
    """A progress report for display: `done` of `total`, and a note with rates and ETA."""

    title: str
    done: int
    total: int
    unit: str  # of `done` and `total`
    note: str
    last: bool  # the last report of the run or training stage


def progress_state(title: str, progress: UnitProgress | TrainProgress) -> ProgressState:
    """Return a progress report in words."""
    if isinstance(progress, TrainProgress):
        title = f"{title}, {progress.stage}"
        last = progress.step == progress.steps
        return ProgressState(title, progress.step, progress.steps, "steps", _training_note(progress), last)
    last = progress.units_done == progress.units_total
    flow = UNIT_FLOWS.get(title, UNIT_FLOWS["ingest"])
    note = _units_note(progress, flow.rows)
    return ProgressState(title, progress.items_done, progress.items_total, flow.items, note, last)


class TerminalProgress:
    """Displays progress; pass it as `on_progress` of `run_units` or of a training stage.

    >>> with TerminalProgress("annotate") as progress:  # doctest: +SKIP
    ...     run_units(plan, factory, config.ray, progress)
    """

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        self.title, self.stream = title, stream or sys.stderr
        self.bar: Bar | None = None
        self.last_line = 0.0

    def __enter__(self) -> TerminalProgress:
        if self.stream.isatty() and not as_json():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self.bar = Bar(*columns, TextColumn("{task.fields[note]}"), console=Console(file=self.stream))
            self.task = self.bar.add_task(self.title, total=None, note="")
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, progress: UnitProgress | TrainProgress) -> None:
        now, at = time.monotonic(), progress_state(self.title, progress)
        if self.bar:
            self.bar.update(self.task, description=at.title, completed=at.done, total=at.total, note=at.note)
        elif at.last or now - self.last_line >= LINE_SECONDS:
            self.last_line = now
            if as_json():
                fields = {"done": at.done, "total": at.total, "unit_of_count": at.unit, "note": at.note}
                events.info(at.title, extra={"fields": fields})
                return
            print(f"{at.title}: {at.done}/{at.total} {at.unit}, {at.note}", file=self.stream, flush=True)


def _units_note(progress: UnitProgress, rows: str) -> str:
    parts = [f"{progress.rows} {rows}", f"{progress.rows_per_second:.1f} {rows}/s"]
    if progress.quarantined:
        parts.append(f"{progress.quarantined} in quarantine")
    if progress.eta_seconds:
        parts.append(f"{_clock(progress.eta_seconds)} left")
    return ", ".join(parts)


def _training_note(progress: TrainProgress) -> str:
    timing = progress.timing
    parts = [f"loss {progress.losses['total']:.4g}", f"{timing.images_per_second:.1f} images/s"]
    parts.append(f"{timing.data_wait_share:.0%} waiting for data")
    if left := progress.steps - progress.step:
        parts.append(f"{_clock(left * timing.seconds / timing.steps)} left")
    return ", ".join(parts)


def _clock(duration: float) -> str:
    minutes, seconds = divmod(round(duration), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
