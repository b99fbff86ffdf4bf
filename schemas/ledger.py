"""The records of the unit protocol: items, quarantined rows, plans, retry rounds and commits.

Arrow schemas for Parquet files, pydantic models for JSON files; each carries a schema version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal, get_args

import pyarrow as pa
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt

from schemas.secrets import redact

# 2: commit records name the part that first contained their rows; programs that write rows read tombstones.
# 3: commit records may be in snapshots, and a rewritten one gets a new name: `revision`. A program for schema 2 would
#    take the units of a snapshot for pending, so it must not open the plan.
SCHEMA_VERSION = 3
OLDEST = 2  # read without migration; its commit records stay one file each until `deca migrate`

FailureStage = Literal["read", "decode", "detect", "landmark", "segment", "embed", "crop", "encode", "measure", "unit"]
STAGES: tuple[str, ...] = get_args(FailureStage)

MESSAGE_LIMIT = 500  # characters of an error message that are kept: enough for a cause, not for a dump

ITEM_SCHEMA = pa.schema(
    [
        pa.field("unit", pa.int32(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("etag", pa.string()),
        pa.field("face_index", pa.int32()),
        pa.field("attempts", pa.int32(), nullable=False),
    ],
    metadata={"schema_version": str(SCHEMA_VERSION)},
)

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("face_index", pa.int32()),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
    ],
    metadata={"schema_version": str(SCHEMA_VERSION)},
)

_FILE = pa.struct([("file", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string())])
SNAPSHOT_SCHEMA = pa.schema(  # `files` is last, and large: counting does not read it
    [
        pa.field("unit", pa.int64(), nullable=False),
        pa.field("revision", pa.int32(), nullable=False),
        pa.field("written", pa.float64()),
        pa.field("items", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("quarantined", pa.int64(), nullable=False),
        pa.field("stages", pa.map_(pa.string(), pa.int64()), nullable=False),
        pa.field("part", pa.string()),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.string()),
        pa.field("origin", pa.string()),
        pa.field("quarantine", _FILE),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("versions", pa.map_(pa.string(), pa.string()), nullable=False),
        pa.field("files_count", pa.int64(), nullable=False),
        pa.field("files_bytes", pa.int64(), nullable=False),
        pa.field("files", pa.list_(_FILE), nullable=False),
    ],
    metadata={"schema_version": str(SCHEMA_VERSION)},
)


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a plan: a file, an object, or a member of an archive."""

    index: int  # position in the plan, unique over the plan
    uri: str  # fsspec URI of the object or of the archive that contains it; never with credentials
    member: str | None = None  # name inside the archive
    offset: int | None = None  # of a member: where its data starts in the (unpacked) tar, or its local header in a zip
    size: int = -1  # bytes of the image, -1 unknown
    etag: str | None = None  # the store's etag, or "<mtime_ns>-<size>" of a file; of the archive for members
    face_index: int | None = None  # only this face of the image (retry of one quarantined face)
    attempts: int = 0  # earlier attempts at this row
    root: str = ""  # the plan's source folder, so that ids survive a move of the whole folder; not stored per row

    @property
    def source_uri(self) -> str:
        """What users see: the URI, or `archive#member`."""
        return self.uri if self.member is None else f"{self.uri}#{self.member}"

    @property
    def image_id(self) -> str:
        """Stable id of the image: 16 hex digits of the SHA-256 of its place below the plan's source."""
        return image_id_of(self.source_uri, self.root)


