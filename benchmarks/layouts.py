"""Bytes and speed of every way to keep a displacement map, and of every output: `python -m benchmarks.layouts`.

The maps are F_d's for codes drawn at random, scaled to wrinkles of about a millimetre; each way is written and read
back, and its error in micrometres is that of the metres that a reader gets. Size depends on the maps: real wrinkles are
between the smooth ones and these.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from deca_core import DECA, Codes
from deca_core.assets import procedural_head
from deca_core.checkpoint import SHIPPED, load_checkpoint
from deca_core.detail import MAX_DISPLACEMENT, NUM_CONDITION
from deca_core.inference import Inference, smooth_images
from schemas.parquet import fixed_array, fixed_field, fixed_values, write_table
from schemas.reconstruct import Output, quantise, reconstruction_schema
from tasks.models import outputs

WRINKLE = 1e-3  # metres that the largest displacement is scaled to
OUTPUTS: tuple[Output, ...] = ("codes", "displacement", "vertices", "landmarks", "normals", "texture", "preview")

Maps = NDArray[np.float32]
Row = tuple[float, float, float, float]  # bytes a face, ms to write, ms to read, largest error in um


def random_maps(model: DECA, count: int) -> Maps:
    """F_d's answers (count,256,256) in metres to random conditions, the fixed displacement added."""
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        z = model.D_detail(torch.randn(count, NUM_CONDITION, generator=generator))[:, 0]
        z = z - z.mean((1, 2), keepdim=True)
        return (z / z.abs().amax((1, 2), keepdim=True) * WRINKLE + model.fixed_displacement).numpy()


def timed(work: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """(best milliseconds, what it returned)."""
    best, made = np.inf, None
    for _ in range(repeats):
        started = time.perf_counter()
        made = work()
        best = min(best, (time.perf_counter() - started) * 1e3)
    return best, made


def column(field: pa.Field, values: NDArray[Any], truth: Maps, path: Path) -> Row:
    """A column of one Parquet file."""
    table = pa.table([fixed_array(field, values)], schema=pa.schema([field]))
    write, _ = timed(lambda: write_table(table, path))
    read, got = timed(lambda: fixed_values(pq.read_table(path), field.name))
    return _row(path.stat().st_size, write, read, got, truth)


def files(encode: Callable[[NDArray[np.uint16]], bytes], truth: Maps, limit: float) -> Row:
    """A PNG a face, in memory: what storage adds to every file comes on top."""
    steps = quantise(truth, limit)
    write, made = timed(lambda: [encode(one) for one in steps])
    read, back = timed(lambda: np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in made]))
    return _row(sum(map(len, made)), write, read, back.astype(np.float32) * (2 * limit / 65535) - limit, truth)


def _row(size: int, write: float, read: float, got: Maps, truth: Maps) -> Row:
    count = len(truth)
    error = float(np.abs(got.astype(np.float64) - truth).max()) * 1e6
    return size / count, write / count, read / count, error


def png(level: int, steps: NDArray[np.uint16]) -> bytes:
    before, outputs.PNG_LEVEL = outputs.PNG_LEVEL, level
    try:
        return outputs.encode_map(steps)
    finally:
        outputs.PNG_LEVEL = before


def layouts(model: DECA, count: int) -> dict[str, Row]:
    truth = random_maps(model, count)
    limit = MAX_DISPLACEMENT + float(model.fixed_displacement.abs().max())
    scaled = fixed_field("map", (256, 256), pa.uint16(), scale=2 * limit / 65535, offset=-limit)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "a.parquet")
        return {
            "columns: uint16, Parquet (default)": column(scaled, quantise(truth, limit), truth, path),
            "float32, Parquet": column(fixed_field("map", (256, 256)), truth, truth, path),
            **{f"files: 16-bit PNG, level {n}": files(partial(png, n), truth, limit) for n in (1, 6)},
        }


def sizes(model: DECA, count: int) -> dict[str, tuple[float, float]]:
    """(bytes a face, ms a face to compute and write) of every output, from the model's answers to random pictures."""
    inference, images = Inference(model), smooth_images(count)
    codes = inference.codes(images)
    maps = inference.displacement(codes)
    limit = MAX_DISPLACEMENT + float(model.fixed_displacement.abs().max())
    schema = reconstruction_schema(limit, OUTPUTS, vertices=len(model.bundle.v_template))
    transforms = np.tile(np.eye(3)[:2], (count, 1, 1))
    found = {}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "a.parquet")
        for output in OUTPUTS:
            work = partial(_write_output, model, output, codes, maps, images, transforms, schema, path, limit)
            milliseconds, _ = timed(work)
            found[output] = (path.stat().st_size / count, milliseconds / count)
    return found


def _write_output(
    model: DECA,
    output: Output,
    codes: Codes,
    maps: torch.Tensor,
    images: torch.Tensor,
    transforms: NDArray[np.float64],
    schema: pa.Schema,
    path: Path,
    limit: float,
) -> None:
    if output == "codes":
        columns: dict[str, Any] = {name: value.numpy() for name, value in codes.items()}
    elif output == "displacement":
        columns = {"displacement": quantise(maps.numpy(), limit)}
    else:
        head = outputs.head_of(model, codes, maps)
        columns = outputs.columns_of_head(model, [output], codes, head, images, transforms)
    own = pa.schema([schema.field(name) for name in columns])
    arrays = [
        fixed_array(own.field(name), values)
        if isinstance(values, np.ndarray)
        else pa.array(values, own.field(name).type)
        for name, values in columns.items()
    ]
    write_table(pa.table(arrays, schema=own), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=64)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_checkpoint(SHIPPED, bundle=procedural_head())
    table = layouts(model, options.faces)
    print(f"{'displacement map as':<36} {'kB a face':>9} {'write ms':>9} {'read ms':>8} {'error um':>9}")
    for name, (size, write, read, error) in table.items():
        print(f"{name:<36} {size / 1e3:9.1f} {write:9.2f} {read:8.2f} {error:9.3f}")
    outs = sizes(model, min(options.faces, 16))
    print(f"\n{'output':<36} {'kB a face':>9} {'ms a face, computed and written':>34}")
    for name, (size, milliseconds) in outs.items():
        print(f"{name:<36} {size / 1e3:9.1f} {milliseconds:34.2f}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"layouts": table, "outputs": outs}, file, indent=1)


if __name__ == "__main__":
    main()
