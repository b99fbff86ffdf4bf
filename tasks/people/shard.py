"""Publishes faces/: the kept faces, sorted by identity, in shards that a version record lists.

Only shards whose rows differ from those of the current version are made, and rows that did not change come from the
current shards, where they lie together, rather than from the annotations, where they are scattered; so what a nightly
run costs grows with the shards that new images fall into.

Order: data files, index files, the record `versions/NNNNNN.json` (created, never replaced), `_current.json` (replaced
in one write). Interrupted anywhere, the old version holds, and the next run gives the same files the same names.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.faces import (
    ASSIGNMENTS_SCHEMA,
    CURRENT,
    DATA,
    IDENTITIES_SCHEMA,
    INDEX,
    FacesVersion,
    ShardFile,
    faces_schema,
)
from schemas.ingest import IngestConfig, ShardConfig
from schemas.ledger import PlanRecord, StoredFile
from schemas.parquet import write_table
from tasks.people.layout import FaceIndex, Layout, index_faces, lay_out, row_digests
from tasks.people.shuffle import make_pickups, write_shards
from tasks.people.versions import (
    FacesError,
    current,
    list_versions,
    named_files,
    read_index,
    read_version,
    record_name,
)
from tasks.store.scratch import temp_folder
from tasks.store.storage import Store
from tasks.units.plan import load_plan

INDEX_ROW_GROUP = 65536  # rows: index files have short rows and are read whole or by a range of them


class PublishConflict(FacesError):
    """Another run changed faces/ at the same time."""

    def __init__(self, dest: str, cause: str) -> None:
        super().__init__(
            f"{dest}: {cause}. What this run has annotated is kept. Run the same command again: it then builds on the "
            "version that holds now"
        )


def publish(
    dest: str, annotations: str, assignments: pa.Table, config: IngestConfig, *, base: int | None = None
) -> tuple[FacesVersion, bool]:
    """Publish what `assignments` keeps of `annotations` as the next version of `dest`; (version, whether it is new).

    dest, annotations: URIs of the folders faces/ and annotations/. assignments: rows of ASSIGNMENTS_SCHEMA, one for
    every annotated face. base: number of the version that the assignments continue (0: none); a run that finds another
    one to hold is refused, as its identities would undo what the other gave out. None: whichever holds.
    Where the current version is equal but for its number, nothing is written but files of it that are lost. Raises
    FacesError, PublishConflict, StorageError, PlanError.
    """
    store = Store(dest)
    store.sweep()
    previous = current(dest)
    if base is not None and base != (previous.version if previous else 0):
        holds = f"version {previous.version}" if previous else "no version"
        raise PublishConflict(store.uri, f"{holds} holds, and this run began with version {base}")
    latest = max([0, *list_versions(dest)])
    plan = load_plan(annotations).record
    assignments = assignments.select(ASSIGNMENTS_SCHEMA.names).cast(ASSIGNMENTS_SCHEMA).sort_by("face_id")
    draft = _Draft(store, plan, index_faces(annotations), lay_out(assignments, config.shards), previous)
    draft.check(assignments)
    shards = draft.make_shards(config)
    indexes = {
        "identities": index_file("identities", _identities(draft.layout, shards)),
        "assignments": index_file("assignments", assignments),
    }
    version = _version(config, plan, draft.layout, shards, indexes, assignments)
    known = previous if previous and previous.fingerprint == version.fingerprint else None
    present = store.list(INDEX) if known else []
    for file, data in indexes.values():
        if file.file not in present:
            store.write(file.file, data)
    return (known, False) if known else (_switch(store, version, previous, latest), True)


# --- the record -------------------------------------------------------------------------------------------------------


def _version(
    config: IngestConfig,
    plan: PlanRecord,
    layout: Layout,
    shards: list[ShardFile],
    indexes: dict[str, tuple[StoredFile, bytes]],
    assignments: pa.Table,
) -> FacesVersion:
    """The record of a version that has no number yet."""
    settings = config.model_dump(mode="json", include={"filters", "identity", "shards"})
    del settings["identity"]["regroup"]  # what a run is asked to do, not what the result is
    left_out = Counter(assignments["left_out"].drop_null().to_pylist())
    version = FacesVersion(
        version=0,
        fingerprint="",
        annotations=plan.fingerprint,
        config=settings,
        weights=plan.weights,
        shards=shards,
        identities_file=indexes["identities"][0],
        assignments_file=indexes["assignments"][0],
        faces=len(layout.faces),
        identities=sum(shard.identities for shard in shards),
        left_out=dict(sorted(left_out.items())),
    )
    return stamped(version)


def stamped(version: FacesVersion) -> FacesVersion:
    """A version with the fingerprint of its content."""
    content = json.dumps(version.model_dump(mode="json", exclude={"version", "fingerprint"}), sort_keys=True)
    return version.model_copy(update={"fingerprint": hashlib.sha256(content.encode()).hexdigest()})


def _switch(store: Store, version: FacesVersion, previous: FacesVersion | None, latest: int) -> FacesVersion:
    """Record a finished version under its number and make it current. latest: highest number when this run began."""
    before = previous.version if previous else 0
    interrupted = read_version(store.uri, latest) if latest > before else None
    if interrupted and interrupted.fingerprint == version.fingerprint:
        version = interrupted  # recorded by a run that did not get to the last step
    else:
        version = version.model_copy(update={"version": latest + 1})
        try:
            store.create(record_name(version.version), to_json(version))
        except FileExistsError as error:
            cause = f"another run published version {version.version} at the same time"
            raise PublishConflict(store.uri, cause) from error
    present = {*store.list(DATA), *store.list(INDEX)}
    if missing := sorted(named_files(version) - present):
        store.delete(record_name(version.version))
        raise PublishConflict(store.uri, f"{missing[0]} was deleted while this run needed it, as by deca gc")
    holds = current(store.uri)
    if holds and holds.version > before and holds.fingerprint != version.fingerprint:
        raise PublishConflict(store.uri, f"another run published version {holds.version} at the same time")
    store.write(CURRENT, to_json(version))
    return version


def to_json(version: FacesVersion) -> bytes:
    """A version's record as it is stored."""
    return version.model_dump_json(indent=1).encode()


