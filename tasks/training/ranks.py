"""Run a training stage on its ranks: on Ray Train with DDP, or in this process.

Ray Train starts the ranks, joins them, and restarts all of them when one dies. They resume from our own checkpoints
(`tasks.training.checkpoints`); no file of Ray's is needed.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import asdict, dataclass
from typing import Any

from schemas.engine import RayConfig
from schemas.places import places
from schemas.progress import OnTrainProgress, Timing, TrainProgress
from schemas.train import TrainConfig, TrainRayConfig
from tasks.store.node_cache import sweep_node
from tasks.store.storage import StorageError, Store, open_uri
from tasks.training.stage import StageJob, StageRun, TrainError
from tasks.units.ray_cluster import Pinboard, connect, everywhere
from tasks.units.shared_paths import SharedPathError, SharedPaths, paths_by_setting, prove_paths

POLL_SECONDS = 1.0
BOARD_SECONDS = 30.0  # timeout of a read from the board
RAY_FOLDER = "_ray"  # in DEST, during a stage: Ray Train needs a folder that all nodes see
# Read by Ray at its start: interval of health checks, time for a group to start, no change of folder.
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


logger = logging.getLogger("deca")


@dataclass(frozen=True)
class _Task:
    """The arguments of every rank."""

    job: StageJob
    board: Any
    threads: int
    paths: SharedPaths


def train_stage(
    job: StageJob, ray_config: TrainRayConfig, on_progress: OnTrainProgress | None = None
) -> TrainProgress | None:
    """Train a stage to its end; returns the last progress, None where no step remained.

    Raises TrainError where training diverges, or ranks die more often than `max_failures`; checkpoints stay.
    """
    seen: list[TrainProgress] = []

    def note(progress: TrainProgress) -> None:
        seen.append(progress)
        if on_progress:
            on_progress(progress)

    ranks = _ranks(ray_config)
    if ranks == 0:
        StageRun(job).run(note)
    else:
        _on_ray(job, ray_config, ranks, note)
    return seen[-1] if seen else None


def prove_rank_paths(config: TrainConfig) -> None:
    """Run `prove_paths` if a run trains on Ray."""
    if _ranks(config.ray):
        _connect(config.ray)
        prove_paths(config)


def _ranks(config: TrainRayConfig) -> int:
    if config.workers is not None:
        return config.workers
    import torch

    if torch.cuda.is_available() or os.environ.get("RAY_ADDRESS") or config.address:
        _connect(config)
        import ray

        return int(ray.cluster_resources().get("GPU", 0))
    return 0


def _connect(config: TrainRayConfig) -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # One core more than the ranks need: the board, and Ray Train's controller.
    workers = config.workers * config.cpus_per_worker + 1 if config.workers else None
    connect(RayConfig(address=config.address, workers=workers))


def _on_ray(job: StageJob, config: TrainRayConfig, ranks: int, note: OnTrainProgress) -> None:
    _connect(config)
    import ray
    from pyarrow.fs import FSSpecHandler, PyFileSystem
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # On this node, as Ray Train's controller: another one may be lost without the driver.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(num_cpus=0)(Pinboard).options(scheduling_strategy=here).remote()
    gpus = bool(ray.cluster_resources().get("GPU"))
    folder = Store(f"{job.dest.rstrip('/')}/{RAY_FOLDER}")
    file_system, path = open_uri(folder.uri)
    file_system.makedirs(path, exist_ok=True)
    with _own_signals(), paths_by_setting(places(job.config), config.address) as paths:
        trainer = TorchTrainer(
            _rank,
            train_loop_config={"task": _Task(job, board, config.cpus_per_worker, paths)},
            scaling_config=ScalingConfig(
                num_workers=ranks, use_gpu=gpus, resources_per_worker={"CPU": config.cpus_per_worker, "GPU": int(gpus)}
            ),
            run_config=RunConfig(
                name=f"{job.stage}-{secrets.token_hex(4)}",
                storage_path=path,
                storage_filesystem=PyFileSystem(FSSpecHandler(file_system)),
                failure_config=FailureConfig(max_failures=config.max_failures),
            ),
        )
        with _watched(board, note):
            try:
                trainer.fit()
            except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
                raise _explain(error, job) from error
            finally:
                folder.delete_folder("")
                everywhere(sweep_node)


def _explain(error: Any, job: StageJob) -> Exception:
    """The first error of a rank that is one of ours, else Ray's in one line."""
    for cause in getattr(error, "worker_failures", {}).values():
        inner = getattr(cause, "cause", cause)
        if isinstance(inner, TrainError | StorageError | SharedPathError):
            return type(inner)(str(inner))
    return TrainError(
        f"{job.stage}: the ranks failed: {str(error).strip().splitlines()[-1]}. Checkpoints in {job.dest} "
        "are kept; resume with --resume"
    )


def _rank(config: dict[str, Any]) -> None:
    """Run one rank in its process; Ray Train has joined the ranks before."""
    import ray.train
    import torch

    task: _Task = config["task"]
    task.paths.check_here()
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    if not torch.cuda.is_available():
        torch.set_num_threads(task.threads)
    StageRun(task.job, rank, ranks).run((lambda p: task.board.pin.remote(asdict(p))) if rank == 0 else None)


@contextmanager
def _watched(board: Any, note: OnTrainProgress) -> Iterator[None]:
    """Report progress from the board every second, in a thread; once more at the end.

    The thread has the caller's context, so that artifacts that `note` makes belong to the caller's Prefect run. Its
    first failure ends the reports, not the training, and is raised once the body has ended, unless the body failed.
    """
    import ray

    done, last, failed = threading.Event(), [-1], list[Exception]()

    def look() -> None:
        try:
            pinned = ray.get(board.read.remote(), timeout=BOARD_SECONDS)
            if pinned is not None and pinned["step"] != last[0]:
                last[0] = pinned["step"]
                note(TrainProgress(**{**pinned, "timing": Timing(**pinned["timing"])}))
        except ray.exceptions.RayError as error:  # the board died or is slow; training reports its own failure
            logger.warning("no progress of the ranks could be read: %s", str(error).splitlines()[0])
        except Exception as error:
            logger.exception("progress of the ranks is no longer reported")
            failed.append(error)
            done.set()

    def watch() -> None:
        while not done.wait(POLL_SECONDS):
            look()

    thread = threading.Thread(target=copy_context().run, args=(watch,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if not failed:
            look()
    if failed:
        raise failed[0]


@contextmanager
def _own_signals() -> Iterator[None]:
    """Restore the SIGINT handler, which `fit` replaces."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
