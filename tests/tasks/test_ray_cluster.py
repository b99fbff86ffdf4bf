"""How many workers a run will have, before there is a cluster to ask."""

from __future__ import annotations

import os

import pytest

from schemas.engine import RayConfig
from tasks.ray_cluster import CLUSTER_WORKERS, expected_workers


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


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


def test_a_cluster_that_the_environment_names(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert expected_workers(RayConfig()) == CLUSTER_WORKERS
