"""Erasure in faces/: publish a version without the erased faces, then delete every file that contains them.

Shards without an erased face keep their files and their places, so the cost is that of the shards that held the faces.
Earlier versions that named a file with one of them go as a whole: a version is all of its files or none.
"""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.faces import ANNOTATIONS_FOLDER, CURRENT, DATA, IDENTITIES_SCHEMA, INDEX, FacesVersion, ShardFile
from schemas.ingest import ShardConfig
from schemas.ledger import StoredFile
from schemas.parquet import write_table
from tasks.people.layout import index_faces, lay_out, row_digests
from tasks.people.shard import PublishConflict, index_file, stamped, to_json
from tasks.people.versions import current, list_versions, named_files, read_index, read_version, record_name
from tasks.reports.card import CARD, README, is_up_to_date, write_card
from tasks.store.storage import Store, hash_file
from tasks.units.plan import PLAN, load_plan
from tasks.units.tombstones import Erased, read_ids


def erase_faces(dest: str, erased: Erased) -> None:
    """Erase faces from the versions of faces/ at `dest`. Idempotent after any interruption.

    Raises FacesError, PublishConflict where another run publishes at the same time, StorageError.
    """
    store = Store(dest)
    store.sweep()
    version = current(dest)
    if version is not None:
        marked = {name for name in named_files(version) if erased.rows(read_ids(store, name)).any()}
        if marked:
            _switch(store, _without(store, version, marked, erased))
    _collect(store, dest, erased)
    if store.exists(README) and not is_up_to_date(dest):  # it names files that are gone
        write_card(dest)


# --- the next version -------------------------------------------------------------------------------------------------


def _without(store: Store, version: FacesVersion, marked: set[str], erased: Erased) -> FacesVersion:
    """Publish the files of the version without the erased; return its record, without a number yet."""
    assignments = read_index(store, version.assignments_file)
    assignments = assignments.filter(pa.array(~erased.rows(assignments)))
    digests = _digests(store, version, assignments)
    index = read_index(store, version.identities_file)
    shards, identities = list[ShardFile](), [IDENTITIES_SCHEMA.empty_table()]
    for shard in version.shards:
        if shard.file not in marked:
            shards.append(shard)
            identities.append(index.filter(pc.equal(index["shard"], shard.file)))
            continue
        table = pq.read_table(pa.BufferReader(store.read(shard.file)))
        table = table.filter(pa.array(~erased.rows(table))).combine_chunks()
        if not table.num_rows:
            continue
        file, runs = _publish_shard(store, shard, table), _runs(table)
        digest = digests.get((shard.split, tuple(table["face_id"].to_pylist())), "")
        update = {"rows": table.num_rows, "identities": len(runs), "rows_sha256": digest}
        shards.append(shard.model_copy(update={**file.model_dump(), **update}))
        identities.append(runs.append_column("shard", pa.array([file.file] * len(runs))).select(index.column_names))
    tables = {
        "identities": pa.concat_tables([table.cast(IDENTITIES_SCHEMA) for table in identities]).combine_chunks(),
        "assignments": assignments.combine_chunks(),
    }
    files = {name: index_file(name, table) for name, table in tables.items()}
    for file, data in files.values():
        store.write(file.file, data)
    return stamped(
        version.model_copy(
            update={
                "shards": shards,
                "identities_file": files["identities"][0],
                "assignments_file": files["assignments"][0],
                "faces": sum(shard.rows for shard in shards),
                "identities": sum(shard.identities for shard in shards),
                "left_out": dict(sorted(Counter(assignments["left_out"].drop_null().to_pylist()).items())),
            }
        )
    )


def _digests(store: Store, version: FacesVersion, assignments: pa.Table) -> dict[tuple[str, tuple[str, ...]], str]:
    """Return `rows_sha256` as the next ingest computes it, by split and face_ids; empty without the annotations.

    Without it that ingest would rewrite the shard.
    """
    annotations = f"{store.uri.rpartition('/')[0]}/{ANNOTATIONS_FOLDER}"
    if not Store(annotations).exists(PLAN):
        return {}
    plan = load_plan(annotations).record
    if plan.fingerprint != version.annotations:
        return {}
    layout, index = lay_out(assignments, ShardConfig(**version.config["shards"])), index_faces(annotations)
    part, _ = index.locate(layout.faces["face_id"])
    weights = {f"weights.{name}": sha256 for name, sha256 in plan.weights.items()}
    digests = row_digests(layout, part, index, {"fingerprint": plan.fingerprint, **weights})
    return {
        (shard.split, tuple(layout.rows(shard)["face_id"].to_pylist())): digest
        for shard, digest in zip(layout.shards, digests, strict=True)
    }


def _publish_shard(store: Store, shard: ShardFile, table: pa.Table) -> StoredFile:
    """Publish the remaining rows of a shard under a content-addressed name."""
    stem = shard.file.rpartition("-")[0]
    with store.scratch(f"{stem}.parquet") as path:
        write_table(table, path)
        size, sha256 = hash_file(path)
        name = f"{stem}-{sha256[:8]}.parquet"
        store.publish(path, name)
    return StoredFile(file=name, bytes=size, sha256=sha256)


def _runs(table: pa.Table) -> pa.Table:
    """Return the rows of IDENTITIES_SCHEMA of a shard, without the column shard."""
    rows = table.select(["identity_id", "identity_source", "split"]).to_pylist()
    runs = [(key, len(list(run))) for key, run in groupby(rows, lambda row: tuple(row.values()))]
    counts = [count for _, count in runs]
    return pa.table(
        {
            **{
                name: [key[at] for key, _ in runs]
                for at, name in enumerate(("identity_id", "identity_source", "split"))
            },
            "first_row": np.cumsum([0, *counts[:-1]]),
            "rows": counts,
        }
    )


def _switch(store: Store, version: FacesVersion) -> None:
    """Record the version under the next number and make it current."""
    numbers = list_versions(store.uri)
    latest = max([0, *numbers])
    interrupted = read_version(store.uri, latest) if numbers else None
    if interrupted is not None and interrupted.fingerprint == version.fingerprint:
        version = interrupted  # recorded by an interrupted erasure
    else:
        version = version.model_copy(update={"version": latest + 1})
        try:
            store.create(record_name(version.version), to_json(version))
        except FileExistsError as error:
            cause = f"another run published version {version.version} at the same time"
            raise PublishConflict(store.uri, cause) from error
    store.write(CURRENT, to_json(version))


# --- what is left -----------------------------------------------------------------------------------------------------


def _collect(store: Store, dest: str, erased: Erased) -> None:
    """Delete every data and index file with an erased face, the records that name one of them first, and the card.

    Files of versions that are being published count as well: that publication then fails, and is to be run again.
    """
    holds = current(dest)
    mine = named_files(holds) if holds else set()
    others = [name for name in (*store.list(DATA), *store.list(INDEX)) if name not in mine]
    doomed = {name for name in others if erased.rows(read_ids(store, name)).any()}
    for number in list_versions(dest):
        if (holds is None or number != holds.version) and named_files(read_version(dest, number)) & doomed:
            store.delete(record_name(number))
    if doomed:
        store.delete(CARD)  # its sample may show the erased
    for name in sorted(doomed):
        store.delete(name)
