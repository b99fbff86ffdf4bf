"""Run the pending units of a plan on Ray actors and commit them, whichever workers die on the way.

Plain actors with `ray.wait`, one unit in flight each, so that a death is charged to the unit that caused it. Ray itself
restarts and retries nothing; attempts, deadlines and the give-up rule are here. With workers=0 the same units run in
this process, without Ray.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

from schemas.engine import RayConfig
from schemas.ledger import CommitRecord, Item, Quarantined, Unit
from schemas.parquet import arrow_without_pandas
from schemas.progress import OnUnitProgress, UnitProgress
from tasks.store.ahead import CORES
from tasks.store.logs import EVENTS
from tasks.store.node_cache import sweep_node
from tasks.store.storage import StorageError
from tasks.units.commit import Rows, UnitOutput, Withdrawn, WorkerFault, commit_rows, commit_unit, settled
from tasks.units.commits import pending
from tasks.units.compaction import Compactor
from tasks.units.draft import code_version
from tasks.units.metrics_server import exporter
from tasks.units.plan import Plan
from tasks.units.process_state import restored_threads, sigterm_interrupts
from tasks.units.ray_cluster import EngineError, connect, everywhere, node_resources, resources_of, working_nodes
from tasks.units.shared_paths import SharedPaths, paths_of_run
from tasks.units.tombstones import NONE_ERASED, read_erased
from tasks.units.upgrade import outdated, renewals

POLL_SECONDS = 1.0  # how late a deadline may be noticed
LIVENESS_SECONDS = 10.0  # without a result, after which the cluster's nodes are checked
EXIT_SECONDS = 10.0  # grace for actors to exit by themselves, so that they clean up

events = logging.getLogger(EVENTS)
logger = logging.getLogger("deca")


class Worker(Protocol):
    """Turns items into rows; built once per process by a picklable factory. One bad row never raises."""

    def process(self, items: Sequence[Item]) -> UnitOutput: ...


Factory = Callable[[], Worker]


@dataclass(frozen=True)
class RunSummary:
    """What one call of `run_units` did."""

    units_run: int
    units_skipped: int  # committed before
    units_failed: int  # given up; all their items are in quarantine
    rows: int
    quarantined: dict[str, int]  # by stage
    seconds: float
    busy_seconds: float = 0.0  # summed over workers, from the start of a unit to its commit or failure
    workers: int = 0
    cores: float = 0.0  # per worker
    gpus: float = 0.0  # per worker


class WorkerStartError(EngineError):
    """The factory failed: a model that does not load, a missing file."""


class RunInterrupted(EngineError):
    """Stopped by Ctrl-C or SIGTERM."""


@dataclass(frozen=True)
class _Failure:
    """Why an attempt at a unit failed."""

    error: str
    message: str


# --- one unit ---------------------------------------------------------------------------------------------------------


class _Runner:
    """Runs and commits units, in an actor or in this process."""

    def __init__(
        self, plan: Plan, factory: Factory, threads: int, paths: SharedPaths, cores: float | None = None
    ) -> None:
        """cores: reserved by its actor; None in this process."""
        self.plan, self.factory, self.threads = plan, factory, threads
        self.paths, self.cores = paths, cores
        self.erased = NONE_ERASED

    def start(self) -> None:
        """Build the worker. Raises what the factory raises."""
        self.paths.check_here()
        sweep_node()
        os.environ["OMP_NUM_THREADS"] = str(self.threads)
        self._set_threads()
        arrow_without_pandas()
        if self.cores is not None:
            os.environ[CORES] = str(self.cores)
        self.worker = self.factory()

    def _set_threads(self) -> None:
        if torch := sys.modules.get("torch"):  # only if already imported
            torch.set_num_threads(self.threads)

    def run(self, unit: Unit) -> CommitRecord | _Failure:
        """Process and commit one unit. A worker's exception is returned as a _Failure; only storage raises."""
        self._set_threads()
        started = time.monotonic()
        code = code_version()
        erased = self.erased = read_erased(self.plan.store, self.erased)
        items = [item for item in unit.items if not erased.has_item(item)]
        if unit.items and not items:
            return commit_unit(self.plan, unit, None, [], time.monotonic() - started, code, known=erased)
        try:
            output = self.worker.process(items)
            failed = [] if isinstance(output.table, Rows) else settled(unit, output.quarantine)
        except Exception as error:
            return _Failure(type(error).__name__, str(error))
        if not isinstance(output.table, Rows):
            seconds = time.monotonic() - started
            return commit_unit(self.plan, unit, output.table, failed, seconds, code, output.files, erased)
        try:
            return commit_rows(self.plan, unit, output.table, output, started, code, erased)
        except WorkerFault as fault:
            return _Failure(type(fault.error).__name__, str(fault.error))
        except Withdrawn as withdrawn:
            return _Failure("Withdrawn", str(withdrawn))


