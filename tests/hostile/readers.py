"""Every reader of foreign bytes for the fuzz tests: valid inputs to mutate and the errors that it may raise."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydantic import BaseModel, ValidationError

from deca_core.assets.unpickle import UnpickleError, load_npy, load_pickle
from pipelines.settings import ConfigError, resolve
from schemas.faces import FacesVersion
from schemas.ingest import IngestConfig
from schemas.ledger import CommitRecord, Item, PlanRecord, RoundRecord, StoredFile
from schemas.reconstruct import ReconstructConfig
from tasks.sources.archives import DAMAGE, archive_members, read_member
from tasks.sources.images import ImageError, decode_image
from tasks.sources.labels import LabelError, read_identity, read_landmarks, read_mask
from tasks.sources.listings import listed_uris
from tasks.sources.table_columns import image_column
from tasks.sources.tables import image_rows, read_row, table_schema
from tasks.sources.walk import SourceError
from tasks.store.ranges import ReadError
from tasks.store.storage import StorageError

MAX_PIXELS, MAX_BYTES = 10**6, 2**20
MEMBERS = 50  # of an archive or a table, read at most


class Payload:
    """Starts a program if anything unpickles it."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


@dataclass(frozen=True)
class Reader:
    """One reader: `run` takes mutated bytes and a path to a file of them."""

    run: Callable[[bytes, Path], object]
    seeds: Callable[[], list[bytes]]
    errors: tuple[type[Exception], ...]  # that it may raise
    suffix: str = ".bin"


