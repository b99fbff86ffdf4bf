"""Parquet files with images as sources: an item per image, planned from the footer, read forwards.

A column holds bytes, or Hugging Face's `struct<bytes, path>`, at the top, below structs, or in lists. Where the bytes
are missing the path is read, a relative one beside the file. The member of an item is `image[row]`, `sample.image[row]`
below a struct and `images[row][index]` in a list; its offset is the row. Rows are decoded from the start of their row
group on, so files with row groups of some hundred rows read best.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections import deque
from collections.abc import Iterator
from itertools import accumulate
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.ledger import Item
from tasks.sources.archives import BOMB_BYTES, BOMB_RATIO
from tasks.sources.table_columns import LIST, ImageColumn, columns_below, image_columns
from tasks.sources.walk import resolve
from tasks.store.ranges import ReadError, open_checked, read_bytes
from tasks.store.storage import check_reachable

TABLE_SUFFIX = ".parquet"
BATCH = 16  # images decoded at once
BLOCK = 8 * 2**20  # bytes fetched at once from a remote file
LENGTHS_AT_ONCE = 1024  # rows whose lists are counted at once
MOST_VALUES = 2**24  # in a row group of lists: a page of some bytes may claim more than fits into memory


def is_table(uri: str) -> bool:
    return uri.lower().endswith(TABLE_SUFFIX)


def table_schema(uri: str) -> tuple[pa.Schema, int]:
    """Return (Arrow schema, rows) of a Parquet file from its footer; ValueError where it is damaged."""
    with open_checked(uri, None, BLOCK) as file, _damage_is_a_value_error():
        parquet = pq.ParquetFile(file)
        schema = parquet.schema_arrow
        tops = [field.name for field in schema if next(columns_below((field.name,), field.type), None)]
        if len(set(tops)) < len(tops):
            raise ValueError(f"two columns are called {max(tops, key=tops.count)!r}")
        return schema, parquet.metadata.num_rows


@contextlib.contextmanager
def _damage_is_a_value_error() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None:  # pyarrow's error for damage; that of a failing disk has a number
            raise ValueError(str(error)) from error
        raise
    except (pa.ArrowException, ReadError) as error:  # types that no Arrow has; a bomb
        raise ValueError(str(error)) from error


# --- which images -----------------------------------------------------------------------------------------------------


def image_rows(uri: str, column: ImageColumn, rows: int) -> Iterator[tuple[str, int]]:
    """(member, row) of every image. Only lists cost reading: their lengths are in no footer. ValueError as damage."""
    if not column.lists:
        yield from ((f"{column.name}[{row}]", row) for row in range(rows))
        return
    with open_checked(uri, None, BLOCK) as file, _damage_is_a_value_error():
        parquet = pq.ParquetFile(file, buffer_size=BLOCK)
        leaf = _lightest_leaf(parquet, column)
        for group in range(parquet.num_row_groups):
            _check_size(parquet, group, [leaf], counted=True)
        row = 0
        for batch in parquet.iter_batches(LENGTHS_AT_ONCE, columns=[leaf], use_threads=False):
            for value in batch.column(column.top):
                for indices in _indices(value, column.steps[1:]):
                    yield f"{column.name}[{row}]{''.join(f'[{index}]' for index in indices)}", row
                row += 1


def check_lists(uri: str) -> None:
    """ValueError where the lists of a table cannot be counted."""
    schema, rows = table_schema(uri)
    for column in image_columns(schema):
        if column.lists:
            deque(image_rows(uri, column, rows), 0)


def _lightest_leaf(parquet: Any, column: ImageColumn) -> str:
    """The stored column from which lengths are read: the paths of the images rather than their bytes."""
    paths = [parquet.schema.column(index).path for index in range(len(parquet.schema))]
    names = [step for step in column.steps if step != LIST]

    def holds(path: str) -> bool:
        parts = iter(path.split("."))
        return all(name in parts for name in [*names, "path"]) and next(parts, None) is None

    return next(filter(holds, paths), column.top)


def _indices(value: Any, steps: tuple[str, ...]) -> Iterator[tuple[int, ...]]:
    """The indices of the images below a scalar, one for each list on the way."""
    value = _plain(value)
    if not steps:
        yield ()
    elif not value.is_valid:
        return
    elif steps[0] == LIST:
        for index in range(len(value)):
            yield from ((index, *rest) for rest in _indices(value[index], steps[1:]))
    else:
        yield from _indices(value[steps[0]], steps[1:])


def _plain(value: Any) -> Any:
    """Return the value of a dictionary-encoded scalar."""
    return value.value if isinstance(value, pa.DictionaryScalar) else value


# --- reading ----------------------------------------------------------------------------------------------------------


def read_row(item: Item, max_bytes: int) -> bytes:
    """Return the image of a planned row; raises ReadError, or what pyarrow and the storage driver raise."""
    if item.member is None or item.offset is None:
        raise ReadError(f"{item.uri} was planned as a whole; plan again with --new")
    value, path = _cursor.value(item), None
    if pa.types.is_struct(value.type):
        path = _plain(value["path"]).as_py() if value.is_valid and "path" in value.keys() else None  # noqa: SIM118
        value = _plain(value["bytes"]) if value.is_valid else value
    if value.is_valid:
        data = value.as_buffer()
        if data.size > max_bytes:
            raise ReadError(f"{data.size} bytes, more than the limit of {max_bytes} bytes (inputs.max_bytes)")
        return data.to_pybytes()
    if not path:
        raise ReadError(
            f"{item.member} (row {item.offset} of {item.uri}) holds no bytes and no path; a column of paths alone is "
            "read as a list: --set inputs.uri_column=NAME"
        )
    folder = item.uri.rpartition("/")[0]
    place = resolve(path, folder)
    check_reachable(place, folder)
    try:
        return read_bytes(place, max_bytes=max_bytes)
    except FileNotFoundError as error:
        raise ReadError(f"{item.member} has no bytes and names {place}, which does not exist") from error


class _Cursor:
    """The position in the last Parquet file, kept open: units come in order, so each resumes there."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.key: tuple[str, str | None] | None = None
        self.file: IO[bytes] | None = None
        self.columns: list[ImageColumn] = []
        self.column: ImageColumn | None = None
        self.batches: Iterator[pa.RecordBatch] = iter(())
        self.first, self.batch = 0, pa.nulls(0)  # the decoded rows of the file
        self.group = -1

    def value(self, item: Item) -> Any:
        """The Arrow scalar of an item: bytes, or a struct with them."""
        row = item.offset or 0
        with self.lock:
            try:
                if self.key != (item.uri, item.etag):
                    self._open(item)
                column, indices = self._located(item, row)
                if column != self.column:
                    self._choose(column)
                self._go_to(row)
            except BaseException:
                self.key = None  # what failed is not read on
                raise
            return _descend(self.batch[row - self.first], column, indices, item)

    def _open(self, item: Item) -> None:
        if self.file is not None:
            self.file.close()
        self.file = open_checked(item.uri, item.etag, BLOCK)
        self.parquet = pq.ParquetFile(self.file, buffer_size=BLOCK)
        self.columns, self.column = image_columns(self.parquet.schema_arrow), None
        groups = (self.parquet.metadata.row_group(index).num_rows for index in range(self.parquet.num_row_groups))
        self.starts = [0, *accumulate(groups)]
        self.key = (item.uri, item.etag)

    def _located(self, item: Item, row: int) -> tuple[ImageColumn, list[int]]:
        """The column and the indices into its lists that a member names."""
        for column in self.columns:
            start = f"{column.name}[{row}]"
            rest = (item.member or "").removeprefix(start)
            if item.member == start + rest and re.fullmatch(r"(\[\d+\])" + f"{{{column.lists}}}", rest):
                return column, [int(index) for index in re.findall(r"\d+", rest)]
        raise ReadError(f"{item.uri} has no images at {item.member!r}: it has changed since it was planned")

    def _choose(self, column: ImageColumn) -> None:
        self.column, self.group = column, -1
        self.size = 1 if column.lists else BATCH
        self.leaves = [column.top]
        if column.struct and not column.nested:  # of the stored columns below it only these are needed
            fields = self.parquet.schema_arrow.field(column.top).type
            self.leaves = [f"{column.top}.{child.name}" for child in fields if child.name in ("bytes", "path")]

    def _go_to(self, row: int) -> None:
        """Decode forwards to the batch of `row`; from the start of its row group if that is behind or elsewhere."""
        if not 0 <= row < self.starts[-1]:
            raise ReadError(f"there is no row {row}: the file has {self.starts[-1]}")
        assert self.column is not None
        if self.group < 0 or not self.starts[self.group] <= row < self.starts[self.group + 1] or row < self.first:
            self.group = next(index for index, start in enumerate(self.starts[1:]) if row < start)
            _check_size(self.parquet, self.group, self.leaves, counted=self.column.lists > 0)
            self.first, self.batch = self.starts[self.group], pa.array([])
            self.batches = self.parquet.iter_batches(
                self.size, row_groups=[self.group], columns=self.leaves, use_threads=False
            )
        while row >= self.first + len(self.batch):
            self.first += len(self.batch)
            self.batch = next(self.batches).column(self.column.top)


