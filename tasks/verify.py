"""Where a dataset stands, and whether its files are still what was committed."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.ledger import StoredFile
from tasks.commits import read_commits, standing_rows
from tasks.plan import COMMITS, PART_NAME, PLAN, PLAN_FOLDER, QUARANTINE, PlanError, load_plan, round_name
from tasks.storage import Store

ID_COLUMN = "face_id"


@dataclass(frozen=True)
class Status:
    """Where a dataset stands."""

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

    @property
    def complete(self) -> bool:
        """Nothing pending, nothing in quarantine, no image left out."""
        return not self.pending and not self.quarantined and not self.images_left_out


def status(dest: str) -> Status:
    """Counts of a dataset, from its plan, commits and quarantine."""
    plan = load_plan(dest)
    commits = read_commits(dest)
    stages = Counter(row.stage for _, row in standing_rows(plan, commits))
    return Status(
        dest=plan.dest,
        source=plan.record.source,
        fingerprint=plan.fingerprint,
        code=plan.record.code,
        items=plan.inputs.items,
        units=plan.units,
        committed=len(commits),
        pending=plan.units - len(commits),
        rows=sum(commit.rows for commit in commits),
        bytes=sum(commit.bytes + sum(file.bytes for file in commit.files) for commit in commits),
        quarantined=dict(sorted(stages.items())),
        retries=len(plan.retries),
        images_left_out=plan.record.images_left_out,
    )


@dataclass(frozen=True)
class Verification:
    """What `verify` found. Leftovers are files that no record names: harmless, and never read."""

    files: int  # hashed
    rows: int
    problems: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(dest: str) -> Verification:
    """Hash every committed file again and look for what is missing, changed, doubled or left over."""
    plan = load_plan(dest)
    try:
        commits = read_commits(dest)
    except PlanError as error:
        return Verification(0, 0, [str(error)])
    expected = [StoredFile(**file.model_dump(include={"file", "bytes", "sha256"})) for file in plan.files]
    for commit in commits:
        if commit.part and commit.sha256:
            expected.append(StoredFile(file=commit.part, bytes=commit.bytes, sha256=commit.sha256))
        if commit.quarantine:
            expected.append(commit.quarantine)
        expected += commit.files
    problems, ids = [], []
    for file in expected:  # one at a time: a part may be large
        problem, found = _check_file(plan.store, file)
        problems += [problem] if problem else []
        ids.append(found)
    problems += _doubled(np.concatenate([np.empty(0, "S16"), *ids]))
    named = {file.file for file in expected} | {plan.commit_name(commit.unit) for commit in commits}
    named |= {round_name(later.round) for later in plan.rounds} | {PLAN}
    present = [name for name in plan.store.list() if PART_NAME.fullmatch(name)]
    present += chain(*(plan.store.list(folder) for folder in (COMMITS, QUARANTINE, PLAN_FOLDER)))
    leftovers = [name for name in present if name not in named]
    return Verification(len(expected), sum(commit.rows for commit in commits), problems, leftovers)


def _check_file(store: Store, file: StoredFile) -> tuple[str | None, NDArray[np.bytes_]]:
    """(what is wrong with a published file, the ids in it)."""
    none = np.empty(0, "S16")
    try:
        data = store.read(file.file)
    except FileNotFoundError:
        return f"{file.file}: missing", none
    if hashlib.sha256(data).hexdigest() != file.sha256:
        return f"{file.file}: changed since it was committed ({len(data)} bytes, {file.bytes} committed)", none
    if not PART_NAME.fullmatch(file.file):
        return None, none
    parquet = pq.ParquetFile(pa.BufferReader(data))
    if ID_COLUMN not in parquet.schema_arrow.names:
        return None, none
    return None, np.array([str(value).encode() for value in parquet.read(columns=[ID_COLUMN])[0].to_pylist()], "S")


def _doubled(ids: NDArray[np.bytes_]) -> list[str]:
    """Names the ids that occur more than once, at most ten of them."""
    values, counts = np.unique(ids, return_counts=True)
    return [
        f"{ID_COLUMN} {value.decode()}: {count} times" for value, count in zip(values, counts, strict=True) if count > 1
    ][:10]
