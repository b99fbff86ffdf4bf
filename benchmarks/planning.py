"""Memory and time of planning a large bucket: `python -m benchmarks.planning --objects 1000000`.

The real discovery and planning run over s3fs, whose one network call (list_objects_v2) is emulated here, page by page;
the plan is written to a local folder. Each size runs in a process of its own, with a peak of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import in_child, parser, peak_mib, save

PAGE = 1000  # keys in a page of S3's answer
KEY = "{:04d}/photo-{:07d}.jpg"  # sorted, 1000 in a folder


def list_page(objects: int, token: str | None) -> dict[str, Any]:
    """What S3 answers to list_objects_v2 for a bucket of `objects` images."""
    first = int(token or 0)
    last = min(first + PAGE, objects)
    contents = [
        {"Key": KEY.format(n // 1000, n), "Size": 30_000 + n % 9999, "ETag": f'"{n:032x}"'} for n in range(first, last)
    ]
    return {"Contents": contents, "IsTruncated": last < objects, "NextContinuationToken": str(last)}


def measure(objects: int) -> dict[str, float]:
    """Plan `objects` listed images in this process."""
    from s3fs import S3FileSystem

    from tasks.units.rounds import open_or_build

    def call_s3(self: S3FileSystem, method: str, **request: Any) -> dict[str, Any]:
        assert method == "list_objects_v2"
        return list_page(objects, request.get("ContinuationToken"))

    S3FileSystem.call_s3 = call_s3
    before = peak_mib()
    started, cpu = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as dest:
        plan = open_or_build(dest, "s3://bucket")
        assert plan.record.items == objects
        size = sum(path.stat().st_size for path in Path(dest).rglob("*") if path.is_file())
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    return {
        "objects": objects,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "objects_per_second": round(objects / seconds),
        "peak_mib": peak_mib(),
        "imports_mib": before,
        "plan_bytes": size,
    }


def extrapolate(small: dict[str, float], large: dict[str, float], objects: int) -> None:
    """Extrapolate the growth from one size to the next to `objects`."""
    step, left = large["objects"] / small["objects"], objects / large["objects"]
    for name in ("cpu_seconds", "peak_mib", "plan_bytes"):
        exponent = math.log(large[name] / small[name]) / math.log(step)
        print(f"{name}: exponent {exponent:.2f}, {large[name] * left**exponent:,.0f} at {objects:,} objects")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--objects", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    arguments.add_argument(
        "--to", type=int, default=100_000_000, help="objects that the last two sizes are extrapolated to"
    )
    arguments.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.here:
        print(json.dumps(measure(options.objects[0])))
        return
    rows = [in_child("benchmarks.planning", "--here", "--objects", objects) for objects in options.objects]
    print("   objects   seconds  CPU s  objects/s  peak MiB  of it imports MiB  plan MB")
    for row in rows:
        names = ("objects", "seconds", "cpu_seconds", "objects_per_second", "peak_mib", "imports_mib")
        print("{:>10,} {:>9.1f} {:>6.1f} {:>10,} {:>9} {:>18}".format(*map(row.get, names)), end=" ")
        print(f"{row['plan_bytes'] / 1e6:>8.1f}")
    if len(rows) > 1:
        extrapolate(*rows[-2:], options.to)
    save(options, rows)


if __name__ == "__main__":
    main()
