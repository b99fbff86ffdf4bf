"""Cost of the driver with many units: `python -m benchmarks.ledger --units 400000`.

The engine's bookkeeping over an emulated object store: files in memory behind an fsspec driver that counts requests as
S3 would (a thousand names per answer). An idle worker commits its units in a process of its own and sends their
records, as Ray does; the driver takes units, records commits, logs, reports progress and compacts records into
snapshots. --ray measures Ray's own share. Each figure is of a process of its own; CPU is of all its threads.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from benchmarks.common import in_child, parser, peak_mib, save
from schemas.engine import RayConfig, UnitsConfig
from schemas.ledger import CommitRecord, Item
from schemas.progress import UnitProgress
from tasks.store.storage import S3
from tasks.units.commit import UnitOutput
from tasks.units.commits import pending, publish_commit
from tasks.units.compaction import Compactor
from tasks.units.engine import _Ledger, run_units
from tasks.units.plan import Plan, load_plan
from tasks.units.progress import TerminalProgress
from tasks.units.rounds import open_or_build
from tasks.units.verify import status

SIZES = (1_000, 40_000)  # units, measured before --units
PAGE = 1000  # names in an answer of S3
REQUESTS = ("ls", "info", "cat_file", "put_file", "pipe_file", "rm_file", "rm", "open")
IN_FLIGHT = 64  # units
MEMORY = "/dev/shm"
LIMITS = {"ms a commit": 1.0, "ratio": 1.5, "MiB": 400, "requests": 200}


class CountedStore(LocalFileSystem):
    """counted:///a/folder: the files of a folder as objects of a bucket, with requests counted by kind."""

    protocol = "counted"
    requests: ClassVar[Counter[str]] = Counter()
    inside = threading.local()  # a local listing stats every file, a store's does not

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in REQUESTS or getattr(CountedStore.inside, "call", False):
            return found

        def counted(*args: Any, **kwargs: Any) -> Any:
            CountedStore.inside.call = True
            try:
                result = found(*args, **kwargs)
            finally:
                CountedStore.inside.call = False
            names = len(result) if name == "ls" else len(args[0]) if name == "rm" else 1
            CountedStore.requests[name] += max(1, math.ceil(names / PAGE))
            return result

        return counted

    def put_file(self, source: str, target: str, **kwargs: Any) -> None:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        super().put_file(source, target, **kwargs)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        super().pipe_file(path, value, mode=mode, **kwargs)

    def rm(self, paths: list[str], **kwargs: Any) -> None:
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(path).removeprefix("counted://").rstrip("/")


fsspec.register_implementation("counted", CountedStore, clobber=True)
S3.add("counted")  # protocols that delete a thousand objects per request


class Nothing:
    """An idle worker: a row per item."""

    def process(self, items: Sequence[Item]) -> UnitOutput:
        return UnitOutput(pa.table({"face_id": [f"{item.image_id}-00" for item in items]}))


def items(count: int) -> Iterator[Item]:
    return (Item(index, f"s3://bucket/{index:09d}.jpg", size=30_000, etag=f"{index:032x}") for index in range(count))


def record(plan: Plan, unit: int, rows: int) -> CommitRecord:
    """Return the commit record of a unit; its part, which no driver reads, does not exist."""
    sha256 = f"{unit * 0x9E3779B97F4A7C15:064x}"[-64:]
    return CommitRecord(
        unit=unit,
        fingerprint=plan.fingerprint,
        items=rows,
        rows=rows,
        quarantined=0,
        part=plan.part_name(unit),
        bytes=1000 + unit,
        sha256=sha256,
        seconds=unit % 977 / 100,
        versions={"code": plan.record.code, "python": "3.11.7", "pyarrow": pa.__version__},
    )


# --- processes --------------------------------------------------------------------------------------------------------


def make(dest: str, units: int, size: int) -> dict[str, float]:
    """Plan `units` units of `size` items."""
    open_or_build(dest, "s3://bucket", items=items(units * size), units=UnitsConfig(items_per_unit=size))
    return usage()


def work(dest: str) -> None:
    """Run the worker: reads units from stdin, a line each, and writes their pickled records to stdout."""
    plan, out = load_plan(dest), sys.stdout.buffer
    for line in sys.stdin:
        unit, rows = map(int, line.split())
        made = record(plan, unit, rows)
        publish_commit(plan, made)
        pickle.dump(made, out)
        out.flush()


def drive(dest: str) -> dict[str, float]:
    """Run the driver, which keeps IN_FLIGHT units in flight, as the engine does."""
    plan = load_plan(dest)
    command = [sys.executable, "-m", "benchmarks.ledger", "--process", "work", dest]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert worker.stdin is not None
    assert worker.stdout is not None
    shown = TerminalProgress("nothing", io.StringIO())
    pa.array([0])  # imports pandas, 0.3 s once a process, which planning has spent before a run
    before = usage()["cpu_seconds"]
    with Compactor(plan) as compactor:
        ledger = _Ledger(plan, compactor, 3, shown, None)
        opened = usage()["cpu_seconds"] - before
        while units := [unit for unit in (ledger.next_unit() for _ in range(IN_FLIGHT)) if unit is not None]:
            began = time.monotonic()
            worker.stdin.write(b"".join(b"%d %d\n" % (unit.index, len(unit.items)) for unit in units))
            worker.stdin.flush()
            for unit in units:
                ledger.on_result(unit, pickle.load(worker.stdout), began)  # noqa: S301 - of our own child
    cpu = usage()["cpu_seconds"] - before
    worker.stdin.close()
    worker.wait()
    kinds = {f"requests_{kind}": float(count) for kind, count in sorted(CountedStore.requests.items())}
    return {**usage(), "opening_cpu": opened, "all_commits": cpu, "ms_a_commit": 1000 * cpu / plan.units, **kinds}


