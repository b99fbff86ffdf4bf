"""A faces/ dataset of repeated rows, for benchmarks that read one."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from schemas.faces import ASSIGNMENTS_SCHEMA, CURRENT, IDENTITIES_SCHEMA, FacesVersion, ShardFile, faces_schema
from schemas.ledger import StoredFile
from schemas.parquet import write_table
from tasks.people.versions import record_name
from tasks.store.storage import Store

SAME = {
    **{"source_uri": "", "face_index": 0, "bbox": [0.0] * 4, "embedding": [0.0, 0.0], "label": None},
    **dict.fromkeys(("det_score", "sharpness", "yaw", "pitch", "eye_distance", "mask_coverage"), 1.0),
    **{"identity_source": "label", "split": "train"},
}


def write_faces(uri: str, rows: list[dict[str, Any]], faces: int, shard: int, an_identity: int) -> None:
    """Write `faces` faces that repeat the rows (width, height, crop, mask, landmarks), `an_identity` faces each."""
    store, shards, index = Store(uri), list[ShardFile](), []
    for first in range(0, faces, shard):
        name, numbers = f"data/train-{first // shard:05d}-00000000.parquet", range(first, min(first + shard, faces))
        block = [
            {
                **SAME,
                **rows[number % len(rows)],
                "face_id": f"{number:016x}-00",
                "image_id": f"{number:016x}",
                "identity_id": f"p{number // an_identity:08d}",
            }
            for number in numbers
        ]
        file = _publish(store, name, pa.Table.from_pylist(block, schema=faces_schema(2)))
        names = [row["identity_id"] for row in block]
        found = sorted(set(names))
        index += [(one, "label", "train", name, names.index(one), names.count(one)) for one in found]
        shards.append(
            ShardFile(**file.model_dump(), split="train", rows=len(block), identities=len(found), rows_sha256="")
        )
    columns = [pa.array(column) for column in zip(*index, strict=True)]
    identities = pa.table(columns, IDENTITIES_SCHEMA.names).cast(IDENTITIES_SCHEMA)
    version = FacesVersion(
        version=1,
        fingerprint=f"benchmark-{faces}",
        annotations="0",
        config={},
        weights={},
        shards=shards,
        identities_file=_publish(store, "index/identities-0.parquet", identities),
        assignments_file=_publish(store, "index/assignments-0.parquet", ASSIGNMENTS_SCHEMA.empty_table()),
        faces=faces,
        identities=len(index),
        left_out={},
    )
    for name in (record_name(1), CURRENT):
        store.write(name, version.model_dump_json().encode())


def _publish(store: Store, name: str, table: pa.Table) -> StoredFile:
    with store.scratch(name) as path:
        write_table(table, path)
        size, sha256 = store.publish(path, name)
    return StoredFile(file=name, bytes=size, sha256=sha256)
