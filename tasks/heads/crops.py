"""Read again the crops that rows of reconstructions were made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deca_core.crop import warp
from schemas.ledger import Item
from schemas.parquet import fixed_values
from schemas.reconstruct import ReconstructConfig
from tasks.people.face_rows import FaceRow, is_face_item, read_rows
from tasks.sources.images import decode_image
from tasks.sources.read import read_items
from tasks.store.ranges import ReadError
from tasks.units.plan import Plan

COLUMNS = ("face_id", "image_id", "crop_transform")  # of the rows


class CropReader:
    """Reads crops of rows at `plan.dest`; the plan names each image and the etag it must have."""

    def __init__(self, plan: Plan, config: ReconstructConfig) -> None:
        self.plan, self.config = plan, config

    def read(self, rows: pa.Table, unit: int) -> list[NDArray[np.float32] | Exception]:
        """The crop (3,224,224) of every row, or why there is none: rows (COLUMNS) of the part of one unit."""
        items = next(iter(self.plan.iter_units([unit]))).items
        names = rows["face_id" if items and is_face_item(items[0]) else "image_id"].to_pylist()
        found = dict(self._images(items, set(names)))
        transforms = fixed_values(rows, "crop_transform").astype(np.float64)
        return [self._crop(found.get(name), own) for name, own in zip(names, transforms, strict=True)]

    def _images(self, items: Sequence[Item], wanted: set[str]) -> Iterator[tuple[str, bytes | FaceRow | Exception]]:
        """The planned inputs of the wanted names: rows of faces/ by face_id, images by image_id."""
        if items and is_face_item(items[0]):
            for _, row in read_rows(items):
                if isinstance(row, FaceRow) and row.columns["face_id"] in wanted:
                    yield row.columns["face_id"], row
            return
        for item, data in read_items(
            [item for item in items if item.image_id in wanted], max_bytes=self.config.inputs.max_bytes
        ):
            yield item.image_id, data

    def _crop(
        self, found: bytes | FaceRow | Exception | None, transform: NDArray[np.float64]
    ) -> NDArray[np.float32] | Exception:
        if found is None:
            return ReadError("the image is no longer among the inputs")
        if isinstance(found, Exception):
            return found
        limit = self.config.annotate.max_pixels
        try:
            if isinstance(found, FaceRow):
                return found.warped(decode_image(found.crop, max_pixels=limit), transform)
            return warp(decode_image(found, max_pixels=limit), transform)
        except Exception as error:  # any failure of a library costs this image only
            return error
