"""Ingest of the embedded world against its truth, and its speed: `python -m benchmarks.ingest`; `--quick` for minutes.

A flat archive of `deca synth` without labels goes through the flow with two Ray workers: faces, landmarks, skin and
clusters against the truth. Then the same annotations with labels from a table; the same command again; 50 photographs
of ten new and ten known people; and the same pictures in a plain loop (benchmarks/bare.py). Each run is a process of
its own. Processor seconds are of the run and all that it started, read from outside: a busy machine moves them less
than wall-clock seconds.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from benchmarks.truth import Truth, annotation_figures, find, identity_figures, joined, read_truth

from benchmarks.bare import bare
from schemas.ingest import IngestConfig
from tasks.people.versions import current, open_faces, read_assignments, verify_faces
from tests.chaos.processes import descendants

SEED = 77_001
WORKERS = 2
FACES_A_SHARD = 16  # so that a thousand faces make shards enough to tell few from all
SAMPLE_SECONDS = 0.5

Row = dict[str, Any]


# --- archives ---------------------------------------------------------------------------------------------------------


def make_world(dest: Path, options: argparse.Namespace, identities: int, images: int, first: int = 0) -> Truth:
    """An archive of people without labels, unless `dest` holds it already; its truth."""
    from pipelines.synth import synth
    from schemas.world import SynthConfig

    if not (dest / "truth.parquet" / "_report" / "summary.json").exists():
        settings = {
            "dest": str(dest),
            "identities": identities,
            "images_per_identity": images,
            "first_identity": first,
            "size": 384,
            "seed": options.seed,
            "layout": "flat",
            "max_yaw": options.max_yaw,
            "existing": "new",
            "ray": {"workers": 0},
        }
        synth(SynthConfig.model_validate(settings))
    return read_truth(str(dest))


def copy_photos(world: Path, target: Path, names: list[str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy2(world / "photos" / name, target / name)


# --- runs -------------------------------------------------------------------------------------------------------------


class Watch:
    """Processor seconds of a process and all it starts, over time, read from outside."""

    def __init__(self, pid: int) -> None:
        self.pid, self.spent, self.workers = pid, dict[int, float](), set[int]()
        self.samples: list[tuple[float, float, float]] = [(time.monotonic(), 0.0, 0.0)]
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _watch(self) -> None:
        while not self.done.wait(SAMPLE_SECONDS):
            for process in [self.pid, *descendants(self.pid)]:
                folder = Path(f"/proc/{process}")
                try:
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                    if (folder / "cmdline").read_bytes().startswith(b"ray::_Runner"):
                        self.workers.add(process)
                except (FileNotFoundError, ProcessLookupError):
                    continue
                self.spent[process] = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
            workers = sum(self.spent[process] for process in self.workers)
            self.samples.append((time.monotonic(), sum(self.spent.values()), workers))

    def stop(self) -> None:
        self.done.set()
        self.thread.join()

    def between(self, start: float, end: float) -> tuple[float, float]:
        """Processor seconds between two times of time.monotonic: (of all, of Ray's workers)."""
        times, spent, workers = zip(*self.samples, strict=True)
        total, mine = (np.interp(end, times, sums) - np.interp(start, times, sums) for sums in (spent, workers))
        return float(total), float(mine)


def run_flow(config: IngestConfig) -> Row:
    """One call of the public flow in a process of its own: its summary, times and processor seconds."""
    command = [sys.executable, "-m", "benchmarks.ingest", "--here", config.model_dump_json()]
    # Ray makes its workers nicer than others: beside other work they would wait where the plain loop does not.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    watch = Watch(run.pid)
    output, _ = run.communicate()
    watch.stop()
    if run.returncode:
        sys.exit(f"the flow failed: {config.source} to {config.dest}")
    row = json.loads(output.splitlines()[-1])
    if row["working"]:
        row["working_cpu"], row["workers_cpu"] = watch.between(*row["working"])
    return dict(row)


def flow_here(config: IngestConfig) -> Row:
    """The flow in this process; `working`: when the first worker was up and when the last unit was committed."""
    from pipelines.ingest import ingest
    from pipelines.stages import Function
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
    working = None
    if len(seen) > 1:
        end, last = seen[-1]
        working = (end - last.rows / last.rows_per_second, end)
    times = {"total": time.monotonic() - started, "began": started, "working": working, "stages_cpu": cpu}
    return {"summary": summary.model_dump(), **times}


def settings(source: Path, dest: Path, **identity: Any) -> IngestConfig:
    return IngestConfig.model_validate(
        {
            "source": str(source),
            "dest": str(dest),
            "units": {"items_per_unit": 32},
            "shards": {"faces_per_shard": FACES_A_SHARD},
            "identity": identity,
            "ray": {"workers": WORKERS},
        }
    )


# --- figures ----------------------------------------------------------------------------------------------------------


def labelled(photos: Path, made: Path, folder: Path, truth: Truth) -> Row:
    """The same annotations with names from a table."""
    dest, table = folder / "labelled", folder / "people.csv"
    shutil.copytree(made / "annotations", dest / "annotations")
    with open(table, "w", newline="") as file:
        csv.writer(file).writerows([("path", "identity"), *zip(truth.names, truth.people, strict=True)])
    summary = run_flow(settings(photos, dest, table=str(table)))["summary"]
    faces = open_faces(f"{dest}/faces")
    return {
        "people": len(set(truth.people)),
        "identities": summary["identities"],
        "identities_in_one_piece": len(set(faces.identities()["identity_id"].to_pylist())),
        "faces": summary["faces"],
        "shards": len(faces.version.shards),
        "units_run": summary["units_run"],
        "problems": verify_faces(f"{dest}/faces").problems,
    }


def again(config: IngestConfig) -> Row:
    """The same command with nothing new."""
    row = run_flow(config)
    summary = row["summary"]
    return {
        "units_run": summary["units_run"],
        "new_version": summary["new_version"],
        "version": summary["version"],
        "seconds": round(row["total"], 1),
    }


def grown(config: IngestConfig, before: pa.Table, truth: Truth, known: set[str]) -> Row:
    """After photographs of known and new people were added. known: people of the first run."""
    faces = f"{config.dest}/faces"
    old = current(faces)
    assert old is not None
    summary = run_flow(config)["summary"]
    version = open_faces(faces).version
    earlier = {row["face_id"]: row["identity_id"] for row in before.to_pylist()}
    now = read_assignments(faces)
    assert now is not None
    rows = now.to_pylist()
    changed = [row for row in rows if row["face_id"] in earlier and earlier[row["face_id"]] != row["identity_id"]]
    shards = {shard.file for shard in version.shards}
    found = find(f"{config.dest}/annotations", truth)
    person = {face: truth.people[number] for face, number in zip(found.face_ids, found.true.tolist(), strict=True)}
    added = [row for row in rows if row["face_id"] not in earlier and row["left_out"] is None]
    homes: dict[str, set[str]] = {}
    for face, identity in earlier.items():
        homes.setdefault(person[face], set()).add(identity)
    of_known = [row for row in added if person[row["face_id"]] in known]
    return {
        "units_run": summary["units_run"],
        "units_skipped": summary["units_skipped"],
        "shards_written": len(shards - {shard.file for shard in old.shards}),
        "shards": len(shards),
        "old_faces_with_another_identity": len(changed),
        "new_faces_of_known_people": len(of_known),
        "of_them_joined_that_person": sum(row["identity_id"] in homes[person[row["face_id"]]] for row in of_known),
        "new_faces_of_new_people": len(added) - len(of_known),
        "of_them_joined_an_earlier_person": sum(
            row["identity_id"] in set(earlier.values()) for row in added if person[row["face_id"]] not in known
        ),
        "problems": verify_faces(faces).problems,
    }


def speed(row: Row, loop: Row) -> Row:
    """Throughput, start-up and overhead of the first run, and where its processor time went."""
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


def measure(folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, Row]]:
    """All of it, in `folder`."""
    few = min(10, options.identities // 4)
    truth = make_world(folder / "world", options, options.identities, options.images)
    extra = make_world(folder / "known", options, few, options.images + 2)
    new = make_world(folder / "new", options, few, 3, first=options.identities)
    photos, dest = folder / "photos", folder / "out"
    for path in (photos, dest, folder / "labelled", folder / "bare"):
        shutil.rmtree(path, ignore_errors=True)
    copy_photos(folder / "world", photos, truth.names)
    config = settings(photos, dest)
    first = run_flow(config)
    assignments = read_assignments(f"{dest}/faces")
    assert assignments is not None
    found = find(f"{dest}/annotations", truth)
    yield "annotations", annotation_figures(found, truth)
    yield "clusters", identity_figures(found, truth, assignments)
    yield "left out", first["summary"]["left_out"]
    yield "labels", labelled(photos, dest, folder, truth)
    yield "again", again(config)
    yield "speed", speed(first, bare(config, WORKERS, folder / "bare"))
    added = [name for name in extra.names if name not in set(truth.names)]
    copy_photos(folder / "known", photos, added)
    copy_photos(folder / "new", photos, new.names)
    everyone = joined(truth, extra.only(set(added)), new)
    yield "grown", grown(config, assignments, everyone, set(truth.people))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=200)
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--max-yaw", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=SEED, help="of the world; tune on others than the default")
    parser.add_argument("--quick", action="store_true", help="12 people, three pictures each")
    parser.add_argument("--folder", type=Path, help="keep the archives here, and use them again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(flow_here(IngestConfig.model_validate_json(options.here))))
        return
    if options.quick:
        options.identities, options.images = 12, 3
    report: Row = {name: getattr(options, name) for name in ("seed", "identities", "images", "max_yaw")}
    with tempfile.TemporaryDirectory(prefix="deca-ingest-") as name:
        for title, row in measure(options.folder or Path(name), options):
            report[title] = row
            print(f"\n{title}")
            for figure, value in row.items():
                print(f"  {figure:<34} {value}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
