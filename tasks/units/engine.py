"""Units on Ray actors: every pending unit of a plan is worked, published and committed, whatever dies on the way.

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
from tasks.units.tombstones import NOBODY, read_erased
from tasks.units.upgrade import outdated, renewals

POLL_SECONDS = 1.0  # how late a deadline may be noticed
events = logging.getLogger(EVENTS)
logger = logging.getLogger("deca")
LOOK_SECONDS = 10.0  # between looks at whether the cluster is still there, where no unit ends
EXIT_SECONDS = 10.0  # that workers have to begin to end by themselves: then they clean up, whatever the driver does


class Worker(Protocol):
    """Built once in each process by a picklable factory; turns items into rows. One bad row never raises."""

    def process(self, items: Sequence[Item]) -> UnitOutput: ...


Factory = Callable[[], Worker]


@dataclass(frozen=True)
class RunSummary:
    """What one call of `run_units` did."""

    units_run: int
    units_skipped: int  # committed before
    units_failed: int  # given up whole; their items are in quarantine
    rows: int
    quarantined: dict[str, int]  # by stage
    seconds: float
    busy_seconds: float = 0.0  # of all workers together, on units that they committed or failed, reading to commit
    workers: int = 0
    cores: float = 0.0  # that each of them held
    gpus: float = 0.0


class WorkerStartError(EngineError):
    """A worker that cannot be built: a model that does not load, a missing file."""


class RunInterrupted(EngineError):
    """Stopped by Ctrl-C or SIGTERM."""


@dataclass(frozen=True)
class _Failure:
    """Why an attempt at a unit failed."""

    error: str
    message: str


# --- one unit ---------------------------------------------------------------------------------------------------------


class _Runner:
    """Works and commits units; lives in an actor or in this process."""

    def __init__(
        self, plan: Plan, factory: Factory, threads: int, paths: SharedPaths, cores: float | None = None
    ) -> None:
        """cores: that its actor reserves."""
        self.plan, self.factory, self.threads = plan, factory, threads
        self.paths, self.cores = paths, cores
        self.erased = NOBODY

    def start(self) -> None:
        """Build the worker; whatever the factory raises is raised."""
        self.paths.check_here()
        sweep_node()
        os.environ["OMP_NUM_THREADS"] = str(self.threads)
        self._hold_threads()
        arrow_without_pandas()
        if self.cores is not None:
            os.environ[CORES] = str(self.cores)
        self.worker = self.factory()

    def _hold_threads(self) -> None:
        if torch := sys.modules.get("torch"):  # only where the worker, or this process before it, brought it
            torch.set_num_threads(self.threads)

    def run(self, unit: Unit) -> CommitRecord | _Failure:
        """Work one unit and commit it. A worker's exception is a _Failure; only storage may raise."""
        self._hold_threads()
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
    """The driver's side of a run: units to do, attempts, and sums over the commits so far."""

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
        waiting = pending(plan)
        todo = waiting if only is None else [index for index in waiting if index in only]
        self.todo, self.skipped = len(todo) + len(renewed), plan.units - len(waiting) - len(renewed)
        self.items_total = sum(file.items for file in plan.files)
        self.items_before = self.items_total - plan.count_items([*waiting, *renewed])
        self.fresh = chain(plan.iter_units(todo), renewals(plan, renewed))
        self.again: deque[Unit] = deque()
        self.tries: Counter[int] = Counter()
        self.units = self.items = self.rows = self.quarantined = 0  # committed by this run
        self.stages: Counter[str] = Counter()  # of the quarantined rows
        self.given_up = 0
        self.kept = 0  # units that were to be renewed, and could not: their earlier rows stay
        self.busy = 0.0
        self.workers, self.cores, self.gpus = 0, 0.0, 0.0  # cores and GPUs of one worker
        self.started = time.monotonic()
        self.working: float | None = None  # since the first worker is up: rates leave out what starting takes

    def next_unit(self) -> Unit | None:
        self.working = self.working or time.monotonic()
        return self.again.popleft() if self.again else next(self.fresh, None)

    def take(self, unit: Unit, result: CommitRecord | _Failure, began: float) -> None:
        """Book a commit; after a failure try again, or give the unit up: its items go to quarantine.

        began: when a worker took the unit up.
        """
        self.busy += time.monotonic() - began
        where = {"dataset": self.plan.dest, "plan": self.plan.fingerprint[:8], "unit": unit.index}
        if isinstance(result, _Failure):
            self.tries[unit.index] += 1
            failed = {**where, "error": result.error, "attempt": self.tries[unit.index]}
            events.warning("unit failed: %s", result.error, extra={"fields": failed})
            if self.tries[unit.index] < self.attempts:
                self.again.append(unit)
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
    """Work every pending unit of `plan` and commit it. Calling it again goes on where it stopped.

    With ray.upgrade units of an earlier result version follow, at most ray.upgrade_limit: see tasks/units/upgrade.py.

    factory: picklable, without arguments, builds the worker once in each process (functools.partial of a class).
    only: leave pending units with other indices alone.
    Raises StorageError where the destination cannot be written, WorkerStartError where the factory fails, EngineError
    where workers keep dying, RunInterrupted on Ctrl-C or SIGTERM; what is committed stays in every case.
    """
    config = ray or RayConfig()
    plan.store.check_writable()
    plan.store.sweep()
    with Compactor(plan) as compactor:
        renewed = list(outdated(plan))[: config.upgrade_limit] if config.upgrade else []
        ledger = _Ledger(plan, compactor, config.attempts, on_progress, only, renewed)
        if ledger.todo:
            _work(plan, factory, config, ledger)
    return ledger.summary()


