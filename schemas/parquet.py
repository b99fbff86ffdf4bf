"""How every Parquet file of the product is written, and arrays of a fixed shape as Arrow columns.

Encodings follow measurements on displacement maps: DELTA_BINARY_PACKED for 16-bit maps, BYTE_STREAM_SPLIT for floats,
zstd for all but encoded images, which do not compress. `arrow.fixed_shape_tensor` is avoided: Hugging Face
`datasets` cannot open a file that has one.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.abc import MetaPathFinder
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

ROW_GROUP = 64  # rows: some 6 MB of displacement maps, so that a reader's memory stays small


def arrow_without_pandas() -> None:
    """Spare this process the import of pandas: Arrow's first conversion looks whether its input is a Series.

    None of ours is. Half a second in every process; whoever calls `to_pandas` later gets pandas all the same. Until
    then a Series in `pa.array` is read as plain values: call this in processes of ours only.
    """
    if "pandas" not in sys.modules:
        hidden = _Hidden()
        sys.meta_path.insert(0, hidden)
        try:
            pa.array([0])  # it remembers that there is none
        finally:
            sys.meta_path.remove(hidden)


class _Hidden(MetaPathFinder):
    """As the first finder, it hides pandas from imports."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def write_table(
    table: pa.Table, path: str | Path, metadata: Mapping[str, str] | None = None, row_group: int = ROW_GROUP
) -> None:
    """Write `table` to the local file `path` by the house rules; equal tables give equal bytes.

    metadata joins the table's own schema metadata (schema_version, huggingface, hashes) and wins over it.
    """
    with open_writer(table.schema, path, metadata) as writer:
        writer.write_table(table, row_group_size=row_group)


def write_batches(
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    row_group: int = ROW_GROUP,
) -> int:
    """As `write_table`, for rows still to be made: a row group is encoded in a thread while the next one fills.

    How the rows come in batches does not show in the file. Returns the number of rows.
    """
    rows = 0
    with open_writer(schema, path, metadata) as writer, ThreadPoolExecutor(1) as pool:
        encoding: Future[None] | None = None
        for table in _grouped(schema, batches, row_group):
            if encoding is not None:
                encoding.result()  # one at a time: two row groups in memory
            encoding = pool.submit(writer.write_table, table, row_group)
            rows += table.num_rows
        if encoding is not None:
            encoding.result()
    return rows


def _grouped(schema: pa.Schema, batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Tables of `size` rows, the last one shorter, each in one piece."""
    waiting = schema.empty_table()
    for batch in batches:
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch], schema=schema)])
        while waiting.num_rows >= size:
            yield waiting.slice(0, size).combine_chunks()
            waiting = waiting.slice(size)
    if waiting.num_rows:
        yield waiting.combine_chunks()


def open_writer(schema: pa.Schema, path: str | Path, metadata: Mapping[str, str] | None = None) -> pq.ParquetWriter:
    """A writer for tables that arrive in pieces; each `write_table` begins a new row group."""
    merged = {**(schema.metadata or {}), **{key.encode(): value.encode() for key, value in (metadata or {}).items()}}
    leaves = {leaf: kind for column in schema for leaf, kind in _leaves(column.name, column.type)}
    encodings = {leaf: encoding for leaf, kind in leaves.items() if (encoding := _encoding(kind))}
    return pq.ParquetWriter(
        path,
        schema.with_metadata(dict(sorted(merged.items()))),
        compression={leaf: "none" if _is_binary(kind) else "zstd" for leaf, kind in leaves.items()},
        use_dictionary=[leaf for leaf, kind in leaves.items() if leaf not in encodings and not _is_binary(kind)],
        column_encoding=encodings,
    )


def _leaves(path: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """(Parquet path, type) of every leaf column under an Arrow column."""
    if pa.types.is_struct(kind):
        for child in kind:
            yield from _leaves(f"{path}.{child.name}", child.type)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    elif pa.types.is_map(kind):
        yield from _leaves(f"{path}.key_value.key", kind.key_type)
        yield from _leaves(f"{path}.key_value.value", kind.item_type)
    else:
        yield path, kind


def _encoding(kind: pa.DataType) -> str | None:
    if pa.types.is_floating(kind):
        return "BYTE_STREAM_SPLIT"
    return "DELTA_BINARY_PACKED" if pa.types.is_uint16(kind) else None


def _is_binary(kind: pa.DataType) -> bool:
    """Binary leaves hold JPEG or PNG bytes everywhere in the product."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def fixed_field(
    name: str,
    shape: tuple[int, ...],
    dtype: pa.DataType | None = None,
    *,
    scale: float | None = None,
    offset: float | None = None,
    nullable: bool = False,
) -> pa.Field:
    """Return a fixed_size_list field (float32 by default) for arrays of `shape`, row by row.

    With scale and offset the stored numbers are codes: value = stored * scale + offset.
    """
    metadata = {"shape": json.dumps(list(shape))}
    if scale is not None:
        metadata |= {"scale": repr(float(scale)), "offset": repr(float(offset or 0.0))}
    item = pa.field("element", dtype or pa.float32(), nullable=False)
    return pa.field(name, pa.list_(item, math.prod(shape)), nullable=nullable, metadata=metadata)


def fixed_array(field: pa.Field, values: NDArray) -> pa.FixedSizeListArray:
    """Column of `field` from values (N, *shape), already encoded where the field has a scale."""
    shape = field_shape(field)
    if values.shape[1:] != shape:
        raise ValueError(f"column {field.name!r} takes arrays of shape {shape}, got {values.shape[1:]}")
    flat = np.ascontiguousarray(values).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, type=field.type.value_type), type=field.type)


def fixed_values(table: pa.Table, name: str) -> NDArray:
    """Values (N, *shape) of a column without nulls, decoded to float32 where its field has a scale."""
    field = table.schema.field(name)
    flat = table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
    values = flat.reshape(-1, *field_shape(field))
    if b"scale" not in field.metadata:
        return values
    return values.astype(np.float32) * float(field.metadata[b"scale"]) + float(field.metadata[b"offset"])


def field_shape(field: pa.Field) -> tuple[int, ...]:
    """Shape of one row of a column made by `fixed_field`."""
    return tuple(json.loads(field.metadata[b"shape"]))
