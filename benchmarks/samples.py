"""How fast batches of faces are made: `python -m benchmarks.samples --faces 1024 --threads 1 2`.

A local faces/ is written from photographs of the embedded world, each repeated under other names. The same stored faces
are then decoded bare, decoded and augmented in a plain loop, and drawn through Samples, an epoch at a time with the
reading of its shards. Every figure is the median of rounds that take turns, so that a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from deca_core.assets import procedural_head
from deca_core.augment import Augmentation, augment
from schemas.faces import ASSIGNMENTS_SCHEMA, CURRENT, IDENTITIES_SCHEMA, FacesVersion, ShardFile, faces_schema
from schemas.ledger import StoredFile
from schemas.parquet import write_table
from schemas.samples import DataConfig
from tasks.store.storage import Store
from tasks.training.batches import decode_face
from tasks.training.datasets import EncodedFace, ShardSource, WorldSource
from tasks.training.order import BatchPlan
from tasks.training.samples import Samples

PICTURES = 8  # of a person
SHARD = 512  # faces
DISTINCT = 32  # photographs; the rest repeats them
UNUSED = {"width": 432, "height": 432, "face_index": 0, "source_uri": "", "bbox": [0.0] * 4, "embedding": [0.0, 0.0]}
FIGURES = dict.fromkeys(("det_score", "sharpness", "yaw", "pitch", "eye_distance", "mask_coverage"), 0.0)


def write_faces(uri: str, faces: int, stored: list[EncodedFace]) -> None:
    """A faces/ dataset of `faces` rows."""
    store = Store(uri)
    shards, identities = [], []
    for first in range(0, faces, SHARD):
        name = f"data/train-{first // SHARD:05d}.parquet"
        rows: list[dict[str, Any]] = []
        for number in range(first, first + SHARD):
            face, person = stored[number % len(stored)], f"{number // PICTURES:06d}"
            if number % PICTURES == 0:
                identities.append((person, "label", "train", name, len(rows), PICTURES))
            pictures = {"crop": {"bytes": face.crop}, "skin_mask": {"bytes": face.mask}}
            labels = {"landmarks": face.landmarks.ravel(), "crop_transform": [1, 0, 0, 0, 1, 0]}
            who = {"identity_id": person, "identity_source": "label", "split": "train"}
            ids = {"face_id": f"{number:08d}-00", "image_id": f"{number:08d}"}
            rows.append({**UNUSED, **FIGURES, **pictures, **labels, **who, **ids})
        file = _publish(store, name, pa.Table.from_pylist(rows, schema=faces_schema(2)))
        shards.append(ShardFile(**file.model_dump(), split="train", rows=SHARD, identities=SHARD // PICTURES))
    columns = [pa.array(column) for column in zip(*identities, strict=True)]
    index = pa.table(columns, IDENTITIES_SCHEMA.names).cast(IDENTITIES_SCHEMA)
    version = FacesVersion(
        version=1,
        fingerprint="benchmark",
        annotations="",
        config={},
        weights={},
        shards=shards,
        identities_file=_publish(store, "index/identities.parquet", index),
        assignments_file=_publish(store, "index/assignments.parquet", ASSIGNMENTS_SCHEMA.empty_table()),
        faces=faces,
        identities=len(identities),
        left_out={},
    )
    store.write(CURRENT, version.model_dump_json().encode())


def _publish(store: Store, name: str, table: pa.Table) -> StoredFile:
    with store.scratch(name) as path:
        write_table(table, path)
        size, sha256 = store.publish(path, name)
    return StoredFile(file=name, bytes=size, sha256=sha256)


def faces_per_second(work: Callable[[], int]) -> float:
    started = time.perf_counter()
    return work() / (time.perf_counter() - started)


def measure(faces: int, threads: list[int], rounds: int) -> dict[str, Any]:
    """Faces a second of each way, and what part of the plain loop each step is."""
    world = WorldSource(procedural_head(), 0, DISTINCT // PICTURES, PICTURES)
    stored = [
        face for person in range(DISTINCT // PICTURES) for face in world.load(person, np.arange(PICTURES)).values()
    ]
    settings, rng = Augmentation(), np.random.default_rng(0)

    def decode() -> int:
        for face in stored:
            decode_face(face)
        return len(stored)

    def loop() -> int:
        for face in stored:
            crop, mask, landmarks = decode_face(face)
            augment(crop, landmarks, mask, rng, settings)
        return len(stored)

    ways: dict[str, Callable[[], int]] = {"decode": decode, "loop": loop}
    with tempfile.TemporaryDirectory() as uri:
        write_faces(uri, faces, stored)
        plan = BatchPlan(subjects=8, images=4)
        for count in threads:
            samples = Samples(ShardSource(uri, "train"), plan, settings, DataConfig(threads=count))
            ways[f"loader, {count} threads"] = lambda samples=samples: sum(map(len, samples))  # type: ignore[misc]
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds + 1):
            for name, work in ways.items():
                found[name].append(faces_per_second(work))
    speed = {name: median(values[1:]) for name, values in found.items()}  # the first round warms up
    share = speed["loop"] / speed["decode"]
    return {
        "faces_per_second": {name: round(value) for name, value in speed.items()},
        "of_the_loop": {name: round(value / speed["loop"], 2) for name, value in speed.items()},
        "share_of_decoding": round(share, 2),
        "share_of_augmentation": round(1 - share, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=int, default=1024, help=f"a multiple of {SHARD}")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = measure(options.faces, options.threads, options.rounds)
    for name, speed in figures["faces_per_second"].items():
        print(f"{name:<20} {speed:>6} faces/s  {figures['of_the_loop'][name]:.2f} of the loop")
    print(f"of the loop, decoding is {figures['share_of_decoding']:.0%}, augmentation the rest")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
