"""The speed of bulk reconstruction in one table: `python -m benchmarks.suite`; `make bench`.

The machine's ceilings; milliseconds an image of each stage against its floor; faces/s of the whole flow with one worker
and two, against a plain loop around the same worker (benchmarks/bare.py is the same for ingest); bytes a face. Images
are 512 px JPEGs with label files, so that no detector runs. `--json` keeps the figures, `--compare` shows the changes
since an earlier run.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import ceilings
from benchmarks.common import parser, save
from deca_core import DECA
from deca_core.assets import procedural_head
from deca_core.checkpoint import save_checkpoint
from deca_core.crop import crop_transform, square_from_landmarks, warp
from deca_core.inference import Inference, Precision, choose_precision, smooth_images
from schemas.engine import RayConfig
from schemas.parquet import write_batches, write_table
from schemas.reconstruct import ReconstructConfig, quantise
from tasks.heads.reconstruct import ReconstructWorker
from tasks.models.loading import load_model
from tasks.sources.images import decode_image
from tasks.units.commit import Rows
from tasks.units.commits import committed_parts
from tasks.units.plan import load_plan
from tasks.units.ray_cluster import connect

SIZE = 512  # pixels on a side of an image
BATCH = 8
DISTINCT = 16  # images; the others repeat them
UNIT = 64  # images
NOTABLE = 0.05  # a comparison marks larger changes


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    section: str
    name: str
    value: float
    unit: str
    floor: float | None = None  # in the same unit: the value at the machine's ceiling
    better: Literal["higher", "lower"] = "lower"

    @property
    def share(self) -> float | None:
        """Return the share of the ceiling that is reached, or None without a floor."""
        if self.floor is None:
            return None
        return self.floor / self.value if self.better == "lower" else self.value / self.floor


# --- stages -----------------------------------------------------------------------------------------------------------


def machine(seconds: float) -> tuple[list[Figure], dict[str, float]]:
    """Return the ceilings of one thread, as a worker has, as figures and by name: FLOP/s, bytes/s, images/s."""
    torch.set_num_threads(1)
    rates = {f"GEMM {dtype}": ceilings.gemm(dtype, seconds) for dtype in ("fp32", "bf16")}
    copied, decoded = ceilings.copy(seconds), ceilings.jpeg_decode(seconds, SIZE)
    figures = [Figure("machine, one thread", name, rate, "GFLOP/s", better="higher") for name, rate in rates.items()]
    figures.append(Figure("machine, one thread", "memory copy", copied, "GB/s", better="higher"))
    figures.append(Figure("machine, one thread", f"JPEG {SIZE} px", decoded, "images/s", better="higher"))
    return figures, {"flops": 1e9 * max(rates.values()), "bytes": 1e9 * copied, "jpeg": decoded}


def flops(work: Callable[[], Any]) -> float:
    """Return the operations of matrix products and convolutions, two for each multiply-add."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return float(counter.get_total_flops())


def stages(
    name: str, model: DECA, precision: Precision, options: argparse.Namespace, floors: dict[str, float]
) -> Iterator[Figure]:
    """Yield the stages that run networks, milliseconds an image in batches of BATCH."""
    images = smooth_images(BATCH)
    frozen = Inference(model, precision, batch=BATCH if options.compile else 0)
    codes = frozen.codes(images)
    for stage, work, counted in (
        ("E_c and E_d", partial(frozen.codes, images), partial(model.encode, images)),
        ("F_d", partial(frozen.displacement, codes), partial(model.displacement, codes)),
    ):
        yield timed(f"{name}: {stage}", work, flops(counted) / floors["flops"], options.seconds, BATCH)


def common_stages(folder: Path, floors: dict[str, float], seconds: float) -> Iterator[Figure]:
    """Yield the stages around the networks, milliseconds an image."""
    data = ceilings.jpeg(SIZE)
    image = decode_image(data, max_pixels=10**8)
    transform = crop_transform(square_from_landmarks(landmarks()))
    maps = np.random.default_rng(0).standard_normal((BATCH, 256, 256)).astype(np.float32) * 1e-3
    levels = quantise(maps, 0.01)
    table = pa.table({"displacement": pa.FixedSizeListArray.from_arrays(pa.array(levels.reshape(-1)), 256 * 256)})
    crop_bytes = image.nbytes + 3 * 224 * 224 * 4
    yield timed("decode", lambda: decode_image(data, max_pixels=10**8), 1 / floors["jpeg"], seconds)
    yield timed("crop", lambda: warp(image, transform), crop_bytes / floors["bytes"], seconds)
    yield timed("quantise", lambda: quantise(maps, 0.01), 1.5 * maps.nbytes / floors["bytes"], seconds, BATCH)
    path = folder / "rows.parquet"
    write_table(table, path)
    moved = levels.nbytes + path.stat().st_size
    yield timed("Parquet", lambda: write_table(table, path), moved / floors["bytes"], seconds, BATCH)


