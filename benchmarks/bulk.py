"""Bulk reconstruction against the machine's ceiling: `python -m benchmarks.bulk --faces 2000 --workers 2`.

faces/ -> reconstructions/ and 512 px JPEG with landmark files -> reconstructions/, both with displacement maps, as a
share of the faces/s that matrix products (the better of a measurement before and one after, with as many threads) allow
for the networks' operations (counted by torch; 18.1 G for resnet50). `--bare` adds the networks alone in as many
processes: their part of the loss. `--memory` samples the workers' memory. A few distinct images are repeated, which
costs as much to read, decode and write.
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
import pyarrow.parquet as pq
import torch

from benchmarks.ceilings import gemm
from benchmarks.common import is_runner, parser, save
from benchmarks.faces import write_faces
from benchmarks.suite import flops
from deca_core import DECA
from deca_core.assets import procedural_head
from deca_core.checkpoint import load_checkpoint, save_checkpoint
from deca_core.crop import LANDMARK_MARGIN, crop_transform, square_from_landmarks, warp
from deca_core.detail import START
from deca_core.inference import CANDIDATES, DTYPES, Inference, smooth_images
from deca_world import Photograph, World
from deca_world.lens import encode_jpeg
from pipelines.reconstruct import reconstruct
from schemas.faces import CROP_SCALE, CROP_SIZE
from schemas.reconstruct import COMPILE_FROM, ReconstructConfig
from tasks.models.loading import load_model

SIZE = 512  # pixels on a side of the raw images
DISTINCT = 16  # images; the others repeat them
SHARD, FACES_AN_IDENTITY = 1024, 4


def photographs(count: int) -> list[Photograph]:
    world = World(procedural_head())
    subjects = [world.subject(2**20, number) for number in range(count)]
    return [world.photograph(subject, world.shot(subject, 0), SIZE) for subject in subjects]


def write_raw(folder: Path, taken: list[Photograph], faces: int) -> None:
    """Write JPEG files with landmark files; repeated images are hard links."""
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


def face_row(taken: Photograph) -> dict[str, Any]:
    """Return the columns of a photograph's row in faces/."""
    transform = crop_transform(square_from_landmarks(taken.landmarks, CROP_SCALE / LANDMARK_MARGIN), CROP_SIZE)
    crop = (warp(taken.image, transform, CROP_SIZE) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
    return {
        **{"width": SIZE, "height": SIZE, "landmarks": taken.landmarks.astype(np.float32).ravel().tolist()},
        "crop": {"bytes": encode_jpeg(crop, 95), "path": None},
        "crop_transform": transform.astype(np.float32).ravel().tolist(),
        "skin_mask": {"bytes": b"", "path": None},
    }


def networks_alone(checkpoint: Path, options: argparse.Namespace, processes: int) -> float:
    """Return the faces/s of the frozen networks in as many processes of one thread, once all have started."""
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
    """Sample (seconds, resident bytes) of all workers, or of this process, while the context is open."""
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
    """Return the resident bytes of all Ray workers that run units, or of this process where there is none."""
    pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    found = [_resident(pid) for pid in pids if is_runner(pid)]
    return sum(found) or _resident(os.getpid())


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def ceiling(precision: str, threads: int, seconds: float) -> float:
    """Return the GFLOP/s of matrix products; mixed precision counts as bf16."""
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
    # From the commit with which every worker has committed one unit to the last, so that starting Ray, loading and
    # compiling are left out, and no unit that was in progress before counts whole.
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
    """Return the faces/s in each fifth of the commits, which shows drift; [] where there are fewer than six commits."""
    if len(marks) < 6:
        return []
    cuts = [marks[round(at * (len(marks) - 1) / 5)] for at in range(6)]
    return [round((b[1] - a[1]) / max(b[0] - a[0], 1e-9), 2) for a, b in pairwise(cuts)]


def growth(sizes: list[int]) -> float | None:
    """Return the growth from the tenth after a warm-up of a fifth to the last tenth."""
    count = len(sizes) // 10
    if count < 2:
        return None
    return round(float(np.median(sizes[-count:]) / np.median(sizes[2 * count : 3 * count])) - 1, 4)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    threads = max(options.workers, 1)
    torch.manual_seed(0)
    small = options.backbone == "small"
    model = load_model(ReconstructConfig(source="", dest="")) if small else DECA(procedural_head(), options.backbone)
    if not small:  # the maps of an untrained F_d are nearly flat and cost nothing to write
        model.D_detail.conv_blocks[-2].weight.data.div_(START)
    save_checkpoint(model, folder / "checkpoint")
    taken = photographs(min(DISTINCT, options.faces))
    operations = flops(lambda: model.displacement(model.encode(smooth_images(1))))
    figures: dict[str, Any] = {"backbone": options.backbone, "gflop_a_face": round(operations / 1e9, 2)}
    possible = ("fp32", *CANDIDATES["cpu"]) if options.precision == "auto" else (options.precision,)
    before = {precision: ceiling(precision, threads, options.seconds) for precision in possible}
    for source in options.source.split(","):
        place = folder / source
        if not place.exists():
            if source == "raw":
                write_raw(place, taken, options.faces)
            else:
                write_faces(str(place), [face_row(one) for one in taken], options.faces, SHARD, FACES_AN_IDENTITY)
        changes = {"annotate": {"provider": "sidecar"}} if source == "raw" else {}
        figures[source] = run(place, folder / f"out-{source}", folder / "checkpoint", options, **changes)
        if options.precision == "auto":  # the first run chooses for the later ones and the ceiling
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


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--faces", type=int, default=2000)
    arguments.add_argument("--workers", type=int, default=2, help="0: in this process, without Ray")
    arguments.add_argument("--backbone", default="resnet50", help="untrained; small: the weights of the package")
    arguments.add_argument("--precision", default="auto", choices=["auto", *DTYPES])
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--unit", type=int, default=64, help="faces between two commits")
    arguments.add_argument("--source", default="faces,raw", help="faces, raw or both")
    arguments.add_argument("--bare", action="store_true", help="also the networks alone")
    arguments.add_argument("--memory", action="store_true")
    arguments.add_argument("--seconds", type=float, default=5.0, help="for each ceiling; four times that for --bare")
    arguments.add_argument("--folder", type=Path, help="where the data goes, kept; default: a temporary one")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures = measure(options.folder or Path(name), options)
    print(json.dumps({key: value for key, value in figures.items() if key != "memory"}, indent=1))
    save(options, figures)


if __name__ == "__main__":
    main()
