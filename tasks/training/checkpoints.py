"""The state of a training run in storage: everything that the next step depends on, published atomically.

    checkpoints/<stage>/00000200/weights.safetensors     every parameter and buffer of the model
    checkpoints/<stage>/00000200/mean.safetensors        the running mean of the trained ones (EMA)
    checkpoints/<stage>/00000200/optimizer.safetensors   Adam's moments and counts, "<parameter>.<what>"
    checkpoints/<stage>/00000200.json                    the record, written last: it commits the files

Random numbers need no file: every step seeds its own from (seed, stage, step, rank), see `stage.step_seed`. No
pickle is used.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn, optim

from schemas.ledger import StoredFile
from schemas.train import CheckpointRecord, StageName, TrainPlan
from tasks.store.storage import Store
from tasks.training.records import FOLDER, TrainStateError, list_checkpoints
from tasks.units.draft import code_version

WEIGHTS, MEAN, OPTIMIZER = "weights", "mean", "optimizer"

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class TrainState:
    """The state that a run resumes from."""

    weights: Tensors
    mean: Tensors  # empty where the run has no EMA
    optimizer: Tensors
    step: int = 0  # optimiser steps done in this stage
    data: dict[str, Any] = field(default_factory=dict)  # position in the data, `Samples.state_dict`


def publish_state(
    store: Store, plan: TrainPlan, stage: StageName, ranks: int, state: TrainState, validation: dict[str, float]
) -> CheckpointRecord:
    """Write a checkpoint, its record last. A repeated run writes the same bytes under the same names."""
    name = f"{FOLDER}/{stage}/{state.step:08d}"
    parts = {WEIGHTS: state.weights, MEAN: state.mean, OPTIMIZER: state.optimizer}
    files = [_publish(store, f"{name}/{part}.safetensors", tensors) for part, tensors in parts.items() if tensors]
    record = CheckpointRecord(
        plan=plan,
        stage=stage,
        step=state.step,
        data=state.data,
        ranks=ranks,
        files=files,
        validation=validation,
        code=code_version(),
    )
    store.write(f"{name}.json", record.model_dump_json(indent=2).encode())
    return record


def _publish(store: Store, name: str, tensors: Tensors) -> StoredFile:
    # Not `save_file`: its temp file is its own and outlives its process, and a full disk is no OSError there.
    data = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    size, sha256 = store.write(name, data)
    return StoredFile(file=name, bytes=size, sha256=sha256)


def read_state(store: Store, record: CheckpointRecord) -> TrainState:
    """The state of a checkpoint. Raises TrainStateError where a file is missing or not what was published."""
    parts: dict[str, Tensors] = {WEIGHTS: {}, MEAN: {}, OPTIMIZER: {}}
    for file in record.files:
        part = file.file.rpartition("/")[2].partition(".")[0]
        parts[part] = _read(store, file)
    return TrainState(**parts, step=record.step, data=record.data)


def _read(store: Store, file: StoredFile) -> Tensors:
    try:
        data = store.read(file.file)
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise TrainStateError(f"{store.join(file.file)} changed since it was published")
        return load(data)
    except (FileNotFoundError, SafetensorError, TrainStateError) as error:
        raise TrainStateError(
            f"{store.join(file.file)}: {error}. Delete {record_of(file)} to resume from the checkpoint before it"
        ) from error


def record_of(file: StoredFile) -> str:
    """Name of the record that a checkpoint's file belongs to."""
    return f"{file.file.rpartition('/')[0]}.json"


def prune(store: Store, stage: StageName, keep_last: int, keep_best: int) -> list[int]:
    """Delete all checkpoints of a stage except the last and the best ones; returns the deleted steps.

    Records are deleted after their files, so the next call finishes an interrupted one. Such a record is never resumed
    from: it is neither the last nor among the best.
    """
    records = list_checkpoints(store, stage)
    validated = [record for record in records if "total" in record.validation]
    best = sorted(validated, key=lambda record: (record.validation["total"], -record.step))[:keep_best]
    kept = {record.step for record in [*records[-keep_last:], *best]}
    gone = [record for record in records if record.step not in kept]
    for record in gone:
        for file in record.files:
            store.delete(file.file)
        store.delete(f"{FOLDER}/{stage}/{record.step:08d}.json")
    return [record.step for record in gone]


# --- Adam without pickle ----------------------------------------------------------------------------------------------


def optimizer_tensors(optimizer: optim.Optimizer, named: dict[str, nn.Parameter]) -> Tensors:
    """Adam's state as "<parameter>.<what>"; empty before its first step."""
    return {
        f"{name}.{what}": value
        for name, parameter in named.items()
        for what, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(optimizer: optim.Optimizer, named: dict[str, nn.Parameter], tensors: Tensors) -> None:
    """Inverse of `optimizer_tensors`; the settings (lr, betas) are the optimiser's own.

    Raises TrainStateError where the tensors belong to other parameters.
    """
    found: dict[str, Tensors] = {}
    for key, value in tensors.items():
        name, _, what = key.rpartition(".")
        found.setdefault(name, {})[what] = value
    if unknown := sorted(set(found) - set(named)):
        raise TrainStateError(f"the optimiser's state has parameters that the model lacks: {', '.join(unknown)}")
    for name, values in found.items():
        parameter = named[name]
        # The count of steps stays on the CPU, as Adam itself keeps it; clones, because a file's memory is shared.
        optimizer.state[parameter] = {
            what: value.clone() if what == "step" else value.to(parameter.device, copy=True)
            for what, value in values.items()
        }