def index_file(name: str, table: pa.Table) -> tuple[StoredFile, bytes]:
    """Return an index file and its bytes before anything is written, for it may exist already."""
    with temp_folder("index") as folder:
        path = folder / name
        write_table(table, path, row_group=INDEX_ROW_GROUP)
        data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    return StoredFile(file=f"{INDEX}/{name}-{sha256[:8]}.parquet", bytes=len(data), sha256=sha256), data


def _identities(layout: Layout, shards: list[ShardFile]) -> pa.Table:
    """Where each identity lies: rows of IDENTITIES_SCHEMA."""
    tables = [IDENTITIES_SCHEMA.empty_table()]
    for place, file in zip(layout.shards, shards, strict=True):
        rows = layout.rows(place)
        starts = _starts(rows)
        table = rows.take(pa.array(starts)).append_column("split", pa.array([place.split] * len(starts)))
        table = table.append_column("shard", pa.array([file.file] * len(starts)))
        table = table.append_column("first_row", pa.array(starts))
        table = table.append_column("rows", pa.array(np.diff([*starts, len(rows)])))
        tables.append(table.select(IDENTITIES_SCHEMA.names).cast(IDENTITIES_SCHEMA))
    return pa.concat_tables(tables).combine_chunks()


def _starts(rows: pa.Table) -> NDArray[np.int64]:
    """The rows where an identity begins."""
    ids = rows["identity_id"].to_numpy()
    return np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))


# --- the shards -------------------------------------------------------------------------------------------------------


