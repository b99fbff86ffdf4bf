"""The functions of ingest's annotation in a plain loop, in plain processes: what orchestration is measured against.

No plan, no ledger, no commit, no Ray: each process takes its share of the images, passes them to the same worker in
groups of the same size and writes a Parquet file of each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

from schemas.ingest import IngestConfig
from tasks.annotate import annotate, find_faces
from tasks.annotate.annotate import AnnotateWorker
from tasks.units.plan import load_plan

STEPS = {"detect": "detect", "landmarks": "landmarks", "segment": "segment", "embed": "embed"}
FUNCTIONS = [  # module, function, step that its time counts for
    (find_faces, "decode_image", "read, decode"),
    (annotate, "crop_face", "crop, encode"),
    (annotate, "_mask_crop", "crop, encode"),
    (annotate, "_encode_jpeg", "crop, encode"),
    (annotate, "encode_png", "crop, encode"),
    (annotate, "measure", "quality"),
]


class Clock:
    """Processor seconds by step. Timed functions do not call one another."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, function: Callable[..., Any], step: str) -> Callable[..., Any]:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[step] += time.process_time() - started

        return run

    def timed_items(self, function: Callable[..., Iterator[Any]], step: str) -> Callable[..., Iterator[Any]]:
        """A generator function whose every step is timed."""

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Iterator[Any]:
            following = self.timed(function(*args, **kwargs).__next__, step)
            while True:
                try:
                    item = following()
                except StopIteration:
                    return
                yield item

        return run


def loop(config: IngestConfig, share: int, processes: int, folder: Path) -> dict[str, Any]:
    """Annotate the images of every `processes`-th group of the plan below config.dest, in this process."""
    from schemas.parquet import write_table

    clock = Clock()
    for module, name, step in FUNCTIONS:
        setattr(module, name, clock.timed(getattr(module, name), step))
    setattr(find_faces, "read_items", clock.timed_items(find_faces.read_items, "read, decode"))  # noqa: B010
    worker = AnnotateWorker(config)
    for step in STEPS:
        setattr(worker.annotator, f"{step}_batch", clock.timed(getattr(worker.annotator, f"{step}_batch"), step))
    write = clock.timed(write_table, "write")
    plan = load_plan(f"{config.dest}/annotations")
    rows = 0
    started, cpu = time.monotonic(), time.process_time()
    for number, unit in enumerate(plan.iter_units()):
        if number % processes == share:
            output = worker.process(unit.items)
            write(output.table, folder / f"{number}.parquet", {})
            rows += output.table.num_rows
    cpu = time.process_time() - cpu
    return {"faces": rows, "seconds": time.monotonic() - started, "cpu": cpu, "steps": dict(clock.seconds)}


def bare(config: IngestConfig, processes: int, folder: Path) -> dict[str, Any]:
    """Annotate the archive in plain processes; return faces, wall and processor seconds, the latter also by step."""
    folder.mkdir()
    settings = folder / "config.json"
    settings.write_text(config.model_dump_json())
    command = [sys.executable, "-m", "benchmarks.bare", str(settings), str(processes)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    running = [subprocess.Popen([*command, str(share)], **pipes) for share in range(processes)]
    answers = [json.loads(process.communicate()[0]) for process in running]
    steps: dict[str, float] = defaultdict(float)
    for answer in answers:
        for step, seconds in answer["steps"].items():
            steps[step] += seconds
    cpu = sum(answer["cpu"] for answer in answers)
    return {
        "faces": sum(answer["faces"] for answer in answers),
        "seconds": max(answer["seconds"] for answer in answers),
        "cpu": cpu,
        "steps": {**steps, "other": cpu - sum(steps.values())},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("processes", type=int)
    parser.add_argument("share", type=int)
    options = parser.parse_args()
    config = IngestConfig.model_validate_json(options.config.read_text())
    print(json.dumps(loop(config, options.share, options.processes, options.config.parent)))


if __name__ == "__main__":
    main()
