"""Ingest that loses workers and driver by kill -9 at random moments: `python -m benchmarks.kills --trials 10`.

A moment is counted in published files, not in seconds, so that a seed hits the same stage on any machine; up to half a
second more falls between two of them. The disturbed run has two Ray workers. After the kills the same command runs to
its end in one process without Ray, as an undisturbed run elsewhere has done: both must have made the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TIMEOUT = 600.0  # seconds for one run
DONE = (0, 2)  # exit codes: complete, or with a picture in quarantine
PUBLISHED = (
    "annotations/part-*",
    "annotations/_commits/*.json",
    "faces/data/*.parquet",
    "faces/index/*.parquet",
    "faces/versions/*.json",
    "faces/_current.json",
    "faces/card.html",
    "faces/README.md",
)


@dataclass(frozen=True)
class Outcome:
    """What one trial came to."""

    seed: int
    workers_killed: int
    published: int  # files when the driver was killed
    stage: str  # that the driver was killed in
    equal: bool  # whether the second run ended with the undisturbed bytes


def published_bytes(dest: Path) -> dict[str, str]:
    """SHA-256 of every file that is data, and of the card, by name below DEST."""
    files = [*dest.glob("annotations/part-*"), *dest.glob("annotations/_quarantine/*"), *dest.glob("faces/**/*")]
    return {
        str(path.relative_to(dest)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
        if path.is_file()
    }


def count_published(dest: Path) -> int:
    """Files that a run has published so far."""
    return sum(len(list(dest.glob(pattern))) for pattern in PUBLISHED)


def stage_of(dest: Path) -> str:
    """The last stage that has left a trace."""
    traces = {
        "card": "faces/card.html",
        "switched": "faces/_current.json",
        "record": "faces/versions/*",
        "index": "faces/index/*.parquet",
        "shards": "faces/data/*.parquet",
        "annotate": "annotations/_commits/*",
    }
    return next((stage for stage, pattern in traces.items() if list(dest.glob(pattern))), "plan")


def ingest(source: Path, dest: Path, workers: int, *options: str) -> subprocess.Popen[str]:
    """The command in a process group of its own."""
    settings = ["--set=units.items_per_unit=2", "--set=shards.faces_per_shard=4", f"--workers={workers}"]
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "ingest", str(source), str(dest)]
    environment = os.environ | {"PREFECT_API_URL": "", "OMP_NUM_THREADS": "1"}
    log = open(dest.with_suffix(".log"), "a")  # noqa: SIM115 the process owns it from here on
    return subprocess.Popen(
        [*command, *settings, *options], env=environment, text=True, stdout=log, stderr=log, start_new_session=True
    )


def descendants(pid: int) -> list[int]:
    """Processes that come from `pid`: Ray's servers and workers."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit():
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    found, todo = [], [pid]
    while todo:
        todo += (born := children.get(todo.pop(), []))
        found += born
    return found


def busy_workers(pid: int) -> list[int]:
    """Ray workers of a run that are at work; not the agents, whose death takes the whole node down."""
    found = []
    for process in descendants(pid):
        try:
            name = Path(f"/proc/{process}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if name.startswith(b"ray::") and not name.startswith(b"ray::IDLE") and b"Agent" not in name:
            found.append(process)
    return sorted(found)


def kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def trial(source: Path, dest: Path, calm: dict[str, str], total: int, seed: int, *options: str) -> Outcome:
    """Kill a worker, then the driver with all its processes, then run to the end.

    calm: bytes of the undisturbed run, which published `total` files.
    """
    moments = random.Random(seed)
    driver_at = moments.randint(1, total - 1)
    worker_at = moments.randint(0, driver_at)
    run, workers = ingest(source, dest, 2, *options), 0
    deadline = time.monotonic() + TIMEOUT
    while run.poll() is None and time.monotonic() < deadline and (count := count_published(dest)) < driver_at:
        if count >= worker_at and not workers and (busy := busy_workers(run.pid)):
            workers += kill(moments.choice(busy))
        time.sleep(0.02)
    time.sleep(moments.random() / 2)
    family = descendants(run.pid)
    if run.poll() is not None:
        raise RuntimeError(f"seed {seed}: the run ended by itself; see {dest.with_suffix('.log')}")
    os.killpg(run.pid, signal.SIGKILL)
    for process in family:
        kill(process)
    run.wait(30)
    stage, count = stage_of(dest), count_published(dest)
    if ingest(source, dest, 0, *options).wait(TIMEOUT) not in DONE:
        raise RuntimeError(f"seed {seed}: the second run failed; see {dest.with_suffix('.log')}")
    return Outcome(seed, workers, count, stage, published_bytes(dest) == calm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--people", type=int, default=8, help="of the embedded world, three pictures each")
    options = parser.parse_args()
    from pipelines.synth import synth
    from schemas.world import SynthConfig

    with tempfile.TemporaryDirectory(prefix="deca-kills-") as name:
        folder = Path(name)
        world = {"dest": name, "identities": options.people, "images_per_identity": 3, "size": 256, "layout": "flat"}
        synth(SynthConfig.model_validate(world | {"max_yaw": 30.0, "occluders": False, "ray": {"workers": 0}}))
        started = time.monotonic()
        if ingest(folder / "photos", folder / "calm", 0).wait(TIMEOUT) not in DONE:
            sys.exit((folder / "calm.log").read_text())
        calm, total = published_bytes(folder / "calm"), count_published(folder / "calm")
        print(f"undisturbed: {total} files published in {time.monotonic() - started:.0f} s", flush=True)
        print("seed  workers killed  files before the kill  killed after   bytes equal")
        outcomes = []
        for seed in range(options.trials):
            one = trial(folder / "photos", folder / f"trial-{seed}", calm, total, seed)
            outcomes.append(one)
            row = (one.seed, one.workers_killed, one.published, one.stage, "yes" if one.equal else "NO")
            print("{:>4} {:>15} {:>22}  {:<13} {:>12}".format(*row), flush=True)
    sys.exit(0 if all(one.equal for one in outcomes) else 1)


if __name__ == "__main__":
    main()
