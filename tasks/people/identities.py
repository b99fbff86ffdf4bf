"""Identity labels from paths or tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from deca_core.errors import DecaError
from tasks.sources.labels import NAME_LIMIT
from tasks.sources.listings import NOTHING, URI_COLUMNS
from tasks.sources.tables import BLOCK
from tasks.sources.walk import resolve
from tasks.store.ranges import open_checked
from tasks.store.storage import StorageError, Store, normalise, storage_errors
from tasks.units.commits import committed_parts
from tasks.units.plan import PLAN

IDENTITY_COLUMNS = ("identity_id", "identity", "label")

# What stands for what in a pattern. An identity ends at a folder and at an archive's `#`.
PLACEHOLDERS = {"{identity}": "(?P<identity>[^/#]+)", "{image}": "[^/]+", "{any}": ".*"}

Labels: TypeAlias = pa.Array  # one text a face, null where there is none


class IdentityError(DecaError):
    """Labels that name none of the images, or that cannot be read; says what was found and what was expected."""


def places_below(uris: pa.Array, root: str) -> pa.Array:
    """Return the paths of images relative to the source; unchanged where they are stored elsewhere."""
    folder = f"{root.rstrip('/')}/"
    below = pc.utf8_ltrim(pc.utf8_slice_codeunits(uris, len(folder)), "/")
    return pc.if_else(pc.starts_with(uris, folder), below, uris) if root else uris


def path_labels(places: pa.Array, pattern: str) -> Labels:
    """Return what {identity} of the pattern matches in each path, null where the pattern does not match.

    >>> path_labels(pa.array(["ada/1.jpg", "2.jpg"]), "{identity}/{image}").to_pylist()
    ['ada', None]
    """
    pieces = re.split(r"(\{\w*\})", pattern)
    unknown = [piece for piece in pieces if piece.startswith("{") and piece not in PLACEHOLDERS]
    if unknown or pieces.count("{identity}") != 1:
        raise IdentityError(
            f"identity.pattern {pattern!r}: "
            + (f"there is no {unknown[0]}, only" if unknown else "{identity} must stand once; besides it there are")
            + " {identity}, {image} (within a folder) and {any}"
        )
    expression = "".join(PLACEHOLDERS.get(piece) or re.escape(piece) for piece in pieces)
    labels = pc.struct_field(pc.extract_regex(places, f"(?s)\\A{expression}\\z"), "identity")
    if labels.null_count == len(labels):
        raise IdentityError(
            f"identity.pattern {pattern!r} matches none of the {len(places)} faces' images. A path is, for example, "
            f"{places[0].as_py()!r}; the pattern is for the whole of it, {{image}} ends at a folder and "
            "{any} does not"
        )
    return labels


def table_labels(uris: pa.Array, places: pa.Array, table: str) -> Labels:
    """Return the identity of each image in a table, null where it has none.

    A row names an image by its URI, its path below the source, or its path from the table's own folder.
    """
    uri = normalise(table)
    paths, identities = _read_table(uri)
    named = pa.table({"path": paths, "identity": identities})
    named = named.group_by("path", use_threads=False).aggregate([("identity", "min"), ("identity", "max")])
    differing = named.filter(pc.not_equal(named["identity_min"], named["identity_max"]))
    if len(differing):
        first = differing.slice(0, 1).to_pylist()[0]
        raise IdentityError(
            f"{uri}: {first['path']!r} is said to be {first['identity_min']!r} and {first['identity_max']!r}. "
            f"Leave one row an image ({len(differing)} have several)"
        )
    paths, identities = named["path"].combine_chunks(), named["identity_min"].combine_chunks()
    base = uri.rpartition("/")[0]
    resolved = pa.array([_resolved(path, base) for path in paths.to_pylist()], pa.string())
    at = pc.coalesce(
        pc.index_in(uris, value_set=resolved),
        pc.index_in(uris, value_set=paths),
        pc.index_in(places, value_set=paths),
    )
    labels = identities.take(at)
    if labels.null_count == len(labels):
        raise IdentityError(
            f"{uri} names none of the {len(uris)} faces' images. It says, for example, {paths[0].as_py()!r}, and a "
            f"image is {places[0].as_py()!r}, or in full {uris[0].as_py()!r}"
        )
    return labels


def _resolved(path: str, base: str) -> str | None:
    """The URI of a row; nothing where it cannot be one."""
    try:
        return resolve(path, base)
    except (StorageError, ValueError):
        return None


def _read_table(uri: str) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """(paths, identities) of a CSV, TSV or Parquet file, or of the truth that `deca synth` writes; rows with both."""
    try:
        if PLAN in Store(uri).list():
            tables = [_read_file(part) for part in committed_parts(uri)]
            table = pa.concat_tables(tables) if tables else pa.table({"path": [], "identity": []})
        else:
            table = _read_file(uri)
    except FileNotFoundError as error:
        raise IdentityError(f"there is no table at {uri} (identity.table)") from error
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise IdentityError(f"{uri}: {error} (identity.table)") from error
    table = table.filter(pc.and_(_says_something(table["path"]), _says_something(table["identity"])))
    if not len(table):
        raise IdentityError(f"{uri}: no row names an image and a subject (identity.table)")
    longest = pc.max(pc.utf8_length(table["identity"])).as_py()
    if longest > NAME_LIMIT:
        raise IdentityError(
            f"{uri}: an identity of {longest} characters; a name has at most {NAME_LIMIT} (identity.table)"
        )
    return table["path"], table["identity"]


def _says_something(values: pa.ChunkedArray) -> pa.ChunkedArray:
    text = pc.utf8_lower(pc.utf8_trim_whitespace(values))
    return pc.and_kleene(values.is_valid(), pc.invert(pc.is_in(text, value_set=pa.array(sorted(NOTHING)))))


def _read_file(uri: str) -> pa.Table:
    """Columns path and identity, as text."""
    with storage_errors("open", uri):
        file = open_checked(uri, None, BLOCK)
    with file:
        if uri.lower().endswith(".parquet"):
            parquet = pq.ParquetFile(file)
            names = _columns(parquet.schema_arrow.names, uri)
            table = parquet.read(columns=names).select(names)
        else:
            table = _read_csv(file.read(), uri)
    return pa.table({key: table[at].cast(pa.string()) for at, key in enumerate(("path", "identity"))})


def _read_csv(data: bytes, uri: str) -> pa.Table:
    parse = pcsv.ParseOptions(delimiter="\t" if uri.lower().endswith(".tsv") else ",")
    names = _columns(pcsv.open_csv(pa.BufferReader(data), parse_options=parse).schema.names, uri)
    as_text = pcsv.ConvertOptions(include_columns=names, column_types=dict.fromkeys(names, pa.string()))
    return pcsv.read_csv(pa.BufferReader(data), parse_options=parse, convert_options=as_text)


def _columns(names: Sequence[str], uri: str) -> list[str]:
    """The column of paths and that of identities."""
    found = [next((name for name in usual if name in names), None) for usual in (URI_COLUMNS, IDENTITY_COLUMNS)]
    for column, usual, what in zip(found, (URI_COLUMNS, IDENTITY_COLUMNS), ("images", "identities"), strict=True):
        if column is None:
            raise IdentityError(
                f"{uri}: no column of {what} ({', '.join(usual)}); the columns are {', '.join(names)} (identity.table)"
            )
    return [column for column in found if column]
