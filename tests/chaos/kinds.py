"""The kinds of fault and how each is injected; a seed decides where."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.chaos.inject import ENDED, Action, Injection
from tests.chaos.jobs import JOBS, count_files
from tests.chaos.machines import Plain, enlarge, small_disk
from tests.chaos.processes import Run, kill
from tests.chaos.proxy import Rule
from tests.chaos.suite import Strike, Striker, Trial

DAY = 24 * 3600.0
FILE_SECONDS = 0.05  # about the time of one file: a kill falls anywhere between two
STARTED_SECONDS = 240.0  # until Ray's workers must have started
UNITS = ("ingest", "extend", "reconstruct")
BLOCK = 4096  # bytes of tmpfs


@dataclass(frozen=True)
class Kind:
    """A kind of fault. share: relative number of seeded faults."""

    name: str
    strike: Striker
    share: int
    jobs: tuple[str, ...] = JOBS


KINDS: dict[str, Kind] = {}


def kind(name: str, share: int, jobs: tuple[str, ...] = JOBS) -> Callable[[Striker], Striker]:
    def add(strike: Striker) -> Striker:
        KINDS[name] = Kind(name, strike, share, jobs)
        return strike

    return add


# --- the process ------------------------------------------------------------------------------------------------------


def wait_for_files(trial: Trial, run: Run, before: int) -> int:
    """Wait until a drawn number of files is published, and a little longer; return the number."""
    number = trial.draw.randrange(trial.baseline.files)
    while count_files(trial.dest) < before + number and run.poll() is None:
        time.sleep(0.002)
    time.sleep(trial.draw.uniform(0, FILE_SECONDS))
    return number


def signalled(trial: Trial, number: int) -> Strike:
    trial.prepare()
    before, run = count_files(trial.dest), trial.start()
    files = wait_for_files(trial, run, before)
    at = time.monotonic()
    hit = run.signal(number)
    return Strike(at if hit else None, run.wait(), f"after {files} of {trial.baseline.files} files")


for _name, _share, _number in (
    ("kill -9 of the driver", 10, signal.SIGKILL),
    ("SIGTERM", 6, signal.SIGTERM),
    ("Ctrl-C", 6, signal.SIGINT),
):
    kind(_name, _share)(partial(signalled, number=_number))


@kind("kill -9 of a Prefect flow run", 6)
def kill_flow_run(trial: Trial) -> Strike:
    prefect = trial.suite.prefect
    trial.start_new = lambda arguments, log: Plain(arguments, log, prefect.environment)
    return signalled(trial, signal.SIGKILL)


# --- one step of writing ----------------------------------------------------------------------------------------------


def at_step(trial: Trial, action: Action, step: int, seconds: float = 0.0) -> Strike:
    trial.prepare()
    injection = Injection(trial.dest, action, step, seconds)
    started = time.monotonic()
    code = trial.start(injection).wait()
    hit = code == ENDED or action == "clock"
    name = trial.baseline.steps[step]
    at = started if action == "clock" else time.monotonic()
    return Strike(at if hit else None, code, f"before step {step}: {name}")


@kind("end at a step of writing", 0)
def end_at_step(trial: Trial) -> Strike:
    step = trial.fault.step
    chosen = trial.draw.randrange(len(trial.baseline.steps)) if step is None else step
    return at_step(trial, "end", chosen)


@kind("power cut", 12)
def cut_power(trial: Trial) -> Strike:
    return at_step(trial, "power", trial.draw.randrange(len(trial.baseline.steps)))


@kind("clock step", 6)
def step_clock(trial: Trial) -> Strike:
    seconds = trial.draw.choice((-1, 1)) * trial.draw.choice((60.0, 3600.0, 2 * DAY, 40 * DAY))
    strike = at_step(trial, "clock", trial.draw.randrange(len(trial.baseline.steps)), seconds=seconds)
    strike.detail = f"{seconds:+.0f} s, {strike.detail}"
    return strike


# --- the disk ---------------------------------------------------------------------------------------------------------


def blocks(folder: Path) -> int:
    """Return the bytes of a folder in blocks of a small disk."""
    return sum(-(-path.stat().st_size // BLOCK) * BLOCK for path in folder.rglob("*") if path.is_file())


@kind("full disk", 8)
def fill_disk(trial: Trial) -> Strike:
    job, folder = trial.fault.job, trial.suite.folder
    assert trial.baseline
    first = blocks(trial.suite.base) if job == "extend" else 0
    last = blocks(folder / f"calm-{job}")
    size = first + int(trial.draw.uniform(0.05, 0.9) * (last - first)) // BLOCK * BLOCK + BLOCK
    trial.place = trial.stack.enter_context(small_disk(trial.folder / "disk", size))
    trial.prepare()
    run = trial.start()
    code = run.wait()
    said, at = run.said(), time.monotonic()
    enlarge(trial.place, 4 * last + 2**26)
    hit = code == 1 and "disk is full" in said
    return Strike(at if hit else None, code, f"{size} bytes: {said[:80]}")


# --- the object store -------------------------------------------------------------------------------------------------


def on_bucket(trial: Trial, rule: Rule) -> Strike:
    """Run with DEST on the bucket behind a rule of faults."""
    trial.remote, bucket = True, trial.suite.bucket
    trial.environment = bucket.environment
    trial.prepare()
    bucket.proxy.rule = rule
    run = trial.start()
    rule.pid = run.pid
    code = run.wait()
    said = "" if code == trial.baseline.code else f"; {run.said()[:120]}"
    return Strike(rule.first, code, f"{rule.struck} calls{said}")


def write_at(trial: Trial) -> int:
    """Draw the index of a write of the run."""
    trial.remote = True
    return trial.draw.randrange(trial.baseline.named)


def at_some_calls(trial: Trial, name: str) -> Strike:
    return on_bucket(trial, Rule(name, trial.fault.seed))


def at_a_write(trial: Trial, name: str) -> Strike:
    return on_bucket(trial, Rule(name, trial.fault.seed, at=write_at(trial)))


for _name, _share in (("500", 6), ("503", 6), ("timeout", 4), ("slow", 4), ("torn GET", 5)):
    kind(f"object store: {_name}", _share)(partial(at_some_calls, name=_name))

for _name, _share in (("torn PUT", 6), ("lost answer", 6), ("revoked", 6), ("read-only", 4)):
    kind(f"object store: {_name}", _share)(partial(at_a_write, name=_name))

for _name in ("kill before", "kill after"):
    kind(f"{_name} a write to the bucket", 6)(partial(at_a_write, name=_name))


@kind("object store: stale listing", 6)
def stale_listing(trial: Trial) -> Strike:
    """Kill the run; listings of the next one miss objects younger than some seconds."""
    seconds, at = trial.draw.uniform(1.0, 5.0), write_at(trial)
    killed = on_bucket(trial, Rule("kill after", trial.fault.seed, at=at))
    rule = Rule("stale listing", trial.fault.seed, seconds=seconds)
    trial.suite.bucket.proxy.rule = rule
    code = trial.start().wait()
    return Strike(
        killed.at if rule.struck else None,
        code,
        f"killed after write {at}, then {rule.struck} names missing for {seconds:.1f} s",
    )


# --- Ray --------------------------------------------------------------------------------------------------------------


def on_nodes(trial: Trial, strike: Callable[[Run], bool], within: float) -> Strike:
    """Run on the two nodes; `strike` at most `within` seconds after the workers have started."""
    nodes = trial.suite.nodes
    trial.environment, trial.workers = {"RAY_ADDRESS": nodes.cluster.address}, 1 if trial.fault.job == "train" else 2
    trial.prepare()
    run, end = trial.start(), time.monotonic() + STARTED_SECONDS
    while not nodes.workers() and run.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    wait = trial.draw.uniform(0, within)
    time.sleep(wait)
    at = time.monotonic()
    hit = run.poll() is None and strike(run)
    return Strike(at if hit else None, run.wait(), f"{wait:.1f} s after the first worker started")


@kind("kill -9 of a Ray worker", 5)
def kill_worker(trial: Trial) -> Strike:
    def strike(run: Run) -> bool:
        workers = trial.suite.nodes.workers()
        return bool(workers) and kill(trial.draw.choice(workers))

    return on_nodes(trial, strike, 4.0)


@kind("kill -9 of a driver on Ray", 4, UNITS)
def kill_driver_on_ray(trial: Trial) -> Strike:
    return on_nodes(trial, lambda run: run.signal(signal.SIGKILL), 5.0)


@kind("loss of a Ray node", 5)
def lose_node(trial: Trial) -> Strike:
    nodes = trial.suite.nodes

    def strike(run: Run) -> bool:
        nodes.lose()
        return True

    try:
        return on_nodes(trial, strike, 5.0)
    finally:
        nodes.mend()
