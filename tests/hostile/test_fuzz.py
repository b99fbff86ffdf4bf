"""Mutated inputs for every reader of foreign bytes, and properties of records, plans and codecs."""

from __future__ import annotations

import io
import os
import pickle
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
from tests.hostile.readers import READERS, Payload, Reader

FAST, MANY = 100, 2000  # mutated inputs for each reader
SLOW = 5.0  # seconds for one input
HEADROOM = 2 * 2**30  # bytes of address space for one input
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "socket.connect")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Executed(BaseException):
    """A reader started a process, connected somewhere or wrote a file; no reader catches it."""


class Watch:
    """Runs readers; a process, a written file or a connection that one starts raises Executed."""

    def __init__(self) -> None:
        self.watching = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        writes = event == "open" and bool(arguments[2]) and bool(arguments[2] & WRITING)
        if event in STARTS or writes:
            self.watching = False
            raise Executed(f"{event} {arguments!r:.100}")

    def problem(self, reader: Reader, data: bytes, path: Path) -> str | None:
        """Return what is wrong with the reader's answer to these bytes, or None."""
        path.write_bytes(data)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        started = time.monotonic()
        resource.setrlimit(resource.RLIMIT_AS, (taken + HEADROOM, before[1]))
        try:
            self.watching = True
            reader.run(data, path)
        except reader.errors:
            pass
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # any other error is a finding
            return f"{type(error).__name__}: {str(error)[:150]}"
        finally:
            self.watching = False
            resource.setrlimit(resource.RLIMIT_AS, before)
        seconds = time.monotonic() - started
        return f"slow: {seconds:.0f} s" if seconds > SLOW else None


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()  # audit hooks stay for the life of the process: one is enough


NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]
LENGTH = st.integers(1, 400)


@st.composite
def mutated(draw: Callable[..., Any], seeds: list[bytes]) -> bytes:
    """Apply one to eight edits to a valid input: overwrite bytes or numbers, flip bits, cut, repeat, insert, splice."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 8))):
        at = draw(st.integers(0, len(data)))
        edit = draw(st.sampled_from(["byte", "number", "flip", "cut", "repeat", "insert", "splice"]))
        if edit == "byte":
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif edit == "number":
            size = draw(st.sampled_from([1, 2, 4, 8]))
            number = draw(st.sampled_from(NUMBERS)) & (2 ** (8 * size) - 1)
            data[at : at + size] = number.to_bytes(size, draw(st.sampled_from(["little", "big"])))
        elif edit == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif edit == "cut":
            del data[at : at + draw(LENGTH)]
        elif edit == "repeat":
            data[at:at] = data[at : at + draw(LENGTH)]
        elif edit == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=60))
        elif edit == "splice":
            other, length = draw(st.sampled_from(seeds)), draw(LENGTH)
            start = draw(st.integers(0, len(other)))
            data[at : at + length] = other[start : start + length]
    return bytes(data)


@pytest.mark.parametrize("examples", [FAST, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", READERS)
def test_mutated_inputs_give_a_value_or_the_readers_own_error(
    watch: Watch, name: str, examples: int, tmp_path: Path
) -> None:
    reader, path = READERS[name], tmp_path / f"input{READERS[name].suffix}"
    seeds = reader.seeds()
    assert [watch.problem(reader, seed, path) for seed in seeds] == [None] * len(seeds)

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(mutated(seeds))
    def answers(data: bytes) -> None:
        assert watch.problem(reader, data, path) is None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answers()


def test_an_execution_of_code_would_be_seen(watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ordinary unpickler in the place of ours; otherwise the test above could not fail."""
    unsafe = Reader(lambda data, path: pickle.loads(data), lambda: [], (ValueError,))  # noqa: S301
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "input.bin"
    assert "os.system" in str(watch.problem(unsafe, pickle.dumps(Payload()), path))
    assert "UnpicklingError" in str(watch.problem(unsafe, b"x", path))
    greedy = Reader(lambda data, path: bytearray(2 * HEADROOM), lambda: [], ())
    assert "MemoryError" in str(watch.problem(greedy, b"", path))
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
def test_plans_hold_every_image_once_whatever_its_name(names: set[str], size: int) -> None:
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
