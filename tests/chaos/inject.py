"""Faults inside a process: an end at one step of writing, a power cut, a clock that jumps.

The product is unchanged: the launcher calls `apply` in the process that runs the command, which wraps Python's calls
that write. A step is one such call below DEST: bytes written, made durable, renamed, deleted.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal

ENDED = 77  # exit code of a process that a fault ended
# Calls that change files below DEST, and the argument with the path. Arrow and safetensors write temp files in C++:
# those bytes exist at the next step, which makes them durable.
CALLS = {
    "os.fsync": (os, "fsync", 0),
    "os.replace": (os, "replace", 1),
    "os.link": (os, "link", 1),
    "os.unlink": (os, "unlink", 0),
    "os.remove": (os, "remove", 0),
    "os.rmdir": (os, "rmdir", 0),
    "write": (Path, "write_bytes", 0),
}
DELETIONS = ("os.unlink", "os.remove", "os.rmdir")
VISIBLE = ("os.replace", "os.link")  # steps that give a file its name
Action = Literal["end", "power", "clock", "none"]


@dataclass(frozen=True)
class Injection:
    """A fault right before step `at`.

    end: the process ends; power: it ends, and data that was not made durable is lost; clock: `time.time` jumps by
    `seconds`. `record`: file that gets the steps.
    """

    dest: str
    action: Action = "none"
    at: int = 0
    seconds: float = 0.0
    record: str | None = None


def apply(injection: Injection) -> None:
    """Wrap the calls of this process that write."""
    steps = _Steps(injection)
    for name, (owner, attribute, argument) in CALLS.items():
        setattr(owner, attribute, steps.wrapped(name, getattr(owner, attribute), argument))


class _Steps:
    """Counts steps and injects the fault at one of them."""

    def __init__(self, injection: Injection) -> None:
        self.injection, self.root = injection, os.path.realpath(injection.dest)
        self.count, self.lock, self.inside = 0, threading.Lock(), threading.local()
        self.durable: set[int] = {stat.st_ino for _, stat in _files(self.root)}

    def wrapped(self, name: str, call: Callable[..., Any], argument: int) -> Callable[..., Any]:
        @wraps(call)
        def stepped(*args: Any, **kwargs: Any) -> Any:
            place = self.place(args[argument], kwargs.get("dir_fd"))
            if place is None or getattr(self.inside, "step", False) or self.idle(name, place):
                return call(*args, **kwargs)
            self.inside.step = True  # Path.unlink is os.unlink, and counts once
            try:
                self.begin(name, place)
                result = call(*args, **kwargs)
                if name == "os.fsync":
                    self.durable.add(os.fstat(args[0]).st_ino)
                return result
            finally:
                self.inside.step = False

        return stepped

    def place(self, where: Any, folder: int | None) -> str | None:
        """Return the path of a call below DEST, or None where it is elsewhere."""
        if isinstance(where, int):
            path = os.readlink(f"/proc/self/fd/{where}")
        else:
            base = "" if folder is None else os.readlink(f"/proc/self/fd/{folder}")
            path = os.path.abspath(os.path.join(base, os.fsdecode(where)))
        return os.path.relpath(path, self.root) if f"{path}/".startswith(f"{self.root}/") else None

    def idle(self, name: str, place: str) -> bool:
        """Return whether a deletion finds nothing, as after every temp file that was renamed."""
        return name in DELETIONS and not os.path.lexists(os.path.join(self.root, place))

    def begin(self, name: str, place: str) -> None:
        with self.lock:
            number = self.count
            self.count += 1
            if self.injection.record:
                with open(self.injection.record, "a") as file:
                    file.write(f"{name} {place}\n")
            if number == self.injection.at:
                self.strike()

    def strike(self) -> None:
        action = self.injection.action
        if action == "power":
            self.tear()
        if action in ("end", "power"):
            os._exit(ENDED)
        if action == "clock":
            now, seconds = time.time, self.injection.seconds
            time.time = lambda: now() + seconds

    def tear(self) -> None:
        """Emulate a power cut: cut every file in half whose content was never made durable."""
        for path, stat in list(_files(self.root)):
            if stat.st_ino not in self.durable:
                os.truncate(path, stat.st_size // 2)


def _files(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            yield path, os.stat(path)


def read_steps(record: Path) -> list[str]:
    """Return the steps of a run in order: "<call> <name below DEST>"."""
    return record.read_text().splitlines()


def visible(step: str) -> bool:
    """Return whether a step gives a file its name."""
    return step.startswith(VISIBLE)
