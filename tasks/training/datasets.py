"""Sources of samples: the shards of one version of faces/, or subjects of the procedural world made on the fly."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deca_core.assets.bundle import AssetBundle
from deca_core.crop import LANDMARK_MARGIN, crop_transform, square_from_landmarks, warp
from deca_core.errors import DecaError
from deca_world import Limits, Photograph, World
from deca_world.lens import encode_jpeg
from schemas.faces import CROP_SCALE, CROP_SIZE, ShardFile, Split
from schemas.parquet import fixed_values
from tasks.people.versions import Faces, open_faces, read_version
from tasks.sources.images import encode_png
from tasks.store.storage import Store, open_uri, storage_errors
from tasks.training.order import Index, Ints, SamplesError

COLUMNS = ["crop", "skin_mask", "landmarks", "crop_transform"]
KEPT_FOOTERS = 256  # a shard of 4096 faces has some 200 kB of them
# At this distance and size the crop of a photograph of the world has about as many pixels as it is stored with.
WORLD_LIMITS, WORLD_SIZE = Limits(scale=(5.0, 5.0)), 432
JPEG_QUALITY = 95


class DamagedShard(DecaError):
    """A shard whose bytes are not those published: its URI, and the reason."""

    def __init__(self, uri: str, why: str) -> None:
        super().__init__(uri, why)
        self.uri, self.why = uri, why

    def __str__(self) -> str:
        return f"{self.uri}: {self.why}"


@dataclass(frozen=True, eq=False)
class EncodedFace:
    """One stored row: crop JPEG, skin mask PNG, landmarks (68,2) in the crop's pixels.

    fit (156,): shape, expression and pose that fit the landmarks, or None.
    mirrored: landmarks and fit are those of the mirror image, crop and mask are still to be flipped.
    """

    name: str  # its place, for messages
    crop: bytes | None
    mask: bytes | None
    landmarks: NDArray[np.float32]
    fit: NDArray[np.float32] | None = None
    mirrored: bool = False


class Source(Protocol):
    """Identities and their encoded faces. `load` is called from several threads."""

    fingerprint: str  # equal for the same faces in the same order
    index: Index
    fitted: bool  # whether its faces come with a fit

    def load(self, shard: int, rows: Ints) -> dict[int, EncodedFace]:
        """Faces of one shard by row. Raises DamagedShard; StorageError if storage cannot be reached."""


class ShardSource:
    """One split of one version of faces/, independent of later versions."""

    fitted = False

    def __init__(self, faces: str | os.PathLike[str], split: Split, version: int | None = None) -> None:
        self._store = Store(faces)
        uri = self._store.uri
        opened = open_faces(uri) if version is None else Faces(uri, read_version(uri, version))
        self.version = opened.version
        self.fingerprint = f"{self.version.fingerprint}-{split}"
        self._shards = opened.shards(split)
        if not self._shards:
            raise SamplesError(
                f"version {self.version.version} of {uri} has no faces in split {split!r}: ingest more subjects, "
                "or with another shards.val_fraction"
            )
        self.index = _index(opened.identities(), self._shards)
        self._footers: OrderedDict[int, pq.FileMetaData] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, shard: int, rows: Ints) -> dict[int, EncodedFace]:
        record = self._shards[shard]
        try:
            with self._open(shard) as file:
                table = self._read(file, shard, rows)
        except FileNotFoundError as error:
            raise SamplesError(
                f"{self._store.join(record.file)} is gone, version {self.version.version} of faces/ needs it. Was it "
                "deleted by `deca gc`? Train on the current version"
            ) from error
        except (pa.ArrowException, OSError, KeyError) as error:  # Arrow's errors for bytes that are not Parquet
            if getattr(error, "errno", None):  # system errors: too many open files, a broken disk
                with storage_errors("read", self._store.join(record.file)):
                    raise
            why = f"{type(error).__name__}: {error}".strip().replace("\n", " ")
            raise DamagedShard(self._store.join(record.file), why) from error
        points = np.concatenate([fixed_values(table, "landmarks"), np.ones((len(rows), 68, 1), np.float32)], axis=2)
        landmarks = points @ fixed_values(table, "crop_transform").transpose(0, 2, 1)
        crops, masks = (pc.struct_field(table[name], "bytes").to_pylist() for name in ("crop", "skin_mask"))
        return {
            int(row): EncodedFace(f"{record.file} row {row}", crop, mask, points.astype(np.float32))
            for row, crop, mask, points in zip(rows, crops, masks, landmarks, strict=True)
        }

    def __getstate__(self) -> dict[str, Any]:
        """State without per-process members, for the workers of a DataLoader."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_footers", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _footers=OrderedDict(), _lock=threading.Lock())

    def _read(self, file: pa.NativeFile, shard: int, rows: Ints) -> pa.Table:
        """COLUMNS of the rows, in order, from only the row groups that hold them."""
        with self._lock:
            footer = self._footers.get(shard)
        parquet = pq.ParquetFile(file, metadata=footer, pre_buffer=True)
        with self._lock:
            self._footers[shard] = parquet.metadata
            self._footers.move_to_end(shard)
            while len(self._footers) > KEPT_FOOTERS:
                self._footers.popitem(last=False)
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.metadata.num_row_groups)]
        ends = np.cumsum(sizes)
        if rows.max() >= ends[-1]:
            raise DamagedShard(self._shards[shard].file, f"{ends[-1]} rows, the index names row {rows.max()}")
        groups = np.unique(np.searchsorted(ends, rows, side="right"))
        table = parquet.read_row_groups(groups.tolist(), columns=COLUMNS, use_threads=False)
        skipped = np.cumsum(np.concatenate([[0], np.array(sizes)[groups]]))[:-1]  # rows of the table before each group
        group_of = np.searchsorted(ends, rows, side="right")
        starts = ends - sizes
        return table.take(pa.array(rows - starts[group_of] + skipped[np.searchsorted(groups, group_of)]))

    @contextmanager
    def _open(self, shard: int) -> Iterator[pa.NativeFile]:
        """The shard as an Arrow file; its size is checked before the first use."""
        record = self._shards[shard]
        uri = self._store.join(record.file)
        if shard not in self._footers:
            with storage_errors("look up", uri):
                fs, path = open_uri(uri)
                size = fs.size(path)
            if size != record.bytes:
                raise DamagedShard(uri, f"{size} bytes, published were {record.bytes}")
        with pa.OSFile(uri) if self._store.local else pa.PythonFile(_RemoteFile(uri, record.bytes), mode="r") as file:
            yield file


