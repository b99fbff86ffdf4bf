"""A sheet of validation faces: image, landmarks, rendering, shape, detail, displacement."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deca_core import DECA
from deca_core.training import FaceBatch
from schemas.train import StageName, TrainConfig
from tasks.draw.panels import assemble, grey_map, to_bytes, with_points
from tasks.training.inputs import validation_samples

PANELS = ("image", "landmarks", "rendering", "shape", "detail", "displacement")
ROWS = 6  # faces on a sheet


def draw_sheet(model: DECA, config: TrainConfig, stage: StageName) -> NDArray[np.uint8] | None:
    """The first validation faces, one a row, as (H,W,3); None without validation faces. The model is in eval mode."""
    strips: list[list[NDArray[np.uint8]]] = []
    for batch in itertools.islice(validation_samples(config, stage), ROWS):
        strips += _strips(model, batch)
        if len(strips) >= ROWS:
            break
    note = "" if stage == "detail" else "before the detail stage: detail and displacement are untrained"
    return assemble(strips[:ROWS], PANELS, note) if strips else None


@torch.inference_mode()
def _strips(model: DECA, batch: FaceBatch) -> list[list[NDArray[np.uint8]]]:
    """The panels of every face of a batch, (224,224,3) each."""
    images = batch.images.to(model.mask.device)
    codes = model.encode(images)
    out = model.decode(codes)
    drawn = model.render(codes, out)
    inside = drawn.alpha * (drawn.alpha > 0)
    rendered = images * (1 - inside) + drawn.detail_images.clamp(0, 1) * inside
    strips: list[list[NDArray[np.uint8]]] = []
    for index in range(len(batch)):
        face: NDArray[Any] = to_bytes(batch.images[index].numpy())
        points = (out.landmarks2d[index].cpu().numpy() + 1) * (face.shape[0] / 2)
        strips.append(
            [
                face,
                with_points(face, points),
                to_bytes(rendered[index].cpu().numpy()),
                to_bytes(drawn.shape[index].cpu().numpy()),
                to_bytes(drawn.shaded_detail[index].cpu().numpy()),
                grey_map(out.displacement[index, 0].cpu().numpy()),
            ]
        )
    return strips
