"""One fault at a time: an undisturbed run as baseline, a run with the fault, the same command again, the check."""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType

from tasks.store.storage import Store
from tests.chaos.inject import Injection, read_steps, visible
from tests.chaos.jobs import JOBS, Sources, command, contents, count_files, leftovers, problems, rows
from tests.chaos.machines import BUCKET, Bucket, Nodes, Prefect
from tests.chaos.processes import Hung, Nursery, Run
from tests.chaos.proxy import Rule


@dataclass(frozen=True)
class Fault:
    """One fault, determined by these fields."""

    kind: str
    job: str
    seed: int
    step: int | None = None  # for a kind that strikes at a given step


@dataclass(frozen=True)
class Baseline:
    """The result of an undisturbed run of a job, and its steps."""

    code: int  # of the command: 2 where an image is in quarantine
    contents: dict[str, str]
    rows: Counter[str]
    files: int  # that it published
    steps: list[str]

    @property
    def named(self) -> int:
        """Number of steps that give a file its name, which is the number of PUTs on a bucket."""
        return sum(visible(step) for step in self.steps)


@dataclass
class Strike:
    """A run with a fault. at: monotonic time of the fault, None where the run ended before it."""

    at: float | None
    code: int
    detail: str = ""


@dataclass
class Result:
    """The outcome of one fault."""

    fault: Fault
    hit: bool = False
    survived: bool = False  # the run with the fault completed
    lost: int = 0
    doubled: int = 0
    equal: bool = False
    seconds: float = 0.0  # from the fault to the whole dataset
    detail: str = ""
    wrong: list[str] = field(default_factory=list)
    skipped: str = ""  # why it was skipped here

    @property
    def ok(self) -> bool:
        return not (self.lost or self.doubled or self.wrong) and self.equal


Striker = Callable[["Trial"], Strike]


class Suite:
    """The sources, the baselines and the services, each made when a fault first needs it."""

    def __init__(self, folder: Path, jobs: Sequence[str] = JOBS, s3_endpoint: str | None = None) -> None:
        """jobs: those under test. s3_endpoint: of a running server."""
        self.folder, self.s3_endpoint = folder, s3_endpoint
        self.nursery = Nursery(jobs)
        self.sources = Sources(folder)
        self.baselines: dict[tuple[str, bool], Baseline] = {}
        self.base = folder / "base"  # a finished ingest of the archive before it grew
        self.trials = 0
        self.sources.write()
        self.run_clean("extend", str(self.base))
        self.sources.grow()

    def __enter__(self) -> Suite:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for name in ("bucket", "nodes", "prefect", "nursery"):
            if service := self.__dict__.get(name):
                service.close()

    @cached_property
    def bucket(self) -> Bucket:
        bucket = Bucket(self.s3_endpoint)
        self.sources.upload(f"s3://{BUCKET}/photos")
        return bucket

    @cached_property
    def nodes(self) -> Nodes:
        return Nodes()

    @cached_property
    def prefect(self) -> Prefect:
        return Prefect()

    def places(self, remote: bool) -> dict[str, str]:
        """Return the sources by name: with DEST on the bucket, `photos` is there too."""
        return self.sources.places | ({"photos": f"s3://{BUCKET}/photos"} if remote else {})

    def run_clean(self, job: str, dest: str, injection: Injection | None = None, remote: bool = False) -> int:
        """Run without a fault; return the exit code. Raises RuntimeError where it fails."""
        log = self.folder / "undisturbed.log"
        environment = self.bucket.environment if remote else {}
        code = self.nursery.start(command(job, dest, self.places(remote)), log, environment, injection).wait()
        if code not in (0, 2):
            raise RuntimeError(f"the undisturbed {job} failed:\n{log.read_text()}")
        return code

    def baseline(self, job: str, remote: bool) -> Baseline:
        """Return the baseline of a job; one on the bucket where the job reads from it."""
        remote = remote and job in ("ingest", "reconstruct")
        if (job, remote) not in self.baselines:
            dest, record = self.folder / f"calm-{job}", self.folder / f"steps-{job}"
            if remote:
                place = f"s3://{BUCKET}/calm-{job}"
                code, steps = self.run_clean(job, place, remote=True), self.baseline(job, False).steps
            else:
                self.prepare(job, str(dest))
                place, before = str(dest), count_files(str(dest))
                code = self.run_clean(job, place, Injection(place, record=str(record)))
                steps = read_steps(record)
            files = self.baseline(job, False).files if remote else count_files(place) - before
            if found := problems(job, place):
                raise RuntimeError(f"the undisturbed {job} is not whole: {found}")
            self.baselines[job, remote] = Baseline(code, contents(place), rows(job, place), files, steps)
        return self.baselines[job, remote]

    def prepare(self, job: str, dest: str) -> None:
        """Prepare DEST: leave it empty, or copy the dataset to be extended."""
        if job != "extend":
            return
        if "://" not in dest:
            shutil.copytree(self.base, dest, dirs_exist_ok=True)
            return
        for path in sorted(self.base.rglob("*")):
            if path.is_file():
                Store(dest).write(path.relative_to(self.base).as_posix(), path.read_bytes())

    def run(self, fault: Fault, strike: Striker) -> Result:
        """Run one fault from start to check."""
        self.trials += 1
        trial = Trial(self, fault, self.folder / f"trial-{self.trials}")
        result = Result(fault)
        with contextlib.ExitStack() as stack:
            trial.stack = stack
            trial.folder.mkdir()
            try:
                trial.go(strike, result)
            except PermissionError as error:  # this machine allows no small disk
                result.skipped = str(error)
            except Hung as error:
                result.wrong.append(str(error))
        trial.clear()
        return result