def timed(name: str, work: Callable[[], Any], floor: float, seconds: float, images: int = 1) -> Figure:
    """Return the figure of a stage; floor: seconds of one call, which handles `images`."""
    with torch.no_grad():
        rate = ceilings.best_rate(work, seconds)
    return Figure("stages", name, 1000 / (rate * images), "ms/image", 1000 * floor / images)


# --- the flow ---------------------------------------------------------------------------------------------------------


def landmarks() -> np.ndarray:
    """Return 68 points as wide as a face that fills two thirds of the image."""
    steps = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    return (SIZE / 2 + SIZE / 3 * np.stack([np.cos(steps), np.sin(steps)], axis=1)).astype(np.float32)


def write_images(folder: Path, count: int) -> None:
    """Write JPEG files with landmark files."""
    folder.mkdir()
    images = [ceilings.jpeg(SIZE, seed) for seed in range(min(count, DISTINCT))]
    for number in range(count):
        (folder / f"{number:06d}.jpg").write_bytes(images[number % DISTINCT])
        np.save(folder / f"{number:06d}.npy", landmarks())


def settings(
    folder: Path, dest: Path, checkpoint: str, precision: Precision, compiled: bool, workers: int
) -> ReconstructConfig:
    return ReconstructConfig.model_validate(
        {
            "source": str(folder / "photos"),
            "dest": str(dest),
            "checkpoint": checkpoint,
            "precision": precision,
            "compile": compiled,
            "annotate": {"provider": "sidecar", "sidecar": {"landmarks": ["{stem}.npy"]}},
            "units": {"items_per_unit": UNIT},
            "batch_size": BATCH,
            "contact_sheet_rows": 0,
            "ray": {"workers": workers},
        }
    )


def flow(config: ReconstructConfig) -> float:
    """Return the faces/s of the flow from its first worker's start to its last commit."""
    from pipelines.reconstruct import reconstruct
    from schemas.progress import UnitProgress

    seen: list[UnitProgress] = []
    summary = reconstruct(config, seen.append)
    assert summary.outcome == "complete", summary
    return seen[-1].rows_per_second


def plain_loop(config: ReconstructConfig, plan: str, folder: Path) -> float:
    """Return the faces/s of the same worker on the units of `plan` without ledger, commits and Ray."""
    worker, rows = ReconstructWorker(config), 0
    started = time.monotonic()
    for unit in load_plan(plan).iter_units():
        output = worker.process(unit.items)
        assert isinstance(output.table, Rows)
        rows += write_batches(output.table.schema, output.table.batches, folder / "bare.parquet")
    return rows / (time.monotonic() - started)


def end_to_end(
    name: str, checkpoint: str, precision: Precision, folder: Path, options: argparse.Namespace, floor: float
) -> Iterator[Figure]:
    """Yield the figures of the whole flow; floor: seconds a face of the networks alone."""
    rates: dict[str, float] = {}
    for repeat in range(options.repeats):
        for workers in options.workers:
            dest = folder / f"{name}-{workers}-{repeat}"
            rate = flow(settings(folder, dest, checkpoint, precision, options.compile, workers))
            rates[str(workers)] = max(rates.get(str(workers), 0.0), rate)
        rate = plain_loop(settings(folder, dest, checkpoint, precision, options.compile, 0), str(dest), folder)
        rates["loop"] = max(rates.get("loop", 0.0), rate)
    section = f"flow, {name}, {options.faces} faces of {SIZE} px"
    yield Figure(section, "a plain loop", rates["loop"], "faces/s", 1 / floor, "higher")
    for workers in options.workers:
        what = "in process" if workers == 0 else f"Ray, {workers} worker{'s' if workers > 1 else ''}"
        yield Figure(section, what, rates[str(workers)], "faces/s", max(1, workers) / floor, "higher")
        if workers < 2:
            overhead = 100 * (rates["loop"] / rates[str(workers)] - 1)
            yield Figure(section, f"overhead against the loop, {what}", overhead, "%")
    if {1, 2} <= set(options.workers):
        yield Figure(section, "scaling 1 -> 2 workers", rates["2"] / rates["1"], "x", 2.0, "higher")
    yield from sizes(section, str(dest))


def sizes(section: str, dest: str) -> Iterator[Figure]:
    """Yield the bytes a face in the committed parts: of the maps, and of all columns."""
    maps = rows = total = 0
    for part in committed_parts(dest):
        metadata = pq.ParquetFile(part).metadata
        rows, total = rows + metadata.num_rows, total + Path(part).stat().st_size
        for group in range(metadata.num_row_groups):
            columns = [metadata.row_group(group).column(at) for at in range(metadata.num_columns)]
            maps += sum(c.total_compressed_size for c in columns if c.path_in_schema.startswith("displacement"))
    yield Figure(section, "bytes a face, displacement", maps / rows, "bytes", 2 * 256**2)
    yield Figure(section, "bytes a face, all", total / rows, "bytes")