# --- all units --------------------------------------------------------------------------------------------------------


class _Ledger:
    """The driver's state of a run: units left, attempts, totals of the commits so far."""

    def __init__(
        self,
        plan: Plan,
        compactor: Compactor,
        attempts: int,
        on_progress: OnUnitProgress | None,
        only: Collection[int] | None,
        renewed: Sequence[int] = (),
    ) -> None:
        self.plan, self.compactor = plan, compactor
        self.attempts, self.on_progress = attempts, on_progress or (lambda progress: None)
        uncommitted = pending(plan)
        todo = uncommitted if only is None else [index for index in uncommitted if index in only]
        self.todo, self.skipped = len(todo) + len(renewed), plan.units - len(uncommitted) - len(renewed)
        self.items_total = sum(file.items for file in plan.files)
        self.items_before = self.items_total - plan.count_items([*uncommitted, *renewed])
        self.first_attempts = chain(plan.iter_units(todo), renewals(plan, renewed))
        self.retries: deque[Unit] = deque()
        self.failures: Counter[int] = Counter()
        self.units = self.items = self.rows = self.quarantined = 0  # committed by this run
        self.stages: Counter[str] = Counter()  # of the quarantined rows
        self.given_up = 0
        self.kept = 0  # units whose upgrade failed: their earlier rows stay
        self.busy = 0.0
        self.workers, self.cores, self.gpus = 0, 0.0, 0.0  # cores and GPUs of one worker
        self.started = time.monotonic()
        self.working: float | None = None  # when the first worker was up: rates exclude the start

    def next_unit(self) -> Unit | None:
        self.working = self.working or time.monotonic()
        return self.retries.popleft() if self.retries else next(self.first_attempts, None)

    def on_result(self, unit: Unit, result: CommitRecord | _Failure, began: float) -> None:
        """Count a commit; after a failure queue a retry, or give the unit up: its items go to quarantine.

        began: monotonic time at which the unit was submitted.
        """
        self.busy += time.monotonic() - began
        where = {"dataset": self.plan.dest, "plan": self.plan.fingerprint[:8], "unit": unit.index}
        if isinstance(result, _Failure):
            self.failures[unit.index] += 1
            failed = {**where, "error": result.error, "attempt": self.failures[unit.index]}
            events.warning("unit failed: %s", result.error, extra={"fields": failed})
            if self.failures[unit.index] < self.attempts:
                self.retries.append(unit)
                return
            if unit.renews is not None:
                self.kept += 1
                logger.warning(
                    "unit %d keeps its rows of an earlier version: %s: %s", unit.index, result.error, result.message
                )
                return
            message = f"{result.message} (unit {unit.index} given up after {self.attempts} attempts)"
            rows = [Quarantined.of(item, "unit", result.error, message) for item in unit.items]
            self.given_up += 1
            result = commit_unit(self.plan, unit, None, rows, 0.0)
        self.count(result)
        if events.isEnabledFor(logging.INFO):
            done = result.model_dump(include={"items", "rows", "quarantined", "stages", "seconds"})
            events.info("unit committed", extra={"fields": {**where, **done}})
        progress = self.progress()
        if (served := exporter()) is not None:
            served.units(self.plan.dest, progress, result.rows, result.stages)
        self.on_progress(progress)

    def count(self, commit: CommitRecord) -> None:
        self.units += 1
        self.items += commit.items
        self.rows += commit.rows
        self.quarantined += commit.quarantined
        self.stages.update(commit.stages)
        self.compactor.add(commit)

    def progress(self) -> UnitProgress:
        now = time.monotonic()
        working = max(now - (self.working or now), 1e-9)
        left = self.items_total - self.items_before - self.items
        return UnitProgress(
            units_done=self.skipped + self.units,
            units_total=self.plan.units,
            items_done=self.items_before + self.items,
            items_total=self.items_total,
            rows=self.rows,
            quarantined=self.quarantined,
            seconds=now - self.started,
            rows_per_second=self.rows / working,
            eta_seconds=left * working / self.items if self.items else None,
            busy_share=min(1.0, self.busy / (working * max(self.workers, 1))),
        )

    def summary(self) -> RunSummary:
        return RunSummary(
            units_run=self.units,
            units_skipped=self.skipped,
            units_failed=self.given_up,
            rows=self.rows,
            quarantined=dict(sorted(self.stages.items())),
            seconds=time.monotonic() - self.started,
            busy_seconds=self.busy,
            workers=self.workers,
            cores=self.cores,
            gpus=self.gpus,
        )


