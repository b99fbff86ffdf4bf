"""Versions of faces/: the current one, its files, garbage collection and verification.

A version is its record, `versions/000001.json`; `_current.json` is a copy of the record that holds. Data and index
files come first, then the record, then `_current.json`, so a reader finds the old version or the new one, whole.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from deca_core.errors import DecaError
from schemas.faces import (
    CURRENT,
    DATA,
    IDENTITIES_SCHEMA,
    INDEX,
    SCHEMA_VERSION,
    VERSIONS,
    FacesVersion,
    ShardFile,
    Split,
)
from schemas.ledger import StoredFile
from tasks.store.records import read_record
from tasks.store.scratch import STALE_SECONDS
from tasks.store.storage import Store, open_uri, storage_errors
from tasks.units.verify import Verification

RECORD = re.compile(rf"{VERSIONS}/(\d+)\.json")


class FacesError(DecaError):
    """A dataset faces/ that cannot be read or published; says what is wrong and what to run."""


def record_name(version: int) -> str:
    return f"{VERSIONS}/{version:06d}.json"


def current(dest: str) -> FacesVersion | None:
    """Return the current version at `dest` (the folder faces/), or None before the first."""
    return _read(Store(dest), CURRENT)


def read_version(dest: str, version: int) -> FacesVersion:
    """Return a stored version by its number; FacesError if there is none."""
    found = _read(Store(dest), record_name(version))
    if found is None:
        kept = ", ".join(map(str, list_versions(dest))) or "none"
        raise FacesError(f"{Store(dest).uri} holds no version {version}; it holds {kept}")
    return found


def list_versions(dest: str) -> list[int]:
    """Numbers of the versions that have a record, in order. One above the current is being published, or was."""
    names = (RECORD.fullmatch(name) for name in Store(dest).list(VERSIONS))
    return sorted(int(name[1]) for name in names if name)


def _read(store: Store, name: str) -> FacesVersion | None:
    try:
        return FacesVersion.model_validate_json(read_record(store, name, SCHEMA_VERSION, "shards"))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        raise FacesError(
            f"{store.join(name)} is damaged or of another version of the program ({'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}). A kept record of {store.join(VERSIONS)} may be copied over it"
        ) from error


@dataclass(frozen=True)
class Faces:
    """The version of faces/ that a reader has opened. Its files stay as they are until `deca gc` after a later one."""

    dest: str
    version: FacesVersion

    def shards(self, split: Split) -> list[ShardFile]:
        return [shard for shard in self.version.shards if shard.split == split]

    def uris(self, split: Split) -> list[str]:
        """URIs of the split's shards, in the order of their identities."""
        return [Store(self.dest).join(shard.file) for shard in self.shards(split)]

    def identities(self) -> pa.Table:
        """Where each identity lies: rows of IDENTITIES_SCHEMA."""
        return read_index(Store(self.dest), self.version.identities_file)


def open_faces(dest: str) -> Faces:
    """Open the current version at `dest` (the folder faces/); FacesError if there is none."""
    version = current(dest)
    if version is None:
        raise FacesError(f"{Store(dest).uri} holds no version. Publish one with: deca ingest SOURCE DEST")
    return Faces(Store(dest).uri, version)


def read_assignments(dest: str) -> pa.Table | None:
    """Return the identity assignments of the current version (ASSIGNMENTS_SCHEMA), or None before the first."""
    version = current(dest)
    return read_index(Store(dest), version.assignments_file) if version else None


def read_index(store: Store, file: StoredFile) -> pa.Table:
    """An index file of a version; FacesError where it is gone."""
    try:
        return pq.read_table(pa.BufferReader(store.read(file.file)))
    except FileNotFoundError as error:
        raise FacesError(
            f"{store.join(file.file)} is missing. Look with: deca verify {store.uri}; make it again with: deca ingest "
            "... --set identity.regroup=true"
        ) from error


def named_files(version: FacesVersion) -> set[str]:
    """Return the names of the data and index files of a version."""
    return {file.file for file in _stored(version)}


def _stored(version: FacesVersion) -> list[StoredFile]:
    return [*version.shards, version.identities_file, version.assignments_file]


# --- taking away ------------------------------------------------------------------------------------------------------


def gc(dest: str, keep: int = 0) -> list[str]:
    """Delete the versions before the current one but the last `keep` of them; returns the names of deleted files.

    Records go first and files after them, so that an interruption leaves whole versions and some files that nothing
    names. Such leftovers go once they are a day old: younger ones may be of a publication on its way.
    """
    store = Store(dest)
    holds = current(dest)
    store.sweep()
    if holds is None:
        return []
    earlier = [number for number in list_versions(dest) if number < holds.version]
    gone = [(number, read_version(dest, number)) for number in earlier[: max(0, len(earlier) - keep)]]
    deleted = [record_name(number) for number, _ in gone]
    for name in deleted:
        store.delete(name)
    released = {name for _, version in gone for name in named_files(version)}
    for name in _unnamed(store, dest):
        if name in released or _age(store, name) > STALE_SECONDS:
            store.delete(name)
            deleted.append(name)
    return deleted


