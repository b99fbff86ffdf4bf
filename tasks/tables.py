"""Parquet files with a column of pictures as sources: one item a row, planned from the footer, read forwards.

The column holds bytes, or Hugging Face's `struct<bytes, path>`. An item's member is `column[row]`, its offset the row.
Rows are decoded from the start of their row group on, so files with row groups of some hundred rows read best.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from itertools import accumulate
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.ledger import Item
from tasks.archives import BOMB_BYTES, BOMB_RATIO
from tasks.ranges import ReadError, open_checked
from tasks.walk import SourceError

TABLE_SUFFIX = ".parquet"
BATCH = 16  # pictures decoded at once
BLOCK = 8 * 2**20  # bytes fetched at once from a remote file


def is_table(uri: str) -> bool:
    return uri.lower().endswith(TABLE_SUFFIX)


def table_schema(uri: str) -> tuple[pa.Schema, int]:
    """(Arrow schema, rows) of a Parquet file from its footer; ValueError where it is damaged."""
    with open_checked(uri, None, BLOCK) as file:
        try:
            parquet = pq.ParquetFile(file)
            schema = parquet.schema_arrow
        except OSError as error:
            if error.errno is None:  # pyarrow's word for a footer that makes no sense; a failing disk has a number
                raise ValueError(str(error)) from error
            raise
        except pa.ArrowException as error:  # types that no Arrow has
            raise ValueError(str(error)) from error
        names = [field.name for field in schema if _is_bytes(field.type) or pa.types.is_struct(field.type)]
        if len(set(names)) < len(names):
            raise ValueError(f"two columns are called {max(names, key=names.count)!r}")
        return schema, parquet.metadata.num_rows


def image_column(schema: pa.Schema, wanted: str | None, uri: str) -> str | None:
    """The column of pictures: the wanted one, or the only one it can be; None where no column can.

    Hugging Face's own note of its Image columns comes first, then `struct<bytes, ...>`, then plain bytes.
    Raises SourceError, listing the columns, where the wanted one cannot be it or several can.
    """
    noted = _noted_pictures(schema)
    structs = [field.name for field in schema if pa.types.is_struct(field.type) and _holds_bytes(field)]
    plain = [field.name for field in schema if _is_bytes(field.type)]
    if wanted is not None:
        if wanted not in {*structs, *plain}:
            cause = "is no column of bytes or struct<bytes, path>" if wanted in schema.names else "does not exist"
            raise SourceError(
                f"{uri}: the column {wanted!r} (inputs.image_column) {cause}. The columns are {describe(schema)}; "
                "leave other files out with --set inputs.exclude=[...]"
            )
        return wanted
    candidates = [name for name in structs if name in noted] or structs or plain
    if len(candidates) > 1:
        candidates = [name for name in candidates if name == "image"] or candidates
    if len(candidates) > 1:
        raise SourceError(
            f"{uri}: pictures may be in {' or '.join(candidates)}. Say which: --set inputs.image_column="
            f"{candidates[0]}. The columns are {describe(schema)}"
        )
    return candidates[0] if candidates else None


def _noted_pictures(schema: pa.Schema) -> set[str]:
    """Columns that Hugging Face's note calls pictures; a note of any other form says nothing."""
    try:
        note = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = note["info"]["features"]
        return {name for name, feature in features.items() if feature["_type"] == "Image"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # whatever a stranger has put there
        return set()


def describe(schema: pa.Schema) -> str:
    """Columns with their types, in words."""
    return ", ".join(f"{field.name} ({str(field.type)[:60]})" for field in schema)


def image_rows(column: str, rows: int) -> Iterator[tuple[str, int]]:
    """(member, row) of every row."""
    return ((f"{column}[{row}]", row) for row in range(rows))


def read_row(item: Item, max_bytes: int) -> bytes:
    """The picture of a planned row; raises ReadError, or what pyarrow and the storage driver raise."""
    if item.member is None or item.offset is None:
        raise ReadError(f"{item.uri} was planned as a whole; plan again with --new")
    value = _cursor.value(item, item.member.rpartition("[")[0], item.offset)
    if pa.types.is_struct(value.type) and value.is_valid:
        value = value["bytes"]
    if not value.is_valid:
        raise ReadError(f"row {item.offset} of {item.uri} holds no bytes; a column of paths is read as a list")
    data = value.as_buffer()
    if data.size > max_bytes:
        raise ReadError(f"{data.size} bytes, more than the limit of {max_bytes} bytes (inputs.max_bytes)")
    return data.to_pybytes()


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _holds_bytes(field: pa.Field) -> bool:
    return any(child.name == "bytes" and _is_bytes(child.type) for child in field.type)


class _Cursor:
    """The place in the last Parquet file that was read, kept open: units come in order, so each goes on where it is."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.key: tuple[str, str | None, str] | None = None
        self.file: IO[bytes] | None = None
        self.batches: Iterator[pa.RecordBatch] = iter(())
        self.first, self.batch = 0, pa.nulls(0)  # rows of the file in hand
        self.group = -1

    def value(self, item: Item, column: str, row: int) -> Any:
        """The Arrow scalar at `row`."""
        with self.lock:
            try:
                if self.key != (item.uri, item.etag, column):
                    self._open(item, column)
                self._go_to(row)
            except BaseException:
                self.key = None  # what failed is not read on
                raise
            return self.batch[row - self.first]

    def _open(self, item: Item, column: str) -> None:
        if self.file is not None:
            self.file.close()
        self.file = open_checked(item.uri, item.etag, BLOCK)
        self.parquet = pq.ParquetFile(self.file, buffer_size=BLOCK)
        kind = self.parquet.schema_arrow.field(column).type
        self.leaf = f"{column}.bytes" if pa.types.is_struct(kind) else column
        groups = (self.parquet.metadata.row_group(index).num_rows for index in range(self.parquet.num_row_groups))
        self.starts = [0, *accumulate(groups)]
        paths = [self.parquet.schema.column(index).path for index in range(len(self.parquet.schema))]
        self.column = paths.index(self.leaf)
        self.key, self.group = (item.uri, item.etag, column), -1

    def _go_to(self, row: int) -> None:
        """Decode forwards to the batch of `row`; from the start of its row group if that lies behind or elsewhere."""
        if not 0 <= row < self.starts[-1]:
            raise ReadError(f"there is no row {row}: the file has {self.starts[-1]}")
        if self.group < 0 or not self.starts[self.group] <= row < self.starts[self.group + 1] or row < self.first:
            self.group = next(index for index, start in enumerate(self.starts[1:]) if row < start)
            self._check_size(self.group)
            self.first, self.batch = self.starts[self.group], pa.array([])
            self.batches = self.parquet.iter_batches(
                BATCH, row_groups=[self.group], columns=[self.leaf], use_threads=False
            )
        while row >= self.first + len(self.batch):
            self.first += len(self.batch)
            self.batch = next(self.batches).column(0)

    def _check_size(self, group: int) -> None:
        """ReadError before pages are unpacked that pictures could not have been packed from."""
        chunk = self.parquet.metadata.row_group(group).column(self.column)
        unpacked, packed = chunk.total_uncompressed_size, chunk.total_compressed_size
        if unpacked > BOMB_BYTES and unpacked > BOMB_RATIO * packed:
            raise ReadError(
                f"row group {group}: {packed} bytes that unpack to {unpacked}, more than {BOMB_RATIO} times their "
                "size: a bomb, not pictures"
            )


_cursor = _Cursor()
