"""Units whose rows are made while they are written: the same bytes however they come, and faults told apart."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.engine import RayConfig, UnitsConfig
from schemas.ledger import Item, Quarantined, StoredFile
from schemas.parquet import ROW_GROUP, write_batches, write_table
from tasks.store.storage import Store
from tasks.units.commit import Rows, UnitOutput
from tasks.units.commits import committed_parts, read_commits, standing_quarantine
from tasks.units.engine import run_units
from tasks.units.plan import Plan
from tasks.units.rounds import drop_plan, open_or_build
from tasks.units.verify import status, verify

SCHEMA = pa.schema([("face_id", pa.string()), ("source_uri", pa.string())], metadata={"schema_version": "1"})
HERE = RayConfig(workers=0, attempts=2)


def batch(rows: Sequence[str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"face_id": list(rows), "source_uri": list(rows)}, SCHEMA)


@pytest.mark.parametrize("sizes", [[200], [8] * 25, [1, 99, 0, 63, 37], [64, 64, 64, 8]])
def test_batches_do_not_show_in_the_file(tmp_path, sizes):
    names = [f"{number:04d}" for number in range(200)]
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    batches = [batch(names[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
    assert write_batches(SCHEMA, batches, tmp_path / "a.parquet", {"fingerprint": "x"}) == 200
    whole = pa.Table.from_batches([batch(names)])
    write_table(whole, tmp_path / "b.parquet", {"fingerprint": "x"})
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    found = pq.ParquetFile(tmp_path / "a.parquet")
    assert [found.metadata.row_group(index).num_rows for index in range(4)] == [ROW_GROUP] * 3 + [8]


def test_no_rows_are_a_file_too(tmp_path):
    assert write_batches(SCHEMA, [], tmp_path / "a.parquet") == 0
    assert pq.read_table(tmp_path / "a.parquet").schema.names == SCHEMA.names


def test_an_error_between_batches_is_raised(tmp_path):
    def broken() -> Iterator[pa.RecordBatch]:
        for _ in range(20):
            yield batch(["a"] * 16)
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        write_batches(SCHEMA, broken(), tmp_path / "a.parquet")


class Streaming:
    """A row per image, and a file beside it; quarantine is known when the last row is out."""

    def __init__(self, store: Store, fault: str = "") -> None:
        self.store, self.fault = store, fault

    def process(self, items: Sequence[Item]) -> UnitOutput:
        quarantine: list[Quarantined] = []
        files: list[StoredFile] = []

        def rows() -> Iterator[pa.RecordBatch]:
            for item in items:
                if item.index == 3:
                    quarantine.append(Quarantined.of(item, "decode", "ImageError", "bad"))
                elif item.index == 4 and self.fault == "os":
                    raise OSError(28, "No space left on device")
                else:
                    name = f"files/{item.image_id}.txt"
                    size, sha256 = self.store.write(name, item.image_id.encode())
                    files.append(StoredFile(file=name, bytes=size, sha256=sha256))
                    yield pa.RecordBatch.from_pylist(
                        [{"face_id": item.image_id, "source_uri": item.source_uri}], schema=SCHEMA
                    )
            if self.fault == "stranger":
                quarantine.append(Quarantined(999, "", None, "read", "E", ""))

        return UnitOutput(Rows(SCHEMA, rows()), quarantine, files)


@pytest.fixture
def plan(photos, tmp_path) -> Plan:
    return open_or_build(str(tmp_path / "out"), str(photos(6)), units=UnitsConfig(items_per_unit=4))


def test_rows_quarantine_and_files_are_committed(plan):
    summary = run_units(plan, lambda: Streaming(plan.store), HERE)
    assert (summary.units_run, summary.rows, summary.quarantined) == (2, 5, {"decode": 1})
    first, second = read_commits(plan.dest)
    assert (first.rows, len(first.files), second.rows, len(second.files)) == (3, 3, 2, 2)
    table = pq.read_table(committed_parts(plan.dest))
    assert {file.file for file in first.files} == {f"files/{n}.txt" for n in table["face_id"].to_pylist()[:3]}
    assert [row.index for row in standing_quarantine(plan.dest)] == [3]
    assert status(plan.dest).bytes == first.bytes + second.bytes + 5 * 16
    found = verify(plan.dest)
    assert found.ok
    assert found.files == 1 + 2 + 1 + 5  # items, parts, quarantine, files


@pytest.mark.parametrize("harm", ["changed", "gone"])
def test_verify_looks_at_the_files_beside_the_parts(plan, harm):
    run_units(plan, lambda: Streaming(plan.store), HERE)
    victim = Path(plan.dest, list(read_commits(plan.dest))[1].files[0].file)
    if harm == "gone":
        victim.unlink()
    else:
        victim.write_bytes(b"0" * 16)
    [problem] = verify(plan.dest).problems
    assert victim.name in problem


def test_dropping_a_plan_drops_its_files(plan):
    run_units(plan, lambda: Streaming(plan.store), HERE)
    drop_plan(plan.dest)
    assert not Path(plan.dest, "files").exists()


def test_a_workers_disk_error_is_its_own_and_not_the_storages(plan):
    """What the worker raises gives up its unit; the run continues, and nothing half-written is left."""
    summary = run_units(plan, lambda: Streaming(plan.store, "os"), HERE)
    assert (summary.units_failed, summary.rows) == (1, 3)
    lost = [row for row in standing_quarantine(plan.dest) if row.stage == "unit"]
    assert {row.error for row in lost} == {"OSError"}
    assert [row.index for row in lost] == [4, 5]
    assert not list(Path(plan.dest).glob("*.tmp"))


def test_a_row_of_a_strange_item_gives_up_the_unit(plan):
    summary = run_units(plan, lambda: Streaming(plan.store, "stranger"), HERE)
    assert summary.units_failed == 2


def test_rows_are_encoded_while_the_next_ones_are_made(tmp_path, monkeypatch):
    import threading

    encoders: set[int] = set()
    original = pq.ParquetWriter.write_table

    def write(self, table, row_group_size=None):
        encoders.add(threading.get_ident())
        time.sleep(0.01)
        return original(self, table, row_group_size)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", write)
    write_batches(SCHEMA, [batch(["a"] * 64)] * 3, tmp_path / "a.parquet")
    assert len(encoders) == 1
    assert threading.get_ident() not in encoders