def _index(identities: pa.Table, shards: list[ShardFile]) -> Index:
    """Index of the identities in `shards`."""
    numbers = {shard.file: number for number, shard in enumerate(shards)}
    table = identities.filter(pc.is_in(identities["shard"], pa.array(list(numbers))))
    shard = np.array([numbers[name] for name in table["shard"].to_pylist()], np.int64)
    first, rows = (table[name].to_numpy().astype(np.int64) for name in ("first_row", "rows"))
    order = np.lexsort((first, shard))
    return Index(shard[order], first[order], rows[order])


class _RemoteFile(io.RawIOBase):
    """Ranges of an object of known size; a network failure is a StorageError, not damage."""

    def __init__(self, uri: str, size: int) -> None:
        self._uri, self._size, self._at = uri, size, 0
        self._fs, self._path = open_uri(uri)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._at + size, self._size)
        if end <= self._at:
            return b""
        with storage_errors("read", self._uri):
            data = self._fs.cat_file(self._path, start=self._at, end=end)
        self._at += len(data)
        return data


class WorldSource:
    """Subjects `first`..`first + people - 1` of the procedural world, `images` photographs of each.

    A photograph is made on first use, cropped as in faces/, and kept encoded (some 30 kB).
    """

    fitted = False

    def __init__(self, bundle: AssetBundle, seed: int, people: int, images: int, first: int = 0) -> None:
        self._world, self._seed, self._first = World(bundle), seed, first
        self.fingerprint = f"world-{bundle.hash}-{seed}-{first}-{people}-{images}"
        subjects = np.arange(people, dtype=np.int64)
        self.index = Index(subjects, np.zeros(people, np.int64), np.full(people, images, np.int64))
        self._made: dict[tuple[int, int], EncodedFace] = {}
        self._lock = threading.Lock()  # a World serves one thread at a time

    def load(self, shard: int, rows: Ints) -> dict[int, EncodedFace]:
        with self._lock:
            return {int(row): self._photograph(shard, int(row)) for row in rows}

    def _photograph(self, number: int, image: int) -> EncodedFace:
        if (number, image) not in self._made:
            subject = self._world.subject(self._seed, self._first + number)
            shot = self._world.shot(subject, image, WORLD_LIMITS)
            taken = self._world.photograph(subject, shot, WORLD_SIZE)
            name = f"world://{self._seed}/{self._first + number}/{image}"
            self._made[number, image] = _store(name, taken)
        return self._made[number, image]


def _store(name: str, taken: Photograph) -> EncodedFace:
    """A photograph of the world encoded as a row of faces/."""
    transform = crop_transform(square_from_landmarks(taken.landmarks, CROP_SCALE / LANDMARK_MARGIN), CROP_SIZE)
    pixels = warp(np.dstack([taken.image, taken.skin_mask]), transform, CROP_SIZE)
    crop = (pixels[:3] * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
    mask = np.where(pixels[3] > 0.5, np.uint8(255), np.uint8(0))
    landmarks = taken.landmarks @ transform[:, :2].T + transform[:, 2]
    return EncodedFace(name, encode_jpeg(crop, JPEG_QUALITY), encode_png(mask), landmarks.astype(np.float32))