@dataclass
class Trial:
    """One fault in progress."""

    suite: Suite
    fault: Fault
    folder: Path
    remote: bool = False  # DEST is on the bucket
    workers: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    start_new: Callable[[list[str], Path], Run] | None = None  # where forks of the nursery do not work
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    place: Path | None = None  # of DEST, where it is not in the trial's folder

    def __post_init__(self) -> None:
        self.draw = random.Random(f"{self.fault.kind} {self.fault.job} {self.fault.seed}")
        self.log = self.folder / "log"

    @property
    def dest(self) -> str:
        if self.remote:
            return f"s3://{BUCKET}/{self.folder.name}"
        return str((self.place or self.folder) / "dest")

    @property
    def baseline(self) -> Baseline:
        return self.suite.baseline(self.fault.job, self.remote)

    def prepare(self) -> None:
        """Prepare DEST."""
        assert self.baseline  # made before the fault
        self.suite.prepare(self.fault.job, self.dest)

    def start(self, injection: Injection | None = None) -> Run:
        """Start the command."""
        arguments = command(self.fault.job, self.dest, self.suite.places(self.remote), self.workers)
        if self.start_new:
            return self.start_new(arguments, self.log)
        return self.suite.nursery.start(arguments, self.log, self.environment, injection)

    def go(self, strike: Striker, result: Result) -> None:
        """Run with the fault, resume, check."""
        struck = strike(self)
        ended = time.monotonic()
        result.hit, result.detail = struck.at is not None, struck.detail
        result.survived = struck.code == self.baseline.code
        code = self.resume()
        whole = ended if result.survived else time.monotonic()
        result.seconds = whole - (struck.at or ended)
        self.check(code, result)

    def resume(self) -> int:
        """Run the same command again without faults."""
        if self.remote:
            self.suite.bucket.proxy.rule = Rule()
        return self.start().wait()

    def check(self, code: int, result: Result) -> None:
        """Compare the dataset with the baseline."""
        expected = self.baseline
        if code != expected.code:
            result.wrong.append(f"the second run ended with {code}: {self.log.read_text()[-300:]}")
        if (said := self.log.read_text(errors="replace")) and "Traceback" in said:
            result.wrong.append(f"a traceback instead of one line: {said[said.index('Traceback') :][-600:]}")
        try:
            found = rows(self.fault.job, self.dest)
            result.wrong += problems(self.fault.job, self.dest)
            now = contents(self.dest)
        except Exception as error:  # an unreadable dataset is a result
            result.wrong.append(f"unreadable: {type(error).__name__}: {error}")
            return
        result.lost = sum((expected.rows - found).values())
        result.doubled = sum((found - expected.rows).values())
        result.equal = now == expected.contents
        result.wrong += [f"left {name}" for name in leftovers([*now])]
        differing = {name for name in {*now, *expected.contents} if now.get(name) != expected.contents.get(name)}
        result.wrong += [f"differs: {name}" for name in sorted(differing)[:5]]

    def clear(self) -> None:
        """Delete the trial's data."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.remote:
            Store(self.dest).delete_folder("")
