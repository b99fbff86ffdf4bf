"""Processor time and memory of grouping large archives: `python -m benchmarks.grouping`.

Descriptors are drawn like dlib's: faces of one identity 0.33 apart, identities some 0.55 to 0.85, five faces each on
average. Every size runs in a process of its own, with a peak of its own. `--rows` measures labels by path over that
many rows of annotations, with no descriptor read.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.common import in_child, parser, peak_mib, save
from schemas.faces import annotations_schema

DIMENSIONS = 40  # in which identities differ: gives the spread of distances between them
BETWEEN, WITHIN = 0.7, 0.33
UNIT = 100_000  # rows in a synthetic part


def descriptors(count: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return descriptors (N, 128) and their identities (N,), in random order."""
    rng = np.random.default_rng(seed)
    identity = rng.integers(0, max(count // 5, 1), count)
    axes = np.linalg.qr(rng.normal(size=(128, DIMENSIONS)))[0].T
    centres = rng.normal(size=(int(identity.max()) + 1, DIMENSIONS)) * BETWEEN / math.sqrt(2 * DIMENSIONS)
    vectors = (centres @ axes).astype(np.float32)[identity]
    for start in range(0, count, UNIT):
        part = vectors[start : start + UNIT]
        part += rng.standard_normal(part.shape, np.float32) * np.float32(WITHIN / math.sqrt(2 * 128))
    return vectors, identity


def measure_cluster(count: int) -> dict[str, Any]:
    """Cluster `count` descriptors, then `count` / 100 more against them."""
    from tasks.people.cluster import cluster
    from tasks.people.group import pairwise_scores

    added = count // 100
    vectors, identity = descriptors(count + added)
    before = peak_mib()
    started = time.process_time()
    labels = cluster(vectors[:count], max_distance=0.5, neighbours=64)
    seconds = time.process_time() - started
    peak = peak_mib()
    scores = pairwise_scores(labels, identity[:count])
    known = np.concatenate([labels, np.full(added, -1)])
    started = time.process_time()
    cluster(vectors, max_distance=0.5, neighbours=64, known=known)
    return {
        "what": "cluster",
        "count": count,
        "seconds": round(seconds, 1),
        "peak_mib": peak,
        "input_mib": before,
        "precision": round(scores.precision, 4),
        "recall": round(scores.recall, 4),
        "added": added,
        "added_seconds": round(time.process_time() - started, 1),
        "neighbours_found": _neighbours_found(vectors),
    }


def _neighbours_found(vectors: NDArray[np.float32]) -> float:
    """Share of the 12 nearest faces that the index finds, over 500 faces."""
    import faiss

    from tasks.people.cluster import SCALE_NEIGHBOURS, index_of

    asked = vectors[:: max(len(vectors) // 500, 1)]
    true = faiss.knn(asked, vectors, SCALE_NEIGHBOURS + 1)[1]
    found = index_of(vectors).search(asked, 65)[1]
    return round(float(np.mean([np.isin(a, b).mean() for a, b in zip(true, found, strict=True)])), 4)


def make_annotations(folder: Path, rows: int) -> Path:
    """A committed annotations dataset of `rows` faces with ids and figures, without images and descriptors."""
    from schemas.ledger import CommitRecord, Item
    from schemas.parquet import write_table
    from tasks.store.storage import hash_file
    from tasks.units.commits import publish_commit
    from tasks.units.rounds import open_or_build

    names = ["face_id", "image_id", "source_uri", "face_index", "sharpness", "yaw", "eye_distance", "mask_coverage"]
    schema = pa.schema([annotations_schema(128).field(name) for name in [*names, "label"]])
    units = math.ceil(rows / UNIT)
    plan = open_or_build(str(folder), "/photos", items=[Item(i, f"/photos/{i}.jpg") for i in range(units * 256)])
    for unit in range(units):
        numbers = np.arange(unit * UNIT, min((unit + 1) * UNIT, rows))
        images = [f"{(int(number) * 0x9E3779B97F4A7C15) % 2**64:016x}" for number in numbers]
        columns: dict[str, Any] = {
            "face_id": [f"{image}-00" for image in images],
            "image_id": images,
            "source_uri": [f"/photos/{number // 5:07d}/photo-{number:08d}.jpg" for number in numbers],
            "face_index": np.zeros(len(numbers), np.int32),
            "label": pa.nulls(len(numbers), pa.string()),
        }
        columns |= {name: np.full(len(numbers), 60, np.float32) for name in schema.names if name not in columns}
        path = folder / plan.part_name(unit)
        write_table(pa.table({name: columns[name] for name in schema.names}, schema=schema), path, row_group=UNIT)
        size, sha256 = hash_file(path)
        record = CommitRecord(
            unit=unit,
            fingerprint=plan.fingerprint,
            items=256,
            rows=len(numbers),
            quarantined=0,
            part=path.name,
            bytes=size,
            sha256=sha256,
            seconds=0,
        )
        publish_commit(plan, record)
    return folder


def measure_rows(rows: int) -> dict[str, Any]:
    """Group `rows` annotated faces by path, in this process."""
    from schemas.ingest import IngestConfig
    from tasks.people.group import group

    config = IngestConfig.model_validate(
        {"source": "/photos", "dest": "x", "identity": {"pattern": "{identity}/{image}"}, "filters": {"max_yaw": None}}
    )
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.grouping", "--make", folder, "--rows", str(rows)]
        subprocess.run(command, check=True)  # a child, whose memory is not counted
        before = peak_mib()
        started = time.process_time()
        first = group(folder, config, None)
        assert first.report.kept == rows
        seconds = time.process_time() - started
    return {
        "what": "rows",
        "count": rows,
        "seconds": round(seconds, 1),
        "peak_mib": peak_mib(),
        "input_mib": before,
        "identities": first.report.identities,
    }


def growth(rows: list[dict[str, Any]], figure: str) -> float:
    """Slope of `figure` over the count, both in logarithms."""
    counts = np.log([row["count"] for row in rows])
    return float(np.polyfit(counts, np.log([max(row[figure], 0.1) for row in rows]), 1)[0])


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--faces", type=int, nargs="*", default=[10_000, 30_000, 100_000, 300_000, 1_000_000])
    arguments.add_argument("--rows", type=int, nargs="*", default=[100_000, 1_000_000, 10_000_000])
    arguments.add_argument("--quick", action="store_true", help="10k and 30k descriptors, 100k and 1M rows")
    arguments.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments.add_argument("--make", metavar="FOLDER", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.make:
        make_annotations(Path(options.make), options.rows[0])
        return
    if options.here:
        print(json.dumps(measure_cluster(options.faces[0]) if options.faces else measure_rows(options.rows[0])))
        return
    if options.quick:
        options.faces, options.rows = [10_000, 30_000], [100_000, 1_000_000]
    table = []
    for name, counts in (("--faces", options.faces), ("--rows", options.rows)):
        other = "--rows" if name == "--faces" else "--faces"
        rows = []
        for count in counts:
            rows.append(in_child("benchmarks.grouping", "--here", other, name, count))
            print(rows[-1], flush=True)
        if len(rows) > 1:
            print(f"growth: time^{growth(rows, 'seconds'):.2f}, peak^{growth(rows, 'peak_mib'):.2f}")
        table += rows
    save(options, table)


if __name__ == "__main__":
    main()
