"""A small faces/ dataset in plain colours that say who they show: red the person, green the picture."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from PIL import Image

from schemas.faces import ASSIGNMENTS_SCHEMA, CURRENT, IDENTITIES_SCHEMA, FacesVersion, ShardFile, faces_schema
from schemas.ledger import StoredFile
from schemas.parquet import write_table
from tasks.people.versions import record_name
from tasks.store.storage import Store

STEP = 10  # between the colours of two people or pictures
PEOPLE = [4] * 12  # pictures of each


def picture(person: int, number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (320, 320), (person * STEP, number * STEP, 128)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def mask() -> bytes:
    half = np.zeros((320, 320), np.uint8)
    half[160:] = 255
    buffer = io.BytesIO()
    Image.fromarray(half).save(buffer, "PNG")
    return buffer.getvalue()


def face_row(person: int, number: int, crop: bytes | None, split: str) -> dict[str, object]:
    """A face whose landmarks lie at (40 + 2 n, 80) of its crop, in a photograph of twice the crop's resolution."""
    points = np.stack([40 + 2.0 * np.arange(68), np.full(68, 80.0)], axis=1)
    return {
        "face_id": f"{person:03d}{number:03d}-00",
        "image_id": f"{person:03d}{number:03d}",
        "source_uri": "photo.jpg",
        "face_index": 0,
        "width": 1000,
        "height": 800,
        "bbox": [0.0, 0.0, 1.0, 1.0],
        "det_score": 1.0,
        "landmarks": (points * 2 + [100, 60]).ravel().tolist(),
        "crop": {"bytes": crop, "path": None},
        "crop_transform": [0.5, 0, -50, 0, 0.5, -30],
        "skin_mask": {"bytes": mask(), "path": None},
        "embedding": [0.0, 0.0],
        "label": None,
        **dict.fromkeys(("sharpness", "yaw", "pitch", "eye_distance", "mask_coverage"), 1.0),
        "identity_id": f"person-{person:03d}",
        "identity_source": "label",
        "split": split,
    }


def publish(
    uri: str, people: Iterable[int] = PEOPLE, shards: int = 3, version: int = 1, crops: dict | None = None
) -> FacesVersion:
    """A faces/ dataset; the last person is the val split. crops: (person, number) -> bytes instead of the picture."""
    store, counts, crops = Store(uri), list(people), crops or {}
    stored: list[ShardFile] = []
    index = []
    members = [*(np.array_split(np.arange(len(counts) - 1), shards) if shards else []), np.array([len(counts) - 1])]
    for number, group in enumerate(members):
        split = "val" if number == shards else "train"
        rows: list[dict[str, object]] = []
        name = f"data/{split}-{number:05d}-v{version}.parquet"
        for person in map(int, group):
            index.append((f"person-{person:03d}", "label", split, name, len(rows), counts[person]))
            for image in range(counts[person]):
                rows.append(face_row(person, image, crops.get((person, image), picture(person, image)), split))
        with store.scratch(name) as path:
            write_table(pa.Table.from_pylist(rows, schema=faces_schema(2)), path, row_group=3)
            size, sha256 = store.publish(path, name)
        record = {"split": split, "rows": len(rows), "identities": len(group), "rows_sha256": ""}
        stored.append(ShardFile(file=name, bytes=size, sha256=sha256, **record))
    columns = list(zip(*index, strict=True))
    identities = pa.table([pa.array(column) for column in columns], IDENTITIES_SCHEMA.names).cast(IDENTITIES_SCHEMA)
    files = []
    for name, table in (("identities", identities), ("assignments", ASSIGNMENTS_SCHEMA.empty_table())):
        with store.scratch(f"index/{name}-v{version}.parquet") as path:
            write_table(table, path)
            size, sha256 = store.publish(path, f"index/{name}-v{version}.parquet")
        files.append(StoredFile(file=f"index/{name}-v{version}.parquet", bytes=size, sha256=sha256))
    described = hashlib.sha256(repr((counts, shards, version)).encode()).hexdigest()
    record = FacesVersion(
        version=version,
        fingerprint=described,
        annotations="0",
        config={},
        weights={},
        shards=stored,
        identities_file=files[0],
        assignments_file=files[1],
        faces=sum(counts),
        identities=len(counts),
        left_out={},
    )
    for name in (record_name(version), CURRENT):
        store.write(name, record.model_dump_json().encode())
    return record
