"""Foreign bytes against every reader, by mutation or led by coverage: `python -m benchmarks.fuzz --executions 20000`.

An execution passes if the reader gives a value or one of its own errors. Everything else is a finding and is kept in
--keep: another exception, a process started, a file written, an address connected to, more than SLOW seconds, or memory
beyond the limit of the address space. With --engine atheris (Google's, `pip install atheris`) coverage of our code and
of the pickle module leads the mutations; without it they are blind, but seeded, so that a finding can be made again.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

TELL = 10_000
SLOW = 5.0  # seconds for one execution
HEADROOM = 2 * 2**30  # bytes of address space beyond what is taken at the start
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "socket.connect")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass
class Counts:
    """What the executions of a target came to."""

    target: str
    executions: int = 0
    accepted: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    findings: Counter[str] = field(default_factory=Counter)


class Fuzzer:
    """Executes one target, watched."""

    def __init__(self, name: str, folder: Path, keep: Path | None = None) -> None:
        from benchmarks.fuzz_targets import TARGETS

        self.target, self.keep = TARGETS[name], keep
        self.path = folder / f"input{self.target.suffix}"
        self.counts = Counts(name)
        self.watching = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        writes = event == "open" and bool(arguments[2]) and bool(arguments[2] & WRITING)
        if event in STARTS or writes:
            from benchmarks.fuzz_targets import Executed

            self.watching = False
            raise Executed(f"{event} {arguments!r:.100}")

    def execute(self, data: bytes) -> str | None:
        """What is wrong with the reader's answer to these bytes; None if nothing is."""
        self.path.write_bytes(data)
        problem, started = None, time.monotonic()
        self.counts.executions += 1
        try:
            self.watching = True
            self.target.run(data, self.path)
            self.counts.accepted += 1
        except self.target.answers:
            pass
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # whatever else comes is a finding
            problem = f"{type(error).__name__}: {str(error)[:150]}"
        finally:
            self.watching = False
        seconds = time.monotonic() - started
        self.counts.slowest = max(self.counts.slowest, seconds)
        if seconds > SLOW:
            problem = f"slow: {seconds:.0f} s"
        if problem is not None:
            self.counts.findings[problem] += 1
            if self.keep is not None:
                name = f"{self.counts.target.replace(' ', '-')}-{hashlib.sha256(data).hexdigest()[:12]}"
                (self.keep / name).write_bytes(data)
        return problem


def fuzz(name: str, executions: int, seed: int, keep: Path | None = None, seconds: float = float("inf")) -> Counts:
    """Blind, seeded mutations of a target's inputs."""
    from benchmarks.fuzz_targets import mutated

    with tempfile.TemporaryDirectory(prefix="deca-fuzz-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fuzzer = Fuzzer(name, Path(folder), keep)
        started = time.monotonic()
        inputs = mutated(fuzzer.target.seeds(), np.random.default_rng([seed, *name.encode()]))
        while fuzzer.counts.executions < executions and time.monotonic() - started < seconds:
            fuzzer.execute(next(inputs))
        fuzzer.counts.seconds = time.monotonic() - started
    return fuzzer.counts


def fuzz_by_coverage(name: str, executions: int, seed: int, keep: Path | None = None) -> None:
    """The same with atheris, which ends the process by itself: the counts are printed every TELL executions."""
    import atheris

    with atheris.instrument_imports(include=["pickle", "deca_core.assets.unpickle", "tasks", "schemas", "tarfile"]):
        import pickle  # noqa: F401

        import deca_core.assets.unpickle  # noqa: F401
        import tasks.sources.labels  # noqa: F401
    with tempfile.TemporaryDirectory(prefix="deca-fuzz-") as folder:
        fuzzer, corpus = Fuzzer(name, Path(folder), keep), Path(folder) / "corpus"
        corpus.mkdir()
        for number, data in enumerate(fuzzer.target.seeds()):
            (corpus / str(number)).write_bytes(data)
        started = time.monotonic()

        def once(data: bytes) -> None:
            problem = fuzzer.execute(data)
            if problem is not None:  # atheris ends here, keeps the input and fails
                raise AssertionError(problem)
            if fuzzer.counts.executions % TELL == 0:
                fuzzer.counts.seconds = time.monotonic() - started
                print(line(fuzzer.counts), flush=True)

        arguments = [sys.argv[0], f"-runs={executions}", f"-seed={seed + 1}", "-max_len=8192", str(corpus)]
        atheris.Setup(arguments, once)
        atheris.Fuzz()


def line(counts: Counts) -> str:
    row = f"{counts.target:<15} {counts.executions:>10,} {counts.accepted:>10,} {sum(counts.findings.values()):>9}"
    row += f" {counts.seconds:>8.0f} {counts.slowest:>8.2f}"
    return "\n".join([row, *(f"    {count} x {problem}" for problem, count in counts.findings.most_common(5))])


HEADER = "target          executions   accepted  findings  seconds  slowest"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", action="append", help="only these; default: all")
    parser.add_argument("--executions", type=int, default=20_000, help="of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["mutations", "atheris"], default="mutations")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that made findings")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    if options.here:  # one target in a process of its own, which atheris ends
        fuzz_by_coverage(options.target[0], options.executions, options.seed, options.keep)
    from benchmarks.fuzz_targets import TARGETS

    print(HEADER, flush=True)
    failed = []
    for name in options.target or TARGETS:
        run = _in_process if options.engine == "mutations" else _in_subprocess
        if not run(name, options):
            failed.append(name)
    sys.exit(1 if failed else 0)


def _in_process(name: str, options: argparse.Namespace) -> bool:
    """A target in a fork of this process: a crash of a decoder ends only that."""
    context = multiprocessing.get_context("fork")
    reader, sender = context.Pipe(duplex=False)

    def work() -> None:
        limit_memory()
        sender.send(fuzz(name, options.executions, options.seed, options.keep))

    process = context.Process(target=work)
    process.start()
    sender.close()
    try:
        counts = reader.recv()
    except EOFError:
        process.join()
        print(f"{name}: the process died (exit code {process.exitcode})", flush=True)
        return False
    process.join()
    print(line(counts), flush=True)
    return not counts.findings


def _in_subprocess(name: str, options: argparse.Namespace) -> bool:
    command = [sys.executable, "-m", "benchmarks.fuzz", "--here", "--target", name]
    command += ["--executions", str(options.executions), "--seed", str(options.seed)]
    command += ["--keep", str(options.keep)] if options.keep else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = (done.stdout.strip() or f"{name}: fewer than {TELL} executions").splitlines()[-1]
    print(last if done.returncode == 0 else f"{name}: ended with {done.returncode}: {done.stderr[-500:]}", flush=True)
    return done.returncode == 0


def limit_memory() -> None:
    """An input that takes all memory ends in a MemoryError, a finding."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + HEADROOM, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
