"""How archives are cut: units enough for every worker, whatever is planned later, and plans of before."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from schemas.engine import RayConfig, UnitsConfig
from tasks.sources.discover import discover
from tasks.units import rounds
from tasks.units.engine import run_units
from tasks.units.plan import PLAN, Plan, PlanConflict, load_plan
from tasks.units.rounds import open_or_build, plan_retry
from tests.tasks.conftest import HashWorker

SIXTEEN = UnitsConfig(items_per_unit=16, least_items=2)


def sizes(plan: Plan) -> list[int]:
    return [len(unit.items) for unit in plan.iter_units()]


def test_a_small_archive_is_cut_for_all_workers(photos: Callable[..., Path], tmp_path: Path) -> None:
    source, out = photos(160), str(tmp_path / "out")
    plan = open_or_build(out, str(source), workers=2)
    assert sizes(plan) == [20] * 8
    assert [item for unit in plan.iter_units() for item in unit.items] == list(discover(str(source)))
    assert (plan.record.items_per_unit, plan.record.unit_size) == (256, 20)
    assert plan.count_items([0, 7]) == 40


def test_units_are_no_larger_than_the_setting_and_no_smaller_than_makes_sense(
    photos: Callable[..., Path], tmp_path: Path
) -> None:
    source = str(photos(150))
    for workers, expected in {1: [16] * 9 + [6], 5: [8] * 18 + [6], 100: [2] * 75}.items():
        out = str(tmp_path / str(workers))
        assert sizes(open_or_build(out, source, units=SIXTEEN, workers=workers)) == expected


def test_another_number_of_workers_is_the_same_plan(photos: Callable[..., Path], tmp_path: Path) -> None:
    source, out = str(photos(40)), str(tmp_path / "out")
    plan = open_or_build(out, source, units=SIXTEEN, workers=2)
    assert sizes(plan) == [5] * 8
    for workers in (1, 7, None):
        assert open_or_build(out, source, units=SIXTEEN, workers=workers) == plan
        assert open_or_build(out, source, units=SIXTEEN, workers=workers, mode="extend") == plan
    with pytest.raises(PlanConflict, match="items per unit 16 -> 8"):
        open_or_build(out, source, units=UnitsConfig(items_per_unit=8), workers=2)


def test_runs_that_plan_at_once_agree_on_one_cut(
    photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = str(photos(40)), str(tmp_path / "out")
    draft = rounds.make_draft

    def slow(*args: Any, **kwargs: Any) -> Any:
        made = draft(*args, **kwargs)
        if kwargs["workers"] == 1:
            assert sizes(open_or_build(out, source, units=SIXTEEN, workers=4)) == [3] * 13 + [1]
        return made

    monkeypatch.setattr(rounds, "make_draft", slow)
    assert sizes(open_or_build(out, source, units=SIXTEEN, workers=1)) == [3] * 13 + [1]


def counted(plan: Plan) -> None:
    """`count_items` of any units is the sum of what they hold."""
    held = sizes(plan)
    for seed in range(40):
        chosen = random.Random(seed).sample(range(plan.units), k=seed % plan.units)
        assert plan.count_items(chosen) == sum(held[index] for index in chosen)


def test_rounds_have_units_of_their_own(photos: Callable[..., Path], tmp_path: Path) -> None:
    source, out = photos(40, {3: b"bad", 20: b"raise"}), str(tmp_path / "out")
    plan = open_or_build(out, str(source), units=SIXTEEN, workers=2)
    run_units(plan, partial(HashWorker, "/nonexistent"), RayConfig(workers=0))
    for name in range(50):
        (source / f"new-{name:02d}.jpg").write_bytes(b"new")
    plan = open_or_build(out, str(source), units=SIXTEEN, workers=1, mode="extend")
    assert sizes(plan)[8:] == [13, 13, 13, 11]
    counted(plan)
    counted(plan_retry(out))


def test_plans_without_unit_size_resume(photos: Callable[..., Path], tmp_path: Path) -> None:
    source, out = photos(40), str(tmp_path / "out")
    open_or_build(out, str(source), units=SIXTEEN)
    record = json.loads((tmp_path / "out" / PLAN).read_text())
    del record["unit_size"]
    (tmp_path / "out" / PLAN).write_text(json.dumps(record))
    plan = load_plan(out)
    assert sizes(plan) == [16, 16, 8]
    assert open_or_build(out, str(source), units=SIXTEEN, workers=2) == plan
    counted(plan)
    (source / "new.jpg").write_bytes(b"new")
    assert sizes(open_or_build(out, str(source), units=SIXTEEN, workers=2, mode="extend")) == [16, 16, 8, 1]
