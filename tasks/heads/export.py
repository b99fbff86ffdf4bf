"""The worker of export: rows of reconstructions/ to files for other programs, and a row for each head.

files/ab/<face_id>/head.glb                                  skeleton, morph targets, textures inside
files/ab/<face_id>/head.obj  .mtl  dense.obj  texture.jpg  normals.png  displacement.png
files/ab/<face_id>/head.ply  dense.ply  head.npz
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deca_core import Codes, Reconstruction
from deca_core.codes import CODE_NAMES
from deca_core.detail import MAX_DISPLACEMENT
from deca_core.errors import DecaError
from deca_core.export import glb, rig_of
from deca_core.export.gltf import RiggedHead
from deca_core.export.maps import jpeg, png_of_displacement, png_of_normals, tangent_normals, texture
from deca_core.export.mesh import Mesh, coarse_mesh, dense_mesh
from deca_core.export.obj import mtl, npz, npz_arrays, obj, ply, vertex_colours
from deca_core.uv import image_on_uv
from schemas.export import ExportConfig, exports_schema
from schemas.ledger import Item, Quarantined, Stage, StoredFile
from schemas.parquet import fixed_values
from tasks.heads.crops import CropReader
from tasks.heads.selection import (
    HeadsError,
    codes_of,
    config_of,
    heads_plan,
    model_for,
    read_head_items,
    unit_of,
)
from tasks.models.outputs import head_of
from tasks.store.ahead import in_order
from tasks.store.storage import StorageError, Store
from tasks.units.commit import UnitOutput
from tasks.units.plan import FILES

COLUMNS = (
    *("face_id", "image_id", "identity_id", "checkpoint", "crop_transform", *CODE_NAMES),
    *("displacement", "displacement_file", "texture"),
)
HEADS_AT_ONCE = 4  # uploaded together
SAFE = re.compile(r"[\w-][\w.-]*")  # a face_id that can name a folder

Files = dict[str, bytes]


class DecodeError(DecaError):
    """Codes that are not finite, or a face_id that cannot name a folder."""


@dataclass(frozen=True, eq=False)
class DecodedHead:
    """A decoded head: a batch of one."""

    codes: Codes
    out: Reconstruction
    on_uv: Tensor | None  # the photograph on the UV map (1,3,256,256)


class ExportWorker:
    """Holds the model and the rig, and turns units into files; one in each Ray actor."""

    def __init__(self, config: ExportConfig) -> None:
        self.config = config
        self.model = model_for(config.source, config.checkpoint, config.bundle)
        self.rig = rig_of(self.model.bundle, config.expressions, config.correctives)
        self.limit = MAX_DISPLACEMENT + float(self.model.fixed_displacement.abs().max())
        self.store, self.plan = Store(config.dest), heads_plan(config.source)
        self.crops = CropReader(self.plan, config_of(config.source))

    def process(self, items: Sequence[Item]) -> UnitOutput:
        """A row of every head in the items' order; a failed one is quarantined alone."""
        quarantine: list[Quarantined] = []
        stored: list[StoredFile] = []
        rows: list[dict[str, Any]] = []
        for row, files in in_order(self._publish, self._made(items, quarantine), HEADS_AT_ONCE):
            stored += files
            rows.append(row | {"files": [one.file for one in files], "bytes": sum(one.bytes for one in files)})
        return UnitOutput(pa.Table.from_pylist(rows, schema=exports_schema()), quarantine, stored)

    def _publish(self, made: tuple[dict[str, Any], Files]) -> tuple[dict[str, Any], list[StoredFile]]:
        row, files = made
        folder = f"{FILES}/{row['face_id'][:2]}/{row['face_id']}"
        stored = []
        for name, data in files.items():
            size, sha256 = self.store.write(f"{folder}/{name}", data)
            stored.append(StoredFile(file=f"{folder}/{name}", bytes=size, sha256=sha256))
        return row, stored

    def _made(self, items: Sequence[Item], quarantine: list[Quarantined]) -> Iterator[tuple[dict[str, Any], Files]]:
        """(columns of the row, files by name) of each head."""
        for item, row, crop in self._read(items, quarantine):
            stage: Stage = "decode"
            try:  # any failure of a library costs this head only
                head = self._decode(row, crop)
                stage = "encode"
                files = self._files(str(row["face_id"][0]), head)
            except StorageError:
                raise
            except Exception as error:
                quarantine.append(Quarantined.of(item, stage, error))
                continue
            names = ("face_id", "image_id", "identity_id", "checkpoint")
            about = {name: row[name][0].as_py() for name in names}
            colours = "albedo" if head.on_uv is None else "picture"
            yield about | {"source_uri": item.source_uri, "colours": colours}, files

    # --- reading ------------------------------------------------------------------------------------------------------

    def _read(
        self, items: Sequence[Item], quarantine: list[Quarantined]
    ) -> Iterator[tuple[Item, pa.Table, NDArray[np.float32] | None]]:
        """Rows with the crops that they were made from, None where not needed or missing."""
        for unit, run in groupby(read_head_items(self.plan, items, COLUMNS), lambda pair: unit_of(pair[0])):
            good: list[tuple[Item, pa.Table]] = []
            for item, row in run:
                if isinstance(row, Exception):
                    quarantine.append(Quarantined.of(item, "read", row))
                else:
                    good.append((item, row))
            crops: list[Any] = [None] * len(good)
            if good and "texture" not in good[0][1].column_names and self._needs_crops:
                crops = self.crops.read(pa.concat_tables([row for _, row in good]), unit)
            for (item, row), crop in zip(good, crops, strict=True):
                yield item, row, None if isinstance(crop, Exception) else crop

    @property
    def _needs_crops(self) -> bool:
        return set(self.config.formats) != {"npz"}

    @torch.inference_mode()
    def _decode(self, row: pa.Table, crop: NDArray[np.float32] | None) -> DecodedHead:
        face_id = str(row["face_id"][0])
        if not SAFE.fullmatch(face_id):
            raise DecodeError(f"the face_id {face_id!r} cannot name a folder")
        codes = codes_of(row)
        displacement = self._displacement(row, codes)
        if not all(value.isfinite().all() for value in (*(value for _, value in codes.items()), displacement)):
            raise DecodeError("codes or displacement are not finite. Run: deca verify")
        out = head_of(self.model, codes, displacement)
        if "texture" in row.column_names and self._needs_crops:
            return DecodedHead(codes, out, _stored_texture(row))
        if crop is None:
            return DecodedHead(codes, out, None)
        return DecodedHead(codes, out, image_on_uv(self.model.atlas, out.projected, torch.from_numpy(crop)[None]))

    def _displacement(self, row: pa.Table, codes: Codes) -> Tensor:
        """Displacement (1,256,256) in metres: the stored map (16 bits), else that of F_d."""
        if "displacement" in row.column_names:
            return torch.from_numpy(fixed_values(row, "displacement").copy())
        if "displacement_file" in row.column_names:
            field = row.schema.field("displacement_file").metadata
            name = str(row["displacement_file"][0])
            try:
                with Image.open(io.BytesIO(self.plan.store.read(name))) as image:
                    steps = np.asarray(image).astype(np.float32)
            except FileNotFoundError as error:
                raise HeadsError(
                    f"{self.plan.store.join(name)} is missing. Run: deca verify {self.plan.dest}"
                ) from error
            return torch.from_numpy(steps * float(field[b"scale"]) + float(field[b"offset"]))[None]
        return self.model.displacement(codes)[:, 0]

    # --- writing ------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _files(self, face_id: str, head: DecodedHead) -> Files:
        """The files of all formats, by name."""
        formats = self.config.formats
        files: Files = {}
        colours = texture(self.model, head.codes, head.out, head.on_uv)[0] if set(formats) != {"npz"} else None
        mesh = coarse_mesh(self.model, head.out) if set(formats) != {"glb"} else None
        dense = dense_mesh(self.model, head.out) if self.config.dense else None
        if {"glb", "obj"} & set(formats):
            assert colours is not None
            painted, bumps = jpeg(colours), png_of_normals(tangent_normals(self.model, head.out))
        if "glb" in formats:
            files["head.glb"] = self._glb(face_id, head.codes, painted, bumps)
        if mesh is None:
            return files
        if "obj" in formats:
            files |= self._obj(face_id, mesh, dense, head.out)
            files |= {"texture.jpg": painted, "normals.png": bumps}
        meshes = {"head": mesh} | ({"dense": dense} if dense else {})
        if "ply" in formats:
            assert colours is not None
            pixels = (colours * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            files |= {f"{name}.ply": ply(one, vertex_colours(one, pixels)) for name, one in meshes.items()}
        if "npz" in formats:
            codes = {name: value[0].numpy() for name, value in head.codes.items()}
            files["head.npz"] = npz(npz_arrays(mesh, dense, head.out.displacement[0, 0].numpy(), codes))
        return files

    def _glb(self, face_id: str, codes: Codes, painted: bytes, bumps: bytes) -> bytes:
        shape, exp, pose = (value[0].numpy() for value in (codes.shape, codes.exp, codes.pose))
        head = RiggedHead(face_id, shape, exp, pose, painted, bumps, {"face_id": face_id})
        return glb(self.rig, head, sparse=bool(self.config.sparse))

    def _obj(self, face_id: str, mesh: Mesh, dense: Mesh | None, out: Reconstruction) -> Files:
        files = {
            "head.obj": obj(mesh, face_id, "head.mtl"),
            "head.mtl": mtl("texture.jpg", "normals.png", "displacement.png", self.limit),
            "displacement.png": png_of_displacement(out.displacement[0, 0], self.limit),
        }
        return files if dense is None else files | {"dense.obj": obj(dense, face_id, "head.mtl")}


def _stored_texture(row: pa.Table) -> Tensor | None:
    """The photograph on the UV map as stored in the row, (1,3,256,256)."""
    data = (row["texture"][0].as_py() or {}).get("bytes")
    if data is None:
        return None
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("RGB"))
    return torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32) / 255)[None]
