"""Records of erasures: what went from a dataset, each chained to the one before, signed where there is a key."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from typing import Literal

from pydantic import ValidationError

from schemas.erase import ERASED, SCHEMA_VERSION, ErasureRecord, Signature
from tasks.people.versions import current
from tasks.store.records import read_record
from tasks.store.storage import Store
from tasks.trust.audit import Place
from tasks.units.commits import read_commits
from tasks.units.tombstones import EraseError, read_tombstones, tombstone_name

KEY = "DECA_ERASURE_KEY"  # environment variable with the key that signs records
RECORD = re.compile(rf"{ERASED}/record-(\d+)\.json")


def record_name(number: int) -> str:
    return f"{ERASED}/record-{number:06d}.json"


def read_records(store: Store) -> list[ErasureRecord]:
    """Records of the erasures that are finished, in order. EraseError where one is damaged."""
    found = []
    for name in sorted(name for name in store.list(ERASED) if RECORD.fullmatch(name)):
        try:
            found.append(
                ErasureRecord.model_validate_json(read_record(store, name, SCHEMA_VERSION, "tombstone_sha256"))
            )
        except ValidationError as error:
            raise EraseError(f"{store.join(name)} is damaged. Bring it back from a copy") from error
    return found


def unfinished(store: Store) -> list[int]:
    """Numbers of tombstones whose erasure was interrupted."""
    done = {record.number for record in read_records(store)}
    return [stone.number for stone in read_tombstones(store) if stone.number not in done]


def sign(record: ErasureRecord) -> ErasureRecord:
    """The record with its signature: HMAC-SHA256 where the environment has a key, else none."""
    key = os.environ.get(KEY, "").encode()
    method: Literal["hmac-sha256", "none"] = "hmac-sha256" if key else "none"
    signature = Signature(method=method, key=hashlib.sha256(key).hexdigest()[:16] if key else "")
    record = record.model_copy(update={"signature": signature})
    value = hmac.new(key, _signed(record), hashlib.sha256).hexdigest() if key else ""
    return record.model_copy(update={"signature": signature.model_copy(update={"value": value})})


def _signed(record: ErasureRecord) -> bytes:
    """What a signature is over."""
    return record.model_dump_json(exclude={"signature": {"value"}}).encode()


def check_records(place: Place) -> list[str]:
    """What is wrong with the records of erasures of a dataset, in words: unfinished, changed, or signed by nobody."""
    store, problems, previous = place.store, list[str](), ""
    key = os.environ.get(KEY, "").encode()
    for record in read_records(store):
        name = record_name(record.number)
        data = store.read(name)
        if record.previous_sha256 != previous:
            problems.append(f"{name}: does not follow the record before it; one was changed or taken away")
        try:
            stone = hashlib.sha256(store.read(tombstone_name(record.number))).hexdigest()
        except FileNotFoundError:
            stone = "missing"
        if record.tombstone_sha256 != stone:
            problems.append(f"{tombstone_name(record.number)}: changed or taken away since its erasure")
        if key and record.signature.method == "hmac-sha256":
            value = hmac.new(key, _signed(record), hashlib.sha256).hexdigest()
            if not hmac.compare_digest(value, record.signature.value):
                problems.append(f"{name}: the signature does not fit: changed, or signed with another {KEY}")
        elif key:
            problems.append(f"{name}: is not signed, and {KEY} is set")
        previous = hashlib.sha256(data).hexdigest()
    problems += [
        f"{tombstone_name(number)}: its erasure is not finished. Run: deca erase {store.uri}"
        for number in unfinished(store)
    ]
    return problems


def state_of(place: Place) -> str:
    """Hash over what is data in a dataset at this moment."""
    if place.kind == "faces":
        version = current(place.uri)
        return version.fingerprint if version else ""
    digest = hashlib.sha256()
    for count, commit in enumerate(read_commits(place.uri)):
        line = f"{commit.unit} {commit.sha256} {commit.quarantine.sha256 if commit.quarantine else ''}"
        digest.update(f"{chr(10) if count else ''}{line}".encode())
    return digest.hexdigest()