def image_id_of(source_uri: str, root: str) -> str:
    """Return `Item.image_id` of the image that a row names. root: the plan's."""
    place, folder = source_uri, f"{root.rstrip('/')}/"
    if root and place.startswith(folder):  # not "photos-2/a.jpg" below "photos"
        place = place[len(folder) :].lstrip("/")
    return hashlib.sha256(place.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One row that could not be produced, and why."""

    index: int  # index of the item
    uri: str  # the item's source_uri
    face_index: int | None  # None: the whole image
    stage: FailureStage
    error: str  # type of the error
    message: str
    attempts: int = 1  # attempts made so far, this one included; the engine sets it

    @classmethod
    def of(
        cls,
        item: Item,
        stage: FailureStage,
        error: BaseException | str,
        message: str | None = None,
        face_index: int | None = None,
    ) -> Quarantined:
        """Return the row for an `error` (or the name of its type, with a message) of `item` at `stage`."""
        name = error if isinstance(error, str) else type(error).__name__
        text = redact(" ".join((str(error) if message is None else message).split()))[:MESSAGE_LIMIT]
        face = item.face_index if face_index is None else face_index
        return cls(item.index, item.source_uri, face, stage, name, text, item.attempts + 1)


@dataclass(frozen=True, slots=True)
class Unit:
    """What one worker takes at once, and what is committed at once."""

    index: int
    items: list[Item] = field(default_factory=list)
    # Of a unit that is recomputed for another result version: its earlier record, and ids of faces that come from the
    # unit of a later retry instead.
    renews: CommitRecord | None = None
    elsewhere: frozenset[str] = frozenset()


def units_to_table(units: Sequence[Unit]) -> pa.Table:
    """Rows of ITEM_SCHEMA, one per item."""
    columns: dict[str, list[Any]] = {name: [] for name in ITEM_SCHEMA.names}
    for unit in units:
        for item in unit.items:
            columns["unit"].append(unit.index)
            for name in ITEM_SCHEMA.names[1:]:
                columns[name].append(getattr(item, name))
    return pa.table(columns, schema=ITEM_SCHEMA)


def table_to_items(table: pa.Table, root: str) -> list[Item]:
    """The items of one unit's rows; inverse of `units_to_table`."""
    columns = [table[name].to_pylist() for name in ITEM_SCHEMA.names[1:]]  # named as an Item's fields are, in order
    return list(map(partial(Item, root=root), *columns))


def quarantine_to_table(rows: Sequence[Quarantined]) -> pa.Table:
    """Rows of QUARANTINE_SCHEMA in a fixed order, so that the same failures give the same bytes."""
    ordered = sorted(rows, key=lambda row: (row.index, -1 if row.face_index is None else row.face_index, row.stage))
    columns = {name: [getattr(row, name) for row in ordered] for name in QUARANTINE_SCHEMA.names}
    return pa.table(columns, schema=QUARANTINE_SCHEMA)


def table_to_quarantine(table: pa.Table) -> list[Quarantined]:
    """Inverse of `quarantine_to_table`."""
    return [Quarantined(**row) for row in table.to_pylist()]


def with_item(row: Quarantined, item: Item) -> Quarantined:
    """Return a worker's row with the retried face and the count of attempts of its item."""
    face = item.face_index if row.face_index is None else row.face_index
    return replace(row, face_index=face, attempts=item.attempts + 1)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: int = SCHEMA_VERSION


def inside(name: str) -> str:
    """Return a name that stays below the dataset, so that a forged record leads no reader or deletion elsewhere.

    Raises ValueError.
    """
    if name.startswith("/") or "://" in name or "\\" in name or not name.isprintable():
        raise ValueError("must be a name below the dataset")
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError("must be a name below the dataset, without . and ..")
    return name


Name = Annotated[str, AfterValidator(inside)]


class StoredFile(BaseModel):
    """One published file, with its hash."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    file: Name  # below the dataset
    bytes: NonNegativeInt
    sha256: str


class UnitFile(StoredFile):
    """A Parquet file of a plan: consecutive units, one row group each."""

    first_unit: NonNegativeInt
    units: NonNegativeInt
    items: NonNegativeInt


# Ending of images that were left out: ".heic", or ".zip in an archive".
Ending = Annotated[str, Field(pattern=r"^\.[a-z0-9. ]{1,40}$")]


class PlanRecord(_Record):
    """`_plan.json`: the frozen plan. The fingerprint is over all but `code`, `files` and `images_left_out`."""

    source: str  # as given
    root: str  # folder that ids are relative to
    config: dict[str, Any]  # the resolved settings that influence results
    code: str  # package version and hash of the sources that planned it: provenance, nothing is compared with it
    result_version: int = 1  # what rows mean (schemas/results.py); plans that lack it were made before it was counted
    weights: dict[str, str]  # name -> hash of each model that takes part
    items_per_unit: NonNegativeInt  # the setting: most inputs that are computed and committed together
    unit_size: NonNegativeInt | None = None  # items in each of its units but the last; None: items_per_unit
    items: NonNegativeInt
    units: NonNegativeInt
    items_sha256: str  # over every item
    files: list[UnitFile]
    fingerprint: str
    # Files that look like images but that no decoder here reads, by ending, at the last listing of the source.
    images_left_out: dict[Ending, NonNegativeInt] = Field(default_factory=dict)

    def stored(self) -> bytes:
        """Return the record as written: without `images_left_out`, unknown to earlier versions, where it is empty."""
        exclude = None if self.images_left_out else {"images_left_out"}
        return self.model_dump_json(indent=1, exclude=exclude).encode()

    @property
    def size(self) -> int:
        """Items in each unit but the last."""
        return self.unit_size or self.items_per_unit


class RoundRecord(_Record):
    """`_plan/round-00001.json`: units after the frozen plan's, for quarantined rows or for new items of the source.

    An upgrade has no units: it sets the result version of later rows. All kinds share one count of rounds, so that no
    two rounds can take the same unit indices.
    """

    kind: Literal["retry", "extend", "upgrade"]
    round: NonNegativeInt  # from 1
    fingerprint: str  # of the plan it belongs to
    items: NonNegativeInt
    units: NonNegativeInt
    unit_size: NonNegativeInt | None = None  # of an extension, as of the plan; None: as the plan's
    files: list[UnitFile]
    # Of an extension: hash and fingerprint that a new plan over all inputs of that moment would have, how many planned
    # inputs the source no longer had (their rows stay), and the items whose content is planned again in this round.
    inputs_sha256: str | None = None
    inputs_fingerprint: str | None = None
    # Of an upgrade: the result version of later rows. Units committed before are recomputed in place.
    result_version: int | None = None
    removed: int = 0
    replaced: list[int] = Field(default_factory=list)


class CommitRecord(_Record):
    """`_commits/00042-<fp8>.json`: makes a unit's part data; every reader reads it before any part.

    Many of them are later merged into one file: SNAPSHOT_SCHEMA.
    """

    unit: NonNegativeInt
    revision: NonNegativeInt = 0  # rewrites without some of its rows; the highest one is current
    fingerprint: str
    items: NonNegativeInt
    rows: NonNegativeInt
    quarantined: NonNegativeInt
    stages: dict[str, int] = Field(default_factory=dict)  # quarantined rows by stage
    part: Name | None  # None: the unit was given up as a whole and has no rows
    bytes: NonNegativeInt
    sha256: str | None
    # Hash of the part that the rows were first published in, where some were removed since: the others are unchanged,
    # so copies of them (tasks/people/layout.py) stay valid.
    origin: str | None = None
    quarantine: StoredFile | None = None
    files: list[StoredFile] = Field(default_factory=list)  # beside the part: one image or map each
    seconds: float
    versions: dict[str, str] = Field(default_factory=dict)


Row = dict[str, Any]  # of SNAPSHOT_SCHEMA


def commit_to_row(commit: CommitRecord, written: float | None) -> Row:
    """Return a commit record as a row of a snapshot. written: seconds since the epoch, None where unknown."""
    row = commit.model_dump(exclude={"schema_version", "fingerprint"})
    sizes = [file.bytes for file in commit.files]
    return {**row, "written": written, "files_count": len(sizes), "files_bytes": sum(sizes)}


def row_to_commit(row: Row, fingerprint: str) -> CommitRecord:
    """Inverse of `commit_to_row`. fingerprint: of the plan."""
    fields = {name: value for name, value in row.items() if name in CommitRecord.model_fields}
    return CommitRecord.model_validate({**fields, "fingerprint": fingerprint})
