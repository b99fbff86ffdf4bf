"""Status of a dataset, and verification of its files against the commit records."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.ledger import CommitRecord, StoredFile
from tasks.store.storage import Store
from tasks.units.commits import commit_table, count_standing, read_commits
from tasks.units.plan import COMMITS, PART_NAME, PLAN, PLAN_FOLDER, QUARANTINE, PlanError, load_plan, round_name
from tasks.units.snapshots import hash_in, list_commits
from tasks.units.upgrade import outdated

ROW_KEY = ("face_id", "method")  # unique together; only evaluations/ has a row for each method


@dataclass(frozen=True)
class Status:
    """Counts of a dataset."""

    dest: str
    source: str
    fingerprint: str
    code: str
    items: int
    units: int  # retry rounds included
    committed: int
    pending: int
    rows: int
    bytes: int  # of the committed parts and the files beside them
    quarantined: dict[str, int]  # standing rows by stage
    retries: int
    images_left_out: dict[str, int] = field(default_factory=dict)  # by ending: nothing here reads them
    outdated: int = 0  # units with rows of an earlier result version, while an upgrade recomputes them

    @property
    def complete(self) -> bool:
        """Nothing pending, nothing in quarantine, no image left out, nothing to recompute."""
        return not (self.pending or self.quarantined or self.images_left_out or self.outdated)


def status(dest: str) -> Status:
    """Return the counts of a dataset, from its plan, commits and quarantine."""
    plan = load_plan(dest)
    ledger = commit_table(plan, ["rows", "bytes", "files_bytes", "stages"])
    total = {name: pc.sum(ledger[name]).as_py() or 0 for name in ("rows", "bytes", "files_bytes")}
    return Status(
        dest=plan.dest,
        source=plan.record.source,
        fingerprint=plan.fingerprint,
        code=plan.record.code,
        items=plan.inputs.items,
        units=plan.units,
        committed=len(ledger),
        pending=plan.units - len(ledger),
        rows=total["rows"],
        bytes=total["bytes"] + total["files_bytes"],
        quarantined=count_standing(plan, ledger["stages"]),
        retries=len(plan.retries),
        images_left_out=plan.record.images_left_out,
        outdated=len(outdated(plan)),
    )


@dataclass(frozen=True)
class Verification:
    """Result of `verify`. Leftovers are files that no record names: harmless, and never read."""

    files: int  # hashed
    rows: int
    problems: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(dest: str) -> Verification:
    """Hash every committed file and report what is missing, changed, duplicated or left over.

    Memory: the names of parts, and 8 bytes a row.
    """
    plan = load_plan(dest)
    seen, named = _Seen(plan.store), {PLAN, *(round_name(later.round) for later in plan.rounds)}
    for file in plan.files:
        seen.check(file)
        named.add(file.file)
    rows = 0
    try:
        for commit in read_commits(dest):
            rows += commit.rows
            for one in _files_of(commit):
                seen.check(one)
            named.update(name for name in (commit.part, commit.quarantine and commit.quarantine.file) if name)
    except PlanError as error:
        return Verification(seen.files, rows, [*seen.problems, str(error)])
    listing = list_commits(plan)
    named.update(record.name for record in listing.latest)
    for snapshot in listing.snapshots:
        seen.check_snapshot(snapshot.name)
        named.add(snapshot.name)
    present = [name for name in plan.store.list() if PART_NAME.fullmatch(name)]
    present += chain(*(plan.store.list(folder) for folder in (COMMITS, QUARANTINE, PLAN_FOLDER)))
    leftovers = [name for name in present if name not in named]
    return Verification(seen.files, rows, seen.problems + seen.doubled(), leftovers)


def _files_of(commit: CommitRecord) -> Iterator[StoredFile]:
    if commit.part and commit.sha256:
        yield StoredFile(file=commit.part, bytes=commit.bytes, sha256=commit.sha256)
    if commit.quarantine:
        yield commit.quarantine
    yield from commit.files


class _Seen:
    """Accumulates problems and row ids over the checked files, one file in memory at a time."""

    def __init__(self, store: Store) -> None:
        self.store, self.files = store, 0
        self.problems: list[str] = []
        self.hashes = bytearray()  # 64 bits of every row's id
        self.parts: list[str] = []  # that have ids

    def check(self, file: StoredFile) -> None:
        """Hash a published file and collect its row ids."""
        self.files += 1
        try:
            data = self.store.read(file.file)
        except FileNotFoundError:
            self.problems.append(f"{file.file}: missing")
            return
        if hashlib.sha256(data).hexdigest() != file.sha256:
            self.problems.append(
                f"{file.file}: changed since it was committed ({len(data)} bytes, {file.bytes} committed)"
            )
        elif PART_NAME.fullmatch(file.file) and (ids := _ids(data)) is not None:
            self.hashes += b"".join(map(_short, ids))
            self.parts.append(file.file)

    def check_snapshot(self, name: str) -> None:
        """Hash a snapshot of commit records against its name."""
        self.files += 1
        try:
            if hash_in(name) != hashlib.sha256(self.store.read(name)).hexdigest()[:16]:
                self.problems.append(f"{name}: changed since it was published")
        except FileNotFoundError:  # merged since it was listed
            return

    def doubled(self) -> list[str]:
        """Return at most ten ids that occur more than once; reads the parts again."""
        values = np.sort(np.frombuffer(self.hashes, np.uint64))
        twice = set(np.unique(values[1:][values[1:] == values[:-1]]).tolist())
        counts: Counter[str] = Counter()
        for part in self.parts if twice else ():
            ids = _ids(self.store.read(part)) or []
            counts.update(one for one in ids if int(np.frombuffer(_short(one), np.uint64)[0]) in twice)
        return [f"{one}: {count} times" for one, count in sorted(counts.items()) if count > 1][:10]


def _ids(part: bytes) -> list[str] | None:
    """Return the row keys of a part, as "face_id A"; None without a face_id column."""
    parquet = pq.ParquetFile(pa.BufferReader(part))
    columns = [name for name in ROW_KEY if name in parquet.schema_arrow.names]
    if "face_id" not in columns:
        return None
    rows = parquet.read(columns=columns).to_pylist()
    return [", ".join(f"{name} {row[name]}" for name in columns) for row in rows]


def _short(one: str) -> bytes:
    return hashlib.blake2b(one.encode(), digest_size=8).digest()
