"""A dataset of which nothing came: what is said, when it is, and that it can be mended."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from schemas.engine import RayConfig, UnitsConfig
from schemas.erase import Found, Request, Tombstone
from tasks.units.engine import run_units
from tasks.units.plan import Plan
from tasks.units.reasons import NoRowsError, by_number, check_rows
from tasks.units.rounds import open_or_build, plan_retry
from tasks.units.tombstones import put_tombstone
from tests.tasks.conftest import HashWorker

HERE = RayConfig(workers=0)


def planned(tmp_path: Path, *contents: bytes) -> Plan:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, content in enumerate(contents):
        (folder / f"{number}.jpg").write_bytes(content)
    return open_or_build(str(tmp_path / "out"), str(folder), units=UnitsConfig(items_per_unit=2))


def test_nothing_came_of_anything(tmp_path):
    plan = planned(tmp_path, b"bad", b"raise", b"bad", b"bad")
    for _ in range(2):  # the second time nothing is left to run
        run = run_units(plan, partial(HashWorker), HERE)
        with pytest.raises(
            NoRowsError, match=r"^nothing came of 4 images: 2 x decode ImageError \(not a pic.*, 2 x unit"
        ):
            check_rows(plan, run.rows, "images")
    calm = tmp_path / "calm"
    calm.touch()
    again = plan_retry(plan.dest)
    assert run_units(again, partial(HashWorker, str(calm)), HERE).rows == 4
    check_rows(again, 0, "images")


def test_what_is_not_lost(tmp_path):
    plan = planned(tmp_path, b"bad", b"bad", b"good")
    check_rows(plan, 0, "images")  # units are pending
    run_units(plan, partial(HashWorker), HERE)
    check_rows(plan, 0, "images")  # an earlier run has made a row


def test_what_was_erased_is_not_lost(tmp_path):
    plan = planned(tmp_path, b"bad")
    run_units(plan, partial(HashWorker), HERE)
    with pytest.raises(NoRowsError, match=r"of 1 image: 1 x decode .*Look: deca status .*/out$"):
        check_rows(plan, 0, "images")
    put_tombstone(plan.store, Tombstone(number=1, requests=[Request(kind="image", id="ab")], found=Found()))
    check_rows(plan, 0, "images")


def test_a_plan_of_nothing(tmp_path):
    plan = open_or_build(str(tmp_path / "out"), "heads://none", items=[])
    with pytest.raises(NoRowsError, match="heads://none holds no heads"):
        check_rows(plan, 0, "heads")


def test_the_commonest_reason_comes_first():
    lost = [(1, "a"), (7, "b"), (3, "c"), (2, "d"), (1, "e"), (1, "f")]
    assert by_number(lost) == "7 x b, 3 x c, 2 x d, 1 x a, 2 other reasons"
    assert by_number([]) == "no reason is recorded"
