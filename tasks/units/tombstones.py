"""Tombstones of a dataset: which faces, images and identities are erased, and which rows, items and files match.

Every flow that writes rows reads them once per unit. Columns are matched by name: those that end in `face_id`,
`image_id` or `identity_id`, and `label`, the identity in the source's metadata. An animation's `identity`, `expression`
and `name` may be any of these ids, or a text that contains one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from deca_core.errors import DecaError
from schemas.erase import ERASED, SCHEMA_VERSION, Request, Tombstone, identity_hash
from schemas.ledger import Item, Quarantined, image_id_of
from tasks.store.ranges import open_checked
from tasks.store.records import read_record
from tasks.store.storage import Store

NAME = re.compile(rf"{ERASED}/tombstone-(\d+)\.json")
LABEL = "label"  # a column of annotations/
NAMED = ("identity", "expression", "name")  # columns of animations/ and its _cast/
FACE_NUMBER = re.compile(r"-\d+$")  # a face_id is an image_id with the number of the face
THREADS = 8
BLOCK = 2**18  # bytes fetched at once: columns of ids are small


class EraseError(DecaError):
    """An erasure that cannot be done or that is not finished; says what is left and what to run."""


@dataclass(frozen=True)
class Erased:
    """Ids that are erased. identities: hashes, see `identity_hash`."""

    number: int = 0  # of the latest tombstone; 0: nothing is erased
    faces: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()
    identities: frozenset[str] = frozenset()

    @classmethod
    def of(cls, requests: Iterable[Request], number: int = 0) -> Erased:
        ids: dict[str, set[str]] = {"face": set(), "image": set(), "identity": set()}
        for request in requests:
            ids[request.kind].add(request.id)
            ids["face"].update(request.faces)
        return cls(number, frozenset(ids["face"]), frozenset(ids["image"]), frozenset(ids["identity"]))

    def __bool__(self) -> bool:
        return bool(self.faces or self.images or self.identities)

    # --- rows -------------------------------------------------------------------------------------------------------

    def rows(self, table: pa.Table) -> NDArray[np.bool_]:
        """Which rows of a table are of the erased, (N,); all false where it has no columns of ids."""
        marked = np.zeros(table.num_rows, bool)
        for name in id_columns(table.schema):
            marked |= self._column(name, table[name])
        return marked

    def _column(self, name: str, values: pa.ChunkedArray) -> NDArray[np.bool_]:
        distinct = values.unique()
        if name.endswith("face_id"):
            hit = [face is not None and self.has_face(face) for face in distinct.to_pylist()]
        elif name.endswith("image_id"):
            hit = [image in self.images for image in distinct.to_pylist()]
        elif name in NAMED:
            hit = [text is not None and self._named(text) for text in distinct.to_pylist()]
        else:
            hit = [identity is not None and self.has_identity(identity) for identity in distinct.to_pylist()]
        if not any(hit):
            return np.zeros(len(values), bool)
        return pc.is_in(values, value_set=distinct.filter(pa.array(hit))).to_numpy()

    def has_face(self, face: str) -> bool:
        return face in self.faces or FACE_NUMBER.sub("", face) in self.images

    def has_identity(self, identity: str) -> bool:
        return bool(self.identities) and identity_hash(identity) in self.identities

    def _named(self, text: str) -> bool:
        """Whether a text as `HEADS#ID` is about one of them."""
        return self.names(text) or self.has_identity(text) or self.has_identity(text.rpartition("#")[2])

    # --- items and files ----------------------------------------------------------------------------------------------

    def has_item(self, item: Item) -> bool:
        """Whether a planned image is erased as a whole; a row of faces/ is known only once it is read."""
        return bool(self.images) and item.image_id in self.images

    def has_quarantined(self, row: Quarantined, root: str) -> bool:
        """Whether a quarantined row is about an erased image or face. root: of the plan."""
        image = image_id_of(row.uri, root)
        face = None if row.face_index is None else f"{image}-{row.face_index:02d}"
        return image in self.images or (face is not None and face in self.faces)

    def names(self, text: str) -> bool:
        """Whether a file's name, or a text, holds the id of an erased face or image."""
        return self._pattern is not None and self._pattern.search(text) is not None

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        ids = sorted(map(re.escape, self.faces | self.images), key=len, reverse=True)
        return re.compile(rf"(?<![0-9A-Za-z])(?:{'|'.join(ids)})(?![0-9A-Za-z])") if ids else None


NONE_ERASED = Erased()


def id_columns(schema: pa.Schema) -> list[str]:
    """Columns of text that hold ids."""
    texts, ends = [field.name for field in schema if _is_text(field.type)], ("face_id", "image_id", "identity_id")
    return [name for name in texts if name == LABEL or name in NAMED or name.endswith(ends)]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def read_ids(store: Store, name: str) -> pa.Table:
    """The columns of ids of a Parquet file, without the others."""
    with open_checked(store.join(name), None, BLOCK) as file:
        parquet = pq.ParquetFile(file)
        return parquet.read(columns=id_columns(parquet.schema_arrow))


# --- in storage -------------------------------------------------------------------------------------------------------


def read_erased(store: Store, known: Erased = NONE_ERASED) -> Erased:
    """Return what is erased from a dataset. known: an earlier result; while it is current, one listing suffices."""
    if latest_tombstone(store) == known.number:
        return known
    stones = read_tombstones(store)
    return Erased.of((request for stone in stones for request in stone.requests), stones[-1].number if stones else 0)


def read_tombstones(store: Store) -> list[Tombstone]:
    """Return every tombstone of a dataset, in order. Raises EraseError for a damaged one."""
    names = [name for name in store.list(ERASED) if NAME.fullmatch(name)]
    stones = []
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda name: read_record(store, name, SCHEMA_VERSION, "requests"), names)
        for name, data in zip(names, found, strict=True):
            try:
                stones.append(Tombstone.model_validate_json(data))
            except ValidationError as error:
                raise EraseError(
                    f"{store.join(name)} is damaged, so what must stay erased is unknown. Restore it from a copy; "
                    f"deca audit {store.uri} lists the others"
                ) from error
    return sorted(stones, key=lambda stone: stone.number)


def latest_tombstone(store: Store) -> int:
    """Return the number of the latest tombstone, from the listing alone; 0 if there is none."""
    return max((int(found[1]) for name in store.list(ERASED) if (found := NAME.fullmatch(name))), default=0)


def tombstone_name(number: int) -> str:
    return f"{ERASED}/tombstone-{number:06d}.json"


def put_tombstone(store: Store, stone: Tombstone) -> None:
    """Write a tombstone; from then on its faces stay erased. FileExistsError where another has the number."""
    store.create(tombstone_name(stone.number), stone.model_dump_json(indent=1).encode())
