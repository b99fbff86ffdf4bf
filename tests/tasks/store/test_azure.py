"""The unit protocol over Azure's blob protocol, spoken by Azurite (installed by `make node`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from schemas.engine import RayConfig, UnitsConfig
from tasks.store.storage import Store
from tasks.units.commits import committed_parts
from tasks.units.engine import run_units
from tasks.units.rounds import open_or_build
from tasks.units.verify import verify
from tests.tasks.conftest import HashWorker


def test_units_run_from_and_to_azure(azure: str, photos: Callable[..., Path]) -> None:
    source = Store(f"{azure}/photos")
    for path in photos(10).iterdir():
        source.write(path.name, path.read_bytes())
    plan = open_or_build(f"{azure}/out", f"{azure}/photos", units=UnitsConfig(items_per_unit=4))
    first = run_units(plan, partial(HashWorker), RayConfig(workers=0))
    again = run_units(plan, partial(HashWorker), RayConfig(workers=0))
    assert (first.rows, again.units_run) == (10, 0)
    assert len(committed_parts(f"{azure}/out")) == 3
    found = verify(f"{azure}/out")
    assert found.ok
    assert not found.leftovers


def test_a_new_object_shows_at_once(azure: str) -> None:
    store = Store(f"{azure}/listing")
    store.write("a.json", b"1")
    assert store.list() == ["a.json"]
    Store(f"{azure}/listing/").create("b.json", b"2")
    assert store.list() == ["a.json", "b.json"]
    with pytest.raises(FileExistsError):
        store.create("b.json", b"3")
