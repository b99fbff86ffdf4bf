"""Shared by the benchmarks: command line, measurements in child processes, their memory and descendants."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipelines.processes import command_line, descendants


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser that prints the module's docstring and knows --json."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return made


def save(options: argparse.Namespace, figures: Any) -> None:
    """Write the figures where --json says."""
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def in_child(module: str, *arguments: object) -> Any:
    """Run `python -m module arguments` and return the JSON of the last line that it prints."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak_mib() -> int:
    """Return the peak resident memory of this process."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def tree(pid: int) -> list[int]:
    """Return the ids of a process and its descendants."""
    return [pid, *descendants(pid)]


def is_runner(pid: int) -> bool:
    """Return whether a process is a Ray worker that runs units."""
    return b"ray::_Runner" in command_line(pid)
