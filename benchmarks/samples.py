"""Throughput of the training loader: `python -m benchmarks.samples --faces 1024 --threads 1 2`.

A local faces/ repeats photographs of the embedded world. The same stored faces are decoded, decoded and augmented in a
plain loop, and read through Samples, an epoch at a time with its shards. Each figure is the median of interleaved
rounds, so that a busy machine slows all ways alike.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.common import parser, save
from benchmarks.faces import write_faces
from deca_core.assets import procedural_head
from deca_core.augment import Augmentation, augment
from schemas.samples import DataConfig
from tasks.training.batches import decode_face
from tasks.training.datasets import ShardSource, WorldSource
from tasks.training.order import BatchPlan
from tasks.training.samples import Samples

IMAGES = 8  # of a subject
SHARD = 512  # faces
DISTINCT = 32  # photographs; the rest repeats them


def faces_per_second(work: Callable[[], int]) -> float:
    started = time.perf_counter()
    return work() / (time.perf_counter() - started)


def measure(faces: int, threads: list[int], rounds: int) -> dict[str, Any]:
    """Return the faces/s of each way, and the shares of decoding and augmentation in the plain loop."""
    world = WorldSource(procedural_head(), 0, DISTINCT // IMAGES, IMAGES)
    stored = [face for subject in range(DISTINCT // IMAGES) for face in world.load(subject, np.arange(IMAGES)).values()]
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
        rows = [
            {
                **{"width": 432, "height": 432, "crop": {"bytes": face.crop}, "skin_mask": {"bytes": face.mask}},
                **{"landmarks": face.landmarks.ravel(), "crop_transform": [1, 0, 0, 0, 1, 0]},
            }
            for face in stored
        ]
        write_faces(uri, rows, faces, SHARD, IMAGES)
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
    arguments = parser(__doc__)
    arguments.add_argument("--faces", type=int, default=1024)
    arguments.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    figures = measure(options.faces, options.threads, options.rounds)
    for name, speed in figures["faces_per_second"].items():
        print(f"{name:<20} {speed:>6} faces/s  {figures['of_the_loop'][name]:.2f} of the loop")
    print(f"of the loop, decoding is {figures['share_of_decoding']:.0%}, augmentation the rest")
    save(options, figures)


if __name__ == "__main__":
    main()
