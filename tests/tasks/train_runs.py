"""A run that is small enough for tests: a little backbone, two people of the embedded world, a few steps."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

from schemas.train import CheckpointRecord, StageName, TrainConfig, TrainPlan
from tasks.store.storage import Store
from tasks.training.checkpoints import TrainState, read_state
from tasks.training.records import list_checkpoints
from tasks.training.stage import StageJob, StageRun

OFF = {"steps": 0, "subjects": 1, "images": 1}


def small_config(dest: str | Path, **settings: Any) -> TrainConfig:
    """Only the coarse stage, four steps, unless told."""
    defaults: dict[str, Any] = {
        "source": "world",
        "dest": str(dest),
        "world": {"people": 2, "images": 2, "val_people": 1},
        "data": {"threads": 1, "prefetch": 1},
        "backbone": "mobilenet_v3_small",
        "pretrain": OFF,
        "coarse": {"steps": 4, "subjects": 2, "images": 2},
        "detail": OFF,
        "networks": {"identity": "random", "perceptual": "random"},
        "weights": {"coarse": {"identity": 0.0}},  # its network is the dearest part of a step
        "precision": "fp32",
        "checkpoint_every": 2,
        "validation_batches": 0,
        "log_every": 1,
        "mrf_size": 32,
        "ray": {"workers": 0},
    }
    return TrainConfig.model_validate({**defaults, **settings})


def job_of(config: TrainConfig, stage: StageName = "coarse") -> StageJob:
    plan = TrainPlan(config=config.plan_config(), inputs={}, fingerprint="0" * 64)
    return StageJob(config.dest, config, plan, stage)


def train_on_two_ranks(job: StageJob) -> None:
    """The stage on two ranks of gloo, without Ray."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(_rank, (job, port), nprocs=2)


def _rank(rank: int, job: StageJob, port: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    StageRun(job, rank, 2).run()
    distributed.destroy_process_group()


def last_state(dest: str | Path, stage: StageName = "coarse") -> tuple[CheckpointRecord, TrainState]:
    record = list_checkpoints(Store(dest), stage)[-1]
    return record, read_state(Store(dest), record)


def assert_equal_states(one: TrainState, other: TrainState, tolerance: float = 0.0) -> None:
    """Every tensor of both, bit for bit or within a tolerance."""
    for part in ("weights", "mean", "optimizer"):
        left, right = getattr(one, part), getattr(other, part)
        assert left.keys() == right.keys()
        for name in left:
            difference = (left[name].double() - right[name].double()).abs().max()
            assert torch.equal(left[name], right[name]) or difference <= tolerance, (part, name, float(difference))
    assert (one.step, one.data) == (other.step, other.data)
