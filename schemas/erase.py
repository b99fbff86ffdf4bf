"""Files of an erasure in a dataset: tombstones, which keep the erased out of later runs, and records.

    _erased/tombstone-000001.json   written first: the erased ids, and what was found of them
    _erased/record-000001.json      written when nothing is left: when, and how much was erased

A tombstone without its record is an interrupted erasure. Neither contains a name: faces and images are stored by their
ids, which are hashes, and identities as SHA-256.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1
RECORD_VERSION = 2  # 1 also had a hash chain and a signature, which are ignored
ERASED = "_erased"

Kind = Literal["face", "image", "identity"]


class Request(BaseModel):
    """A requested id, and its faces at that time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    id: str  # face_id, image_id, or the SHA-256 of identity_id
    faces: list[str] = Field(default_factory=list)


class Found(BaseModel):
    """Rows and files of the erased before their removal."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: dict[str, int] = Field(default_factory=dict)  # rows by file
    files: list[str] = Field(default_factory=list)  # that belong to erased rows alone: maps, meshes

    @property
    def count(self) -> int:
        return sum(self.rows.values())


class Tombstone(BaseModel):
    """`_erased/tombstone-000001.json`. Every run that writes rows reads it and leaves out the erased."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    number: int  # from 1
    requests: list[Request]
    found: Found


class ErasureRecord(BaseModel):
    """`_erased/record-000001.json`: nothing of what the tombstone names was left in the dataset at that time."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: int = RECORD_VERSION
    number: int
    dataset: str  # URI
    at: str  # UTC, ISO 8601
    requests: int
    faces: int
    rows: int  # removed
    files: int  # removed
    tombstone_sha256: str
    code: str


def identity_hash(identity: str) -> str:
    """Return the SHA-256 of an identity: tombstones must not store names."""
    return hashlib.sha256(identity.encode()).hexdigest()