@dataclass
class _Draft:
    """A version in preparation: where its rows will be, and where they are now."""

    store: Store
    plan: PlanRecord
    index: FaceIndex
    layout: Layout
    previous: FacesVersion | None

    def __post_init__(self) -> None:
        self.part, self.row = self.index.locate(self.layout.faces["face_id"])
        self.present = set(self.store.list(DATA))

    @property
    def settings(self) -> dict[str, str]:
        """What goes into the metadata of every data file."""
        weights = {f"weights.{name}": sha256 for name, sha256 in self.plan.weights.items()}
        return {"fingerprint": self.plan.fingerprint, **weights}

    def check(self, assignments: pa.Table) -> None:
        """FacesError unless the assignments name every annotated face, each once, and no other."""
        part, _ = self.index.locate(assignments["face_id"])
        distinct = len(assignments["face_id"].unique())
        unknown = assignments["face_id"].filter(pa.array(part < 0))
        if len(unknown):
            raise FacesError(f"face {unknown[0]} is assigned to an identity and not annotated; group the faces again")
        if distinct != len(assignments) or distinct != len(self.index.face_ids):
            raise FacesError(
                f"{len(self.index.face_ids)} faces are annotated, {len(assignments)} assigned ({distinct} of them "
                "different ones): annotations/ changed after its faces were grouped. Run the same command again"
            )

    def make_shards(self, config: IngestConfig) -> list[ShardFile]:
        """The files of the layout: those of the current version where they are equal, the others newly published."""
        digests = row_digests(self.layout, self.part, self.index, self.settings)
        kept = {shard.rows_sha256: shard for shard in self.earlier()}
        todo = [number for number, digest in enumerate(digests) if digest not in kept]
        if todo:
            self.store.check_writable()
            places = [self.layout.shards[number] for number in todo]
            schema = faces_schema(self.index.embedding)
            schema = schema.with_metadata({**schema.metadata, **self.settings})
            size = int(sum(place.rows for place in places) * self.index.bytes_a_face)
            files = write_shards(self.store, self.pickups(todo), places, schema, config.ray, size)
            for number, place, file in zip(todo, places, files, strict=True):
                kept[digests[number]] = ShardFile(
                    **file.model_dump(),
                    split=place.split,
                    rows=place.rows,
                    identities=len(_starts(self.layout.rows(place))),
                    rows_sha256=digests[number],
                )
        return [kept[digest] for digest in digests]

    def earlier(self) -> list[ShardFile]:
        """Shards of the current version whose files are there."""
        return [shard for shard in (self.previous.shards if self.previous else []) if shard.file in self.present]

    def pickups(self, todo: list[int]) -> pa.Table:
        """Which rows of which files make up the shards of these numbers."""
        places = [self.layout.shards[number] for number in todo]
        wanted = np.concatenate([np.arange(place.first, place.first + place.rows) for place in places])
        faces = self.layout.faces.take(pa.array(wanted))
        source, row = self.part[wanted], self.row[wanted]
        earlier = self.unchanged()
        face_ids = pa.chunked_array([ids.combine_chunks() for _, ids in earlier], pa.string())
        counts = [len(ids) for _, ids in earlier]
        at = pc.index_in(faces["face_id"], face_ids).fill_null(-1).to_numpy()
        found = at >= 0
        source[found] = len(self.index.uris) + np.repeat(np.arange(len(counts)), counts)[at[found]]
        row[found] = np.concatenate([np.empty(0, np.int64), *map(np.arange, counts)])[at[found]]
        uris = [*self.index.uris, *(self.store.join(shard.file) for shard, _ in earlier)]
        columns = {
            "row": row,
            "shard": np.repeat(np.arange(len(places)), [place.rows for place in places]),
            "order": np.concatenate([np.arange(place.rows) for place in places]),
        }
        return make_pickups(faces, source, columns, uris)

    def unchanged(self) -> list[tuple[ShardFile, pa.ChunkedArray]]:
        """(shard of the current version, its face_ids in order) where every row is still what the annotations say."""
        if self.previous is None or self.previous.assignments_file.file not in self.store.list(INDEX):
            return []
        assignments = read_index(self.store, self.previous.assignments_file)
        layout = lay_out(assignments, ShardConfig(**self.previous.config["shards"]))
        part, _ = self.index.locate(layout.faces["face_id"])
        places = dict(zip(row_digests(layout, part, self.index, self.settings), layout.shards, strict=True))
        pairs = [(shard, places.get(shard.rows_sha256)) for shard in self.earlier()]
        return [(shard, layout.rows(place)["face_id"]) for shard, place in pairs if place]