def _descend(value: Any, column: ImageColumn, indices: list[int], item: Item) -> Any:
    """The image below a row's scalar; a null on the way is what it is."""
    remaining = iter(indices)
    value = _plain(value)
    for step in column.steps[1:]:
        if not value.is_valid:
            raise ReadError(f"{item.member} (row {item.offset} of {item.uri}) holds nothing")
        index = next(remaining) if step == LIST else None
        if index is not None and index >= len(value):
            raise ReadError(f"there is no {item.member}: the row has {len(value)}, it has changed since the plan")
        value = _plain(value[step if index is None else index])
    return value


def _check_size(parquet: Any, group: int, leaves: list[str], *, counted: bool) -> None:
    """ReadError before pages are unpacked that images could not have been packed from.

    counted: the values are in lists, so that their number is not that of the rows.
    """
    metadata = parquet.metadata.row_group(group)
    for chunk in map(metadata.column, range(metadata.num_columns)):
        if not any(chunk.path_in_schema == leaf or chunk.path_in_schema.startswith(f"{leaf}.") for leaf in leaves):
            continue
        unpacked, packed = chunk.total_uncompressed_size, chunk.total_compressed_size
        if unpacked > BOMB_BYTES and unpacked > BOMB_RATIO * packed:
            raise ReadError(
                f"row group {group}: {packed} bytes that unpack to {unpacked}, more than {BOMB_RATIO} times their "
                "size: a bomb, not images"
            )
        if counted and chunk.num_values > MOST_VALUES:
            raise ReadError(f"row group {group}: {chunk.num_values} values in lists, the limit is {MOST_VALUES}")


_cursor = _Cursor()
