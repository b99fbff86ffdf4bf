"""Is a resumed training run the run that was never stopped? `python -m benchmarks.resume [--steps 40] [--dest URI]`

Coarse stage on people of the embedded world, straight through, against the same with a SIGKILL half way: of the driver
(one rank in its process), and of a rank on Ray Train (two ranks). Prints the largest difference of any weight, moment
or mean. --dest names where the checkpoints of the killed runs go, for example s3://bucket/resume.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from schemas.progress import TrainProgress
from schemas.train import StageConfig, TrainConfig, TrainPlan, TrainRayConfig
from tasks.store.storage import Store
from tasks.training.checkpoints import TrainState, read_state
from tasks.training.ranks import train_stage
from tasks.training.records import list_checkpoints
from tasks.training.stage import StageJob, StageRun

OFF = StageConfig(steps=0, subjects=1, images=1)


def job(dest: str, steps: int) -> StageJob:
    config = TrainConfig.model_validate(
        {
            "source": "world",
            "dest": dest,
            "world": {"people": 4, "images": 2},
            "backbone": "mobilenet_v3_small",
            "pretrain": OFF,
            "coarse": {"steps": steps, "subjects": 2, "images": 2, "schedule": "cosine"},
            "detail": OFF,
            "weights": {"coarse": {"identity": 0}},
            "checkpoint_every": steps // 2,
            "validation_batches": 0,
            "log_every": 1,
        }
    )
    plan = TrainPlan(config=config.plan_config(), inputs={}, fingerprint="0" * 64)
    return StageJob(dest, config, plan, "coarse")


def in_process(dest: str, steps: int, kill_after: int | None = None) -> None:
    """One rank in this process; with kill_after this process ends itself after that step."""

    def look(progress: TrainProgress) -> None:
        if progress.step == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    StageRun(job(dest, steps)).run(look)


def on_ray(dest: str, steps: int, kill: bool = False) -> int:
    """Two ranks on Ray Train; with kill one of them gets a SIGKILL after the first checkpoint. How many were killed."""
    killed: list[int] = []

    def look(progress: TrainProgress) -> None:
        if kill and not killed and progress.step > steps // 2:
            killed.append(kill_rank())

    train_stage(job(dest, steps), TrainRayConfig(workers=2), look)
    return len(killed)


def kill_rank() -> int:
    """SIGKILL a rank that descends from this process; its id."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"RayTrainWorker" in title and os.getpid() in ancestors(int(folder.name)):
            os.kill(int(folder.name), signal.SIGKILL)
            return int(folder.name)
    raise SystemExit("no rank is running")


def ancestors(process: int) -> set[int]:
    found: set[int] = set()
    while process > 1:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        found.add(process)
    return found


def difference(one: str, other: str) -> float:
    """Largest absolute difference between two runs' last states."""
    first, second = (last_state(dest) for dest in (one, other))
    worst = 0.0
    for part in ("weights", "mean", "optimizer"):
        left, right = getattr(first, part), getattr(second, part)
        if left.keys() != right.keys():
            raise SystemExit(f"{part}: other names")
        for name, value in left.items():
            if not torch.equal(value, right[name]):
                worst = max(worst, float((value.double() - right[name].double()).abs().max()))
    return worst


def last_state(dest: str) -> TrainState:
    return read_state(Store(dest), list_checkpoints(Store(dest), "coarse")[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--dest", help="where the killed runs' checkpoints go; default: a local folder")
    parser.add_argument("--die", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps = arguments.steps
    if arguments.die:
        in_process(arguments.die, steps, kill_after=steps // 2 + 2)
        return
    with tempfile.TemporaryDirectory() as folder:
        dest = (arguments.dest or folder).rstrip("/")
        command = [sys.executable, "-m", "benchmarks.resume", "--steps", str(steps), "--die", f"{dest}/killed-1"]
        began = time.monotonic()
        died = subprocess.run(command, check=False).returncode
        stood = list_checkpoints(Store(f"{dest}/killed-1"), "coarse")[-1].step
        in_process(f"{dest}/killed-1", steps)
        in_process(f"{folder}/straight-1", steps)
        found = difference(f"{folder}/straight-1", f"{dest}/killed-1")
        print(f"one rank, driver ended with {died} after step {steps // 2 + 2}, resumed from {stood}: {found:g}")
        killed = on_ray(f"{dest}/killed-2", steps, kill=True)
        on_ray(f"{folder}/straight-2", steps)
        found = difference(f"{folder}/straight-2", f"{dest}/killed-2")
        print(f"two ranks on Ray Train, {killed} killed: {found:g}")
        print(f"checkpoints in {dest}; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
