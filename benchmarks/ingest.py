"""Throughput and overhead of ingest: `python -m benchmarks.ingest`; `--quick` for minutes.

An archive of `deca synth` goes through the flow with two Ray workers, and its annotation through a plain loop in two
processes (benchmarks/bare.py). Each run is a process of its own. Processor seconds are of the run and its descendants,
read from outside: a busy machine changes them less than wall-clock seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from functools import wraps
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.bare import bare
from benchmarks.common import is_runner, parser, save, tree
from pipelines.processes import cpu_seconds
from schemas.ingest import IngestConfig

WORKERS = 2
FACES_A_SHARD = 16  # so that a thousand faces fill many shards
SAMPLE_SECONDS = 0.5

Row = dict[str, Any]


def make_archive(dest: Path, options: argparse.Namespace) -> None:
    """Write an archive of procedural subjects without labels."""
    from pipelines.synth import synth
    from schemas.world import SynthConfig

    settings = {
        "dest": str(dest),
        "identities": options.identities,
        "images_per_identity": options.images,
        "size": 384,
        "seed": options.seed,
        "layout": "flat",
        "max_yaw": options.max_yaw,
        "ray": {"workers": 0},
    }
    synth(SynthConfig.model_validate(settings))


class Watch:
    """Processor seconds of a process and its descendants over time, read from outside."""

    def __init__(self, pid: int) -> None:
        self.pid, self.spent, self.workers = pid, dict[int, float](), set[int]()
        self.samples: list[tuple[float, float, float]] = [(time.monotonic(), 0.0, 0.0)]
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _watch(self) -> None:
        while not self.done.wait(SAMPLE_SECONDS):
            for process in tree(self.pid):
                if is_runner(process):
                    self.workers.add(process)
                self.spent[process] = max(cpu_seconds(process), self.spent.get(process, 0.0))
            workers = sum(self.spent[process] for process in self.workers)
            self.samples.append((time.monotonic(), sum(self.spent.values()), workers))

    def stop(self) -> None:
        self.done.set()
        self.thread.join()

    def between(self, start: float, end: float) -> tuple[float, float]:
        """Return the processor seconds between two times of time.monotonic: (of all, of Ray's workers)."""
        times, spent, workers = zip(*self.samples, strict=True)
        total, mine = (np.interp(end, times, sums) - np.interp(start, times, sums) for sums in (spent, workers))
        return float(total), float(mine)


def run_flow(config: IngestConfig) -> Row:
    """Run the flow in a process of its own; return its summary, times and processor seconds."""
    command = [sys.executable, "-m", "benchmarks.ingest", "--here", config.model_dump_json()]
    # Ray lowers the priority of its workers: on a busy machine they would wait where the plain loop does not.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    watch = Watch(run.pid)
    output, _ = run.communicate()
    watch.stop()
    if run.returncode:
        sys.exit(f"the flow failed: {config.source} to {config.dest}")
    row: Row = json.loads(output.splitlines()[-1])
    row["working_cpu"], row["workers_cpu"] = watch.between(*row["working"])
    return row


def flow_here(config: IngestConfig) -> Row:
    """Run the flow in this process; `working`: when the first worker started and when the last unit was committed."""
    from pipelines.ingest import ingest
    from pipelines.unit_flow import Function
    from schemas.progress import UnitProgress

    cpu: dict[str, float] = {}

    def stage(function: Function) -> Function:
        @wraps(function)
        def run(*args: Any) -> Any:
            begun = time.process_time()
            try:
                return function(*args)
            finally:
                cpu[function.__name__] = time.process_time() - begun

        return cast(Function, run)

    seen: list[tuple[float, UnitProgress]] = []
    started = time.monotonic()
    summary = ingest(config, lambda progress: seen.append((time.monotonic(), progress)), stage)
    end, last = seen[-1]
    working = (end - last.rows / last.rows_per_second, end)
    times = {"total": time.monotonic() - started, "began": started, "working": working, "stages_cpu": cpu}
    return {"summary": summary.model_dump(), **times}


def figures(row: Row, loop: Row) -> Row:
    """Return throughput, start-up and overhead of a run, and the shares of its processor time."""
    summary, (start, end) = row["summary"], row["working"]
    stages = {"group": "group_identities", "shard": "publish_faces", "card": "write_card"}
    after = sum(summary["seconds"][stage] for stage in stages.values())
    parts = loop["steps"] | {name: row["stages_cpu"][stage] for name, stage in stages.items()}
    total = sum(parts.values())
    share = {f"share: {name}": round(part / total, 4) for name, part in sorted(parts.items(), key=lambda x: -x[1])}
    return {
        "faces": summary["faces_run"],
        "faces_per_second": round(summary["faces_run"] / (end - start + after), 2),
        "faces_per_second_with_start": round(summary["faces_run"] / row["total"], 2),
        "start_seconds": round(start - row["began"], 1),
        "annotating_seconds": round(end - start, 1),
        "bare_seconds": round(loop["seconds"], 1),
        "overhead_wall": round((end - start) / loop["seconds"], 3),
        "annotating_cpu": round(row["working_cpu"], 1),
        "of_it_workers_cpu": round(row["workers_cpu"], 1),
        "bare_cpu": round(loop["cpu"], 1),
        "overhead_cpu": round(row["working_cpu"] / loop["cpu"], 3),
        "overhead_workers_cpu": round(row["workers_cpu"] / loop["cpu"], 3),
        "milliseconds_a_face": round(1000 * loop["cpu"] / loop["faces"], 1),
        **share,  # of the processor seconds of the loop and of the stages after it
    }


def measure(folder: Path, options: argparse.Namespace) -> Row:
    make_archive(folder / "world", options)
    config = IngestConfig.model_validate(
        {
            "source": str(folder / "world" / "photos"),
            "dest": str(folder / "out"),
            "units": {"items_per_unit": 32},
            "shards": {"faces_per_shard": FACES_A_SHARD},
            "ray": {"workers": WORKERS},
        }
    )
    return figures(run_flow(config), bare(config, WORKERS, folder / "bare"))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--identities", type=int, default=200)
    arguments.add_argument("--images", type=int, default=5)
    arguments.add_argument("--max-yaw", type=float, default=60.0)
    arguments.add_argument("--seed", type=int, default=77_001, help="of the world")
    arguments.add_argument("--quick", action="store_true", help="12 subjects, three images each")
    arguments.add_argument("--here", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.here:
        print(json.dumps(flow_here(IngestConfig.model_validate_json(options.here))))
        return
    if options.quick:
        options.identities, options.images = 12, 3
    with tempfile.TemporaryDirectory(prefix="deca-ingest-") as name:
        row = measure(Path(name), options)
    for figure, value in row.items():
        print(f"  {figure:<34} {value}")
    save(options, {name: getattr(options, name) for name in ("seed", "identities", "images", "max_yaw")} | row)


if __name__ == "__main__":
    main()
