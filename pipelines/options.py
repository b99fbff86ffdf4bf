"""Exit codes, consoles and options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

COMPLETE, FAILED, PARTIAL = 0, 1, 2
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

Dest = Annotated[str, typer.Argument(metavar="DEST", help="Dataset folder or bucket prefix (any fsspec URI).")]
Source = Annotated[str, typer.Argument(metavar="SRC", help="Folder, pattern, archive, list or image (any URI).")]
Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file with settings (docs/<command>.md lists them).")
]
Settings = Annotated[list[str], typer.Option("--set", "-s", metavar="KEY=VALUE", help="One setting: ray.workers=4.")]
Workers = Annotated[int | None, typer.Option(help="Worker processes; 0 runs in this process without Ray.")]
Checkpoint = Annotated[
    str | None, typer.Option(help="Checkpoint folder; default: the package's own small weights; or: untrained.")
]
Bundle = Annotated[str | None, typer.Option(help="Head bundle folder; default: the procedural head.")]
PricePerHour = Annotated[
    float | None, typer.Option(min=0, help="Money for an hour of a core, or of a GPU where workers have GPUs.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume with the stored plan in DEST.")]
New = Annotated[bool, typer.Option("--new", help="Drop the plan in DEST with its results.")]
Extend = Annotated[bool, typer.Option("--extend", help="Add what is new or changed in SRC to the dataset.")]
Prefect = Annotated[bool, typer.Option("--prefect", help="Run as a Prefect flow (also when PREFECT_API_URL is set).")]
