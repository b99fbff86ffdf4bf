"""The summary and the contact sheet of sampled faces of a reconstruct run."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from deca_core import DECA, Codes
from deca_core.camera import IMAGE_SIZE
from deca_core.crop import warp
from schemas.ledger import Item
from schemas.parquet import fixed_values
from schemas.reconstruct import ReconstructConfig
from tasks.draw.panels import assemble, grey_map, to_bytes, with_points
from tasks.models.loading import is_trained, load_model
from tasks.people.face_rows import find_row, is_face_item, read_rows
from tasks.sources.images import decode_image
from tasks.sources.read import read_items
from tasks.store.ranges import open_checked
from tasks.store.storage import Store
from tasks.units.commits import read_parts
from tasks.units.plan import Plan, PlanError

CONTACT_SHEET = "_report/contact_sheet.png"
COLUMNS = ("image", "68 landmarks", "mesh overlay", "shape", "detail", "displacement")
BLOCK = 2**18  # bytes read ahead in a part


@dataclass(frozen=True)
class Sample:
    """One row of reconstructions/ with the item that it came from."""

    row: pa.Table  # of one row
    item: Item | None


def contact_sheet(plan: Plan, config: ReconstructConfig) -> str | None:
    """Draw sampled faces (image, landmarks, mesh, shape, detail, displacement) and publish one PNG in DEST.

    The rows are spread evenly over the dataset, so the same dataset gives the same sheet. Returns its URI, or None
    when there is nothing to show.
    """
    model = load_model(config)
    strips = [_strip(model, sample, config) for sample in samples(plan, config.contact_sheet_rows)]
    if not strips:
        return None
    note = "" if is_trained(config) else "UNTRAINED NETWORK: shape, detail and displacement mean nothing"
    sheet = assemble(strips, COLUMNS, note)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG")
    store = Store(plan.dest)
    store.write(CONTACT_SHEET, buffer.getvalue())
    return store.join(CONTACT_SHEET)


def samples(plan: Plan, count: int) -> Iterator[Sample]:
    """Return at most `count` rows spread evenly over a dataset, with their items; one row group is read for each."""
    parts = [part for part in read_parts(plan) if part.rows]
    ends = np.cumsum([part.rows for part in parts])
    total = int(ends[-1]) if parts else 0
    store = Store(plan.dest)
    for position in np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)):
        which = int(np.searchsorted(ends, position, side="right"))
        part = parts[which]
        row = int(position) - int(ends[which] - part.rows)
        try:
            table = _row(store.join(part.file), row)
        except FileNotFoundError as error:
            raise PlanError(
                f"{store.join(part.file)} is committed and missing. Run: deca verify {plan.dest}"
            ) from error
        yield Sample(table, _item_of(table, [item for unit in plan.iter_units([part.unit]) for item in unit.items]))


def _row(part: str, row: int) -> pa.Table:
    """One row of a part."""
    with open_checked(part, None, BLOCK) as file:
        parquet = pq.ParquetFile(file)
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if row < rows:
                return parquet.read_row_group(group).slice(row, 1)
            row -= rows
    raise IndexError(f"{part} has fewer rows than its commit record says")


def _item_of(row: pa.Table, items: list[Item]) -> Item | None:
    """Return the item of a row, or None where its shard of faces/ is gone."""
    if is_face_item(items[0]):
        return find_row(items, row["face_id"][0].as_py())
    image_id = row["image_id"][0].as_py()
    return next(item for item in items if item.image_id == image_id)


def crop_of(sample: Sample, config: ReconstructConfig) -> NDArray[np.float32] | None:
    """Return the network crop (3,224,224) of a row, or None where the image is gone."""
    if sample.item is None:
        return None
    transform = fixed_values(sample.row, "crop_transform")[0].astype(np.float64)
    if is_face_item(sample.item):
        [(_, row)] = read_rows([sample.item])
        if isinstance(row, Exception):
            return None
        return row.warped(decode_image(row.crop, max_pixels=config.annotate.max_pixels), transform)
    [(_, data)] = read_items([sample.item], max_bytes=config.inputs.max_bytes)
    if isinstance(data, Exception):
        return None
    return warp(decode_image(data, max_pixels=config.annotate.max_pixels), transform)


@torch.inference_mode()
def _strip(model: DECA, sample: Sample, config: ReconstructConfig) -> list[NDArray[np.uint8]]:
    """Return the panels of one face, (224,224,3) each."""
    row = {name: fixed_values(sample.row, name) for name in ("landmarks", "crop_transform", "displacement")}
    codes = Codes(
        **{name: torch.from_numpy(fixed_values(sample.row, name).copy()) for name, _ in Codes.zeros().items()}
    )
    found = crop_of(sample, config)
    crop = np.zeros((3, IMAGE_SIZE, IMAGE_SIZE), np.float32) if found is None else found  # the rest still shows
    rendered = model.render(codes, model.decode(codes))
    alpha = rendered.alpha[0].numpy()
    points = row["landmarks"][0] @ row["crop_transform"][0][:, :2].T + row["crop_transform"][0][:, 2]
    return [
        to_bytes(crop),
        with_points(to_bytes(crop), points),
        to_bytes(crop * (1 - 0.7 * alpha) + 0.7 * rendered.shape[0].numpy() * alpha),
        to_bytes(rendered.shape[0].numpy()),
        to_bytes(rendered.shaded_detail[0].numpy()),
        grey_map(row["displacement"][0]),
    ]
