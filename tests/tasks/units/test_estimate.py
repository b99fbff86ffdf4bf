"""Estimates of bytes, hours and cost from a sample of units."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from schemas.engine import RayConfig, UnitsConfig
from schemas.ledger import Item
from tasks.units.commits import committed_parts, pending
from tasks.units.engine import RunSummary, UnitOutput, run_units
from tasks.units.estimate import Estimate, Sample, Use, estimate, planned_bytes, spread
from tasks.units.rounds import open_or_build
from tests.tasks.conftest import HashWorker, committed_bytes

HERE = RayConfig(workers=0)
FOUR = UnitsConfig(items_per_unit=4)
NAP = 0.02


class SlowWorker(HashWorker):
    """Takes NAP seconds per image, and makes every row as the other does."""

    def process(self, items: Sequence[Item]) -> UnitOutput:
        time.sleep(NAP * len(items))
        return super().process(items)


def test_the_units_it_runs_are_the_plans_own_and_done(photos: Callable[..., Path], tmp_path: Path) -> None:
    source = photos(22)
    plan = open_or_build(tmp_path / "out", str(source), units=FOUR)
    found = estimate(plan, SlowWorker, HERE, 2)
    assert pending(plan) == [0, 2, 3, 5]  # 1 and 4: the middles of both halves
    assert (found.images, found.units, found.left) == (22, 6, 22)
    assert found.bytes_in == sum(path.stat().st_size for path in source.iterdir())
    sample = found.sample
    assert sample
    assert (sample.units, sample.images, sample.rows) == (2, 8, 8)
    assert found.rows == 22
    assert found.bytes_out == pytest.approx(
        22 / 8 * sum(Path(part).stat().st_size for part in committed_parts(plan.dest))
    )
    use = found.use
    assert use
    assert use.core_seconds == pytest.approx(22 / 8 * sample.use.core_seconds)
    assert use.core_seconds >= 22 * NAP

    summary = run_units(plan, SlowWorker, HERE)
    assert (summary.units_run, summary.units_skipped, summary.workers, summary.cores) == (4, 2, 1, 1)
    assert 14 * NAP <= summary.busy_seconds <= summary.seconds
    calm = open_or_build(tmp_path / "calm", str(source), units=FOUR)
    run_units(calm, SlowWorker, HERE)
    assert committed_bytes(tmp_path / "out") == committed_bytes(tmp_path / "calm")


def test_nothing_is_run_where_nothing_is_asked_or_left(photos: Callable[..., Path], tmp_path: Path) -> None:
    plan = open_or_build(tmp_path / "out", str(photos(5)), units=FOUR)
    found = estimate(plan, HashWorker, HERE, 0)
    assert (found.sample, found.use, found.left, pending(plan)) == (None, None, 5, [0, 1])
    run_units(plan, HashWorker, HERE)
    found = estimate(plan, HashWorker, HERE, 3)
    assert (found.sample, found.left, found.images) == (None, 0, 5)


def test_a_started_plan_is_priced_for_what_is_left() -> None:
    sample = Sample(units=2, images=10, rows=12, bytes=1000, use=Use(20.0, 0.0))
    found = Estimate(images=100, units=20, left=50, bytes_in=0, unsized=0, sample=sample)
    assert (found.rows, found.bytes_out) == (120, 10_000)
    assert found.use == Use(100.0, 0.0)


@pytest.mark.parametrize(("gpus", "unit", "price"), [(0.0, "core-hours", 8.0), (0.5, "GPU-hours", 2.0)])
def test_what_is_paid_is_all_that_was_held(gpus: float, unit: str, price: float) -> None:
    run = RunSummary(1, 0, 0, 1, {}, seconds=1800.0, busy_seconds=1.0, workers=4, cores=2.0, gpus=gpus)
    use = Use.of(run)
    assert (use.unit, use.price(2.0), use.price(None)) == (unit, price, None)


def test_units_are_spread_over_the_plan() -> None:
    assert spread([3, 4, 5, 6, 7, 8, 9, 10, 11, 12], 2) == [5, 10]
    assert spread([3, 4], 5) == [3, 4]
    assert spread([], 5) == spread([1], 0) == []


def test_images_of_unknown_size_are_counted_apart(tmp_path: Path) -> None:
    items = [Item(index=number, uri=f"{number}.jpg", size=size) for number, size in enumerate((10, -1, 5, -1, 0))]
    plan = open_or_build(tmp_path / "out", "list", items=items, units=UnitsConfig(items_per_unit=2))
    assert planned_bytes(plan) == (15, 2)
