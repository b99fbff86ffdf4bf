"""The benchmarks of bulk reconstruction run, small and in this process, and their figures can be right."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from benchmarks import bulk, layouts
from deca_core import DECA
from deca_core.assets import procedural_head


@pytest.fixture(scope="module")
def small() -> DECA:
    return DECA(procedural_head(), "mobilenet_v3_small")


def options(**changes: object) -> argparse.Namespace:
    values = {
        "faces": 6,
        "workers": 0,
        "backbone": "mobilenet_v3_small",
        "precision": "fp32",
        "batch": 2,
        "unit": 3,
        "source": "faces,raw",
        "bare": True,
        "memory": True,
        "seconds": 0.1,
        **changes,
    }
    return argparse.Namespace(**values)


def test_both_sources_are_measured_against_the_ceiling(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(bulk, "DISTINCT", 1)
    monkeypatch.setattr(bulk, "ceiling", lambda *_: 100.0)  # benchmarks/ceilings.py has its own test
    found = bulk.measure(tmp_path, options())
    allowed = 100.0 / found["gflop_a_face"]
    for source in ("faces", "raw"):
        assert found[source]["faces"] == 6
        assert found[source]["share_of_ceiling"] == pytest.approx(found[source]["faces_per_second"] / allowed, abs=0.01)
        assert found[source]["bytes_a_face"] > 1000
    assert found["networks_alone"]["faces_per_second"] > 0


def test_operations_are_those_of_the_networks(small):
    counted = bulk.operations(small)
    # Two MobileNets of 0.11 G and F_d: 9 taps, two operations each, of its six convolutions.
    sizes = [(128, 128, 16), (128, 64, 32), (64, 64, 64), (64, 32, 128), (32, 16, 256), (16, 1, 256)]
    decoder = sum(2 * 9 * inputs * outputs * side * side for inputs, outputs, side in sizes) / 1e9
    assert decoder < counted < decoder + 0.3


def test_growth_compares_after_the_warm_up():
    flat = [100] * 20 + [200] * 80
    assert bulk.growth(flat) == 0
    assert bulk.growth([*flat[:-10], *[210] * 10]) == pytest.approx(0.05)
    assert bulk.growth([1, 2]) is None


def test_fifths_follow_the_speed_of_a_run():
    marks = [(float(at), 10 * at) for at in range(9)] + [(10.0, 90), (12.0, 100)]
    assert bulk.fifths(marks) == [10, 10, 10, 10, 5]
    assert bulk.fifths(marks[:5]) == []


def test_layouts_lose_no_more_than_half_a_step(small):
    rows = layouts.layouts(small, 2)
    step = 1e6 * 2 * 0.02 / 65535
    for name, (size, _, _, error) in rows.items():
        assert error <= (1e-6 if name.startswith("float32") else step), name
        assert 1e3 < size < 262144 * 1.1
    assert {
        name for name, (size, milliseconds) in layouts.sizes(small, 2).items() if size > 0 and milliseconds > 0
    } == set(layouts.OUTPUTS)
    assert np.isfinite(layouts.random_maps(small, 1)).all()