def _work(plan: Plan, factory: Factory, config: RayConfig, ledger: _Ledger) -> None:
    if config.workers != 0:
        connect(config)  # before the signal handler: ray.init sets its own
    try:
        with sigterm_interrupts():
            ledger.on_progress(ledger.progress())
            if config.workers == 0:
                _run_here(plan, factory, config, ledger)
            else:
                with paths_of_run(plan, factory, config) as paths:
                    _Crew(plan, factory, config, ledger, paths).run()
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
            ledger.take(unit, runner.run(unit), began)


# --- Ray --------------------------------------------------------------------------------------------------------------


@dataclass
class _Flight:
    """What an actor is at: a unit, or (None) building its worker."""

    actor: Any
    unit: Unit | None
    deadline: float
    began: float = field(default_factory=time.monotonic)


class _Crew:
    """The actors of one run."""

    def __init__(self, plan: Plan, factory: Factory, config: RayConfig, ledger: _Ledger, paths: SharedPaths) -> None:
        import ray

        self.ray, self.config, self.ledger = ray, config, ledger
        cpus, gpus, self.size = resources_of(config, node_resources())
        self.needs = f"{cpus:g} CPU and {gpus:g} GPU a worker, cluster: {ray.cluster_resources()}"
        remote: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)(_Runner)
        self.build = lambda: remote.remote(plan, factory, config.threads, paths.renewed(), cpus)
        logger.info("%d workers of %g CPU and %g GPU", min(self.size, ledger.todo), cpus, gpus)
        ledger.workers, ledger.cores, ledger.gpus = min(self.size, ledger.todo), cpus, gpus
        self.flights: dict[Any, _Flight] = {}
        self.leaving: dict[Any, Any] = {}  # actors that were asked to end, by what tells that they have
        self.deaths = 0  # in a row
        self.killed = False  # whether any worker may have left something behind
        self.seen = time.monotonic()  # last sign of life of the cluster

    def run(self) -> None:
        """Keep one unit in flight on every actor until none is left."""
        try:
            for _ in range(self.ledger.workers):
                self.hire()
            while self.flights:
                ready, _ = self.ray.wait(list(self.flights), num_returns=1, timeout=POLL_SECONDS)
                now = time.monotonic()
                if ready:
                    self.seen = now
                elif now - self.seen > LOOK_SECONDS:
                    self.look()
                late = [ref for ref, flight in self.flights.items() if flight.deadline < now and ref not in ready]
                for ref in ready:
                    self.land(ref, self.flights.pop(ref))
                for ref in late:
                    self.expire(self.flights.pop(ref))
        finally:
            self.close()

    def close(self) -> None:
        """End every actor, and take away on each node what those left that were killed."""
        for flight in self.flights.values():
            self.kill(flight)
        if self.leaving and working_nodes():
            _, late = self.ray.wait(list(self.leaving), num_returns=len(self.leaving), timeout=EXIT_SECONDS)
            for ref in late:
                self.ray.kill(self.leaving[ref], no_restart=True)
        if self.killed:
            everywhere(_sweep, self.ledger.plan)

    def look(self) -> None:
        """Raise EngineError where Ray's nodes are gone: it would wait for their workers' results for ever."""
        self.seen = time.monotonic()
        if not any(node["Alive"] for node in self.ray.nodes()):
            raise EngineError(
                "Ray's node died (no memory left? look at dmesg). What is committed stays; go on with the same command"
            )

    def hire(self) -> None:
        actor = self.build()
        self.flights[actor.start.remote()] = _Flight(actor, None, time.monotonic() + self.config.start_timeout_s)

    def kill(self, flight: _Flight) -> None:
        self.killed = True
        self.ray.kill(flight.actor, no_restart=True)
        self.dismiss(flight)  # tells when it is gone

    def dismiss(self, flight: _Flight) -> None:
        """Let an idle actor end by itself, so that it cleans up."""
        self.leaving[flight.actor.__ray_terminate__.remote()] = flight.actor

    def employ(self, flight: _Flight) -> None:
        """The next unit for a free actor, or its dismissal."""
        unit = self.ledger.next_unit()
        if unit is None:
            self.dismiss(flight)
            return
        deadline = time.monotonic() + self.config.unit_timeout_s
        self.flights[flight.actor.run.remote(unit)] = _Flight(flight.actor, unit, deadline)

    def land(self, ref: Any, flight: _Flight) -> None:
        """Take what an actor returned, or bury it."""
        errors = self.ray.exceptions
        try:
            result = self.ray.get(ref)
        except errors.RayTaskError as error:  # raised by the worker's factory, or by storage
            self.dismiss(flight)
            if flight.unit is None:
                raise _start_error(error.cause) from error
            if isinstance(error.cause, StorageError):
                raise StorageError(str(error.cause)) from error
            raise EngineError(f"unit {flight.unit.index} could not be committed: {error.cause}") from error
        except errors.RayError as error:
            self.died(flight, error)
            return
        if flight.unit is not None:
            self.deaths = 0
            self.ledger.take(flight.unit, result, flight.began)
        self.employ(flight)

    def died(self, flight: _Flight, error: Exception) -> None:
        if getattr(error, "actor_init_failed", False):
            raise _start_error(error) from error
        self.kill(flight)  # Ray may only have lost sight of it
        self.deaths += 1
        if self.deaths >= self.config.max_deaths_in_a_row:
            raise EngineError(
                f"{self.deaths} workers died in a row, the last with: {str(error).splitlines()[0]} "
                "Look at memory (dmesg) and `ray logs`, then go on with --resume; fewer workers need less memory"
            ) from error
        if flight.unit is not None:
            failure = _Failure("WorkerDied", f"the worker process died on this unit ({type(error).__name__})")
            self.ledger.take(flight.unit, failure, flight.began)
        self.replace()

    def expire(self, flight: _Flight) -> None:
        """Kill an actor that is over its time."""
        self.kill(flight)
        if flight.unit is not None:
            message = f"no result after {self.config.unit_timeout_s:g} s (ray.unit_timeout_s)"
            self.ledger.take(flight.unit, _Failure("UnitTimeout", message), flight.began)
            self.replace()
        elif not self.flights:
            raise EngineError(
                f"no worker started in {self.config.start_timeout_s:g} s (ray.start_timeout_s): {self.needs}. Ask for "
                "less with ray.cpus_per_worker and ray.gpus_per_worker, or look at `ray status`"
            )

    def replace(self) -> None:
        """A new actor for a dead one, if there is a unit for it."""
        in_flight = sum(flight.unit is not None for flight in self.flights.values())
        starting = len(self.flights) - in_flight
        if self.ledger.todo - self.ledger.units - self.ledger.kept - in_flight > starting:
            self.hire()


def _sweep(plan: Plan) -> None:
    sweep_node()
    plan.store.sweep()


def _start_error(error: BaseException) -> WorkerStartError:
    return WorkerStartError(
        f"the worker could not be built: {type(error).__name__}: {error}. No unit was tried; mend it, then go on with "
        "the same command"
    )
