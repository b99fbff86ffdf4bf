"""Shared by the benchmarks: command line, measurements in child processes, processor time and memory of processes."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any


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


def tree(pid: int) -> set[int]:
    """Return the ids of a process and its descendants."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if fields := stat(int(folder.name)):
            parents[int(folder.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; [] where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def cpu_seconds(pid: int, waited: bool = False) -> float:
    """Return the processor seconds of a process (0 once it has ended), with `waited` those of reaped children too."""
    return sum(map(int, stat(pid)[11 : 15 if waited else 13])) / os.sysconf("SC_CLK_TCK")


def is_runner(pid: int) -> bool:
    """Return whether a process is a Ray worker that runs units."""
    try:
        return b"ray::_Runner" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
