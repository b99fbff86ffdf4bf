"""What all flows share: how stages are wrapped, and how a run goes on with a dataset that is already there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationError

from schemas.animate import AnimateConfig
from schemas.evaluate import EvaluateConfig
from schemas.export import ExportConfig
from schemas.faces import ANNOTATIONS_FOLDER, CURRENT, FACES_FOLDER
from schemas.ingest import IngestConfig
from schemas.reconstruct import ReconstructConfig
from schemas.results import LATER_SETTINGS
from schemas.world import SynthConfig
from tasks.store.storage import Store
from tasks.units.plan import CONFIG, PLAN, Plan, PlanError, load_plan

SUMMARY = "_report/summary.json"
# Settings of a run, not of its rows: they hold as they are asked for, also where a run goes on.
OF_A_RUN = ("existing", "ray", "consensus", "consensus_detail", "price_per_hour", "video")

Function = TypeVar("Function", bound=Callable[..., Any])
Config = TypeVar("Config", ReconstructConfig, IngestConfig, SynthConfig, EvaluateConfig, ExportConfig, AnimateConfig)
Stage = Callable[[Function], Function]


def annotations_of(dest: str) -> str:
    """Where ingest puts its annotations."""
    return Store(dest).join(ANNOTATIONS_FOLDER)


def faces_of(dest: str) -> str:
    """Where ingest puts its faces."""
    return Store(dest).join(FACES_FOLDER)


def planned_dataset(dest: str) -> str:
    """The dataset with a plan that a person means by DEST: DEST itself, or the annotations of an ingest."""
    inside = annotations_of(dest)
    return inside if not Store(dest).exists(PLAN) and Store(inside).exists(PLAN) else Store(dest).uri


def find_faces(dest: str) -> str | None:
    """The faces that a person means by DEST: DEST itself, or those below it; None where neither is."""
    places = (Store(dest).uri, faces_of(dest))
    return next((place for place in places if Store(place).exists(CURRENT)), None)


def direct(function: Function) -> Function:
    """The stage as it is: no engine watches it."""
    return function


def store_config(plan: Plan, config: Config) -> None:
    """Put the resolved settings beside a dataset."""
    plan.store.write(CONFIG, config.model_dump_json(indent=2).encode())


def stored_config(dest: str, kind: type[Config]) -> Config:
    """The resolved settings that lie beside a dataset. Raises PlanError where there are none."""
    store = Store(dest)
    load_plan(dest)
    try:
        return kind.model_validate_json(store.read(CONFIG))
    except (FileNotFoundError, ValidationError) as error:
        raise PlanError(f"{store.join(CONFIG)}: missing or of another version ({error}). Run with --new") from error


def settle(config: Config, dest: str) -> Config:
    """The settings that hold: to go on with a stored plan is to go on with its settings, but for those of a run."""
    if config.existing not in ("resume", "retry"):
        return config
    stored = stored_config(dest, type(config))
    return stored.model_copy(update={name: getattr(config, name) for name in OF_A_RUN if hasattr(config, name)})


def fill_in(config: Config, dest: str, name: str, new: Any) -> Config:
    """A setting that is left open (None) as the plan in DEST has it, or `new` where there is none to go on with.

    A plan that was made before there was the setting goes on as LATER_SETTINGS says.
    """
    if getattr(config, name) is not None:
        return config
    goes_on = config.existing != "new" and Store(dest).exists(PLAN)
    planned = load_plan(dest).record.config.get(name, LATER_SETTINGS[name]) if goes_on else new
    return config.model_copy(update={name: planned})


def stored_plan(dest: str, existing: str, weights: dict[str, str], upgrade: bool = False) -> Plan:
    """The plan to go on with, for "retry" with a new round over its quarantine.

    PlanError where models differ from those of the plan, ResultsConflict where the meaning of rows does.
    """
    from tasks.units.rounds import begin_upgrade, check_results, plan_retry

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
