"""Run a flow for a command: in this process with a progress bar, or as a Prefect flow."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pipelines.options import COMPLETE, PARTIAL, console

if TYPE_CHECKING:
    from pipelines.status import Lines


def run_flow(flow: str, config: Any, prefect: bool, kept: bool = True) -> int:
    """Run a flow and print its summary; return the exit code.

    prefect: as a Prefect flow, which PREFECT_API_URL asks for as well. kept: whether DEST is kept; where it is not, no
    line of the summary names it. The flow's module is imported here: torch, Ray and Prefect take seconds, which --help,
    a wrong option or a misspelt path must not cost.
    """
    from pipelines.places import check_places

    check_places(config)
    run = getattr(import_module(f"pipelines.{flow}"), flow)
    if prefect or os.environ.get("PREFECT_API_URL"):
        from pipelines import flows

        summary = getattr(flows, flow)(config)
    else:
        from tasks.units.progress import TerminalProgress

        with TerminalProgress(flow) as progress:
            summary = run(config, progress)
    from pipelines.summaries import summary_lines

    lines = summary_lines(summary, getattr(run, "lines", None))
    print_lines([line for line in lines if kept or config.dest not in line[1]])
    return COMPLETE if summary.outcome == "complete" else PARTIAL


def print_lines(lines: Lines) -> None:
    table = Table(show_header=False, box=None)
    for name, value in lines:
        table.add_row(name, value)
    console.print(table, soft_wrap=True)
