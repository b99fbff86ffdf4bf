"""A dataset of heads whose codes and wrinkles are the world's truth, for reports: photographs and reconstructions.

`python -m tests.tasks.reports.truth_heads FOLDER` makes the dataset of the image in docs/report.md.
"""

from __future__ import annotations

import sys
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
from tasks.sources.images import decode_image
from tasks.sources.read import read_item
from tasks.units.commit import UnitOutput
from tasks.units.engine import run_units
from tasks.units.plan import Plan
from tasks.units.rounds import open_or_build

SIZE = 320  # pixels on a side of the photographs
LIMITS = Limits(yaw=(0.0, 40.0))
SEED, FIRST = 7, 2  # of the world; the first subject, who has wrinkles
TRUTH = "truth"  # as the rows' checkpoint


class TruthWorker:
    """Rows of reconstructions/ for photographs named <subject>-<image><anything>.jpg."""

    def __init__(self, config: ReconstructConfig) -> None:
        self.annotator = load_annotator(config.annotate)
        self.world = World(bundle_at(config.bundle))
        self.limit = DISPLACEMENT_LIMIT + float(np.abs(self.world.bundle.fixed_displacement).max())
        self.schema = reconstruction_schema(self.limit, config.outputs)

    def process(self, items: Sequence[Item]) -> UnitOutput:
        """Return a row per image with a face, and quarantine the others."""
        batches, quarantine = [], []
        for item in items:
            faces = self.annotator.detect(decode_image(read_item(item)))
            if faces:
                batches.append(self._row(item, float(faces[0].score)))
            else:
                message = f"no face found in the image of {SIZE} x {SIZE} pixels"
                quarantine.append(Quarantined.of(item, "detect", "NoFaceError", message))
        return UnitOutput(pa.Table.from_batches(batches, schema=self.schema), quarantine)

    def _row(self, item: Item, score: float) -> pa.RecordBatch:
        subject, image = numbers(Path(item.uri).name)
        photograph = photograph_of(self.world, subject, image)
        points = photograph.landmarks
        transform = crop_transform(square_from_landmarks(points))
        codes = photograph.codes.replace(cam=cam_in_crop(photograph.codes.cam, transform))
        columns: dict[str, Any] = {
            "face_id": [f"{item.image_id}-00"],
            "image_id": [item.image_id],
            "source_uri": [item.source_uri],
            "face_index": [0],
            "identity_id": [f"person-{subject:02d}"],
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
    """Return (subject, image) of a file name."""
    return int(name[:2]), int(name[3:5])


def photograph_of(world: World, subject: int, image: int) -> Any:
    """Return a photograph of a subject with its truth, the same on each call."""
    person = world.subject(SEED, subject)
    return world.photograph(person, world.shot(person, image, LIMITS), SIZE)


def cam_in_crop(cam: torch.Tensor, transform: np.ndarray) -> torch.Tensor:
    """Return the crop's camera (1,3) for the camera of an image of SIZE pixels; transform (2,3) without rotation."""
    ratio, shift = transform[0, 0] * SIZE / IMAGE_SIZE, transform[:, 2] * 2 / IMAGE_SIZE
    scale, tx, ty = cam[0].double().tolist()
    # x in the image is scale (x + tx) and becomes ratio (x + 1) + shift - 1 in the crop; y alike, with its sign.
    moved = (ratio + shift - 1) / (scale * ratio)
    return torch.tensor([[scale * ratio, tx + moved[0], ty - moved[1]]], dtype=torch.float32)


def make_dataset(folder: Path, people: int, images: int, unit: int = 2, suffix: str = "", walls: int = 0) -> Plan:
    """Make `folder`/photos and `folder`/heads; suffix is part of the file names, walls are images without a face."""
    world = World(procedural_head())
    (folder / "photos").mkdir(parents=True)
    for subject in range(FIRST, FIRST + people):
        for image in range(images):
            name = f"{subject:02d}-{image:02d}{suffix}.jpg"
            (folder / "photos" / name).write_bytes(photograph_of(world, subject, image).jpeg())
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


if __name__ == "__main__":
    make_dataset(Path(sys.argv[1]), people=6, images=4, walls=1)
