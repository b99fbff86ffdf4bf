"""Erasure: faces, images or subjects leave every dataset, and tombstones keep them away.

Four steps, each for all datasets before the next one begins:

1. Ids are resolved to faces, from every dataset that stores identities.
2. Tombstones are written. From here on no run restores the faces, and an interruption loses no request.
3. Rows are removed: parts, quarantine, files beside them and versions are replaced by ones without the erased; then
   other traces are deleted (leftovers of killed runs, images in reports, datasets derived from the rows).
4. The datasets are searched once more; where nothing is left, a record of the erasure is written.

A run that is writing the same dataset need not be stopped: see tasks/units/commit.py.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.erase import ErasureRecord, Found, Request, Tombstone, identity_hash
from schemas.ledger import CommitRecord, image_id_of, table_to_quarantine
from tasks.people.versions import current, named_files
from tasks.store.storage import Store, normalise
from tasks.trust.audit import Occurrence, Place, find_places, occurrences
from tasks.trust.erase_faces import erase_faces
from tasks.trust.erasure_records import hash_tombstone, record_name, unfinished
from tasks.units.commit import erase_unit
from tasks.units.commits import read_commits, read_parts
from tasks.units.compaction import purge
from tasks.units.draft import code_version
from tasks.units.plan import READ_THREADS, Plan, load_plan
from tasks.units.rewrite import files_left
from tasks.units.snapshots import SNAPSHOT
from tasks.units.tombstones import (
    FACE_NUMBER,
    LABEL,
    Erased,
    EraseError,
    put_tombstone,
    read_erased,
    read_ids,
    read_tombstones,
)

REPORTS = "_report/"
SHOWN = 5  # files that an error names

logger = logging.getLogger("deca")


@dataclass(frozen=True)
class Asked:
    """Ids as the user gives them. images: image_ids or source_uris."""

    faces: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()
    identities: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.faces or self.images or self.identities)


@dataclass(frozen=True)
class Outcome:
    """What an erasure did to one dataset. record: None where there was nothing to do."""

    place: Place
    record: ErasureRecord | None


def erase(datasets: Sequence[str], asked: Asked) -> list[Outcome]:
    """Erase the requested ids from all datasets; without ids, finish interrupted erasures.

    datasets: URIs; an ingest stands for its annotations and faces. Raises EraseError (also where an id occurs in none
    of them, or something cannot go), StorageError, PlanError, FacesError.
    """
    places = [place for dest in dict.fromkeys(datasets) for place in find_places(dest)]
    if asked:
        requests = resolve(places, asked)
        for place in places:
            _write_tombstone(place, requests)
    for place in places:
        if asked or unfinished(place.store):  # repeated: a restored file may have brought the erased back
            _sweep(place)
    return [Outcome(place, _record(place)) for place in places]


# --- resolving --------------------------------------------------------------------------------------------------------


def resolve(places: Sequence[Place], asked: Asked, strict: bool = True) -> list[Request]:
    """Return the requests, each with its faces; where `strict`, EraseError for ids that no dataset has.

    Faces of an earlier, interrupted request for the same subject come from its tombstone: their rows may be gone.
    """
    known = _Known(asked, places)
    for place in places:
        for stone in read_tombstones(place.store):
            known.add_tombstone(stone.requests)
        for _, table in id_tables(place):
            known.scan(table)
    for place in places:
        if place.kind == "units" and known.images_missing():
            for unit in load_plan(place.uri).iter_units():
                known.planned(item.image_id for item in unit.items)
    if strict:
        known.check()
    return known.requests()


class _Known:
    """Faces found for each requested id while the datasets are scanned."""

    def __init__(self, asked: Asked, places: Sequence[Place]) -> None:
        self.faces = dict.fromkeys(sorted(asked.faces), False)  # whether it was found
        self.identities: dict[str, set[str]] = {identity_hash(name): set() for name in asked.identities}
        self.names = {identity_hash(name): name for name in asked.identities}
        self.seen: set[str] = set()  # hashes of the identities found
        roots = {place.root for place in places if place.kind == "units"}
        # An image may be named by its URI: its id depends on the source of each dataset.
        self.images = {name: {name, *(image_id_of(_place(name), root) for root in roots)} for name in asked.images}
        self.found: dict[str, set[str]] = {}  # image_id: its faces

    def scan(self, table: pa.Table) -> None:
        wanted = {image for ids in self.images.values() for image in ids}
        identities = [name for name in table.column_names if name.endswith("identity_id") or name == LABEL]
        columns = [name for name in table.column_names if name == "face_id" or name in identities or name == "image_id"]
        if not columns:
            return
        chosen = Erased(faces=frozenset(self.faces), images=frozenset(wanted), identities=frozenset(self.identities))
        for row in table.select(columns).filter(pa.array(chosen.rows(table.select(columns)))).to_pylist():
            face = row.get("face_id")
            image = row.get("image_id") or (FACE_NUMBER.sub("", face) if face else None)
            if face in self.faces:
                self.faces[face] = True
            if image in wanted:
                self.found.setdefault(image, set()).update([face] if face else [])
            for name in identities:
                if row[name] is not None and (identity := identity_hash(row[name])) in self.identities:
                    self.seen.add(identity)
                    self.identities[identity].update([face] if face else [])

    def add_tombstone(self, requests: Iterable[Request]) -> None:
        wanted = {image for ids in self.images.values() for image in ids}
        for request in requests:
            if request.kind == "face" and request.id in self.faces:
                self.faces[request.id] = True
            elif request.kind == "image" and request.id in wanted:
                self.found.setdefault(request.id, set()).update(request.faces)
            elif request.kind == "identity" and request.id in self.identities:
                self.seen.add(request.id)
                self.identities[request.id].update(request.faces)

    def images_missing(self) -> bool:
        return any(not ids & self.found.keys() for ids in self.images.values())

    def planned(self, images: Iterable[str]) -> None:
        wanted = {image for ids in self.images.values() for image in ids}
        for image in wanted.intersection(images):
            self.found.setdefault(image, set())

    def check(self) -> None:
        missing = [f"face {face}" for face, there in self.faces.items() if not there]
        missing += [f"image {name}" for name, ids in self.images.items() if not ids & self.found.keys()]
        missing += [f"identity {self.names[identity]}" for identity in self.identities if identity not in self.seen]
        if missing:
            raise EraseError(
                f"{', '.join(sorted(missing))}: in none of these datasets. Nothing was erased. A face_id is an "
                "image_id and the number of the face, as in 0f3a5c7b9d1e2f40-00; look them up in the datasets' columns"
            )

    def requests(self) -> list[Request]:
        images = sorted({image for ids in self.images.values() for image in ids & self.found.keys() or ids})
        return [
            *(Request(kind="face", id=face) for face in self.faces),
            *(Request(kind="image", id=image, faces=sorted(self.found.get(image, ()))) for image in images),
            *(Request(kind="identity", id=one, faces=sorted(faces)) for one, faces in sorted(self.identities.items())),
        ]


def _place(name: str) -> str:
    """Return the URI of an image in normal form."""
    uri, mark, member = name.partition("#")
    return f"{normalise(uri)}{mark}{member}" if "/" in name else name


def id_tables(place: Place) -> Iterator[tuple[str, pa.Table]]:
    """Yield (file, its id columns) for every data file of a dataset; READ_THREADS of them are in memory at a time."""
    names = _data(place)
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for first in range(0, len(names), READ_THREADS):
            some = names[first : first + READ_THREADS]
            yield from zip(some, pool.map(lambda name: read_ids(place.store, name), some), strict=True)


def _data(place: Place) -> list[str]:
    if place.kind == "units":
        return [part.file for part in read_parts(load_plan(place.uri))]
    version = current(place.uri)
    return sorted(named_files(version)) if version else []


# --- tombstones -------------------------------------------------------------------------------------------------------


def _write_tombstone(place: Place, requests: Sequence[Request]) -> None:
    """Write a tombstone for the requests that no earlier one of this dataset covers."""
    store = place.store
    while True:
        stones = read_tombstones(store)
        before = Erased.of(request for stone in stones for request in stone.requests)
        new = [request for request in requests if not _covered(request, before)]
        if not new:
            return
        number = max([0, *(stone.number for stone in stones)]) + 1
        try:
            put_tombstone(store, Tombstone(number=number, requests=new, found=_found(place, Erased.of(new))))
            return
        except FileExistsError:  # another erasure at the same moment
            continue


def _covered(request: Request, before: Erased) -> bool:
    ids = {"face": before.faces, "image": before.images, "identity": before.identities}[request.kind]
    return request.id in ids and before.faces.issuperset(request.faces)


def _found(place: Place, erased: Erased) -> Found:
    """Return the current rows and files of the erased in a dataset."""
    rows = {name: int(erased.rows(table).sum()) for name, table in id_tables(place)}
    files: list[str] = []
    if place.kind == "units":
        for commit in read_commits(place.uri):
            if commit.part and commit.files:
                files += _files_of(place.store, commit, erased)
    return Found(rows={name: count for name, count in rows.items() if count}, files=files)


def _files_of(store: Store, commit: CommitRecord, erased: Erased) -> list[str]:
    table = pq.read_table(pa.BufferReader(store.read(commit.part or "")))
    return files_left(commit.files, table, erased.rows(table), erased).gone


# --- removal ----------------------------------------------------------------------------------------------------------


def _sweep(place: Place) -> None:
    """Remove all traces of the erased from one dataset; EraseError names what is left."""
    erased = read_erased(place.store)
    if place.kind == "faces":
        erase_faces(place.uri, erased)
    else:
        _sweep_units(load_plan(place.uri), place, erased)
    left = [one for one in occurrences(place, erased) if one.counts]
    if left and place.kind == "units":  # of killed runs, or of units that are being worked: tasks/units/commit.py
        for one in left:
            if not SNAPSHOT.fullmatch(one.file):
                place.store.delete(one.file)
        purge(load_plan(place.uri))
        left = [one for one in occurrences(place, erased) if one.counts]
    if left:
        raise EraseError(f"{place.uri}: {_words(left)}. The erasure is not finished. Run: deca audit {place.uri}")


def _words(left: Sequence[Occurrence]) -> str:
    names = ", ".join(f"{one.file} ({one.how})" for one in left[:SHOWN])
    return f"{len(left)} files still contain the erased: {names}"


def _sweep_units(plan: Plan, place: Place, erased: Erased) -> None:
    store = plan.store
    store.sweep()
    shared: list[str] = []
    for commit in _touched(plan, erased):
        shared += erase_unit(plan, commit, erased)[1]
    purge(plan)
    if shared:
        raise EraseError(
            f"{place.uri}: {', '.join(shared[:SHOWN])}: rows of others name these files too, so only the rows were "
            "erased. Delete the files by hand, or recreate the dataset with one file per face"
        )
    waiting = set(unfinished(store))
    if any(stone.found.count for stone in read_tombstones(store) if stone.number in waiting):
        _delete_derived(store)


def _touched(plan: Plan, erased: Erased) -> Iterator[CommitRecord]:
    """Yield the commits whose rows, quarantine or files contain the erased; only id columns of parts are read."""
    store, root = plan.store, plan.record.root

    def look(commit: CommitRecord) -> bool:
        if any(erased.names(file.file) for file in commit.files):
            return True
        if commit.quarantine is not None:
            rows = pq.read_table(pa.BufferReader(store.read(commit.quarantine.file)))
            if any(erased.has_quarantined(row, root) for row in table_to_quarantine(rows)):
                return True
        return commit.part is not None and bool(erased.rows(read_ids(store, commit.part)).any())

    commits = read_commits(plan.dest)
    with ThreadPoolExecutor(READ_THREADS) as pool:
        while some := list(islice(commits, READ_THREADS)):
            yield from (commit for commit, hit in zip(some, pool.map(look, some), strict=True) if hit)


def _delete_derived(store: Store) -> None:
    """Delete what was derived from the rows: reports except their JSON, and folders such as consensus/.

    The next run of the flow rewrites its reports, and the folders' own commands recreate them.
    """
    for name in store.walk():
        if name.startswith(REPORTS) and not name.endswith(".json"):
            store.delete(name)
        folder, _, file = name.partition("/")
        if file == "_current.json" and "rows_sha256" in json.loads(store.read(name)):
            store.delete(name)  # first: without it the folder is no data
            store.delete_folder(folder)
            logger.info("%s was derived from erased rows, and was deleted; recreate it", store.join(folder))


# --- the record -------------------------------------------------------------------------------------------------------


def _record(place: Place) -> ErasureRecord | None:
    """Record finished erasures that have no record yet; return the last of these records."""
    store, made = place.store, None
    waiting = set(unfinished(store))
    for stone in read_tombstones(store):
        if stone.number not in waiting:
            continue
        made = ErasureRecord(
            number=stone.number,
            dataset=store.uri,
            at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            requests=len(stone.requests),
            faces=len(Erased.of(stone.requests).faces),
            rows=stone.found.count,
            files=len(stone.found.files),
            tombstone_sha256=hash_tombstone(store, stone.number),
            code=code_version(__name__),
        )
        with contextlib.suppress(FileExistsError):  # another erasure finished the same work
            store.create(record_name(stone.number), made.model_dump_json(indent=1).encode())
    return made
