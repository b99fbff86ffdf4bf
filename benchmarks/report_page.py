"""A dataset of heads as good as they can be, and its report: `python -m benchmarks.report_page docs/report/report.jpg`.

Photographs of procedural people, and as their reconstructions the world's truth in the place of a network's answers:
codes and wrinkles are right, so the page shows what it can show. Pictures in which dlib finds no face end in
quarantine. With a picture to write, Chromium opens the page and takes it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from deca_core.assets import procedural_head
from deca_core.camera import IMAGE_SIZE
from deca_core.crop import crop_transform, square_from_landmarks
from deca_world import Limits, World
from pipelines.stages import store_config
from schemas.engine import RayConfig, UnitsConfig
from schemas.ledger import Item, Quarantined
from schemas.reconstruct import ReconstructConfig, quantise, reconstruction_schema
from schemas.world import DISPLACEMENT_LIMIT
from tasks.annotate.annotators import load_annotator
from tasks.annotate.find_faces import record_batch
from tasks.models.loading import bundle_at
from tasks.reports.heads_report import write_report
from tasks.sources.images import decode_image
from tasks.sources.read import read_item
from tasks.units.commit import UnitOutput
from tasks.units.engine import run_units
from tasks.units.plan import Plan
from tasks.units.rounds import open_or_build

SIZE = 320  # pixels on a side of the photographs
LIMITS = Limits(yaw=(0.0, 40.0))
SEED, FIRST = 7, 2  # the world's, and the first person: no longer young
TRUTH = "truth"  # as the rows' checkpoint
WIDTH, TALL = 1280, 5000  # pixels of the window: taller than the page
TOP, BOTTOM = 1430, 1640  # of the pictures: tiles, viewer and the first faces; charts, failures and cost
QUALITY = 82


class TruthWorker:
    """Rows of reconstructions/ for photographs whose names say who they show: <person>-<picture><anything>.jpg."""

    def __init__(self, config: ReconstructConfig) -> None:
        self.annotator = load_annotator(config.annotate)
        self.world = World(bundle_at(config.bundle))
        self.limit = DISPLACEMENT_LIMIT + float(np.abs(self.world.bundle.fixed_displacement).max())
        self.schema = reconstruction_schema(self.limit, config.outputs)

    def process(self, items: Sequence[Item]) -> UnitOutput:
        """A row a picture in which a face is found."""
        batches, quarantine = [], []
        for item in items:
            faces = self.annotator.detect(decode_image(read_item(item)))
            if faces:
                batches.append(self._row(item, float(faces[0].score)))
            else:
                message = f"no face found in the picture of {SIZE} x {SIZE} pixels"
                quarantine.append(Quarantined.of(item, "detect", "NoFaceError", message))
        return UnitOutput(pa.Table.from_batches(batches, schema=self.schema), quarantine)

    def _row(self, item: Item, score: float) -> pa.RecordBatch:
        person, picture = numbers(Path(item.uri).name)
        photograph = photograph_of(self.world, person, picture)
        points = photograph.landmarks
        transform = crop_transform(square_from_landmarks(points))
        codes = photograph.codes.replace(cam=cam_in_crop(photograph.codes.cam, transform))
        columns: dict[str, Any] = {
            "face_id": [f"{item.image_id}-00"],
            "image_id": [item.image_id],
            "source_uri": [item.source_uri],
            "face_index": [0],
            "identity_id": [f"person-{person:02d}"],
            "frame": [None],
            "time": [None],
            "width": [SIZE],
            "height": [SIZE],
            "bbox": np.concatenate([points.min(0), points.max(0)])[None].astype(np.float32),
            "det_score": [score],
            "landmarks": points[None].astype(np.float32),
            "crop_transform": transform[None].astype(np.float32),
            **{name: value.numpy() for name, value in codes.items()},
            "displacement": quantise(photograph.displacement[None] + self.world.bundle.fixed_displacement, self.limit),
            "checkpoint": [TRUTH],
        }
        return record_batch(self.schema, columns)


def numbers(name: str) -> tuple[int, int]:
    """(person, picture) of a file name."""
    return int(name[:2]), int(name[3:5])


def photograph_of(world: World, person: int, picture: int) -> Any:
    """The photograph of a person, with its truth; the same every time."""
    someone = world.subject(SEED, person)
    return world.photograph(someone, world.shot(someone, picture, LIMITS), SIZE)


def cam_in_crop(cam: torch.Tensor, transform: np.ndarray) -> torch.Tensor:
    """The camera of the crop for that of a whole picture of SIZE pixels: cam (1,3), transform (2,3) without turn."""
    ratio, shift = transform[0, 0] * SIZE / IMAGE_SIZE, transform[:, 2] * 2 / IMAGE_SIZE
    scale, tx, ty = cam[0].double().tolist()
    # x in the picture is scale (x + tx) and becomes ratio (x + 1) + shift - 1 in the crop; y alike, with its sign.
    moved = (ratio + shift - 1) / (scale * ratio)
    return torch.tensor([[scale * ratio, tx + moved[0], ty - moved[1]]], dtype=torch.float32)


def make_dataset(folder: Path, people: int, pictures: int, unit: int = 2, suffix: str = "", walls: int = 0) -> Plan:
    """`folder`/photos and `folder`/heads; suffix goes into the file names, walls are pictures of nobody."""
    world = World(procedural_head())
    (folder / "photos").mkdir(parents=True)
    for person in range(FIRST, FIRST + people):
        for picture in range(pictures):
            name = f"{person:02d}-{picture:02d}{suffix}.jpg"
            (folder / "photos" / name).write_bytes(photograph_of(world, person, picture).jpeg())
    for wall in range(walls):
        Image.new("RGB", (SIZE, SIZE), (70, 120, 120)).save(folder / "photos" / f"wall-{wall}{suffix}.jpg")
    config = ReconstructConfig(
        source=str(folder / "photos"),
        dest=str(folder / "heads"),
        precision="fp32",
        units=UnitsConfig(items_per_unit=unit),
        ray=RayConfig(workers=0),
    )
    plan = open_or_build(
        config.dest,
        config.source,
        config=config.plan_config(),
        weights={"bundle": world.bundle.hash, "checkpoint": TRUTH},
        units=config.units,
    )
    store_config(plan, config)
    run_units(plan, partial(TruthWorker, config), config.ray)
    return plan


def screenshot(page: Path) -> Image.Image:
    """What Chromium shows of a page, without the empty rest of the window below it."""
    program = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    if program is None:
        raise SystemExit("no Chromium here. Install it: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "page.png"
        drawing = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--hide-scrollbars")
        command = [program, "--headless=new", "--no-sandbox", f"--user-data-dir={folder}/profile", *drawing]
        command += [
            f"--window-size={WIDTH},{TALL}",
            "--virtual-time-budget=15000",
            f"--screenshot={shot}",
            page.resolve().as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        pixels = np.asarray(Image.open(shot).convert("RGB"))
    drawn = np.flatnonzero((pixels != pixels[-1, 0]).any(axis=(1, 2)))
    return Image.fromarray(pixels[: drawn[-1] + 25])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("picture", type=Path, nargs="?", help="JPEG of the page, with another of its charts beside it")
    parser.add_argument("--folder", type=Path, help="where photographs, heads and page stay; default: nowhere")
    parser.add_argument("--people", type=int, default=6)
    parser.add_argument("--pictures", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        plan = make_dataset(options.folder or Path(scratch) / "archive", options.people, options.pictures, walls=1)
        config = ReconstructConfig.model_validate_json(plan.store.read("_config.json"))
        written = write_report(plan, config, 8)
        print(written.page)
        if options.picture:
            options.picture.parent.mkdir(parents=True, exist_ok=True)
            whole = screenshot(Path(written.page))
            for name, first, last in (("", 0, TOP), ("-charts", whole.height - BOTTOM, whole.height)):
                picture = options.picture.with_stem(options.picture.stem + name)
                whole.crop((0, first, WIDTH, last)).save(picture, quality=QUALITY, optimize=True)
                print(f"{picture}  {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
