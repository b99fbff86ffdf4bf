"""Lists of images as sources: a URI per line of text, or a column of CSV, TSV or Parquet.

Rows that cannot name anything end the planning with the file and row; a URI that is not there is planned and fails
alone when it is read.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import IO, Any

import pyarrow.parquet as pq

from tasks.sources.table_columns import describe, is_text
from tasks.sources.tables import BLOCK
from tasks.sources.walk import SourceError, resolve
from tasks.store.ranges import open_checked
from tasks.store.storage import StorageError

LIST_SUFFIXES = (".txt", ".csv", ".tsv")
# Usual names of the column (pandas, img2dataset, Hugging Face imagefolder, our own).
URI_COLUMNS = ("uri", "url", "path", "file", "filename", "file_name", "image", "image_path", "image_uri", "source_uri")
LONGEST = 4096  # characters of a URI: POSIX's longest path; object keys end at 1024
LONGEST_LINE = 2**20  # characters of a line of CSV with all its columns
NOTHING = {"", "nan", "none", "null", "<na>"}  # how missing values are written


def is_list(uri: str) -> bool:
    return uri.lower().endswith(LIST_SUFFIXES)


def uri_column(names: list[str], wanted: str | None, uri: str, shown: str) -> str:
    """Return the column of URIs: the configured one or the first of the usual names; SourceError lists the columns."""
    if wanted in names:
        return wanted
    if wanted is None and (found := [name for name in URI_COLUMNS if name in names]):
        return found[0]
    what = f"no column {wanted!r}" if wanted else f"no column called {', '.join(URI_COLUMNS)}"
    raise SourceError(
        f"{uri}: {what}; the columns are {shown}. Name the one with the URIs: --set inputs.uri_column=NAME "
        "(a list without a header is a .txt of one URI a line)"
    )


def listed_uris(uri: str, column: str | None) -> Iterator[str]:
    """Yield normalised URIs in the order of the list; relative paths are resolved from its folder.

    Raises SourceError naming the file and the row or column.
    """
    base = uri.rpartition("/")[0]
    for place, value in _entries(uri, column):
        entry = _checked(value, f"{uri}, {place}")
        try:
            yield resolve(entry, base)
        except (StorageError, ValueError) as error:
            raise SourceError(f"{uri}, {place}: {error}") from error


def _checked(value: Any, place: str) -> str:
    """The entry as text, or the SourceError that says what is wrong with it."""
    if value is None or (isinstance(value, str) and value.strip().lower() in NOTHING):
        raise SourceError(f"{place}: empty. Remove the row, or fill in where the image is")
    if not isinstance(value, str):
        raise SourceError(f"{place}: {type(value).__name__} instead of a URI")
    if len(value) > LONGEST:
        raise SourceError(f"{place}: {len(value)} characters ({value[:40]!r}...), no URI is longer than {LONGEST}")
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
        raise SourceError(f"{place}: {value[:80]!r} has control characters; is this a list of URIs?")
    return value


def _entries(uri: str, column: str | None) -> Iterator[tuple[str, Any]]:
    """("line 17", value) of every row."""
    if uri.lower().endswith(".parquet"):
        yield from _parquet_entries(uri, column)
        return
    with open_checked(uri, None, BLOCK) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        try:
            if uri.lower().endswith(".txt"):
                for number, line in _lines(text, uri):
                    if line.strip():
                        yield f"line {number}", line.rstrip("\r\n")
            else:
                yield from _csv_entries(text, uri, column)
        except UnicodeDecodeError as error:
            raise SourceError(f"{uri}: not UTF-8 text ({error.reason} at byte {error.start} of a block)") from error
        except csv.Error as error:
            raise SourceError(f"{uri}: {error}") from error


def _lines(text: IO[str], uri: str) -> Iterator[tuple[int, str]]:
    number = 0
    while line := text.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise SourceError(f"{uri}, line {number}: longer than {LONGEST_LINE} characters; is this a list of URIs?")
        yield number, line


def _csv_entries(text: IO[str], uri: str, column: str | None) -> Iterator[tuple[str, Any]]:
    delimiter = "\t" if uri.lower().endswith(".tsv") else ","
    rows = csv.reader((line for _, line in _lines(text, uri)), delimiter=delimiter)
    header = [name.strip() for name in next(rows, [])]
    at = header.index(uri_column(header, column, uri, ", ".join(name[:60] for name in header[:50])))
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise SourceError(f"{uri}, line {rows.line_num}: {error}") from error
        if row:
            if len(row) <= at:
                raise SourceError(f"{uri}, line {rows.line_num}: {len(row)} columns where the header has {len(header)}")
            yield f"line {rows.line_num}", row[at]


def _parquet_entries(uri: str, column: str | None) -> Iterator[tuple[str, Any]]:
    with open_checked(uri, None, BLOCK) as file:
        parquet = pq.ParquetFile(file)
        schema = parquet.schema_arrow
        name = uri_column(schema.names, column, uri, describe(schema))
        kind = schema.field(name).type
        if not is_text(kind):
            raise SourceError(f"{uri}: the column {name!r} is {kind}, not text. The columns are {describe(schema)}")
        row = 0
        for batch in parquet.iter_batches(4096, columns=[name]):
            for value in batch.column(0):
                try:
                    text = value.as_py()
                except UnicodeDecodeError as error:
                    raise SourceError(f"{uri}, row {row}: not UTF-8 text ({error})") from error
                yield f"row {row}", text
                row += 1
