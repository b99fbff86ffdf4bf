"""Training on faces of the world: exact on resume, equal on one rank and on two, stopped when it explodes."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from schemas.progress import TrainProgress
from tasks.store.storage import Store
from tasks.training.inputs import TrainConfigError, arithmetic, stage_weights, training_samples
from tasks.training.records import list_checkpoints
from tasks.training.stage import StageRun, TrainError, learning_rate, step_seed
from tests.tasks.train_runs import OFF, assert_equal_states, job_of, last_state, small_config, train_on_two_ranks

TWENTY = {"steps": 20, "subjects": 2, "images": 2}
ROOT = Path(__file__).resolve().parents[3]

# A driver that dies in the middle of the stage, one step after a checkpoint.
KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
from tasks.training.stage import StageRun
from tests.tasks.train_runs import job_of, small_config

def die(progress):
    if progress.step == 3:
        os.kill(os.getpid(), signal.SIGKILL)

StageRun(job_of(small_config(sys.argv[1]))).run(die)
"""


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(dest: Path, **settings: Any) -> list[TrainProgress]:
    seen: list[TrainProgress] = []
    StageRun(job_of(small_config(dest, **settings))).run(seen.append)
    return seen


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    train(tmp_path / "straight")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed")]
    died = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240, check=False)
    assert died.returncode == -signal.SIGKILL
    assert last_state(tmp_path / "killed")[0].step == 2
    resumed = train(tmp_path / "killed")
    assert [progress.step for progress in resumed] == [3, 4]
    assert_equal_states(last_state(tmp_path / "straight")[1], last_state(tmp_path / "killed")[1])


@pytest.mark.slow
def test_metrics_of_a_resumed_run_are_those_of_a_straight_one(tmp_path: Path) -> None:
    train(tmp_path / "straight")
    train(tmp_path / "parts", coarse={"steps": 2, "subjects": 2, "images": 2})
    train(tmp_path / "parts")
    straight, parts = (
        {path.name: path.read_text() for path in (tmp_path / name / "metrics/coarse").iterdir()}
        for name in ("straight", "parts")
    )
    assert straight == parts
    assert sorted(straight) == ["00000002.jsonl", "00000004.jsonl"]


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns_with_the_double_batch(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"batch_norm": "eval", "coarse": TWENTY, "checkpoint_every": 20}
    train_on_two_ranks(job_of(small_config(tmp_path / "two", **settings)))
    straight = [progress.losses["total"] for progress in train(tmp_path / "one", **settings)]
    lines = (tmp_path / "two/metrics/coarse/00000020.jsonl").read_text().splitlines()
    two = [step["total"] for step in map(json.loads, lines) if "total" in step]
    assert two == pytest.approx(straight, rel=1e-3)
    assert two[-1] < two[0]


