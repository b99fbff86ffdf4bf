"""How fast heads become GLB files, and where the time goes: `python -m benchmarks.exports [--heads 1000]`.

The heads are those of a few people of the embedded world under wrinkles of a millimetre, drawn at random; rows are
repeated under other names, and every row is worked in full. Times of the steps are CPU time of their threads, so that
other work on the machine does not show; what the flow takes is wall time and does show it.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.layouts import random_maps
from deca_core.detail import MAX_DISPLACEMENT
from pipelines.export import export
from pipelines.reconstruct import reconstruct
from pipelines.synth import synth
from schemas.export import ExportConfig
from schemas.parquet import fixed_array, write_table
from schemas.reconstruct import ReconstructConfig, quantise
from schemas.world import SynthConfig
from tasks.heads import export as work
from tasks.heads.selection import model_for
from tasks.store.storage import Store, hash_file
from tasks.units.commits import committed_parts, read_commits
from tasks.units.plan import load_plan

PEOPLE, PICTURES = 4, 2  # of the embedded world
# What a step is, by the function that does it; a step inside another one is taken out of it.
STEPS: dict[str, tuple[Any, str]] = {
    "decode codes to a posed head": (work, "head_of"),
    "blend the base colour": (work, "texture"),
    "bake the normal map": (work, "tangent_normals"),
    "encode the JPEG": (work, "jpeg"),
    "encode the PNG": (work, "png_of_normals"),
    "build the GLB": (work, "glb"),
    "write and hash": (Store, "write"),
}


def heads(folder: Path, count: int) -> str:
    """A reconstructions/ dataset of `count` rows."""
    here = {"ray": {"workers": 0}}
    world = {"dest": str(folder / "world"), "identities": PEOPLE, "images_per_identity": PICTURES, "max_yaw": 25.0}
    synth(SynthConfig.model_validate({**world, **here}))
    settings = {"source": str(folder / "world/photos"), "dest": str(folder / "heads"), "precision": "fp32"}
    outputs = ("codes", "displacement", "texture")
    reconstruct(ReconstructConfig.model_validate({**settings, "outputs": outputs, **here}))
    dest = str(folder / "heads")
    [part] = committed_parts(dest)
    table = pq.read_table(part)
    wrinkles = random_maps(model_for(dest), len(table))
    place, field = table.schema.get_field_index("displacement"), table.schema.field("displacement")
    table = table.set_column(place, field, fixed_array(field, quantise(wrinkles, MAX_DISPLACEMENT)))
    table = table.take(pa.array(np.arange(count) % len(table)))
    table = table.set_column(0, table.schema.field(0), pa.array([f"{index:06d}-00" for index in range(count)]))
    write_table(table, part)
    size, sha256 = hash_file(part)
    plan, [commit] = load_plan(dest), read_commits(dest)
    record = commit.model_copy(update={"rows": count, "bytes": size, "sha256": sha256})
    plan.store.write(plan.commit_name(commit.unit), record.model_dump_json().encode())
    return dest


@contextmanager
def stopwatch(spent: Counter[str]) -> Iterator[None]:
    """Adds up the CPU seconds of STEPS."""
    inside = threading.local()

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            outer, inside.seconds = getattr(inside, "seconds", 0.0), 0.0
            started = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                seconds = time.thread_time() - started
                spent[name] += seconds - inside.seconds
                inside.seconds = outer + seconds

        return run

    with ExitStack() as stack:
        for name, (owner, attribute) in STEPS.items():
            stack.enter_context(patch.object(owner, attribute, timed(name, getattr(owner, attribute))))
        yield


def measure(source: str, dest: Path, workers: int) -> dict[str, Any]:
    """One export of all heads; with workers=0 also by step."""
    spent: Counter[str] = Counter()
    config = ExportConfig.model_validate({"source": source, "dest": str(dest), "ray": {"workers": workers}})
    with stopwatch(spent):
        cpu = time.process_time()
        summary = export(config)
        cpu = time.process_time() - cpu
    files = [path.stat().st_size for path in dest.rglob("*.glb")]
    found = {
        "heads": summary.heads,
        "workers": workers,
        "heads_per_second": summary.heads_per_second,
        "bytes_a_head": round(float(np.mean(files))),
    }
    if workers == 0:
        found["cpu_ms_a_head"] = round(1e3 * cpu / summary.heads, 1)
        found["steps_ms"] = {name: round(1e3 * spent[name] / summary.heads, 1) for name in STEPS}
        rest = found["cpu_ms_a_head"] - sum(found["steps_ms"].values())
        found["steps_ms"]["the rest: rows, plan, model, first calls"] = round(rest, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2, help="of the run on Ray; 0 leaves it out")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="deca-exports-") as name:
        folder = Path(name)
        source = heads(folder, asked.heads)
        for workers in (0, asked.workers) if asked.workers else (0,):
            found = measure(source, folder / f"out-{workers}", workers)
            print(json.dumps(found, indent=1))
            for step, milliseconds in sorted(found.get("steps_ms", {}).items(), key=lambda pair: -pair[1]):
                print(f"| {step} | {milliseconds:.1f} ms | {milliseconds / found['cpu_ms_a_head']:.0%} |")


if __name__ == "__main__":
    main()