def run_units(
    plan: Plan,
    factory: Factory,
    ray: RayConfig | None = None,
    on_progress: OnUnitProgress | None = None,
    only: Collection[int] | None = None,
) -> RunSummary:
    """Run and commit every pending unit of `plan`; calling it again resumes.

    With ray.upgrade, units of an earlier result version follow, at most ray.upgrade_limit: see tasks/units/upgrade.py.

    factory: picklable, without arguments, builds the worker once per process (functools.partial of a class).
    only: indices of the pending units to run; None: all.
    Raises StorageError where the destination cannot be written, WorkerStartError where the factory fails, EngineError
    where workers keep dying, RunInterrupted on Ctrl-C or SIGTERM; committed units are kept in every case.
    """
    config = ray or RayConfig()
    plan.store.check_writable()
    plan.store.sweep()
    with Compactor(plan) as compactor:
        renewed = list(outdated(plan))[: config.upgrade_limit] if config.upgrade else []
        ledger = _Ledger(plan, compactor, config.attempts, on_progress, only, renewed)
        if ledger.todo:
            _run(plan, factory, config, ledger)
    return ledger.summary()


def _run(plan: Plan, factory: Factory, config: RayConfig, ledger: _Ledger) -> None:
    if config.workers != 0:
        connect(config)  # before the signal handler: ray.init sets its own
    try:
        with sigterm_interrupts():
            ledger.on_progress(ledger.progress())
            if config.workers == 0:
                _run_here(plan, factory, config, ledger)
            else:
                with paths_of_run(plan, factory, config) as paths:
                    _ActorPool(plan, factory, config, ledger, paths).run()
    except KeyboardInterrupt as error:
        done = ledger.skipped + ledger.units
        raise RunInterrupted(
            f"stopped with {done} of {plan.units} units of {plan.dest} committed; they are kept. Go on with the same "
            "command, or with --resume"
        ) from error


def _run_here(plan: Plan, factory: Factory, config: RayConfig, ledger: _Ledger) -> None:
    runner = _Runner(plan, factory, config.threads, SharedPaths(os.getcwd()))
    with restored_threads():
        try:
            runner.start()
        except Exception as error:
            raise _start_error(error) from error
        torch = sys.modules.get("torch")
        gpus = float(bool(torch and torch.cuda.is_available()))
        ledger.workers, ledger.cores, ledger.gpus = 1, float(config.threads), gpus
        while (unit := ledger.next_unit()) is not None:
            began = time.monotonic()
            ledger.on_result(unit, runner.run(unit), began)


# --- Ray --------------------------------------------------------------------------------------------------------------


@dataclass
class _Task:
    """The running task of an actor: a unit, or (None) building its worker."""

    actor: Any
    unit: Unit | None
    deadline: float
    began: float = field(default_factory=time.monotonic)


