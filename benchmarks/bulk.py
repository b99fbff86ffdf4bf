"""Bulk reconstruction against the machine: `python -m benchmarks.bulk --faces 2000 --workers 2`.

faces/ -> reconstructions/ and 512 px JPEG with landmarks beside them -> reconstructions/, both with displacement maps,
and the share of the faces/s that matrix products (the better of a measurement before and one after, with as many
threads) allow for the networks' operations (counted by torch; 18.1 G for resnet50). `--bare` adds the networks alone in
as many processes, which says how much of the loss is theirs. `--memory` follows the workers' memory. Few pictures are
made and named often: what is read, decoded and written is the same for each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.flop_counter import FlopCounterMode

from deca_core import DECA
from deca_core.assets import procedural_head
from deca_core.checkpoint import load_checkpoint, save_checkpoint
from deca_core.crop import LANDMARK_MARGIN, crop_transform, square_from_landmarks, warp
from deca_core.detail import START
from deca_core.inference import CANDIDATES, DTYPES, Inference, smooth_images
from deca_world import Photograph, World
from deca_world.lens import encode_jpeg
from pipelines.reconstruct import reconstruct
from schemas.faces import (
    ASSIGNMENTS_SCHEMA,
    CROP_SCALE,
    CROP_SIZE,
    CURRENT,
    IDENTITIES_SCHEMA,
    FacesVersion,
    ShardFile,
    faces_schema,
)
from schemas.ledger import StoredFile
from schemas.parquet import write_table
from schemas.reconstruct import COMPILE_FROM, ReconstructConfig
from tasks.models.loading import load_model
from tasks.people.versions import record_name
from tasks.store.storage import Store

SIZE = 512  # pixels of the raw pictures
DISTINCT = 16  # pictures that are really made
SHARD = 1024  # faces


def photographs(count: int) -> list[Photograph]:
    world = World(procedural_head())
    people = [world.subject(2**20, number) for number in range(count)]
    return [world.photograph(person, world.shot(person, 0), SIZE) for person in people]


def write_raw(folder: Path, taken: list[Photograph], faces: int) -> None:
    """JPEG with landmarks beside them; equal pictures are hard links."""
    folder.mkdir(parents=True)
    for number in range(faces):
        source = folder / f"{number % len(taken):07d}"
        target = folder / f"{number:07d}"
        for suffix in (".jpg", ".npy"):
            if number >= len(taken):
                os.link(source.with_suffix(suffix), target.with_suffix(suffix))
        if number < len(taken):
            target.with_suffix(".jpg").write_bytes(encode_jpeg(taken[number].image, 92))
            np.save(target.with_suffix(".npy"), taken[number].landmarks.astype(np.float32))


def write_faces(folder: Path, taken: list[Photograph], faces: int) -> None:
    """A faces/ dataset of the same pictures, shards of 1024."""
    rows = [_face(number, one) for number, one in enumerate(taken)]
    store, shards, index = Store(str(folder)), list[ShardFile](), []
    for first in range(0, faces, SHARD):
        count = min(SHARD, faces - first)
        name = f"data/train-{first // SHARD:05d}-00000000.parquet"
        numbers = range(first, first + count)
        block = [
            rows[n % len(rows)] | {"face_id": f"{n:016x}-00", "image_id": f"{n:016x}", "identity_id": f"p{n // 4:08d}"}
            for n in numbers
        ]
        with store.scratch(name) as path:
            write_table(pa.Table.from_pylist(block, schema=faces_schema(2)), path)
            size, sha256 = store.publish(path, name)
        people = sorted({row["identity_id"] for row in block})
        index += [(person, "label", "train", name, 4 * at, 4) for at, person in enumerate(people)]
        record: Any = {"split": "train", "rows": count, "identities": len(people), "rows_sha256": ""}
        shards.append(ShardFile(file=name, bytes=size, sha256=sha256, **record))
    columns = list(zip(*index, strict=True))
    identities = pa.table([pa.array(one) for one in columns], IDENTITIES_SCHEMA.names).cast(IDENTITIES_SCHEMA)
    files = []
    for name, table in (("identities", identities), ("assignments", ASSIGNMENTS_SCHEMA.empty_table())):
        with store.scratch(f"index/{name}-0.parquet") as path:
            write_table(table, path)
            size, sha256 = store.publish(path, f"index/{name}-0.parquet")
        files.append(StoredFile(file=f"index/{name}-0.parquet", bytes=size, sha256=sha256))
    version = FacesVersion(
        version=1,
        fingerprint=f"bulk-{faces}",
        annotations="0",
        config={},
        weights={},
        shards=shards,
        identities_file=files[0],
        assignments_file=files[1],
        faces=faces,
        identities=len(index),
        left_out={},
    )
    for name in (record_name(1), CURRENT):
        store.write(name, version.model_dump_json().encode())


def _face(number: int, taken: Photograph) -> dict[str, Any]:
    transform = crop_transform(square_from_landmarks(taken.landmarks, CROP_SCALE / LANDMARK_MARGIN), CROP_SIZE)
    crop = (warp(taken.image, transform, CROP_SIZE) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
    figures = ("sharpness", "yaw", "pitch", "eye_distance", "mask_coverage")
    return {
        **{"source_uri": f"{number}.jpg", "face_index": 0, "width": SIZE, "height": SIZE, "det_score": 1.0},
        **{"bbox": [0.0, 0.0, SIZE, SIZE], "landmarks": taken.landmarks.astype(np.float32).ravel().tolist()},
        "crop": {"bytes": encode_jpeg(crop, 95), "path": None},
        "crop_transform": transform.astype(np.float32).ravel().tolist(),
        **{"skin_mask": {"bytes": b"", "path": None}, "embedding": [0.0, 0.0], "label": None},
        **dict.fromkeys(figures, 1.0),
        **{"identity_source": "label", "split": "train"},
    }


def operations(model: DECA) -> float:
    """GFLOP of a picture through the three networks, as torch counts them: convolutions and matrix products."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.displacement(model.encode(smooth_images(1)))
    return float(counter.get_total_flops()) / 1e9


