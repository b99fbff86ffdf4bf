"""What a worker reserves, by the nodes there are; how many there will be; work that is done where one would run."""

from __future__ import annotations

import os
from functools import partial

import pytest

from schemas.engine import RayConfig
from tasks.units.ray_cluster import CLUSTER_WORKERS, EngineError, expected_workers, on_worker, resources_of

LAPTOP = {"CPU": 2.0}
GPU_NODE = {"CPU": 64.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("nodes", "settings", "expected"),
    [
        ([LAPTOP], {}, (1.0, 0.0, 2)),
        ([LAPTOP], {"workers": 4}, (1.0, 0.0, 4)),
        ([LAPTOP], {"cpus_per_worker": 2}, (2.0, 0.0, 1)),
        ([GPU_NODE], {}, (8.0, 1.0, 8)),
        ([GPU_NODE, GPU_NODE], {"gpus_per_worker": 0.5}, (4.0, 0.5, 32)),
        ([GPU_NODE], {"cpus_per_worker": 1}, (1.0, 1.0, 8)),  # as configured
        ([GPU_NODE, {"CPU": 12.0, "GPU": 4.0}], {}, (3.0, 1.0, 12)),  # fits the node with the fewest
        ([GPU_NODE, {"CPU": 96.0}], {}, (8.0, 1.0, 8)),  # cores of nodes without GPUs do not count
        ([{"CPU": 2.0, "GPU": 4.0}], {}, (1.0, 1.0, 2)),
        ([GPU_NODE], {"gpus_per_worker": 0}, (1.0, 0.0, 64)),
    ],
)
def test_what_a_worker_reserves(nodes, settings, expected):
    assert resources_of(RayConfig(**settings), nodes) == expected


def test_work_for_the_cpu_reserves_no_gpu():
    assert resources_of(RayConfig().without_gpus(), [GPU_NODE]) == (1.0, 0.0, 64)
    asked = RayConfig(gpus_per_worker=1)
    assert asked.without_gpus() == asked


def test_without_ray_it_is_this_process():
    assert on_worker(os.getpid, RayConfig(workers=0)) == os.getpid()


@pytest.mark.usefixtures("ray_cluster")
def test_with_ray_it_is_another_process():
    assert on_worker(os.getpid, RayConfig()) != os.getpid()
    with pytest.raises(ValueError, match="invalid literal"):  # what the work raises, as itself
        on_worker(partial(int, "x"), RayConfig())


@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_larger_than_every_node():
    with pytest.raises(EngineError, match=r"no worker answered in 1 s .* 99 CPU and 0 GPU a worker\. Ask for less"):
        on_worker(os.getpid, RayConfig(cpus_per_worker=99, start_timeout_s=1))


# --- before there is a cluster to ask ---------------------------------------------------------------------------------


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("settings", "workers"),
    [
        ({}, 8),
        ({"cpus_per_worker": 3}, 2),
        ({"cpus_per_worker": 16}, 1),
        ({"workers": 0}, 1),
        ({"workers": 5}, 5),
        ({"address": "ray://head:10001"}, CLUSTER_WORKERS),
        ({"address": "local"}, 8),
        ({"address": "ray://head:10001", "workers": 3}, 3),
    ],
)
def test_expected_workers(settings, workers):
    assert expected_workers(RayConfig.model_validate(settings)) == workers


@pytest.mark.usefixtures("eight_cores")
def test_a_cluster_that_the_environment_names(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert expected_workers(RayConfig()) == CLUSTER_WORKERS