def test_accumulated_parts_learn_what_the_whole_batch_teaches(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", batch_norm="eval")
    parts = train(
        tmp_path / "parts", batch_norm="eval", coarse={"steps": 4, "subjects": 2, "images": 2, "accumulate": 2}
    )
    assert [p.losses["total"] for p in parts] == pytest.approx([p.losses["total"] for p in whole], rel=1e-3)


def test_checkpoints_are_pruned_by_validation(tmp_path: Path) -> None:
    train(tmp_path, checkpoint_every=1, keep_last=1, keep_best=1, validation_batches=1)
    records = list_checkpoints(Store(tmp_path), "coarse")
    assert records[-1].step == 4
    assert 1 <= len(records) <= 2
    assert all(math.isfinite(record.validation["total"]) for record in records)


def test_an_explosion_ends_the_run_with_its_terms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.training.stage.DIVERGED_AFTER", 2)
    coarse = {"steps": 6, "subjects": 2, "images": 2, "lr": 1e30}
    with pytest.raises(TrainError, match=r"coarse diverges: 2 steps in a row without a finite .*landmark.*smaller lr"):
        train(tmp_path, coarse=coarse, clip_norm=None)
    [saved] = (tmp_path / "_failed").iterdir()
    batch = load_file(saved)
    assert batch["images"].shape == (4, 3, 224, 224)
    assert batch["landmarks"].shape == (4, 68, 3)


def test_a_loss_that_climbs_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = StageRun(job_of(small_config(tmp_path)))
    monkeypatch.setattr(run, "_save_batch", lambda: "kept")

    def watch(*losses: float) -> None:
        for loss in losses:
            run._watch({"total": torch.tensor(loss), "gradient": torch.tensor(1.0)})

    watch(*[50.0] * 30, *[1.0] * 100)  # a stage's first losses may fall from anywhere
    watch(*[20.0] * 19, 9.0, *[20.0] * 19)
    with pytest.raises(TrainError, match=r"20 steps in a row .* more than 10 times the median, usually 1\. .*total 20"):
        watch(20.0)


def test_checkpoints_come_with_events_for_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, validation_batches=1)
    events = EventAccumulator(str(tmp_path / "tensorboard/coarse"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/landmark")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("validation/nme")] == [0, 2, 4]
    assert [event.step for event in events.Images("faces")] == [2, 4]
    names = sorted(path.name for path in (tmp_path / "tensorboard/coarse").iterdir())
    assert names == ["events.out.tfevents.00000002", "events.out.tfevents.00000004"]


def test_a_run_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing to train: pretrain\.steps, coarse\.steps, detail\.steps are all 0"):
        small_config(tmp_path, coarse=OFF)


def test_seeds_of_steps_differ() -> None:
    seeds = {
        step_seed(seed, stage, step, rank)
        for seed in range(3)
        for stage in ("pretrain", "coarse", "detail")
        for step in range(20)
        for rank in range(3)
    }
    assert len(seeds) == 3 * 3 * 20 * 3
    assert step_seed(1, "coarse", 5, 0) == step_seed(1, "coarse", 5, 0)


def test_learning_rate_rises_and_falls(tmp_path: Path) -> None:
    stage = {"steps": 110, "subjects": 2, "images": 2, "lr": 2.0, "warmup": 10, "schedule": "cosine"}
    config = small_config(tmp_path, coarse=stage)
    rates = [learning_rate(config, "coarse", step) for step in range(110)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[10] == pytest.approx(2.0)
    assert rates[60] == pytest.approx(2.0 * (0.01 + 0.99 / 2))
    assert rates[-1] == pytest.approx(0.02, rel=0.05)
    constant = small_config(tmp_path, coarse={"steps": 9, "subjects": 2, "images": 2, "lr": 3.0})
    assert {learning_rate(constant, "coarse", step) for step in range(9)} == {3.0}


def test_own_weights_replace_the_recipes(tmp_path: Path) -> None:
    weights = stage_weights(small_config(tmp_path, weights={"coarse": {"photometric": 0.5}}), "coarse")
    assert (weights.photometric, weights.landmark) == (0.5, 1.0)
    for stage in ("coarse", "detail"):
        assert stage_weights(small_config(tmp_path, weights={stage: {"skin_mask": 0}}), stage).skin_mask is False
    with pytest.raises(TrainConfigError, match=r"weights\.coarse: no loss named photo; there are .*photometric"):
        stage_weights(small_config(tmp_path, weights={"coarse": {"photo": 0.5}}), "coarse")


def test_ranks_that_do_not_divide_the_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TrainConfigError, match=r"coarse\.subjects 2 cannot be cut .* 3 ranks\. Ask for a multiple of 3"
    ):
        training_samples(small_config(tmp_path), "coarse", 0, 3)


def test_arithmetic_is_what_is_asked_for() -> None:
    cpu = torch.device("cpu")
    assert (arithmetic("fp32", cpu), arithmetic("bf16", cpu)) == ("fp32", "bf16")
    assert arithmetic("auto", cpu) in ("fp32", "bf16")


def test_the_last_layers_take_smaller_steps_where_asked(tmp_path: Path) -> None:
    """One step of Adam moves a weight by the step size, whatever the gradient: those layers by their share of it."""
    moved: dict[bool, dict[str, float]] = {}
    for slow in (False, True):
        config = small_config(
            tmp_path / str(slow), slow_ends=slow, coarse={"steps": 1, "subjects": 2, "images": 2, "lr": 1e-3}, ema=None
        )
        run = StageRun(job_of(config))
        before = {name: value.detach().clone() for name, value in run.named.items()}
        run.run()
        moved[slow] = {name: float((value.detach() - before[name]).abs().max()) for name, value in run.named.items()}
    last = {"E_flame.layers.2.weight", "E_flame.layers.2.bias"}
    assert last < set(moved[True])
    for name, far in moved[False].items():
        assert moved[True][name] == pytest.approx(0.1 * far if name in last else far, rel=0.01), name
        assert far == pytest.approx(1e-3, rel=0.05) or name not in last
