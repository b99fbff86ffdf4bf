"""Read JSON records of a dataset; refuse another schema version with the command to run."""

from __future__ import annotations

import json

from pydantic import ValidationError

from deca_core.errors import DecaError
from tasks.store.storage import Store

UPGRADE = "python -m pip install --upgrade deca-pipeline"


class SchemaError(DecaError):
    """A dataset written by another version of the program; says what to run."""


def read_record(store: Store, name: str, supported: int, mark: str, oldest: int | None = None) -> bytes:
    """Return a record's bytes. SchemaError unless its schema is `supported`; files of another kind pass.

    mark: a field that records of this kind have in every schema; oldest: the earliest schema that is read as well.
    """
    data = store.read(name)
    version = schema_of(data, mark)
    if version is None or (supported if oldest is None else oldest) <= version <= supported:
        return data
    if version > supported:
        raise SchemaError(
            f"{store.join(name)} has schema {version}, this version reads {supported}: a newer one wrote it. "
            f"Run: {UPGRADE}"
        )
    raise SchemaError(
        f"{store.join(name)} has schema {version}, this version writes {supported}. Run: deca migrate {store.uri}"
    )


def schema_of(data: bytes, mark: str) -> int | None:
    """Return the schema version of a record; None if it is damaged or of another kind."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):  # nested too deeply
        return None
    version = record.get("schema_version") if isinstance(record, dict) and mark in record else None
    return version if isinstance(version, int) and not isinstance(version, bool) else None


def first_complaint(error: ValidationError) -> str:
    """Return the first validation error in one line."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".lstrip(": ")
