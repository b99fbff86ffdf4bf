"""Processes as /proc shows them: find what a service started, and end all of it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

STOP_SECONDS = 20.0  # between SIGTERM and SIGKILL


class Process(NamedTuple):
    """A process, identified by its id and start time, so that a reused id is never taken for it."""

    pid: int
    born: str  # clock ticks since boot; empty where the process did not exist

    @classmethod
    def of(cls, pid: int) -> Process:
        return cls(pid, _stat(pid)[19])

    @property
    def alive(self) -> bool:
        fields = _stat(self.pid)
        return fields[0] not in ("", "Z") and fields[19] == self.born

    @property
    def command(self) -> bytes:
        return command_line(self.pid)

    def send(self, number: int) -> bool:
        """Send a signal; return whether the process was still alive to receive it."""
        if not self.alive:
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; empty strings where the process does not exist."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return [""] * 20


def command_line(pid: int) -> bytes:
    """Return the command line of a process, with NUL after each argument; b"" where the process does not exist."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def cpu_seconds(pid: int, waited: bool = False) -> float:
    """Return the processor seconds of a process (0 once it has ended), with `waited` those of reaped children too."""
    return sum(int(ticks or 0) for ticks in _stat(pid)[11 : 15 if waited else 13]) / os.sysconf("SC_CLK_TCK")


def marked(name: str, value: str) -> set[Process]:
    """Return the living processes whose environment at start had NAME=VALUE, whatever their parent is now."""
    wanted, found = f"{name}={value}".encode(), set()
    for folder in Path("/proc").glob("[0-9]*"):
        if int(folder.name) == os.getpid():
            continue
        try:
            inherited = wanted in (folder / "environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if inherited and (process := Process.of(int(folder.name))).alive:
            found.add(process)
    return found


def family(name: str, value: str) -> set[Process]:
    """Return the `marked` processes and their descendants: renaming itself may overwrite a process's environment."""
    parents = marked(name, value)
    children = {Process.of(pid) for parent in parents for pid in descendants(parent.pid)}
    return parents | {child for child in children if child.alive}


def end(processes: set[Process], patience: float = STOP_SECONDS) -> int:
    """Send SIGTERM, then SIGKILL to what is left after `patience` seconds; return the number of SIGKILLs."""
    for process in processes:
        process.send(signal.SIGTERM)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and any(process.alive for process in processes):
        time.sleep(0.1)
    return sum(process.send(signal.SIGKILL) for process in processes)


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes that descend from `pid`."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if parent := _stat(int(folder.name))[1]:
            children.setdefault(int(parent), []).append(int(folder.name))
    found, todo = [], [pid]
    while todo:
        todo += (born := children.get(todo.pop(), []))
        found += born
    return found
