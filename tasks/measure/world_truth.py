"""Ground truth of a `deca synth` archive: rows by number, their images, and the driver of each face."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from deca_core.codes import NUM_DETAIL, Codes
from deca_core.errors import DecaError
from deca_world import Subject, subject
from schemas.ledger import Item
from schemas.parquet import fixed_values
from tasks.measure.synth import PHOTOS, TRUTH
from tasks.sources.discover import discover
from tasks.sources.images import decode_image
from tasks.store.storage import Store
from tasks.units.commits import commit_table, read_parts
from tasks.units.plan import PlanError, load_plan

FIXED = ("landmarks", "shape", "tex", "exp", "pose", "cam", "light", "vertices", "displacement")


class EvaluateError(DecaError):
    """A benchmark that is missing, incomplete, or about another head."""


@dataclass(frozen=True, eq=False)
class TrueFace:
    """Everything known about one image; `codes.cam` is for the whole image, `codes.detail` is zero."""

    face_id: str
    identity: str
    size: int  # pixels on a side of the image
    codes: Codes  # a batch of one
    landmarks: NDArray[np.float32]  # (68, 2) pixels of the image
    vertices: NDArray[np.float32]  # (V, 3) metres, posed
    displacement: NDArray[np.float32]  # (256, 256) metres
    normals: NDArray[np.float32]  # (3, 256, 256) of the displaced surface
    skin_mask: NDArray[np.uint8]  # (n, n, 3), 255 on visible skin


class WorldTruth:
    """truth.parquet/ of an archive, whose rows are numbered as its committed parts hold them.

    Raises EvaluateError where there is none or it is not complete.
    """

    def __init__(self, source: str) -> None:
        self.source = Store(source).uri
        self.store = Store(Store(source).join(TRUTH))
        try:
            self.plan = load_plan(self.store.uri)
            ledger = commit_table(self.plan, ["sha256"])
            parts = read_parts(self.plan)
        except PlanError as error:
            raise EvaluateError(
                f"{self.source} is no archive of the embedded world ({error}). Make one: deca synth {self.source}. "
                "The NoW dataset needs benchmark=now"
            ) from error
        if len(ledger) < self.plan.units:
            raise EvaluateError(
                f"{self.store.uri}: {self.plan.units - len(ledger)} of {self.plan.units} units are pending. "
                f"Finish it with: deca synth {self.source} --resume"
            )
        self._parts = [(part.file, part.rows) for part in parts if part.rows]
        self._ends = np.cumsum([rows for _, rows in self._parts])
        self.hash = hashlib.sha256("".join(map(str, ledger["sha256"].to_pylist())).encode()).hexdigest()
        names = pa.concat_tables(self._read(part, ["path", "identity_id"]) for part, _ in self._parts)
        self.paths: list[str] = names["path"].to_pylist()
        self.identities: list[str] = names["identity_id"].to_pylist()
        self._drivers = _drivers(self.identities)
        self._part = lru_cache(maxsize=2)(self._read)

    @property
    def bundle(self) -> str:
        """Hash of the head that was photographed."""
        return self.plan.record.weights["bundle"]

    @property
    def seed(self) -> int:
        """Seed of the world."""
        return int(self.plan.record.source.rpartition("/")[2])

    def subject(self, identity: str) -> Subject:
        """Return the parameters of an identity of this world."""
        return subject(self.seed, int(identity))

    def driver(self, index: int) -> int | None:
        """Return the index of the image whose expression drives image `index`: of the next subject; None if alone."""
        return self._drivers[index]

    def items(self) -> Iterator[Item]:
        """Yield the images in the order of the truth. EvaluateError where one is missing."""
        photos = Store(self.source).join(PHOTOS)
        found = {f"{PHOTOS}/{item.source_uri[len(photos) + 1 :]}": item for item in discover(photos)}
        missing = [path for path in self.paths if path not in found]
        if missing:
            raise EvaluateError(
                f"{self.source}: {len(missing)} of {len(self.paths)} images of the truth are missing, {missing[0]} "
                f"first. Make them again with: deca synth {self.source} --new"
            )
        return (replace(found[path], index=index, root="") for index, path in enumerate(self.paths))

    def faces(self, indices: Sequence[int]) -> Iterator[TrueFace]:
        """Return the truth of images by index; fastest in the order of the truth."""
        for index in indices:
            which = int(np.searchsorted(self._ends, index, side="right"))
            part, rows = self._parts[which]
            yield _face(self._part(part).slice(index - int(self._ends[which] - rows), 1))

    def _read(self, part: str, columns: list[str] | None = None) -> pa.Table:
        return pq.read_table(io.BytesIO(self.store.read(part)), columns=columns)


def _drivers(identities: Sequence[str]) -> list[int | None]:
    """Return for every image the image of the same number of the next subject, cyclically."""
    subjects: dict[str, list[int]] = {}
    for index, identity in enumerate(identities):
        subjects.setdefault(identity, []).append(index)
    names = list(subjects)
    following = dict(zip(names, [*names[1:], *names[:1]], strict=True))
    drivers: list[int | None] = [None] * len(identities)
    for name, own in subjects.items():
        others = subjects[following[name]]
        for number, index in enumerate(own):
            drivers[index] = others[number % len(others)] if len(names) > 1 else None
    return drivers


def _face(row: pa.Table) -> TrueFace:
    fixed = {name: fixed_values(row, name).copy() for name in FIXED}
    plain = row.select(["face_id", "identity_id", "size", "normals", "skin_mask"]).to_pylist()[0]
    codes = {name: torch.from_numpy(fixed[name]) for name in ("shape", "tex", "exp", "pose", "cam", "light")}
    normals = decode_image(plain["normals"]["bytes"]).transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
    return TrueFace(
        face_id=plain["face_id"],
        identity=plain["identity_id"],
        size=plain["size"],
        codes=Codes(**codes, detail=torch.zeros(1, NUM_DETAIL)),
        landmarks=fixed["landmarks"][0],
        vertices=fixed["vertices"][0],
        displacement=fixed["displacement"][0],
        normals=normals,
        skin_mask=decode_image(plain["skin_mask"]["bytes"]),
    )
