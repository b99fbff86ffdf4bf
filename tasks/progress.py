"""Progress of a run for people: a bar in a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from tasks.engine import Progress

LINE_SECONDS = 30.0


class TerminalProgress:
    """Shows what `run_units` reports; give the object as its `on_progress`.

    >>> with TerminalProgress("annotate") as progress:  # doctest: +SKIP
    ...     run_units(plan, factory, config.ray, progress)
    """

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        self.title, self.stream = title, stream or sys.stderr
        self.bar: Bar | None = None
        self.last_line = 0.0

    def __enter__(self) -> TerminalProgress:
        if self.stream.isatty():
            columns = (TextColumn(self.title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self.bar = Bar(*columns, TextColumn("{task.fields[note]}"), console=Console(file=self.stream))
            self.task = self.bar.add_task(self.title, total=None, note="")
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, progress: Progress) -> None:
        if self.bar:
            self.bar.update(self.task, completed=progress.items_done, total=progress.items_total, note=_note(progress))
            return
        now = time.monotonic()
        if progress.units_done == progress.units_total or now - self.last_line >= LINE_SECONDS:
            self.last_line = now
            done = f"{progress.items_done}/{progress.items_total} pictures"
            print(f"{self.title}: {done}, {_note(progress)}", file=self.stream, flush=True)


def _note(progress: Progress) -> str:
    parts = [f"{progress.rows} faces", f"{progress.rows_per_second:.1f} faces/s"]
    if progress.quarantined:
        parts.append(f"{progress.quarantined} in quarantine")
    if progress.eta_seconds:
        minutes, seconds = divmod(round(progress.eta_seconds), 60)
        parts.append(f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left")
    return ", ".join(parts)
