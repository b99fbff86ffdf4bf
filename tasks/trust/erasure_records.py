"""Records of finished erasures, and the check that none is missing, unfinished or without its tombstone."""

from __future__ import annotations

import hashlib
import re

from pydantic import ValidationError

from schemas.erase import ERASED, RECORD_VERSION, ErasureRecord
from tasks.store.records import read_record
from tasks.store.storage import Store
from tasks.units.tombstones import EraseError, read_tombstones, tombstone_name

RECORD = re.compile(rf"{ERASED}/record-(\d+)\.json")


def record_name(number: int) -> str:
    """Return the file name of a record within its dataset."""
    return f"{ERASED}/record-{number:06d}.json"


def read_records(store: Store) -> list[ErasureRecord]:
    """Return the records of finished erasures, in order. EraseError where one is damaged."""
    found = []
    for name in sorted(name for name in store.list(ERASED) if RECORD.fullmatch(name)):
        data = read_record(store, name, RECORD_VERSION, "tombstone_sha256", oldest=1)
        try:
            found.append(ErasureRecord.model_validate_json(data))
        except ValidationError as error:
            raise EraseError(f"{store.join(name)} is damaged. Restore it from a backup") from error
    return found


def unfinished(store: Store) -> list[int]:
    """Return the numbers of tombstones whose erasure was interrupted."""
    done = {record.number for record in read_records(store)}
    return [stone.number for stone in read_tombstones(store) if stone.number not in done]


def hash_tombstone(store: Store, number: int) -> str:
    """Return the SHA-256 of a stored tombstone; FileNotFoundError where there is none."""
    return hashlib.sha256(store.read(tombstone_name(number))).hexdigest()


def check_records(store: Store) -> list[str]:
    """Return a message for every changed or lost tombstone and every unfinished erasure of a dataset."""
    problems = []
    for record in read_records(store):
        try:
            intact = hash_tombstone(store, record.number) == record.tombstone_sha256
        except FileNotFoundError:
            intact = False
        if not intact:
            problems.append(f"{tombstone_name(record.number)}: changed or deleted since its erasure")
    problems += [
        f"{tombstone_name(number)}: its erasure is not finished. Run: deca erase {store.uri}"
        for number in unfinished(store)
    ]
    return problems
