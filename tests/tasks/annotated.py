"""Annotations of pictures that show nobody: rows that follow from a picture's bytes, made by the real engine."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from schemas.engine import RayConfig, UnitsConfig
from schemas.faces import ASSIGNMENTS_SCHEMA, annotations_schema
from schemas.ingest import IngestConfig
from schemas.ledger import Item
from schemas.parquet import fixed_array
from tasks.people.layout import index_faces
from tasks.sources.read import read_items
from tasks.units.engine import UnitOutput, run_units
from tasks.units.rounds import open_or_build

EMBEDDING = 8


def encoded(colour: int, kind: str) -> bytes:
    """A small picture: JPEG in colour or PNG in grey."""
    picture = Image.fromarray(np.full((16, 16, 3), colour, np.uint8)) if kind == "JPEG" else Image.new("L", (16, 16))
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=95)
    return buffer.getvalue()


@dataclass
class FaceWorker:
    """Two faces a picture, with figures drawn from a hash of its bytes; `padding` random bytes follow each crop."""

    padding: int = 0

    def process(self, items: Sequence[Item]) -> UnitOutput:
        rows = [self.face(item, data, face) for item, data in read_items(items, threads=1) for face in range(2)]
        schema = annotations_schema(EMBEDDING)
        columns = []
        for field in schema:
            values = [row[field.name] for row in rows]
            fixed = pa.types.is_fixed_size_list(field.type)
            columns.append(fixed_array(field, np.stack(values)) if fixed else pa.array(values, field.type))
        return UnitOutput(pa.Table.from_arrays(columns, schema=schema))

    def face(self, item: Item, data: bytes | Exception, face: int) -> dict[str, object]:
        assert isinstance(data, bytes)
        seed = int.from_bytes(hashlib.sha256(data + b"%d" % face).digest()[:8])
        draw = np.random.default_rng(seed)
        jpeg, mask = encoded(seed % 256, "JPEG") + draw.bytes(self.padding), encoded(0, "PNG")
        return {
            "face_id": f"{item.image_id}-{face:02d}",
            "image_id": item.image_id,
            "source_uri": item.source_uri,
            "face_index": face,
            "width": 640,
            "height": 480,
            "bbox": draw.random(4, np.float32),
            "det_score": draw.random(dtype=np.float32),
            "landmarks": draw.random((68, 2), np.float32),
            "crop": {"bytes": jpeg, "path": None},
            "crop_transform": draw.random((2, 3), np.float32),
            "skin_mask": {"bytes": mask, "path": None} if face == 0 else None,
            "embedding": draw.random(EMBEDDING, np.float32),
            "label": None if face else "somebody",
            **{name: draw.random(dtype=np.float32) for name in ("sharpness", "yaw", "pitch", "eye_distance")},
            "mask_coverage": draw.random(dtype=np.float32),
        }


def add_photos(folder: Path, numbers: range, content: bytes = b"") -> None:
    """Files of a source; equal numbers and contents are equal to a plan."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        path = folder / f"{number:05d}.jpg"
        path.write_bytes(b"photo %d" % number + content)
        os.utime(path, ns=(10**18, 10**18))


def annotate(source: Path | str, dest: Path | str, items_per_unit: int = 5, padding: int = 0) -> None:
    """Annotate what is new or changed in `source`."""
    units = UnitsConfig(items_per_unit=items_per_unit)
    plan = open_or_build(str(dest), str(source), config={}, weights={"detector": "0a1b"}, units=units, mode="extend")
    run_units(plan, lambda: FaceWorker(padding), RayConfig(workers=0))


def assign(
    annotations: Path | str, people: int, renamed: Mapping[str, str] | None = None, left_out: int = 7
) -> pa.Table:
    """Every face to one of `people` by a hash of its id; every `left_out`-th one is left out."""
    rows = []
    for face in sorted(index_faces(str(annotations)).face_ids.to_pylist()):
        number = int.from_bytes(hashlib.sha256(face.encode()).digest()[:4])
        name = f"person-{number % people}"
        name = (renamed or {}).get(name, name)
        out = number % left_out == 0
        rows.append(
            (face, None if out else name, "none" if out else "label", "min_eye_distance" if out else None, None)
        )
    return pa.Table.from_pylist(
        [dict(zip(ASSIGNMENTS_SCHEMA.names, row, strict=True)) for row in rows], schema=ASSIGNMENTS_SCHEMA
    )


def settings(dest: Path | str, workers: int | None = 0, **shards: float) -> IngestConfig:
    config = {"faces_per_shard": 20, "val_fraction": 0.2, **shards}
    return IngestConfig.model_validate(
        {"source": "photos", "dest": str(dest), "shards": config, "ray": {"workers": workers}}
    )
