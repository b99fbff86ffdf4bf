"""How commands run flows: here with a progress bar, or as Prefect's."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from rich.table import Table

from pipelines.ablate import ablate
from pipelines.animate import animate
from pipelines.evaluate import evaluate
from pipelines.export import export
from pipelines.ingest import ingest
from pipelines.options import COMPLETE, PARTIAL, console
from pipelines.reconstruct import reconstruct
from pipelines.summaries import Lines, summary_lines
from pipelines.synth import synth
from pipelines.train import train
from tasks.progress import TerminalProgress

FLOWS: dict[str, Callable[..., Any]] = {
    "ablate": ablate,
    "animate": animate,
    "evaluate": evaluate,
    "export": export,
    "ingest": ingest,
    "reconstruct": reconstruct,
    "synth": synth,
    "train": train,
}


def run_flow(flow: str, config: Any, prefect: bool) -> int:
    """Run it, print its summary, return the exit code. Prefect takes it where asked for, or where a server is set."""
    if prefect or os.environ.get("PREFECT_API_URL"):
        from pipelines import flows  # three seconds of imports that a run without Prefect does not pay

        summary = getattr(flows, flow)(config)
    else:
        with TerminalProgress(flow) as progress:
            summary = FLOWS[flow](config, progress)
    print_lines(summary_lines(summary))
    return COMPLETE if summary.outcome == "complete" else PARTIAL


def print_lines(lines: Lines) -> None:
    table = Table(show_header=False, box=None)
    for name, value in lines:
        table.add_row(name, value)
    console.print(table, soft_wrap=True)
