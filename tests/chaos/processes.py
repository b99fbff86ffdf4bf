"""Runs of `deca` in processes that can be killed."""

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

from pipelines.processes import command_line
from tests.chaos.inject import Injection

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 300.0  # seconds of one run; a busy machine is three times slower than a quiet one
# Of every process: this checkout's modules, one thread, no Prefect by default, no telemetry.
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
    """A run did not end in time."""


class Nursery:
    """Runs commands one after the other, as forks of a process with the program loaded."""

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

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def start(
        self,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        injection: Injection | None = None,
    ) -> Run:
        """`deca ARGUMENTS` in a process of its own, with its output appended to the log."""
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
        """Return the next line, or None where none comes in time."""
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
    """A running command."""

    nursery: Nursery
    pid: int
    log: Path
    code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while it runs."""
        if self.code is None and (line := self.nursery.answer(0)) is not None:
            self.code = int(line)
        return self.code

    def wait(self, seconds: float = TIMEOUT) -> int:
        """Return the exit code. Kills the process and raises Hung where it does not end in time."""
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
        """Return the last line of its output."""
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def kill(pid: int) -> bool:
    """kill -9; return False where there is no such process."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def named(pids: Sequence[int], *names: str) -> list[int]:
    """Return the processes whose command line contains one of the names."""
    return sorted(pid for pid in pids if any(name.encode() in command_line(pid) for name in names))
