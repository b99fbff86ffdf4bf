"""Connect to the Ray cluster of a run, or start one on this machine; resources per worker."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from deca_core.errors import DecaError
from schemas.engine import RayConfig

CLUSTER_WORKERS = 64
LOCAL_OBJECT_STORE = 256 * 2**20  # bytes: units hold URIs, not images
HOME = Path(__file__).resolve().parents[2]  # the folder that these packages are imported from
NODE_SECONDS = 120.0  # timeout for a node's answer, which includes the start of a process there

Answer = TypeVar("Answer")


class EngineError(DecaError):
    """A run that cannot continue; what is committed stays."""


@dataclass(frozen=True)
class Node:
    """A machine, or container, of the cluster."""

    id: str
    host: str
    address: str

    def __str__(self) -> str:
        return f"node {self.host} ({self.address}, Ray's {self.id[:12]})"


def connect(config: RayConfig) -> None:
    """Join the cluster of RAY_ADDRESS or the config, else start one on this machine; an open connection is kept.

    Raises EngineError where Ray does not answer in time.
    """
    import ray

    if ray.is_initialized():
        return
    for name in ("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        os.environ.setdefault(name, "0")
    address = _address(config.address)
    try:
        with _at_home():
            if address != "local":
                ray.init(address=address, log_to_driver=False)
                return
            ray.init(
                address="local",
                num_cpus=_cores_to_start(config),
                include_dashboard=False,
                object_store_memory=LOCAL_OBJECT_STORE,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:  # Ray raises bare exceptions where a process of its is late
        raise _no_ray(address, error) from error


def _cores_to_start(config: RayConfig) -> int | None:
    """Return the CPUs of a cluster to start for these workers; None: all of the machine."""
    if not config.workers:
        return None
    if config.cpus_per_worker is None:
        import torch

        if torch.cuda.is_available() and config.gpus_per_worker != 0:
            return None  # the GPU's share of all cores
    return math.ceil(config.workers * (config.cpus_per_worker or 1.0))


@contextlib.contextmanager
def _at_home() -> Iterator[None]:
    """Change to the folder that our packages are imported from.

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


def is_joined(address: str | None) -> bool:
    """Whether a run with this address joins an existing cluster, which may have several nodes, now or later."""
    return _address(address) != "local"


def _address(given: str | None) -> str:
    return os.environ.get("RAY_ADDRESS") or given or "local"


def working_nodes() -> list[Node]:
    """Return the nodes of the connected cluster that are alive and have CPUs or GPUs."""
    import ray

    return [
        Node(node["NodeID"], node["NodeManagerHostname"], node["NodeManagerAddress"])
        for node in ray.nodes()
        if node["Alive"] and any(node["Resources"].get(kind) for kind in ("CPU", "GPU"))
    ]


def this_node() -> Node:
    """Return the node of this process, a driver or a worker."""
    import ray

    return Node(ray.get_runtime_context().get_node_id(), socket.gethostname(), ray.util.get_node_ip_address())


def on_nodes(nodes: Sequence[Node], function: Callable[..., Any], *args: Any) -> list[Any]:
    """Return per node the result of `function(*args)` or its exception; TimeoutError after NODE_SECONDS.

    The task reserves no CPU, so a full cluster answers too.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote: Any = ray.remote(num_cpus=0, max_retries=0)(_call)
    places = [NodeAffinitySchedulingStrategy(node.id, soft=False) for node in nodes]
    asked = [remote.options(scheduling_strategy=place).remote(function, *args) for place in places]
    ready, _ = ray.wait(asked, num_returns=len(asked), timeout=NODE_SECONDS)
    answers: list[Any] = []
    for reference in asked:
        try:
            answers.append(ray.get(reference) if reference in ready else TimeoutError(f"silent for {NODE_SECONDS:g} s"))
        except ray.exceptions.RayTaskError as error:
            answers.append(error.cause)
        except ray.exceptions.RayError as error:
            answers.append(error)
    return answers


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def everywhere(function: Callable[..., Any], *args: Any) -> None:
    """Call `function(*args)` on every node, or here if this is the only one. For cleanup: errors are ignored."""
    nodes = working_nodes()
    if [node.id for node in nodes] == [this_node().id]:
        function(*args)
    elif nodes:
        on_nodes(nodes, function, *args)


# --- resources per worker ---------------------------------------------------------------------------------------------


def node_resources() -> list[dict[str, float]]:
    """Return the resources of every node that is alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def holds_gpus(config: RayConfig) -> bool:
    """Whether a worker may get a GPU: in this process, or on any node of the cluster. Connects to the cluster."""
    if config.workers == 0:
        import torch

        return torch.cuda.is_available()
    connect(config)
    return any(node.get("GPU") for node in node_resources())


def resources_of(config: RayConfig, nodes: Sequence[dict[str, float]]) -> tuple[float, float, int]:
    """Return (CPUs per worker, GPUs per worker, workers) on these nodes, from `node_resources`.

    With GPUs, CPUs per worker follow from the node with the fewest cores per GPU, so that no GPU stays idle for lack of
    cores.
    """
    cluster = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    gpus = config.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if cluster["GPU"] else 0.0
    cpus = config.cpus_per_worker
    if cpus is None:
        shares = [node.get("CPU", 0.0) * gpus / node["GPU"] for node in nodes if gpus and node.get("GPU")]
        cpus = float(max(1, math.floor(min(shares, default=1.0))))
    room = int(cluster["CPU"] // cpus)
    if gpus:
        room = min(room, int(cluster["GPU"] // gpus))
    return cpus, gpus, config.workers or max(1, room)


def expected_workers(config: RayConfig) -> int:
    """Return the expected number of workers without asking Ray, for the size of units.

    A cluster is not joined for that: CLUSTER_WORKERS is assumed.
    """
    if config.workers is not None:
        return max(1, config.workers)
    if is_joined(config.address):
        return CLUSTER_WORKERS
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch = sys.modules.get("torch")  # where it is not imported, no worker uses a GPU
    gpus = torch.cuda.device_count() if torch else 0
    return resources_of(config, [{"CPU": float(allowed), "GPU": float(gpus)}])[2]


def on_worker(work: Callable[[], Answer], config: RayConfig) -> Answer:
    """Return the result of `work` (picklable), run in a Ray task with a worker's resources, maybe on another machine;
    with workers=0 in this process.

    Raises what `work` raises, and EngineError where no such task starts or its process dies.
    """
    if config.workers == 0:
        return work()
    connect(config)
    import ray

    cpus, gpus, _ = resources_of(config, node_resources())
    call: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=config.attempts - 1)(_call_in)
    task = call.remote(work, os.getcwd())
    try:
        answer: Answer = ray.get(task, timeout=config.start_timeout_s)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.GetTimeoutError as error:
        ray.cancel(task, force=True)
        raise EngineError(
            f"no worker answered in {config.start_timeout_s:g} s (ray.start_timeout_s): {cpus:g} CPU and {gpus:g} GPU "
            "a worker. Ask for less with ray.cpus_per_worker and ray.gpus_per_worker, or look at `ray status`"
        ) from error
    except ray.exceptions.RayError as error:
        raise EngineError(
            f"the process that should have measured died: {str(error).splitlines()[0]} Look at memory (dmesg) and `ray "
            "logs`, then go on with the same command"
        ) from error
    return answer


def _call_in(work: Callable[[], Answer], folder: str) -> Answer:
    move_to(folder)
    return work()


class Pinboard:
    """An actor to which a worker writes its progress for the driver: plain values, so it imports little."""

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