def _encoded(kind: str, **options: Any) -> bytes:
    y, x = np.mgrid[:24, :20] * 9
    buffer = io.BytesIO()
    Image.fromarray(np.stack([x, y, x + y // 2], -1).astype(np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def _points() -> np.ndarray:
    return np.random.default_rng(0).random((68, 2)).astype(np.float32)


def _pickles() -> list[bytes]:
    import torch
    from scipy import sparse

    content = {
        "v": np.arange(6.0).reshape(2, 3),
        "s": sparse.csc_matrix(np.eye(3)),
        "t": torch.arange(4.0),
        "o": np.array([1, "x"], object),
        "l": [1, (2.5, b"y", None)],
    }
    whole = [pickle.dumps(content, protocol) for protocol in (0, 2, 4, 5)]
    return [*whole, pickle.dumps(Payload()), pickle.dumps([np.ones(2), Payload()], 2), b"cos\nsystem\n(S'x'\ntR."]


def _mat() -> list[bytes]:
    from scipy import io as matlab

    found = []
    for packed in (False, True):
        buffer = io.BytesIO()
        matlab.savemat(buffer, {"pt3d_68": np.random.default_rng(0).random((3, 68))}, do_compression=packed)
        found.append(buffer.getvalue())
    return found


def _tar(mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=tarfile.PAX_FORMAT) as file:  # type: ignore[call-overload]
        for name in ("a.jpg", "ü" * 60 + ".jpg", "n" * 120 + ".jpg"):
            entry = tarfile.TarInfo(name)
            entry.size = 700
            file.addfile(entry, io.BytesIO(b"x" * 700))
    return buffer.getvalue()


def _zip(method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name in ("a.jpg", "b/ü.jpg"):
            file.writestr(name, b"x" * 700)
    return buffer.getvalue()


def _parquet() -> list[bytes]:
    found = []
    images = [{"bytes": b"x" * 50, "path": None}, None, {"bytes": b"", "path": "y"}]
    for column in (pa.array([b"x" * 50, None, b"y"]), pa.array(images)):
        buffer = io.BytesIO()
        note = {b"huggingface": b'{"info": {"features": {"image": {"_type": "Image"}}}}'}
        pq.write_table(pa.table({"image": column, "n": [1, 2, 3]}).replace_schema_metadata(note), buffer)
        found.append(buffer.getvalue())
    return found


def _records() -> list[bytes]:
    plan = {"source": "/a", "root": "/a", "config": {}, "code": "1", "weights": {}, "items_per_unit": 1, "items": 1}
    plan |= {"units": 1, "items_sha256": "0", "files": [], "fingerprint": "f"}
    file = StoredFile(file="a/b", bytes=1, sha256="0")
    commit = {"unit": 0, "fingerprint": "f", "items": 1, "rows": 1, "quarantined": 0, "part": "p", "bytes": 1}
    commit |= {"sha256": "0", "seconds": 1.0, "files": [file]}
    later = {"kind": "retry", "round": 1, "fingerprint": "f", "items": 1, "units": 1, "files": []}
    records = (PlanRecord.model_validate(plan), CommitRecord.model_validate(commit), RoundRecord.model_validate(later))
    return [record.model_dump_json().encode() for record in records]


RECORDS: tuple[type[BaseModel], ...] = (PlanRecord, CommitRecord, RoundRecord, FacesVersion)


def _run_archive(data: bytes, path: Path) -> None:
    for name, offset, size in islice(archive_members(str(path)), MEMBERS):
        item = Item(0, str(path), name, offset, size)
        if 0 <= size <= MAX_BYTES:
            _one(lambda item=item: read_member(item, MAX_BYTES))  # type: ignore[misc]


def _run_table(data: bytes, path: Path) -> None:
    schema, rows = table_schema(str(path))
    column = image_column(schema, None, str(path))
    if column is not None:
        for member, row in islice(image_rows(str(path), column, rows), MEMBERS):
            item = replace(Item(0, str(path), member, row), etag=None)
            _one(lambda item=item: read_row(item, MAX_BYTES))  # type: ignore[misc]


def _one(read: Callable[[], object]) -> None:
    """Read one row; any error of a driver quarantines only that row, as in a unit."""
    try:
        read()
    except Exception:
        return


def _run_records(data: bytes, path: Path) -> None:
    for kind in RECORDS:
        try:
            kind.model_validate_json(data)
        except ValidationError:
            continue


def _run_settings(data: bytes, path: Path) -> None:
    resolve(ReconstructConfig, path, [], {"source": "a", "dest": "b"})


def _run_setting(data: bytes, path: Path) -> None:
    resolve(IngestConfig, None, data.decode("utf-8", "replace").split("\n")[:5], {"source": "a", "dest": "b"})


def _run_list(data: bytes, path: Path) -> None:
    for _ in islice(listed_uris(str(path), None), 1000):
        pass


def _mask_seeds() -> list[bytes]:
    return [_npy(np.eye(20, dtype=dtype) * top) for dtype, top in ((np.uint8, 1), (bool, True), (np.float32, 15))]


def _png_masks() -> list[bytes]:
    """A grey mask and a palette mask."""
    found = []
    for mode in ("L", "P"):
        buffer = io.BytesIO()
        Image.fromarray(np.eye(20, dtype=np.uint8)).convert(mode).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


LIST_ERRORS = (SourceError, OSError, StorageError)
YAML = [b"ray: {workers: 2, threads: 1}\nunits:\n  items_per_unit: 3\n", b"batch_size: 8 # x\noutputs: [codes]\n"]
SETTINGS = [b"ray.workers=2\nunits.items_per_unit=3", b"inputs={extensions: [jpg]}", b"shards.val_fraction=0.5"]
IMAGES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")

READERS: dict[str, Reader] = {
    "unpickler": Reader(lambda data, path: load_pickle(path), _pickles, (UnpickleError,)),
    "unpickler npy": Reader(
        lambda data, path: load_npy(path),
        lambda: [_npy(_points()), _npy(np.array({"a": np.ones(2)}, object)), _npy(np.array(Payload(), object))],
        (UnpickleError,),
    ),
    "landmarks npy": Reader(
        lambda data, path: read_landmarks(data, "x.npy"),
        lambda: [_npy(_points()), _npy(np.array(Payload(), object))],
        (LabelError,),
    ),
    "landmarks txt": Reader(
        lambda data, path: read_landmarks(data, "x.txt"), lambda: [b"1.5, 2e3 # x\n-1 2\n" * 34], (LabelError,)
    ),
    "landmarks mat": Reader(lambda data, path: read_landmarks(data, "x.mat"), _mat, (LabelError,)),
    "landmarks pts": Reader(
        lambda data, path: read_landmarks(data, "x.pts"),
        lambda: [b"version: 1\nn_points: 68\n{\n" + b"1.5 2e3\n-1 2\n" * 34 + b"}\n"],
        (LabelError,),
    ),
    "mask npy": Reader(lambda data, path: read_mask(data, "x.npy", MAX_PIXELS), _mask_seeds, (LabelError,)),
    "mask png": Reader(lambda data, path: read_mask(data, "x.png", MAX_PIXELS), _png_masks, (LabelError,)),
    "identity": Reader(
        lambda data, path: read_identity(data, "x.txt"), lambda: ["Ada Lovelace ü\n".encode()], (LabelError,)
    ),
    "images": Reader(
        lambda data, path: decode_image(data, max_pixels=MAX_PIXELS),
        lambda: [_encoded(kind) for kind in IMAGES],
        (ImageError,),
    ),
    "tar": Reader(_run_archive, lambda: [_tar("w")], DAMAGE, ".tar"),
    "packed tar": Reader(_run_archive, lambda: [_tar("w:gz")], DAMAGE, ".tar.gz"),
    "zip": Reader(_run_archive, lambda: [_zip(0), _zip(8)], DAMAGE, ".zip"),
    "parquet": Reader(_run_table, _parquet, (SourceError, ReadError, ValueError, OSError), ".parquet"),
    "list txt": Reader(_run_list, lambda: [b"a.jpg\ns3://b/c.jpg\n/d/../e.jpg\n"], LIST_ERRORS, ".txt"),
    "list csv": Reader(_run_list, lambda: [b'path,age\na.jpg,3\n"b, c.jpg",4\n'], LIST_ERRORS, ".csv"),
    "records": Reader(_run_records, _records, ()),
    "settings yaml": Reader(_run_settings, lambda: YAML, (ConfigError,), ".yaml"),
    "settings": Reader(_run_setting, lambda: SETTINGS, (ConfigError,)),
}
