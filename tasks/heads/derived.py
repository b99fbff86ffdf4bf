"""consensus/ and tracks/ beside reconstructions: one file named by its content, then the record that names it.

Readers see the earlier file or the new one. The record holds a digest of the rows it was made of; a reader refuses one
of other rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel

from deca_core.errors import DecaError
from schemas.ledger import StoredFile
from tasks.store.storage import Store, hash_file
from tasks.units.commits import Part
from tasks.units.verify import Verification


def rows_digest(parts: Sequence[Part]) -> str:
    """SHA-256 over the committed parts of a dataset."""
    return hashlib.sha256(json.dumps([[part.unit, part.sha256] for part in parts]).encode()).hexdigest()


def publish_file(store: Store, path: Path, prefix: str) -> StoredFile:
    """Publish a scratch file as PREFIX-<sha8>.parquet."""
    name = f"{prefix}-{hash_file(path)[1][:8]}.parquet"
    size, sha256 = store.publish(path, name)
    return StoredFile(file=name, bytes=size, sha256=sha256)


def publish_record(store: Store, current: str, record: BaseModel, file: StoredFile) -> None:
    """Write the record of a published file, then delete all other files of the folder."""
    store.write(current, record.model_dump_json(indent=1).encode())
    for other in store.list():
        if other not in (file.file, current):
            store.delete(other)


def verify_derived(
    dest: str, folder: str, current: str, file: StoredFile, rows: int, read: Callable[[], object]
) -> Verification:
    """Hash the file of DEST/<folder>; `read` raises a DecaError where it was made of other rows than DEST has."""
    store, problems = Store(Store(dest).join(folder)), list[str]()
    try:
        if hashlib.sha256(store.read(file.file)).hexdigest() != file.sha256:
            problems.append(f"{folder}/{file.file}: changed since it was published")
        else:
            read()
    except FileNotFoundError:
        problems.append(f"{folder}/{file.file}: missing")
    except DecaError as error:
        problems.append(str(error))
    return Verification(1, rows, problems, [name for name in store.list() if name not in (file.file, current)])