# --- the table --------------------------------------------------------------------------------------------------------


def measure(folder: Path, options: argparse.Namespace) -> Iterator[Figure]:
    """Yield all figures; workers have one thread each, as in the product."""
    figures, floors = machine(options.seconds)
    yield from figures
    yield from common_stages(folder, floors, options.seconds)
    if any(options.workers):
        # Ray lowers the priority of its workers: on a busy machine they would wait where the plain loop does not.
        os.environ.update(RAY_worker_niceness="0")
        connect(RayConfig(workers=max(options.workers)))
    write_images(folder / "photos", options.faces)
    for name in options.backbones:
        checkpoint = str(folder / name)
        if name == "small":  # the shipped weights
            model = load_model(ReconstructConfig(source="", dest=""))
        else:
            torch.manual_seed(0)
            model = DECA(procedural_head(), name)
        save_checkpoint(model, checkpoint)
        one = torch.rand(1, 3, 224, 224)
        floor = flops(lambda model=model, one=one: model.displacement(model.encode(one))) / floors["flops"]
        yield Figure("stages", f"{name}: GFLOP an image", floor * floors["flops"] / 1e9, "GFLOP")
        precision = choose_precision(model, "cpu").precision
        options.precisions[name] = precision
        yield from stages(name, model, precision, options, floors)
        yield from end_to_end(name, checkpoint, precision, folder, options, floor)


def table(figures: list[Figure], before: dict[tuple[str, str], float] | None = None) -> Iterator[str]:
    """Yield the lines: value, floor and share; given earlier figures, those and the change, marked where notable."""
    section = ""
    for figure in figures:
        if figure.section != section:
            section = figure.section
            yield f"\n{section}"
        share = "" if figure.share is None else f"{figure.floor:>14,.3f} {figure.share:>8.1%}"
        line = f"  {figure.name:<44} {figure.value:>14,.3f} {figure.unit:<11}{share:<24}"
        if before is not None:
            line += _change(figure, before.get((figure.section, figure.name)))
        yield line.rstrip()


def _change(figure: Figure, earlier: float | None) -> str:
    if earlier is None:
        return "new"
    if figure.unit == "%":
        return f"was {earlier:,.3f}"
    change = figure.value / earlier - 1 if earlier else 0.0
    good = (change > 0) == (figure.better == "higher")
    mark = "" if abs(change) < NOTABLE else " better" if good else " WORSE"
    return f"was {earlier:,.3f} ({change:+.1%}{mark})"


def read_figures(path: Path) -> dict[tuple[str, str], float]:
    """Return the values of an earlier run's JSON by section and name."""
    return {(row["section"], row["name"]): row["value"] for row in json.loads(path.read_text())["figures"]}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--faces", type=int, default=512)
    arguments.add_argument("--backbones", nargs="+", default=["small", "resnet50"], help="small: the shipped weights")
    arguments.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="0: in this process, without Ray")
    arguments.add_argument("--repeats", type=int, default=2, help="of the flow; the best counts")
    arguments.add_argument("--seconds", type=float, default=2.0, help="for a ceiling or a stage")
    arguments.add_argument(
        "--quick", action="store_true", help="16 faces, the small backbone, no Ray: does it run at all?"
    )
    arguments.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="as plans of thousands of images do"
    )
    arguments.add_argument("--compare", type=Path, metavar="OLD.json", help="an earlier run's --json")
    options = arguments.parse_args()
    if options.quick:
        options.faces, options.backbones, options.workers, options.repeats = 16, ["small"], [0], 1
        options.seconds, options.compile = 0.1, False
    options.precisions = {}  # chosen, by backbone
    before = read_figures(options.compare) if options.compare else None
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="deca-suite-") as name:
        for figure in measure(Path(name), options):
            figures.append(figure)
            print(f"{figure.section}: {figure.name} {figure.value:,.3f} {figure.unit}", flush=True)
    print(f"precisions: {options.precisions}")
    print("\n".join([f"\n{'':<46} {'value':>14} {'':<11}{'floor':>14} {'reached':>8}", *table(figures, before)]))
    rows = [asdict(figure) | {"share": figure.share} for figure in figures]
    given = {name: value for name, value in vars(options).items() if name not in ("json", "compare")}
    save(options, {"options": given, "torch": torch.__version__, "cores": os.cpu_count(), "figures": rows})


if __name__ == "__main__":
    main()
