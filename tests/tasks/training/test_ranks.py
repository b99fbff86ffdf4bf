"""Ranks on Ray Train: a rank that is killed is replaced, and the run ends as two ranks without Ray do."""

from __future__ import annotations

import os
import signal
import time
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.processes import descendants
from schemas.progress import Timing, TrainProgress
from schemas.train import TrainRayConfig
from tasks.training import ranks
from tasks.training.ranks import train_stage
from tasks.training.stage import TrainError
from tasks.units.ray_cluster import Pinboard
from tests.chaos.processes import named
from tests.conftest import S3Endpoint
from tests.tasks.train_runs import assert_equal_states, job_of, last_state, small_config, train_on_two_ranks

SIX = {"steps": 6, "subjects": 2, "images": 2}
ONE_CORE_EACH = TrainRayConfig(workers=2)


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_error_of_ours_arrives_as_it_was(ray_cluster: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    job = job_of(small_config(tmp_path, coarse={"steps": 40, "subjects": 2, "images": 2, "lr": 1e30}, clip_norm=None))
    with pytest.raises(TrainError, match="without a finite gradient"):
        train_stage(job, TrainRayConfig(workers=1, max_failures=0))


FLOW: ContextVar[str] = ContextVar("FLOW", default="none")


@pytest.fixture
def board(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A board that shows step 3."""
    import ray

    monkeypatch.setattr(ranks, "POLL_SECONDS", 0.01)
    board = ray.remote(num_cpus=0)(Pinboard).remote()
    shown = {name: 0 for name in TrainProgress.__dataclass_fields__} | {"step": 3, "timing": asdict(Timing())}
    ray.get(board.pin.remote(shown))
    yield board
    ray.kill(board)


def kill_rank() -> None:
    """SIGKILL a rank that descends from this process."""
    os.kill(named(descendants(os.getpid()), "RayTrainWorker")[0], signal.SIGKILL)


@pytest.mark.slow
def test_progress_is_reported_in_the_context_of_the_run(board: Any) -> None:
    seen: list[tuple[int, str]] = []
    FLOW.set("train-run")
    with ranks._watched(board, lambda progress: seen.append((progress.step, FLOW.get()))):
        wait_until(lambda: bool(seen))
    assert seen == [(3, "train-run")]


@pytest.mark.slow
def test_a_report_that_fails_is_raised_once_the_training_has_ended(board: Any) -> None:
    calls: list[int] = []

    def note(progress: TrainProgress) -> None:
        calls.append(progress.step)
        raise ValueError("no artifact")

    def train(error: Exception | None = None) -> None:
        with ranks._watched(board, note):
            wait_until(lambda: len(calls) > len(trained))
            trained.append(1)
            if error is not None:
                raise error

    trained: list[int] = []
    with pytest.raises(ValueError, match="no artifact"):
        train()
    assert (calls, trained) == ([3], [1])
    with pytest.raises(TrainError, match="the real one"):
        train(TrainError("the real one"))


@pytest.mark.slow
def test_a_board_that_died_costs_the_reports_only(board: Any, caplog: pytest.LogCaptureFixture) -> None:
    import ray

    ray.kill(board)
    with ranks._watched(board, lambda progress: None):
        pass
    assert "no progress of the ranks could be read" in caplog.text


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
