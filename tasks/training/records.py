"""Records of a training run: its plan, finished stages, checkpoints, and whether the model is published.

Small JSON files, read without torch. The tensors beside them: tasks/training/checkpoints.py.
"""

from __future__ import annotations

import json

from pydantic import ValidationError

from deca_core.checkpoint_meta import META_FILE
from deca_core.errors import DecaError
from schemas.train import STAGES, CheckpointRecord, StageName, StageRecord, TrainPlan
from tasks.store.storage import Store
from tasks.units.plan import PlanError

TRAIN, STAGE_FOLDER, MODEL = "_train.json", "_stages", "model"
FOLDER = "checkpoints"


class TrainStateError(DecaError):
    """A checkpoint of a run that is damaged or does not fit the run."""


def stored_plan(store: Store) -> TrainPlan | None:
    """The plan of the run in a folder; None where there is no run. Raises PlanError for a damaged record."""
    try:
        return TrainPlan.model_validate_json(store.read(TRAIN))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise PlanError(f"{store.join(TRAIN)} is damaged or of another version. Start over with --new") from error


def finished_stages(store: Store) -> dict[str, StageRecord]:
    """Results of the finished stages of a run."""
    names = {name: stage_file(name) for name in STAGES}
    return {
        name: StageRecord.model_validate_json(store.read(file)) for name, file in names.items() if store.exists(file)
    }


def stage_file(name: StageName) -> str:
    """Name of the record of a finished stage."""
    return f"{STAGE_FOLDER}/{name}.json"


def is_published(store: Store, plan: TrainPlan) -> bool:
    """Whether the model in a folder is that of this plan."""
    try:
        meta = json.loads(store.read(f"{MODEL}/{META_FILE}"))
    except FileNotFoundError:
        return False
    return bool(meta["info"].get("run") == plan.fingerprint)


def list_checkpoints(store: Store, stage: StageName) -> list[CheckpointRecord]:
    """Every checkpoint of a stage, first step first. Raises TrainStateError for a record that cannot be read."""
    records = [_record(store, name) for name in store.list(f"{FOLDER}/{stage}")]
    return sorted(records, key=lambda record: record.step)


def checkpoint_at(store: Store, stage: StageName, step: int) -> CheckpointRecord:
    """The checkpoint of a step, by its name, as a listing may lag behind a write.

    Raises FileNotFoundError where there is none, TrainStateError for a record that cannot be read.
    """
    return _record(store, f"{FOLDER}/{stage}/{step:08d}.json")


def _record(store: Store, name: str) -> CheckpointRecord:
    try:
        return CheckpointRecord.model_validate_json(store.read(name))
    except ValidationError as error:
        raise TrainStateError(
            f"{store.join(name)} is damaged or of another version ({error.error_count()} errors). Delete it to "
            "resume from the checkpoint before it"
        ) from error