def reopen(dest: str) -> dict[str, float]:
    """Open a finished plan."""
    assert pending(load_plan(dest)) == []
    return {**usage(), "requests": sum(CountedStore.requests.values())}


def show_status(dest: str) -> dict[str, float]:
    """`deca status` of a finished plan."""
    assert status(dest).complete
    return {**usage(), "requests": sum(CountedStore.requests.values())}


def drive_ray(dest: str) -> dict[str, float]:
    """Run the units by Ray with two actors, parts included."""
    cpu = []

    def seen(progress: UnitProgress) -> None:
        cpu.append(usage()["cpu_seconds"])

    from benchmarks import ledger  # not this module as __main__: workers must import the store

    plan = load_plan(dest)
    run_units(plan, ledger.Nothing, RayConfig(workers=2), seen)
    return {**usage(), "all_commits": cpu[-1] - cpu[0], "ms_a_commit": 1000 * (cpu[-1] - cpu[0]) / plan.units}


def usage() -> dict[str, float]:
    found = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu_seconds": found.ru_utime + found.ru_stime, "peak_mib": peak_mib()}


PROCESSES: dict[str, Callable[..., Any]] = {
    process.__name__: process for process in (make, work, drive, drive_ray, reopen, show_status)
}


def run(process: str, dest: str, *more: int) -> dict[str, float]:
    return dict(in_child("benchmarks.ledger", "--process", process, dest, *more))


# --- the figures ------------------------------------------------------------------------------------------------------


def measure(units: int, size: int, ray: bool) -> dict[str, Any]:
    """Return all figures of a plan of `units` units."""
    folder = Path(tempfile.mkdtemp(prefix="deca-ledger-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)  # in memory, as the store
    dest = f"counted://{folder}/out"
    try:
        return {
            "units": units,
            "planned": run("make", dest, units, size),
            "driver": run("drive_ray" if ray else "drive", dest),
            "open": run("reopen", dest),
            "status": run("show_status", dest),
        }
    finally:
        tempfile.tempdir = None
        os.environ.pop("TMPDIR")
        shutil.rmtree(folder)


def exponent(first: tuple[float, float], last: tuple[float, float]) -> float:
    """Return the exponent of growth between two (size, figure)."""
    return math.log(last[1] / first[1]) / math.log(last[0] / first[0])


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--units", type=int, default=400_000)
    arguments.add_argument("--items-per-unit", type=int, default=1, help="items that the driver reads and sends")
    arguments.add_argument("--ray", action="store_true", help="with Ray and its two actors")
    arguments.add_argument("--process", nargs="+", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.process:
        name, dest, *more = options.process
        print(json.dumps(PROCESSES[name](dest, *map(int, more))))
        return
    rows = []
    for units in [*(size for size in SIZES if size < options.units), options.units]:
        rows.append(row := measure(units, options.items_per_unit, options.ray))
        print(f"{units:,} units", json.dumps(row), flush=True)
    report(rows)
    save(options, rows)


def report(rows: list[dict[str, Any]]) -> None:
    """Print the table, the exponents, and the figures over their limit."""
    print("   units  driver ms/commit  driver MiB  open: requests, CPU s, MiB  status: requests, CPU s, MiB")
    for row in rows:
        one, two, three = row["driver"], row["open"], row["status"]
        print(
            f"{row['units']:>8,} {one['ms_a_commit']:>17.3f} {one['peak_mib']:>11.0f} "
            f"{two['requests']:>15.0f} {two['cpu_seconds']:>6.1f} {two['peak_mib']:>4.0f} "
            f"{three['requests']:>17.0f} {three['cpu_seconds']:>6.1f} {three['peak_mib']:>4.0f}"
        )
    for name, part, key in (
        ("driver CPU of all commits", "driver", "all_commits"),
        ("driver memory", "driver", "peak_mib"),
        ("requests to open", "open", "requests"),
        ("requests of status", "status", "requests"),
    ):
        ends = [(row["units"], row[part][key]) for row in (rows[0], rows[-1])]
        if len(rows) > 1:
            print(f"{name}: exponent {exponent(*ends):.2f} from {ends[0][0]:,} to {ends[1][0]:,} units")
    a_commit = [row["driver"]["ms_a_commit"] for row in rows]
    found = {
        "ms a commit": max(a_commit),
        "ratio": max(a_commit) / min(a_commit),
        "MiB": max(row["driver"]["peak_mib"] for row in rows),
        "requests": max(row[part]["requests"] for row in rows for part in ("open", "status")),
    }
    for name, value in found.items():
        print(f"{name}: {value:.3g}, at most {LIMITS[name]:g}: {'ok' if value <= LIMITS[name] else 'OVER'}")


if __name__ == "__main__":
    main()
