"""One description drives every flow over units: effective config, frozen plan, run, summary.

A new flow is a config and a summary in schemas/ (listed in schemas/flows.py), a worker in tasks/, and a `UnitFlow` in
pipelines/; its command and its Prefect flow are an entry each in cli.py and flows.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from pipelines.places import SUMMARY
from pipelines.status import Lines
from schemas.engine import RayConfig
from schemas.flows import UNIT_FLOWS
from schemas.ledger import Item
from schemas.progress import OnUnitProgress
from schemas.results import LATER_SETTINGS
from tasks.sources.endings import left_out_words
from tasks.store.storage import Store
from tasks.units.engine import Factory, RunSummary, Worker, run_units
from tasks.units.plan import CONFIG, PLAN, Plan, PlanError, load_plan
from tasks.units.ray_cluster import expected_workers
from tasks.units.reasons import check_rows
from tasks.units.rounds import Mode, begin_upgrade, check_results, open_or_build, plan_retry
from tasks.units.shared_paths import prove_paths
from tasks.units.verify import Status, status

# Per-run settings: a run has its own, also where the stored config wins.
PER_RUN = ("existing", "ray", "consensus", "consensus_detail", "price_per_hour", "video")
MODES: dict[str, Mode] = {"new": "new", "extend": "extend"}

Function = TypeVar("Function", bound=Callable[..., Any])
Config = TypeVar("Config", bound=Any)
Summary = TypeVar("Summary", bound=BaseModel)
AsTask = Callable[[Function], Function]

logger = logging.getLogger("deca")


def direct(function: Function) -> Function:
    """Return the stage as it is: no engine watches it."""
    return function


def store_config(plan: Plan, config: BaseModel) -> None:
    """Write the resolved config beside a dataset."""
    plan.store.write(CONFIG, config.model_dump_json(indent=2).encode())


def stored_config(dest: str, kind: type[Config]) -> Config:
    """Return the resolved config stored beside a dataset. Raises PlanError where there is none."""
    store = Store(dest)
    load_plan(dest)
    try:
        config: Config = kind.model_validate_json(store.read(CONFIG))
    except (FileNotFoundError, ValidationError) as error:
        raise PlanError(f"{store.join(CONFIG)}: missing or of another version ({error}). Run with --new") from error
    return config


def effective_config(config: Config, dest: str) -> Config:
    """Effective config: on resume and retry the stored config wins, except per-run fields."""
    if config.existing not in ("resume", "retry"):
        return config
    stored = stored_config(dest, type(config))
    return stored.model_copy(update={name: getattr(config, name) for name in PER_RUN if hasattr(config, name)})


def fill_in(config: Config, dest: str, name: str, new: Any) -> Config:
    """Return the config with an open setting (None) as the plan in DEST has it, or `new` where no plan is resumed.

    A plan that was made before the setting existed resumes with the value in LATER_SETTINGS. A setting that is no part
    of this config's plan stays open.
    """
    if getattr(config, name) is not None or name not in config.plan_config():
        return config
    resumes = config.existing != "new" and Store(dest).exists(PLAN)
    planned = load_plan(dest).record.config.get(name, LATER_SETTINGS[name]) if resumes else new
    return config.model_copy(update={name: planned})


def stored_plan(dest: str, existing: str, weights: dict[str, str], upgrade: bool = False) -> Plan:
    """Return the plan in DEST, for "retry" with a new round over its quarantine.

    PlanError where models differ from those of the plan, ResultsConflict where the meaning of rows does.
    """
    plan = check_results(load_plan(dest), upgrade)
    changed = sorted(name for name, sha in plan.record.weights.items() if weights.get(name) != sha)
    if changed:
        raise PlanError(
            f"{plan.dest}: {', '.join(changed)} changed since the plan was made, so the new rows would not fit the "
            "earlier ones. Bring back the earlier files, or start over with --new"
        )
    if existing == "retry":
        plan = plan_retry(dest)
    return begin_upgrade(plan) if upgrade else plan


@dataclass(frozen=True)
class Inputs:
    """What a new plan is frozen from."""

    source: str
    items: Iterator[Item] | None = None  # None: the images of the source, listed with config.inputs
    pinned: dict[str, Any] = field(default_factory=dict)  # joins the plan's config
    sized_by_workers: bool = True  # False: unit boundaries must not depend on the machine


def rate(run: RunSummary) -> float:
    """Rows a second of a run; 0 where there were none."""
    return round(run.rows / run.seconds, 2) if run.rows else 0.0


@dataclass(frozen=True)
class UnitFlow(Generic[Config, Summary]):
    """A flow over units. Calling it runs its stages; calling it again resumes.

    name: as in schemas/flows.py. worker, arguments: class of the workers and what it is built from.
    prepare: effective config. weights: loads every model once before any work; returns hashes by name.
    inputs: what a new plan is frozen from. after: stages after the run, called with (plan, config, run); their results
    go to figures. figures: the summary's own fields, from (plan, config, run, status, *results of after).
    lines: those fields as lines for the terminal. report: writes pages, from (plan, summary, *results of after).
    """

    name: str
    worker: Callable[..., Worker]
    prepare: Callable[[Config], Config]
    weights: Callable[[Config], dict[str, str]]
    inputs: Callable[[Config], Inputs]
    summary: type[Summary]
    figures: Callable[..., dict[str, Any]]
    lines: Callable[[Summary], Lines]
    arguments: Callable[[Plan, Config], tuple[Any, ...]] = lambda plan, config: (config,)
    after: tuple[Callable[[Plan, Config, RunSummary], Any], ...] = ()
    report: Callable[..., object] | None = None
    dest: Callable[[Config], str] = lambda config: config.dest
    ray: Callable[[Config], RayConfig] = lambda config: config.ray

    def __call__(
        self, config: Config, on_progress: OnUnitProgress | None = None, as_task: AsTask[Any] = direct
    ) -> Summary:
        """Run the stages. as_task: wraps each stage, for an engine that watches them (Prefect)."""
        config = as_task(self.prepare)(config)
        as_task(prove_paths)(config)
        weights = as_task(self.weights)(config)
        plan = as_task(self.freeze_plan)(config, weights)
        run = as_task(self.run_units)(plan, config, on_progress)
        results = [as_task(stage)(plan, config, run) for stage in self.after]
        return as_task(self.summarise)(plan, config, run, *results)

    def freeze_plan(self, config: Config, weights: dict[str, str]) -> Plan:
        """List the items and cut them into units, or open the plan in DEST."""
        dest, upgrade = self.dest(config), config.ray.upgrade
        if config.existing in ("resume", "retry"):
            plan = stored_plan(dest, config.existing, weights, upgrade)
        else:
            inputs = self.inputs(config)
            plan = open_or_build(
                dest,
                inputs.source,
                config=config.plan_config() | inputs.pinned,
                weights=weights,
                source_config=getattr(config, "inputs", None),
                units=config.units,
                workers=expected_workers(self.ray(config)) if inputs.sized_by_workers else None,
                items=inputs.items,
                mode=MODES.get(config.existing, "auto"),
                upgrade=upgrade,
            )
            store_config(plan, config)
        logger.info(
            "%d %s in %d units, plan %s", plan.inputs.items, self._items(plan), plan.units, plan.fingerprint[:8]
        )
        if plan.record.images_left_out:
            logger.warning("images left out: %s", left_out_words(plan.record.images_left_out))
        return plan

    def factory(self, plan: Plan, config: Config) -> Factory:
        """Return what builds a worker of the plan in its process."""
        return partial(self.worker, *self.arguments(plan, config))

    def run_units(self, plan: Plan, config: Config, on_progress: OnUnitProgress | None) -> RunSummary:
        """Run the pending units on Ray. Raises NoRowsError where the plan has no row at the end."""
        run = run_units(plan, self.factory(plan, config), self.ray(config), on_progress)
        check_rows(plan, run.rows, self._items(plan))
        return run

    def summarise(self, plan: Plan, config: Config, run: RunSummary, *results: Any) -> Summary:
        """Count the dataset, and write the summary beside it."""
        now = status(plan.dest)
        summary = self.summary(**self.counts(now, run), **self.figures(plan, config, run, now, *results))
        if self.report is not None:
            self.report(plan, summary, *results)
        plan.store.write(SUMMARY, summary.model_dump_json(indent=2).encode())
        return summary

    def counts(self, now: Status, run: RunSummary) -> dict[str, Any]:
        """Return the fields that summaries share, as far as this one has them."""
        fields = {
            "outcome": "complete" if now.complete else "partial",
            "source": now.source,
            "dest": now.dest,
            "bytes": now.bytes,
            "quarantined": now.quarantined,
            "images_left_out": now.images_left_out,
            "pending_units": now.pending,
            "units_run": run.units_run,
            "units_skipped": run.units_skipped,
            "seconds": round(run.seconds, 2),
            "fingerprint": now.fingerprint,
            "code": now.code,
        }
        return {name: value for name, value in fields.items() if name in self.summary.model_fields}

    def _items(self, plan: Plan) -> str:
        """The noun for the items of a plan."""
        return "faces" if "faces" in plan.record.config else UNIT_FLOWS[self.name].items
