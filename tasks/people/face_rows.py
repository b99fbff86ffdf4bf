"""A published faces/ dataset as a source: one item per face, with its crop, landmarks and identity.

The rows are those of one version, which a plan pins; shards are content-named and never change, so what is planned is
what is read, until `deca gc` takes an old version's shards away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deca_core.crop import warp
from schemas.ledger import Item
from schemas.parquet import fixed_values
from tasks.people.versions import Faces
from tasks.sources.tables import BLOCK
from tasks.store.ranges import ReadError, open_checked
from tasks.store.storage import Store

# What a reconstruction takes over as it is, by its own name.
TAKEN_OVER = (
    *("face_id", "image_id", "source_uri", "face_index", "identity_id", "width", "height"),
    *("bbox", "det_score", "landmarks"),
)
COLUMNS = [*TAKEN_OVER, "crop.bytes", "crop_transform"]
MEMBER = "face-row["  # no column of images is called so
ROWS_AT_ONCE = 64  # of one shard: some 2 MB of JPEG


@dataclass(frozen=True, eq=False)
class FaceRow:
    """One row of faces/."""

    item: Item
    columns: dict[str, Any]  # TAKEN_OVER; arrays as numpy
    crop: bytes  # JPEG
    crop_transform: NDArray[np.float64]  # (2, 3) pixels of the source image to pixels of the crop

    @property
    def landmarks(self) -> NDArray[np.float32]:
        """Landmarks (68, 2) in pixels of the source image."""
        points: NDArray[np.float32] = self.columns["landmarks"]
        return points

    def warped(self, image: NDArray[np.uint8], transform: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the network crop (3,224,224) of the decoded stored one; transform (2,3) source to crop pixels.

        Resampled once more than a crop from the photograph itself, at nearly its scale.
        """
        stored = np.linalg.inv(np.vstack([self.crop_transform, [0, 0, 1]]))
        return warp(image, transform @ stored)


def face_items(faces: Faces) -> Iterator[Item]:
    """Yield an item per face of a version, in the order of its shards, train before val."""
    store, index = Store(faces.dest), 0
    for shard in (*faces.shards("train"), *faces.shards("val")):
        uri = store.join(shard.file)
        for row in range(shard.rows):
            yield Item(index, uri, f"{MEMBER}{row}]", row, etag=shard.sha256[:16], root=store.uri)
            index += 1


def is_face_item(item: Item) -> bool:
    """Whether an item is a row of faces/ and not an image."""
    return item.member is not None and item.member.startswith(MEMBER)


def read_rows(items: Sequence[Item]) -> Iterator[tuple[Item, FaceRow | Exception]]:
    """Yield (item, its row or the read error) in the order of the items; a shard is opened once."""
    for uri, run in groupby(items, lambda item: item.uri):
        wanted = list(run)
        try:
            file = open_checked(uri, None, BLOCK)
        except FileNotFoundError:
            gone = ReadError(f"{uri} is gone; was it collected by `deca gc`? Plan the current version with --new")
            yield from [(item, gone) for item in wanted]
            continue
        except Exception as error:  # any driver's error belongs to the rows of this shard
            yield from [(item, error) for item in wanted]
            continue
        with file:
            yield from _shard_rows(file, wanted)


def find_row(items: Sequence[Item], face_id: str) -> Item | None:
    """The item of a face among items of faces/; None where it is not there, or its shard is gone."""
    for uri, run in groupby(items, lambda item: item.uri):
        wanted = {item.offset: item for item in run}
        try:
            with open_checked(uri, None, BLOCK) as file:
                ids = pq.ParquetFile(file).read(columns=["face_id"])["face_id"]
        except FileNotFoundError:
            continue
        if item := wanted.get(pc.index(ids, face_id).as_py()):
            return item
    return None


def _shard_rows(file: IO[bytes], items: list[Item]) -> Iterator[tuple[Item, FaceRow | Exception]]:
    """Rows of one open shard; a row group that cannot be read costs its own rows only."""
    try:
        parquet = pq.ParquetFile(file)
        missing = {column.partition(".")[0] for column in COLUMNS} - set(parquet.schema_arrow.names)
        if missing:
            raise ReadError(f"the shard has no column {', '.join(sorted(missing))}; is this a faces/ dataset?")
    except Exception as error:  # as above
        yield from [(item, error) for item in items]
        return
    groups = (parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups))
    starts = np.array([0, *accumulate(groups)])
    place = [int(np.searchsorted(starts, item.offset or 0, side="right")) - 1 for item in items]
    for group, run in groupby(zip(place, items, strict=True), lambda pair: pair[0]):
        wanted = [item for _, item in run]
        try:
            if group == parquet.num_row_groups:
                raise ReadError(f"there is no row {wanted[0].offset}: the shard has {starts[-1]}")
            table = parquet.read_row_group(group, columns=COLUMNS, use_threads=False)
        except Exception as error:  # as above
            yield from [(item, error) for item in wanted]
            continue
        for start in range(0, len(wanted), ROWS_AT_ONCE):
            some = wanted[start : start + ROWS_AT_ONCE]
            rows = table.take(pa.array([item.offset - int(starts[group]) for item in some if item.offset is not None]))
            yield from _as_rows(rows, some)


def _as_rows(table: pa.Table, items: list[Item]) -> Iterator[tuple[Item, FaceRow | Exception]]:
    columns: dict[str, Any] = {
        name: fixed_values(table, name) if name in ("bbox", "landmarks") else table[name].to_pylist()
        for name in TAKEN_OVER
    }
    transforms = fixed_values(table, "crop_transform").astype(np.float64)
    for position, (item, crop) in enumerate(zip(items, table["crop"].to_pylist(), strict=True)):
        data = (crop or {}).get("bytes")
        if data is None:
            yield item, ReadError("the row holds no crop")
            continue
        values = {name: column[position] for name, column in columns.items()}
        yield item, FaceRow(item, values, data, transforms[position])
