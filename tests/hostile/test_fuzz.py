"""Some hundred mutated inputs a reader in CI (`make fuzz` does a hundred times more), and properties of the records."""

from __future__ import annotations

import io
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import fuzz_targets
from benchmarks.fuzz import Fuzzer, fuzz
from schemas.engine import UnitsConfig
from schemas.ledger import (
    ITEM_SCHEMA,
    Item,
    Quarantined,
    Unit,
    quarantine_to_table,
    table_to_items,
    table_to_quarantine,
    units_to_table,
)
from schemas.parquet import fixed_field, write_table
from schemas.reconstruct import LEVELS, quantise
from tasks.units.plan import load_plan
from tasks.units.rounds import open_or_build

EXECUTIONS, SECONDS = 400, 1.0  # of each target, whichever comes first


@pytest.mark.parametrize("target", fuzz_targets.TARGETS)
def test_mutated_inputs_give_a_value_or_the_readers_own_error(target: str) -> None:
    counts = fuzz(target, EXECUTIONS, seed=1, seconds=SECONDS)
    assert counts.executions > 10
    assert not counts.findings


def test_an_execution_of_code_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ordinary unpickler in the place of ours; otherwise the test above could not fail."""
    evil = fuzz_targets.Target(lambda data, path: pickle.loads(data), lambda: [], (ValueError,))  # noqa: S301
    monkeypatch.setitem(fuzz_targets.TARGETS, "evil", evil)
    monkeypatch.chdir(tmp_path)
    fuzzer = Fuzzer("evil", tmp_path)
    assert "os.system" in str(fuzzer.execute(pickle.dumps(fuzz_targets.Payload())))
    assert "UnpicklingError" in str(fuzzer.execute(b"x"))
    assert not (tmp_path / "executed").exists()


# --- records and plans ------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
COUNT = st.integers(0, 2**31 - 1)
ITEMS = st.builds(
    Item,
    index=st.integers(0, 2**63 - 1),
    uri=TEXT,
    member=st.none() | TEXT,
    offset=st.none() | st.integers(-1, 2**63 - 1),
    size=st.integers(-1, 2**63 - 1),
    etag=st.none() | TEXT,
    face_index=st.none() | COUNT,
    attempts=COUNT,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ITEMS, max_size=5))
def test_items_survive_their_table_whatever_their_names(items: list[Item]) -> None:
    table = units_to_table([Unit(7, items)])
    assert table.schema == ITEM_SCHEMA
    assert table_to_items(table, "") == items
    assert all(len(item.image_id) == 16 for item in items)


@settings(max_examples=60, deadline=None)
@given(ITEMS, TEXT, st.sampled_from(["read", "decode", "unit"]))
def test_quarantined_rows_survive_theirs(item: Item, message: str, stage: Any) -> None:
    row = Quarantined.of(Item(item.index, item.uri, item.member), stage, "Error", message)
    assert table_to_quarantine(quarantine_to_table([row])) == [row]
    assert len(row.message) <= 500


NAMES = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="/\0"), min_size=1, max_size=30)


@settings(max_examples=25, deadline=None)
@given(st.sets(NAMES, min_size=1, max_size=6), st.integers(1, 4))
def test_plans_hold_every_picture_once_whatever_it_is_called(names: set[str], size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, dest = Path(folder, "in"), Path(folder, "out")
        source.mkdir()
        written = set()
        for name in names:
            file = source / f"{name}.jpg"
            if not name.startswith(".") and len(os.fsencode(file.name)) < 256:
                file.write_bytes(name.encode())
                written.add(str(file))
        if not written:
            return
        plan = open_or_build(str(dest), str(source), units=UnitsConfig(items_per_unit=size))
        again = load_plan(str(dest))
        assert [item.uri for unit in again.iter_units() for item in unit.items] == sorted(written)
        assert again.record == plan.record
        assert (
            open_or_build(str(dest), str(source), units=UnitsConfig(items_per_unit=size)).fingerprint
            == plan.fingerprint
        )


# --- codecs -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-4, 1.0), st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=40))
def test_displacements_come_back_to_half_a_step(limit: float, values: list[float]) -> None:
    metres = np.array(values, np.float32)
    back = quantise(metres, limit).astype(np.float64) * (2 * limit / LEVELS) - limit
    assert np.abs(back - np.clip(metres, -limit, limit)).max() <= limit / LEVELS * (1 + 1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.binary(min_size=0, max_size=40), TEXT)
def test_tables_of_fixed_shapes_come_back(rows: int, side: int, data: bytes, text: str) -> None:
    from schemas.parquet import fixed_array, fixed_values

    field = fixed_field("x", (side, 2))
    values = np.resize(np.frombuffer(data.ljust(4, b"\1"), np.uint8), (rows, side, 2)).astype(np.float32)
    schema = pa.schema([field, pa.field("name", pa.string()), pa.field("raw", pa.binary())])
    table = pa.Table.from_arrays(
        [fixed_array(field, values), pa.array([text] * rows), pa.array([data] * rows)], schema=schema
    )
    with tempfile.TemporaryDirectory() as folder:
        write_table(table, Path(folder, "t.parquet"), {"note": text})
        import pyarrow.parquet as pq

        back = pq.read_table(io.BytesIO(Path(folder, "t.parquet").read_bytes()))
    np.testing.assert_array_equal(fixed_values(back, "x"), values)
    assert back["name"].to_pylist() == [text] * rows
    assert back["raw"].to_pylist() == [data] * rows