class _ActorPool:
    """The actors of one run, each with one task in flight."""

    def __init__(self, plan: Plan, factory: Factory, config: RayConfig, ledger: _Ledger, paths: SharedPaths) -> None:
        import ray

        self.ray, self.config, self.ledger = ray, config, ledger
        cpus, gpus, size = resources_of(config, node_resources())
        self.needs = f"{cpus:g} CPU and {gpus:g} GPU a worker, cluster: {ray.cluster_resources()}"
        remote: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)(_Runner)
        self.build = lambda: remote.remote(plan, factory, config.threads, paths.renewed(), cpus)
        ledger.workers, ledger.cores, ledger.gpus = min(size, ledger.todo), cpus, gpus
        logger.info("%d workers of %g CPU and %g GPU", ledger.workers, cpus, gpus)
        self.tasks: dict[Any, _Task] = {}  # by object reference
        self.exiting: dict[Any, Any] = {}  # actors asked to exit, by the reference of that call
        self.deaths = 0  # in a row
        self.killed = False  # a killed worker may leave temp files
        self.seen = time.monotonic()  # last sign of life of the cluster

    def run(self) -> None:
        """Keep one unit in flight per actor until none is left."""
        try:
            for _ in range(self.ledger.workers):
                self.start()
            while self.tasks:
                ready, _ = self.ray.wait(list(self.tasks), num_returns=1, timeout=POLL_SECONDS)
                now = time.monotonic()
                if ready:
                    self.seen = now
                elif now - self.seen > LIVENESS_SECONDS:
                    self.check_cluster()
                late = [ref for ref, task in self.tasks.items() if task.deadline < now and ref not in ready]
                for ref in ready:
                    self.on_result(ref, self.tasks.pop(ref))
                for ref in late:
                    self.on_timeout(self.tasks.pop(ref))
        finally:
            self.close()

    def close(self) -> None:
        """End every actor, and sweep what killed ones left on each node."""
        for task in self.tasks.values():
            self.kill(task)
        if self.exiting and working_nodes():
            _, late = self.ray.wait(list(self.exiting), num_returns=len(self.exiting), timeout=EXIT_SECONDS)
            for ref in late:
                self.ray.kill(self.exiting[ref], no_restart=True)
        if self.killed:
            everywhere(_sweep, self.ledger.plan)

    def check_cluster(self) -> None:
        """Raise EngineError if no node is alive: ray.wait would block forever."""
        self.seen = time.monotonic()
        if not any(node["Alive"] for node in self.ray.nodes()):
            raise EngineError(
                "Ray's node died (no memory left? look at dmesg). What is committed stays; go on with the same command"
            )

    def start(self) -> None:
        """Create an actor that builds its worker."""
        actor = self.build()
        self.tasks[actor.start.remote()] = _Task(actor, None, time.monotonic() + self.config.start_timeout_s)

    def kill(self, task: _Task) -> None:
        self.killed = True
        self.ray.kill(task.actor, no_restart=True)
        self.stop(task)  # its reference resolves once the actor is gone

    def stop(self, task: _Task) -> None:
        """Let an idle actor exit by itself, so that it cleans up."""
        self.exiting[task.actor.__ray_terminate__.remote()] = task.actor

    def submit(self, task: _Task) -> None:
        """Give a free actor the next unit, or stop it if none is left."""
        unit = self.ledger.next_unit()
        if unit is None:
            self.stop(task)
            return
        deadline = time.monotonic() + self.config.unit_timeout_s
        self.tasks[task.actor.run.remote(unit)] = _Task(task.actor, unit, deadline)

    def on_result(self, ref: Any, task: _Task) -> None:
        """Hand a finished task's result to the ledger and submit the next unit; handle errors and deaths."""
        errors = self.ray.exceptions
        try:
            result = self.ray.get(ref)
        except errors.RayTaskError as error:  # raised by the worker's factory, or by storage
            self.stop(task)
            if task.unit is None:
                raise _start_error(error.cause) from error
            if isinstance(error.cause, StorageError):
                raise StorageError(str(error.cause)) from error
            raise EngineError(f"unit {task.unit.index} could not be committed: {error.cause}") from error
        except errors.RayError as error:
            self.on_death(task, error)
            return
        if task.unit is not None:
            self.deaths = 0
            self.ledger.on_result(task.unit, result, task.began)
        self.submit(task)

    def on_death(self, task: _Task, error: Exception) -> None:
        """Charge a death to its unit and start a new actor; EngineError after max_deaths_in_a_row."""
        if getattr(error, "actor_init_failed", False):
            raise _start_error(error) from error
        self.kill(task)  # it may still run if only its connection was lost
        self.deaths += 1
        if self.deaths >= self.config.max_deaths_in_a_row:
            raise EngineError(
                f"{self.deaths} workers died in a row, the last with: {str(error).splitlines()[0]} "
                "Look at memory (dmesg) and `ray logs`, then go on with --resume; fewer workers need less memory"
            ) from error
        if task.unit is not None:
            failure = _Failure("WorkerDied", f"the worker process died on this unit ({type(error).__name__})")
            self.ledger.on_result(task.unit, failure, task.began)
        self.replace()

    def on_timeout(self, task: _Task) -> None:
        """Kill an actor that missed its deadline."""
        self.kill(task)
        if task.unit is not None:
            message = f"no result after {self.config.unit_timeout_s:g} s (ray.unit_timeout_s)"
            self.ledger.on_result(task.unit, _Failure("UnitTimeout", message), task.began)
            self.replace()
        elif not self.tasks:
            raise EngineError(
                f"no worker started in {self.config.start_timeout_s:g} s (ray.start_timeout_s): {self.needs}. Ask for "
                "less with ray.cpus_per_worker and ray.gpus_per_worker, or look at `ray status`"
            )

    def replace(self) -> None:
        """Start an actor for a dead one, if there is a unit for it."""
        in_flight = sum(task.unit is not None for task in self.tasks.values())
        starting = len(self.tasks) - in_flight
        if self.ledger.todo - self.ledger.units - self.ledger.kept - in_flight > starting:
            self.start()


def _sweep(plan: Plan) -> None:
    sweep_node()
    plan.store.sweep()


def _start_error(error: BaseException) -> WorkerStartError:
    return WorkerStartError(
        f"the worker could not be built: {type(error).__name__}: {error}. No unit was tried; mend it, then go on with "
        "the same command"
    )
