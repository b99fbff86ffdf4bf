"""The Ray cluster of a run: joined where there is one, else started on this machine."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deca_core.errors import DecaError
from schemas.engine import RayConfig

CLUSTER_WORKERS = 64
LOCAL_OBJECT_STORE = 256 * 2**20  # bytes: units carry names, not pictures
HOME = Path(__file__).resolve().parents[1]  # the folder that these packages are imported from


class EngineError(DecaError):
    """A run that cannot go on; what is committed stays."""


def connect(config: RayConfig) -> None:
    """Join the cluster of RAY_ADDRESS or the config, else start one on this machine; an open connection is kept.

    Raises EngineError where Ray does not answer in time.
    """
    import ray

    if ray.is_initialized():
        return
    for name in ("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        os.environ.setdefault(name, "0")
    address = os.environ.get("RAY_ADDRESS") or config.address or "local"
    try:
        with _at_home():
            if address != "local":
                ray.init(address=address, log_to_driver=False)
                return
            ray.init(
                address="local",
                num_cpus=math.ceil(config.workers * config.cpus_per_worker) if config.workers else None,
                include_dashboard=False,
                object_store_memory=LOCAL_OBJECT_STORE,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:  # Ray raises bare exceptions where a process of its is late
        raise _no_ray(address, error) from error


def resources_of(config: RayConfig, cluster: dict[str, float]) -> tuple[float, float, int]:
    """(CPUs a worker, GPUs a worker, workers)."""
    cpus, gpus = config.cpus_per_worker, config.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if cluster.get("GPU") else 0.0
    room = int(cluster.get("CPU", 1) // cpus)
    if gpus:
        room = min(room, int(cluster.get("GPU", 0) // gpus))
    return cpus, gpus, config.workers or max(1, room)


def expected_workers(config: RayConfig) -> int:
    """How many workers a run will have, without asking Ray: what a plan is cut for.

    A cluster is not joined only to count its machines: it counts as one of CLUSTER_WORKERS.
    """
    if config.workers is not None:
        return max(1, config.workers)
    if (os.environ.get("RAY_ADDRESS") or config.address or "local") != "local":
        return CLUSTER_WORKERS
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch = sys.modules.get("torch")  # where it is not loaded, no worker will want a GPU
    gpus = torch.cuda.device_count() if torch else 0
    return resources_of(config, {"CPU": float(allowed), "GPU": float(gpus)})[2]


@contextlib.contextmanager
def _at_home() -> Iterator[None]:
    """Work in the folder that our packages are imported from.

    Ray puts the driver's working directory first on every worker's `sys.path`. In a user's folder a file `tasks.py` or
    a folder `schemas/` would be imported instead of ours.
    """
    before = Path.cwd()
    os.chdir(HOME)
    try:
        yield
    finally:
        os.chdir(before)


def move_to(folder: str) -> None:
    """Change a worker's process to the driver's working directory, where this node has it: paths may be relative."""
    with contextlib.suppress(OSError):
        os.chdir(folder)


class Pinboard:
    """An actor where a worker pins up how far it is, for the driver to read: plain values, so it imports little."""

    def __init__(self) -> None:
        self.latest: dict[str, Any] | None = None

    def pin(self, values: dict[str, Any]) -> None:
        self.latest = values

    def read(self) -> dict[str, Any] | None:
        return self.latest


def _no_ray(address: str, error: Exception) -> EngineError:
    cause = (str(error).splitlines() or [""])[0]
    if address == "local":
        what, look = "Ray did not start on this machine", "Look at load and memory (uptime, free -g) and /tmp/ray"
    else:
        what, look = f"no Ray cluster at {address}", f"Look with: ray status --address {address}"
    return EngineError(
        f"{what}: {type(error).__name__}: {cause} {look}, then go on with the same command; ray.workers=0 does "
        "without Ray"
    )
