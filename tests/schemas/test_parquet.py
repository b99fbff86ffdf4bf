"""Encodings of Parquet files, read back by other readers."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.faces import IMAGE
from schemas.parquet import fixed_array, fixed_field, fixed_values, open_writer, write_table

MAP = fixed_field("displacement", (16, 16), pa.uint16(), scale=1e-6, offset=-0.01)
CODES = fixed_field("codes", (9, 3))


@pytest.fixture
def table() -> pa.Table:
    rows = 130
    generator = np.random.default_rng(0)
    schema = pa.schema(
        [("face_id", pa.string()), ("crop", IMAGE), MAP, CODES, ("score", pa.float64())],
        metadata={"schema_version": "3", "huggingface": '{"info": {"features": {}}}'},
    )
    images = [{"bytes": generator.bytes(200), "path": None} for _ in range(rows)]
    columns = [
        pa.array([f"{row:016x}" for row in range(rows)]),
        pa.array(images, IMAGE),
        fixed_array(MAP, generator.integers(0, 2**16, (rows, 16, 16), np.uint16)),
        fixed_array(CODES, generator.normal(size=(rows, 9, 3)).astype(np.float32)),
        pa.array(generator.normal(size=rows)),
    ]
    return pa.table(columns, schema=schema)


def test_encodings_row_groups_and_metadata(table: pa.Table, tmp_path: Path) -> None:
    write_table(table, tmp_path / "a.parquet", {"fingerprint": "f" * 64, "schema_version": "4"})
    meta = pq.read_metadata(tmp_path / "a.parquet")
    assert [meta.row_group(group).num_rows for group in range(meta.num_row_groups)] == [64, 64, 2]
    columns = {
        meta.row_group(0).column(index).path_in_schema: meta.row_group(0).column(index)
        for index in range(meta.num_columns)
    }
    assert columns["crop.bytes"].compression == "UNCOMPRESSED"
    for path, encoding in {
        "displacement.list.element": "DELTA_BINARY_PACKED",
        "codes.list.element": "BYTE_STREAM_SPLIT",
        "score": "BYTE_STREAM_SPLIT",
    }.items():
        assert columns[path].compression == "ZSTD"
        assert encoding in columns[path].encodings
        assert "RLE_DICTIONARY" not in columns[path].encodings
    assert "RLE_DICTIONARY" in columns["face_id"].encodings
    assert meta.metadata[b"fingerprint"] == b"f" * 64
    assert meta.metadata[b"schema_version"] == b"4"
    assert b"huggingface" in meta.metadata


def test_same_table_same_bytes(table: pa.Table, tmp_path: Path) -> None:
    write_table(table, tmp_path / "a.parquet", {"a": "1", "b": "2"})
    write_table(table, tmp_path / "b.parquet", {"b": "2", "a": "1"})
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_fixed_columns_come_back(table: pa.Table, tmp_path: Path) -> None:
    write_table(table, tmp_path / "a.parquet")
    back = pq.read_table(tmp_path / "a.parquet")
    assert back.equals(table)
    codes = fixed_values(back, "codes")
    assert codes.shape == (130, 9, 3)
    stored = table.column("displacement").combine_chunks().flatten().to_numpy().reshape(130, 16, 16)
    np.testing.assert_allclose(fixed_values(back, "displacement"), stored * 1e-6 - 0.01, rtol=1e-5, atol=1e-8)
    sliced = fixed_values(back.slice(100, 5), "codes")
    np.testing.assert_array_equal(sliced, codes[100:105])
    with pytest.raises(ValueError, match=r"'codes' takes arrays of shape \(9, 3\), got \(27,\)"):
        fixed_array(CODES, np.zeros((2, 27), np.float32))


def test_pandas_and_duckdb_open_it(table: pa.Table, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_table(table, path)
    assert len(pd.read_parquet(path)["codes"][0]) == 27
    query = f"select count(*), sum(len(displacement)), max(octet_length(crop.bytes)) from '{path}'"
    assert duckdb.connect().execute(query).fetchone() == (130, 130 * 256, 200)


def test_pieces_become_row_groups(tmp_path: Path) -> None:
    schema = pa.schema([("index", pa.int64())])
    with open_writer(schema, tmp_path / "a.parquet") as writer:
        writer.write_table(pa.table({"index": [1, 2, 3]}, schema=schema))
        writer.write_table(pa.table({"index": [4]}, schema=schema))
    assert pq.ParquetFile(tmp_path / "a.parquet").read_row_group(1).column(0).to_pylist() == [4]
