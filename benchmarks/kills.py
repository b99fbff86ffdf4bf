"""Ingest that loses workers and driver by kill -9 at random moments: `python -m benchmarks.kills --trials 10`.

A moment is counted in published files, not in seconds, so that a seed hits the same stage on any machine; a random time
more falls between two of them. The seeds take the stages in turn, and every other one the annotations. The disturbed
run has two Ray workers. After the kills the same command runs to its end in one process without Ray, as an undisturbed
run elsewhere has done: both must have made the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TIMEOUT = 600.0  # seconds for one run
STARTS = 3  # on a busy machine Ray may not come up in the time it gives itself
DONE = (0, 2)  # exit codes: complete, or with a picture in quarantine
ANNOTATIONS = ("annotations/part-*", "annotations/_commits/*.json")
SHARDS = "faces/data/*.parquet"
PUBLISHED = (
    *ANNOTATIONS,
    SHARDS,
    "faces/index/*.parquet",
    "faces/versions/*.json",
    "faces/_current.json",
    "faces/card.html",
    "faces/README.md",
)


STAGES = ("annotate", "group", "annotate", "shards", "annotate", "publication")  # the driver is killed in, by seed


@dataclass(frozen=True)
class Calm:
    """An undisturbed run: the bytes it made, the files it published in each stage, how long it grouped (seconds)."""

    published: dict[str, str]
    annotations: int
    shards: int
    total: int
    grouping: float

    @classmethod
    def of(cls, dest: Path) -> Calm:
        seconds = json.loads((dest / "_report" / "summary.json").read_text())["seconds"]
        return cls(
            published_bytes(dest),
            count_published(dest, ANNOTATIONS),
            count_published(dest, [SHARDS]),
            count_published(dest),
            seconds["group_identities"],
        )

    def moment(self, stage: str, moments: random.Random) -> tuple[int, float]:
        """(published files, seconds after them) at which a stage is interrupted."""
        if stage == "annotate":
            return moments.randint(1, self.annotations - 1), moments.uniform(0, 0.5)
        if stage == "group":
            return self.annotations, moments.uniform(0, self.grouping)
        sharded = self.annotations + self.shards
        if stage == "shards":
            return moments.randint(self.annotations + 1, sharded), moments.uniform(0, 0.02)
        return moments.randint(sharded + 1, self.total - 1), moments.uniform(0, 0.02)


@dataclass(frozen=True)
class Outcome:
    """What one trial came to."""

    seed: int
    workers_killed: int
    published: int  # files when the driver was killed
    stage: str  # that the driver was to be killed in
    last: str  # trace that the killed run left
    equal: bool  # whether the second run ended with the undisturbed bytes


def published_bytes(dest: Path) -> dict[str, str]:
    """SHA-256 of every file that is data, and of the card, by name below DEST."""
    files = [*dest.glob("annotations/part-*"), *dest.glob("annotations/_quarantine/*"), *dest.glob("faces/**/*")]
    return {
        str(path.relative_to(dest)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
        if path.is_file()
    }


def count_published(dest: Path, patterns: Sequence[str] = PUBLISHED) -> int:
    """Files that a run has published so far."""
    return sum(len(list(dest.glob(pattern))) for pattern in patterns)


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


def trial(source: Path, dest: Path, calm: Calm, seed: int, *options: str) -> Outcome:
    """Kill a worker, then the driver with all its processes, then run to the end."""
    moments, stage = random.Random(seed), STAGES[seed % len(STAGES)]
    driver_at, wait = calm.moment(stage, moments)
    worker_at = moments.randint(0, min(driver_at, calm.annotations) - 1)
    run, workers, starts = ingest(source, dest, 2, *options), 0, 1
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline and (count := count_published(dest)) < driver_at:
        if run.poll() is not None:
            if starts == STARTS or run.returncode in DONE:
                break
            run, starts = ingest(source, dest, 2, *options), starts + 1
        if count >= worker_at and not workers and (busy := busy_workers(run.pid)):
            workers += kill(moments.choice(busy))
        time.sleep(0.005)
    time.sleep(wait)
    family = descendants(run.pid)
    if run.poll() is not None:
        raise RuntimeError(f"seed {seed}: the run ended by itself: {dest.with_suffix('.log').read_text()[-500:]}")
    os.killpg(run.pid, signal.SIGKILL)
    for process in family:
        kill(process)
    run.wait(30)
    last, count = stage_of(dest), count_published(dest)
    if ingest(source, dest, 0, *options).wait(TIMEOUT) not in DONE:
        raise RuntimeError(f"seed {seed}: the second run failed: {dest.with_suffix('.log').read_text()[-500:]}")
    return Outcome(seed, workers, count, stage, last, published_bytes(dest) == calm.published)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0, help="to go on with more trials")
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
        calm = Calm.of(folder / "calm")
        print(f"undisturbed: {calm.total} files published in {time.monotonic() - started:.0f} s", flush=True)
        print("seed  workers killed  killed in    files by then  last trace  bytes equal")
        outcomes = []
        for seed in range(options.first_seed, options.first_seed + options.trials):
            one = trial(folder / "photos", folder / f"trial-{seed}", calm, seed)
            outcomes.append(one)
            equal = "yes" if one.equal else "NO"
            row = (one.seed, one.workers_killed, one.stage, one.published, one.last, equal)
            print("{:>4} {:>15}  {:<11} {:>14}  {:<10} {:>12}".format(*row), flush=True)
    sys.exit(0 if all(one.equal for one in outcomes) else 1)


if __name__ == "__main__":
    main()
