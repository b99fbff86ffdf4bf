"""How commands run flows: here with a progress bar, or as Prefect's."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pipelines.options import COMPLETE, PARTIAL, console

if TYPE_CHECKING:
    from pipelines.status import Lines


def run_flow(flow: str, config: Any, prefect: bool, kept: bool = True) -> int:
    """Run it, print its summary, return the exit code. Prefect takes it where asked for, or where a server is set.

    A flow's module is imported here and not before: torch, Ray and Prefect take seconds that help, a wrong option or a
    misspelt path must not wait for. kept: whether DEST stays; where it goes, no line of the summary leads there.
    """
    from pipelines.places import check_places

    check_places(config)
    if prefect or os.environ.get("PREFECT_API_URL"):
        from pipelines import flows

        summary = getattr(flows, flow)(config)
    else:
        from tasks.units.progress import TerminalProgress

        run = getattr(import_module(f"pipelines.{flow}"), flow)
        with TerminalProgress(flow) as progress:
            summary = run(config, progress)
    from pipelines.summaries import summary_lines

    print_lines([line for line in summary_lines(summary) if kept or config.dest not in line[1]])
    return COMPLETE if summary.outcome == "complete" else PARTIAL


def print_lines(lines: Lines) -> None:
    table = Table(show_header=False, box=None)
    for name, value in lines:
        table.add_row(name, value)
    console.print(table, soft_wrap=True)
