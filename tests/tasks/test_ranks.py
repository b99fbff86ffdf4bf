"""Ranks on Ray Train: a rank that is killed is replaced, and the run ends as two ranks without Ray do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.resume import kill_rank
from schemas.train import TrainRayConfig
from tasks.ranks import train_stage
from tasks.train import TrainError, TrainProgress
from tests.conftest import S3Endpoint
from tests.tasks.training import assert_equal_states, job_of, last_state, small_config, train_on_two_ranks

SIX = {"steps": 6, "subjects": 2, "images": 2}
ONE_CORE_EACH = TrainRayConfig(workers=2)


@pytest.mark.timeout(600)
def test_a_killed_rank_costs_nothing(ray_cluster: None, s3: S3Endpoint, tmp_path: Path) -> None:
    dest = s3.uri("trained")
    killed: list[int] = []

    def kill_once(progress: TrainProgress) -> None:
        if not killed and progress.step >= 3:
            killed.append(progress.step)
            kill_rank()

    job = job_of(small_config(dest, coarse=SIX))
    last = train_stage(job, ONE_CORE_EACH, kill_once)
    assert killed
    assert last is not None
    assert last.step == 6
    train_on_two_ranks(job_of(small_config(tmp_path, coarse=SIX)))
    assert_equal_states(last_state(dest)[1], last_state(tmp_path)[1], tolerance=1e-6)


@pytest.mark.timeout(300)
def test_an_error_of_ours_arrives_as_it_was(ray_cluster: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    job = job_of(small_config(tmp_path, coarse={"steps": 40, "subjects": 2, "images": 2, "lr": 1e30}, clip_norm=None))
    with pytest.raises(TrainError, match="without a finite gradient"):
        train_stage(job, TrainRayConfig(workers=1, max_failures=0))
