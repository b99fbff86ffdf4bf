"""Throughput and memory of publishing faces/: `python -m benchmarks.sharding --faces 20000`; `--quick` for a minute.

Synthetic annotations (random crops of 40 KB, incompressible) are published for the first time, again
unchanged, and with one per cent of new faces, without Ray and with it, each in a process of its own. A plain copy of
the same parts, file by file with fsync, in the same run, is the disk's ceiling. Memory is the largest sum over the
process and its descendants, shared pages counted once, less the same sum before the publication; it includes Ray's
object store (shared memory).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.common import in_child, parser, save, tree
from pipelines.processes import cpu_seconds
from schemas.engine import RayConfig, UnitsConfig
from schemas.faces import ASSIGNMENTS_SCHEMA, annotations_schema
from schemas.ingest import IngestConfig, ShardConfig
from schemas.ledger import Item
from tasks.people import shuffle
from tasks.people.layout import index_faces
from tasks.people.shard import publish
from tasks.people.versions import current, read_assignments
from tasks.units.commits import committed_parts, read_commits
from tasks.units.engine import UnitOutput, run_units
from tasks.units.ray_cluster import connect
from tasks.units.rounds import open_or_build

CROP_BYTES, MASK_BYTES = 40_000, 1_500
EMBEDDING = 128
FACES_AN_IDENTITY = 20
FACES_A_SHARD = 512  # so that some thousand faces fill many shards
SAMPLE_SECONDS = 0.2


@dataclass
class RandomFaces:
    """A worker that makes one face per item, random in every column."""

    def process(self, items: Sequence[Item]) -> UnitOutput:
        draw = np.random.default_rng(items[0].index)
        count = len(items)
        columns = []
        for field in annotations_schema(EMBEDDING):
            kind = field.type
            if field.name in ("crop", "skin_mask"):
                size = CROP_BYTES if field.name == "crop" else MASK_BYTES
                images = [{"bytes": draw.bytes(size), "path": None} for _ in items]
                columns.append(pa.array(images, kind))
            elif pa.types.is_fixed_size_list(kind):
                flat = pa.array(draw.random(count * kind.list_size, np.float32))
                columns.append(pa.FixedSizeListArray.from_arrays(flat, type=kind))
            elif pa.types.is_string(kind):
                columns.append(pa.array([f"{item.image_id}-00" for item in items], kind))
            else:
                columns.append(pa.array(draw.integers(1, 99, count)).cast(kind))
        return UnitOutput(pa.Table.from_arrays(columns, schema=annotations_schema(EMBEDDING)))


def annotate(folder: str, faces: int) -> None:
    """Commit annotations of `faces` faces, extending those that exist."""
    items = (Item(index, f"memory://photos/{index:08d}.jpg", size=1, etag="0") for index in range(faces))
    units = UnitsConfig(items_per_unit=256)
    plan = open_or_build(f"{folder}/annotations", "photos", items=items, units=units, mode="extend")
    run_units(plan, RandomFaces, RayConfig(workers=0))


def assign(folder: str, faces: str) -> pa.Table:
    """Return assignments: those of the current version, then new identities for the other faces in order of id."""
    known = read_assignments(faces) or ASSIGNMENTS_SCHEMA.empty_table()
    ids = index_faces(f"{folder}/annotations").face_ids.combine_chunks().sort()
    fresh = ids.filter(pc.invert(pc.is_in(ids, known["face_id"])))
    names = [f"subject-{(len(known) + row) // FACES_AN_IDENTITY:06d}" for row in range(len(fresh))]
    nulls = [pa.nulls(len(fresh), kind) for kind in (pa.string(), pa.int64())]
    columns = [fresh, names, ["label"] * len(fresh), *nulls]
    return pa.concat_tables([known, pa.table(columns, schema=ASSIGNMENTS_SCHEMA)])


class Memory:
    """The largest proportional set size of this process and its descendants while it is open, in MiB."""

    def __enter__(self) -> Memory:
        self.before = self.peak = self._now()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.done.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, self._now())

    def _now(self) -> float:
        total = 0
        for process in tree(os.getpid()):
            with contextlib.suppress(OSError):  # it has ended
                lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total / 1024


def spent() -> float:
    """Return the processor seconds of this process and its living descendants."""
    return sum(cpu_seconds(process, waited=True) for process in tree(os.getpid()))


def measure(folder: str, name: str, workers: int) -> dict[str, float | str]:
    """Publish in this process; Ray starts before the clock."""
    shards = ShardConfig(faces_per_shard=FACES_A_SHARD)
    config = IngestConfig(source="photos", dest=folder, shards=shards, ray=RayConfig(workers=workers))
    faces = f"{folder}/faces-{workers}"
    assignments = assign(folder, faces)
    if workers:
        shuffle.LITTLE = 0  # use Ray however few bytes there are to move
        connect(config.ray)
    before = {shard.file for shard in version.shards} if (version := current(faces)) else set()
    with Memory() as memory:
        started, cpu = time.monotonic(), spent()
        version, _ = publish(faces, f"{folder}/annotations", assignments, config)
        seconds, cpu = time.monotonic() - started, spent() - cpu
    made = [shard for shard in version.shards if shard.file not in before]
    return {
        "case": f"{name}, {'Ray' if workers else 'no Ray'}",
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "faces_per_second": round(version.faces / seconds),
        "mb_per_second": round(sum(shard.bytes for shard in version.shards) / seconds / 1e6),
        "shards_made": f"{len(made)}/{len(version.shards)}",
        "written_mb": round(sum(shard.bytes for shard in made) / 1e6),
        "peak_mib": round(memory.peak - memory.before),
    }


def copy(folder: str) -> dict[str, float | str]:
    """Copy the committed parts one by one, with fsync."""
    target = Path(folder, "copy")
    target.mkdir()
    faces = sum(commit.rows for commit in read_commits(f"{folder}/annotations"))
    started, cpu = time.monotonic(), spent()
    size = 0
    for part in committed_parts(f"{folder}/annotations"):
        made = shutil.copyfile(part, target / Path(part).name)
        with open(made, "rb") as file:
            os.fsync(file.fileno())
        size += made.stat().st_size
    seconds, cpu = time.monotonic() - started, spent() - cpu
    shutil.rmtree(target)
    return {
        "case": "plain copy",
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "faces_per_second": round(faces / seconds),
        "mb_per_second": round(size / seconds / 1e6),
        "shards_made": "",
        "written_mb": round(size / 1e6),
        "peak_mib": 0,
    }


def measurements(folder: str, faces: int) -> Iterator[dict[str, float | str]]:
    """Measure every case in turn; those with the same number of workers build on one another."""
    for name, count in (("first", faces), ("unchanged", faces), ("1 % new", faces + faces // 100)):
        annotate(folder, count)
        if name != "unchanged":
            yield copy(folder)
        for workers in (0, 2):
            yield in_child("benchmarks.sharding", "--here", folder, name, workers)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--faces", type=int, default=20_000)
    arguments.add_argument("--quick", action="store_true", help="2000 faces")
    arguments.add_argument("--here", nargs=3, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.here:
        print(json.dumps(measure(options.here[0], options.here[1], int(options.here[2]))))
        return
    rows = []
    columns = ("seconds", "cpu_seconds", "faces_per_second", "mb_per_second", "shards_made", "written_mb", "peak_mib")
    form = "{:<20} {:>8} {:>8} {:>9} {:>6} {:>7} {:>8} {:>9}"
    print(form.format("case", "seconds", "CPU s", "faces/s", "MB/s", "made", "MB made", "peak MiB"))
    with tempfile.TemporaryDirectory() as folder:
        for row in measurements(folder, 2000 if options.quick else options.faces):
            rows.append(row)
            print(form.format(row["case"], *map(row.get, columns)), flush=True)
    save(options, rows)


if __name__ == "__main__":
    main()
