"""What an erasure leaves in a dataset: tombstones that keep the erased away, and records of what was done.

    _erased/tombstone-000001.json   written before anything goes: who is erased, and what of them was found
    _erased/record-000001.json      written when nothing is left: when, and how much was erased

A tombstone without its record is an erasure that was interrupted. Neither holds a name: faces and pictures go by their
ids, which are hashes, and identities by the SHA-256 of theirs.
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
    """One id that was asked to be erased, and the faces that it meant then."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    id: str  # face_id, image_id, or the SHA-256 of identity_id
    faces: list[str] = Field(default_factory=list)


class Found(BaseModel):
    """What a dataset held of the erased before it went."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: dict[str, int] = Field(default_factory=dict)  # rows by file
    files: list[str] = Field(default_factory=list)  # that are of the erased as a whole: maps, meshes

    @property
    def count(self) -> int:
        return sum(self.rows.values())


class Tombstone(BaseModel):
    """`_erased/tombstone-000001.json`. Every run that writes rows reads it, and leaves the erased out."""

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
    rows: int  # that were found, and are gone
    files: int  # that were of the erased as a whole
    tombstone_sha256: str
    code: str


def identity_hash(identity: str) -> str:
    """How an erased identity is known: a tombstone that kept the name would keep the person."""
    return hashlib.sha256(identity.encode()).hexdigest()