def networks_alone(checkpoint: Path, options: argparse.Namespace, processes: int) -> float:
    """Pictures/s of the frozen networks in as many processes, one thread each, none of them still starting."""
    context = multiprocessing.get_context("spawn")
    ready, rates = context.Barrier(processes), context.Queue()
    running = [context.Process(target=_run_alone, args=(checkpoint, options, ready, rates)) for _ in range(processes)]
    for process in running:
        process.start()
    total = sum(float(rates.get()) for _ in running)
    for process in running:
        process.join()
    return total


def _run_alone(checkpoint: Path, options: argparse.Namespace, ready: Any, rates: Any) -> None:
    torch.set_num_threads(1)
    model = load_checkpoint(checkpoint, bundle=procedural_head())
    images = smooth_images(options.batch)
    frozen = Inference(model, options.precision, batch=options.batch if options.faces >= COMPILE_FROM["cpu"] else 0)
    frozen.displacement(frozen.codes(images))
    done = 0
    ready.wait()
    started = time.monotonic()
    while time.monotonic() < started + 4 * options.seconds:
        frozen.displacement(frozen.codes(images))
        done += options.batch
    rates.put(done / (time.monotonic() - started))


@contextmanager
def watched(every: float) -> Iterator[list[tuple[float, int]]]:
    """(seconds, bytes resident of all workers, or of this process) while it lasts."""
    seen: list[tuple[float, int]] = []
    stop, started = threading.Event(), time.monotonic()

    def look() -> None:
        while not stop.wait(every):
            seen.append((round(time.monotonic() - started, 1), resident()))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def resident() -> int:
    """Bytes of the Ray actors of this user, or of this process where there is none."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and b"ray::_Runner" in (folder / "cmdline").read_bytes():
                found.append(_pages(folder))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return sum(found) or _pages(Path("/proc/self"))


def _pages(folder: Path) -> int:
    return int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def ceiling(precision: str, threads: int, seconds: float) -> float:
    """GFLOP/s of matrix products; of the faster kind where a precision has two."""
    from benchmarks.ceilings import gemm

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return gemm("bf16" if precision == "mixed" else precision, seconds)
    finally:
        torch.set_num_threads(before)


def run(source: Path, dest: Path, checkpoint: Path, options: argparse.Namespace, **changes: Any) -> dict[str, Any]:
    config = ReconstructConfig.model_validate(
        {
            "source": str(source),
            "dest": str(dest),
            "checkpoint": str(checkpoint),
            "existing": "new",
            "precision": options.precision,
            "batch_size": options.batch,
            "contact_sheet_rows": 0,
            "units": {"items_per_unit": options.unit},
            "ray": {"workers": options.workers},
            **changes,
        }
    )
    marks: list[tuple[float, int]] = []
    began = time.monotonic()
    with watched(1.0) as memory:
        summary = reconstruct(config, on_progress=lambda now: marks.append((time.monotonic(), now.rows)))
    wall = time.monotonic() - began
    working = [mark for mark in marks if mark[1]] or marks
    # From the commit with which every worker has had one to the last: what starting Ray, loading and compiling takes is
    # told apart, and no unit that was at work before is counted whole.
    first = min(max(options.workers, 1), len(working)) - 1
    steady = (working[-1][1] - working[first][1]) / max(working[-1][0] - working[first][0], 1e-9)
    return {
        "faces": summary.faces,
        "seconds": round(wall, 2),
        "faces_per_second": round(summary.faces / wall, 3),
        "steady_faces_per_second": round(steady, 3),
        "by_fifths": fifths(working[first:]),
        "precision": summary.precision,
        "bytes_a_face": round(summary.bytes / max(summary.faces, 1)),
        **({"memory": memory, "memory_growth": growth([size for _, size in memory])} if options.memory else {}),
    }


def fifths(marks: list[tuple[float, int]]) -> list[float]:
    """Faces/s in each fifth of the commits: whether a face costs the same late as early. [] of under six commits."""
    if len(marks) < 6:
        return []
    cuts = [marks[round(at * (len(marks) - 1) / 5)] for at in range(6)]
    return [round((b[1] - a[1]) / max(b[0] - a[0], 1e-9), 2) for a, b in pairwise(cuts)]


def growth(sizes: list[int]) -> float | None:
    """Last tenth over the tenth after a warm-up of a fifth, less one."""
    count = len(sizes) // 10
    if count < 2:
        return None
    return round(float(np.median(sizes[-count:]) / np.median(sizes[2 * count : 3 * count])) - 1, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2, help="0: in this process, without Ray")
    parser.add_argument("--backbone", default="resnet50", help="untrained; small: the weights of the package")
    parser.add_argument("--precision", default="auto", choices=["auto", *DTYPES])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--unit", type=int, default=64, help="faces between two commits")
    parser.add_argument("--source", default="faces,raw", help="faces, raw or both")
    parser.add_argument("--bare", action="store_true", help="the networks alone, too")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each ceiling; four times that for --bare")
    parser.add_argument("--folder", type=Path, help="where the data goes, kept; default: a temporary one")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures = measure(options.folder or Path(name), options)
    print(json.dumps({key: value for key, value in figures.items() if key != "memory"}, indent=1))
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    threads = max(options.workers, 1)
    torch.manual_seed(0)
    small = options.backbone == "small"
    model = load_model(ReconstructConfig(source="", dest="")) if small else DECA(procedural_head(), options.backbone)
    if not small:  # an untrained F_d is all but flat, and flat maps cost nothing to write
        model.D_detail.conv_blocks[-2].weight.data.div_(START)
    save_checkpoint(model, folder / "checkpoint")
    taken = photographs(min(DISTINCT, options.faces))
    figures: dict[str, Any] = {"backbone": options.backbone, "gflop_a_face": round(operations(model), 2)}
    possible = ("fp32", *CANDIDATES["cpu"]) if options.precision == "auto" else (options.precision,)
    before = {precision: ceiling(precision, threads, options.seconds) for precision in possible}
    for source in options.source.split(","):
        place = folder / source
        if not place.exists():
            (write_raw if source == "raw" else write_faces)(place, taken, options.faces)
        changes = {"annotate": {"provider": "sidecar"}} if source == "raw" else {}
        figures[source] = run(place, folder / f"out-{source}", folder / "checkpoint", options, **changes)
        if options.precision == "auto":  # the later runs, and the ceiling, are of what the first one took
            options.precision = figures[source]["precision"]
    after = ceiling(options.precision, threads, options.seconds)
    rate = figures["gemm_gflops"] = round(max(after, before[options.precision]), 1)
    allowed = figures["allowed_faces_per_second"] = round(rate / figures["gflop_a_face"], 2)
    if options.bare:
        alone = networks_alone(folder / "checkpoint", options, threads)
        figures["networks_alone"] = {"faces_per_second": round(alone, 2), "share_of_ceiling": round(alone / allowed, 3)}
    for source in options.source.split(","):
        for kind in ("", "steady_"):
            share = figures[source][f"{kind}faces_per_second"] / allowed
            figures[source][f"{kind}share_of_ceiling"] = round(share, 3)
    rows = pq.read_table(next((folder / f"out-{source}").glob("part-*.parquet")), columns=["displacement"])
    assert len(rows), "nothing was written"
    return figures


if __name__ == "__main__":
    main()
