"""Synth units: photographs of the embedded world and their ground truth."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from deca_world import Limits, Photograph, World
from schemas.ledger import Item
from schemas.parquet import fixed_array
from schemas.reconstruct import quantise
from schemas.world import DISPLACEMENT_LIMIT, SynthConfig, truth_schema
from tasks.models.loading import bundle_at
from tasks.sources.images import encode_png
from tasks.store.storage import Store
from tasks.units.engine import UnitOutput

PHOTOS, TRUTH = "photos", "truth.parquet"


def world_source(config: SynthConfig) -> str:
    """Return the source URI of the world in a plan."""
    return f"world://{config.seed}"


def world_items(config: SynthConfig) -> Iterator[Item]:
    """Yield an item per image, sorted by identity."""
    for index in range(config.identities * config.images_per_identity):
        identity, picture = divmod(index, config.images_per_identity)
        yield Item(index, f"{world_source(config)}/{config.first_identity + identity}/{picture}", root="")


def truth_dest(config: SynthConfig) -> str:
    """Return the URI of the ground truth: a folder of Parquet parts that readers open like one file."""
    return f"{config.dest.rstrip('/')}/{TRUTH}"


class SynthWorker:
    """Renders photographs, publishes them, and returns the ground truth as rows."""

    def __init__(self, config: SynthConfig) -> None:
        self.config = config
        self.world = World(bundle_at(config.bundle))
        self.schema = truth_schema(self.world.bundle.num_vertices)
        self.limits = Limits(yaw=(0.0, config.max_yaw), occluders=config.occluders)
        self.store = Store(f"{config.dest.rstrip('/')}/{PHOTOS}")

    def process(self, items: Sequence[Item]) -> UnitOutput:
        """Publish the images, then return the rows: a committed row always has its image."""
        tar = f"photos-{_numbers(items[0])[0]:06d}-{_numbers(items[0])[1]:03d}.tar"
        members: list[tuple[str, bytes]] = []
        batches = []
        for item in items:
            identity, picture = _numbers(item)
            person = self.world.subject(self.config.seed, identity)
            shot = self.world.shot(person, picture, self.limits)
            photograph = self.world.photograph(person, shot, self.config.size)
            jpeg, name = photograph.jpeg(), self._name(identity, picture)
            if self.config.layout == "tar":
                members.append((name, jpeg))
                name = f"{tar}#{name}"
            else:
                self.store.write(name, jpeg)
            batches.append(self._row(identity, picture, f"{PHOTOS}/{name}", jpeg, photograph))
        if members:
            self.store.write(tar, _tar(members))
        return UnitOutput(pa.Table.from_batches(batches, schema=self.schema))

    def _name(self, identity: int, picture: int) -> str:
        if self.config.layout == "flat":  # a name without the identity
            digest = hashlib.sha256(f"{self.config.seed}/{identity}/{picture}".encode())
            return f"{digest.hexdigest()[:16]}.jpg"
        return f"{identity:06d}/{picture:03d}.jpg"

    def _row(self, identity: int, picture: int, path: str, jpeg: bytes, photograph: Photograph) -> pa.RecordBatch:
        codes = {name: value.numpy() for name, value in photograph.codes.items() if name != "detail"}
        normals = np.rint((photograph.normals.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
        fixed = codes | {
            "landmarks": photograph.landmarks[None],
            "vertices": photograph.vertices[None],
            "displacement": quantise(photograph.displacement[None], DISPLACEMENT_LIMIT),
        }
        plain: dict[str, Any] = {
            "face_id": f"{identity:06d}-{picture:03d}",
            "path": path,
            "sha256": hashlib.sha256(jpeg).hexdigest(),
            "identity_id": f"{identity:06d}",
            "picture": picture,
            "size": self.config.size,
            "skin_mask": {"bytes": encode_png(photograph.skin_mask), "path": None},
            "normals": {"bytes": encode_png(normals), "path": None},
        }
        columns = [
            fixed_array(field, fixed[field.name])
            if field.name in fixed
            else pa.array([plain[field.name]], type=field.type)
            for field in self.schema
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def _numbers(item: Item) -> tuple[int, int]:
    """(identity, image) of an item."""
    identity, picture = item.uri.rsplit("/", 2)[1:]
    return int(identity), int(picture)


def _tar(members: list[tuple[str, bytes]]) -> bytes:
    """A tar of these files; equal contents give equal bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