def _unnamed(store: Store, dest: str) -> list[str]:
    """Data and index files that no record names; they are listed first, so a record made meanwhile saves its files."""
    present = [*store.list(DATA), *store.list(INDEX)]
    versions = [current(dest), *(_read(store, record_name(number)) for number in list_versions(dest))]
    named = {name for version in versions if version for name in named_files(version)}
    return [name for name in present if name not in named]


def _age(store: Store, name: str) -> float:
    """Seconds since a file was written; 0 where it is gone."""
    uri = store.join(name)
    with storage_errors("look up", uri):
        fs, path = open_uri(uri)
        try:
            written = fs.modified(path)
        except FileNotFoundError:
            return 0.0
    return (datetime.datetime.now(datetime.UTC) - written).total_seconds()


# --- checking ---------------------------------------------------------------------------------------------------------


def verify_faces(dest: str) -> Verification:
    """Verify the current version: hash every file, and compare rows, identities and splits with its record.

    Every face once, as the assignments say; every identity in one piece of one shard, where the index says it is, and
    in the split that its hash says.
    """
    store = Store(dest)
    faces = open_faces(dest)
    version, problems = faces.version, []
    columns, found = ["face_id", "identity_id", "identity_source", "split"], []
    for shard in version.shards:  # one at a time: a shard may be large
        problem, table = _check(store, shard, columns)
        problems += [problem] if problem else []
        if table is not None:
            found.append((shard, table))
            if len(table) != shard.rows:
                problems.append(f"{shard.file}: {len(table)} rows, {shard.rows} recorded")
    indexes = [_check(store, file, None) for file in (version.identities_file, version.assignments_file)]
    problems += [problem for problem, _ in indexes if problem]
    if not problems:  # else every further check only repeats what is missing
        identities, assignments = (table for _, table in indexes)
        problems += _check_identities(found, identities, version)
        problems += _check_faces(found, assignments, version)
    return Verification(len(_stored(version)), version.faces, problems, _unnamed(store, dest))


def _check(store: Store, file: StoredFile, columns: list[str] | None) -> tuple[str | None, pa.Table | None]:
    """(what is wrong with a file, its columns)."""
    try:
        data = store.read(file.file)
    except FileNotFoundError:
        return f"{file.file}: missing", None
    if hashlib.sha256(data).hexdigest() != file.sha256:
        return f"{file.file}: changed since it was published ({len(data)} bytes, {file.bytes} recorded)", None
    return None, pq.read_table(pa.BufferReader(data), columns=columns)


def _check_identities(
    found: list[tuple[ShardFile, pa.Table]], identities: pa.Table, version: FacesVersion
) -> Iterable[str]:
    """Compares the runs of equal identities in the shards with the index, and splits with the hash of the identity."""
    runs, limit = [IDENTITIES_SCHEMA.empty_table()], version.config["shards"]["val_fraction"]
    for shard, table in found:
        ids = table["identity_id"].to_numpy()
        starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
        run = table.take(pa.array(starts))
        for name, split in zip(run["identity_id"].to_pylist(), run["split"].to_pylist(), strict=True):
            fraction = int.from_bytes(hashlib.sha256(name.encode()).digest()[8:16]) / 2**64
            if not split == shard.split == ("val" if fraction < limit else "train"):
                yield f"{shard.file}: identity {name} does not belong to the split {shard.split}"
        run = run.append_column("shard", pa.array([shard.file] * len(run), pa.string()))
        run = run.append_column("first_row", pa.array(starts))
        run = run.append_column("rows", pa.array(np.diff([*starts, len(ids)])))
        runs.append(run.select(IDENTITIES_SCHEMA.names).cast(IDENTITIES_SCHEMA))
    actual = pa.concat_tables(runs)
    counts = pc.value_counts(actual["identity_id"])
    for entry in counts.filter(pc.greater(counts.field("counts"), 1))[:10].to_pylist():
        yield f"identity {entry['values']} lies in {entry['counts']} places"
    if not actual.equals(identities.select(IDENTITIES_SCHEMA.names).cast(IDENTITIES_SCHEMA)):
        yield f"{version.identities_file.file}: is not where the identities lie"
    if len(actual) != version.identities:
        yield f"{len(actual)} identities, {version.identities} recorded"


def _check_faces(
    found: list[tuple[ShardFile, pa.Table]], assignments: pa.Table, version: FacesVersion
) -> Iterable[str]:
    """Compares the faces in the shards with those that the assignments keep."""
    columns = ["face_id", "identity_id", "identity_source"]
    kept = assignments.filter(pc.is_null(assignments["left_out"])).select(columns)
    faces = pa.concat_tables([table.select(columns) for _, table in found] or [kept.slice(0, 0)])
    counts = pc.value_counts(faces["face_id"])
    for entry in counts.filter(pc.greater(counts.field("counts"), 1))[:10].to_pylist():
        yield f"face_id {entry['values']}: {entry['counts']} times"
    if not faces.cast(kept.schema).sort_by("face_id").equals(kept.sort_by("face_id")):
        yield f"{version.assignments_file.file}: the faces it keeps are not those in the shards"
    if len(faces) != version.faces:
        yield f"{len(faces)} faces, {version.faces} recorded"
