"""The side of the suite: runs of `deca` in processes that can be killed."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from tests.chaos.inject import Injection

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 300.0  # seconds of one run; a busy machine is three times slower than a quiet one
# Of every process: the tree's own modules, one thread, no Prefect but where it is the point, no telemetry.
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "PREFECT_API_URL": "",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class Hung(Exception):
    """A run that did not end."""


class Nursery:
    """Runs commands one after the other, as forks of a process that is loaded already."""

    def __init__(self, jobs: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.nursery", *jobs],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        self.rest = b""
        if self.answer(TIMEOUT) != "ready":
            raise Hung(f"the nursery did not start: {sys.executable} -m tests.chaos.nursery")

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()

    def start(
        self,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        injection: Injection | None = None,
    ) -> Run:
        """`deca ARGUMENTS` in a process of its own; what it prints is added to the log."""
        request = {
            "arguments": list(arguments),
            "log": str(log),
            "environment": dict(environment or {}),
            "injection": asdict(injection) if injection else None,
        }
        assert self.process.stdin is not None
        self.process.stdin.write(f"{json.dumps(request)}\n".encode())
        return Run(self, int(self.answer(TIMEOUT) or 0), log)

    def answer(self, seconds: float) -> str | None:
        """The next line, None where none comes in time."""
        assert self.process.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self.rest:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))
            more = os.read(self.process.stdout.fileno(), 4096) if ready else b""
            if not more:
                return None
            self.rest += more
        line, _, self.rest = self.rest.partition(b"\n")
        return line.decode()


@dataclass
class Run:
    """One command at work."""

    nursery: Nursery
    pid: int
    log: Path
    code: int | None = None

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        if self.code is None and (line := self.nursery.answer(0)) is not None:
            self.code = int(line)
        return self.code

    def wait(self, seconds: float = TIMEOUT) -> int:
        """Exit code. Raises Hung, and kills the process, where it does not end in time."""
        if self.code is None:
            line = self.nursery.answer(seconds)
            if line is None:
                self.signal(signal.SIGKILL)
                self.nursery.answer(30)
                raise Hung(f"no end in {seconds:.0f} s: {self.said()}")
            self.code = int(line)
        return self.code

    def signal(self, number: int) -> bool:
        """Send a signal to the process and all of its group; False where it has ended."""
        if self.poll() is not None:
            return False
        os.killpg(self.pid, number)
        return True

    def said(self) -> str:
        """The last line that was printed."""
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def kill(pid: int) -> bool:
    """kill -9; False where there is no such process."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def named(pids: Sequence[int], *names: str) -> list[int]:
    """Those whose command line holds one of the names."""
    found = []
    for pid in pids:
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if any(name in line for name in names):
            found.append(pid)
    return sorted(found)
