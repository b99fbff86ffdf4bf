"""The NoW dataset (Sanyal et al. 2019) as it is distributed: images, face boxes, scans and their seven landmarks.

    imagepathsvalidation.txt, imagepathstest.txt          <subject>/<challenge>/<image>.jpg, one a line
    iphone_pictures/<subject>/<challenge>/<image>.jpg
    detected_face/<subject>/<challenge>/<image>.npy     a dictionary with left, top, right and bottom, pixels
    scans/<subject>/<one>.obj                             neutral, millimetres
    scans_lmks_onlypp/<subject>/<one>.pp                  seven picked points in the order of the benchmark

Lists, scans and landmarks are looked for in the folder itself and in `final_release_version/` below it, images and
boxes likewise: the parts are downloaded one by one, and users unpack them in both places.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deca_core.assets.unpickle import load_npy
from deca_core.crop import Square
from deca_core.metrics import MetricError, to_millimetres
from schemas.ledger import Item
from tasks.measure.world_truth import EvaluateError
from tasks.store.scratch import temp_folder
from tasks.store.storage import Store

RELEASE = "final_release_version"
LISTS = {"validation": "imagepathsvalidation.txt", "test": "imagepathstest.txt"}
IMAGES, BOXES, SCANS, LANDMARKS = "iphone_pictures", "detected_face", "scans", "scans_lmks_onlypp"
CROP_SCALE = 1.6  # of the box's side, as the paper's evaluation crops
POINT = re.compile(r"<point\b([^>]*)/?>")
COORDINATE = re.compile(r"""\b([xyz])\s*=\s*["']([^"']+)["']""")


@dataclass(frozen=True)
class NowImage:
    """A line of the list, without its extension."""

    place: str  # <subject>/<challenge>/<image>.jpg
    name: str
    subject: str
    challenge: str


class NowDataset:
    """One list of the dataset. Raises EvaluateError where a file is missing or malformed."""

    def __init__(self, source: str, which: str = "validation", unit: str = "auto") -> None:
        self.root, self.unit = Store(source), unit
        name = self._place(LISTS[which])
        text = self.root.read(name).decode()
        self.images = [_parse_line(line.strip(), self.root.join(name)) for line in text.splitlines() if line.strip()]
        self.list_hash = hashlib.sha256(text.encode()).hexdigest()
        self._subjects = {image.subject for image in self.images}
        self.scan = lru_cache(maxsize=2)(self._scan)

    def items(self) -> Iterator[Item]:
        """Yield the images, numbered as in the list. EvaluateError, before any work, where a subject has no scan."""
        for subject in sorted(self._subjects):
            self._only(SCANS, subject, (".obj",))
            self._only(LANDMARKS, subject, (".pp", ".txt"))
        folder = self.root.join(self._place(IMAGES))
        return (Item(index, f"{folder}/{image.place}") for index, image in enumerate(self.images))

    def square(self, image: NowImage) -> Square:
        """Return the crop square of an image: its box's mean side times 1.6, about its centre."""
        place = f"{self._place(BOXES)}/{image.name}.npy"
        with temp_folder("box") as folder:
            copy = folder / "box.npy"
            copy.write_bytes(self.root.read(place))
            box = load_npy(copy)
        try:
            left, top, right, bottom = (float(box[side]) for side in ("left", "top", "right", "bottom"))
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise MetricError(f"{self.root.join(place)}: no dictionary of left, top, right and bottom") from error
        return Square(((left + right) / 2, (top + bottom) / 2), (right - left + bottom - top) / 2).scaled(CROP_SCALE)

    def _scan(self, subject: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Vertices (N,3) and landmarks (7,3) of a subject, millimetres. Raises MetricError where they make no sense."""
        scan, landmarks = self._only(SCANS, subject, (".obj",)), self._only(LANDMARKS, subject, (".pp", ".txt"))
        vertices = obj_vertices(self.root.read(scan), self.root.join(scan))
        points = picked_points(self.root.read(landmarks).decode(), self.root.join(landmarks))
        factor = to_millimetres(points, self.unit)
        return vertices * factor, points * factor

    def _place(self, name: str) -> str:
        """A file or folder, in the root or in the release below it."""
        for place in (name, f"{RELEASE}/{name}"):
            if self.root.exists(place):
                return place
        raise EvaluateError(
            f"{self.root.uri} has no {name}, neither directly nor in {RELEASE}/. It should hold the NoW dataset as it "
            "is distributed (docs/evaluate.md); an archive of deca synth needs benchmark=world"
        )

    def _only(self, kind: str, subject: str, endings: tuple[str, ...]) -> str:
        folder = f"{self._place(kind)}/{subject}"
        found = [name for name in self.root.list(folder) if name.lower().endswith(endings)]
        if len(found) != 1:
            raise EvaluateError(
                f"{self.root.join(folder)} holds {len(found)} files {' or '.join(endings)}, expected one: complete the "
                "dataset, or take the subject out of the list"
            )
        return found[0]


def _parse_line(line: str, uri: str) -> NowImage:
    parts = line.split("/")
    if len(parts) != 3 or ".." in parts:
        raise EvaluateError(f"{uri}: {line!r} is not <subject>/<challenge>/<image>")
    return NowImage(line, line.rpartition(".")[0] or line, parts[0], parts[1])


def obj_vertices(data: bytes, uri: str) -> NDArray[np.float64]:
    """Return the vertices (N,3) of a Wavefront file, without colours."""
    rows = [line.split()[1:4] for line in data.splitlines() if line.startswith((b"v ", b"v\t"))]
    try:
        vertices = np.array(rows, np.float64).reshape(-1, 3)
    except ValueError as error:
        raise MetricError(f"{uri}: a vertex is not three numbers") from error
    if not len(vertices) or not np.isfinite(vertices).all():
        raise MetricError(f"{uri}: {len(vertices)} vertices, not all of them finite")
    return vertices


def picked_points(text: str, uri: str) -> NDArray[np.float64]:
    """Return the seven landmarks (7,3) of MeshLab's picked points, or of a text file with three numbers per line.

    Read by pattern, not as XML: a foreign document's entities have nothing to say here.
    """
    points = [dict(COORDINATE.findall(found)) for found in POINT.findall(text)]
    try:
        rows = [[float(point[axis]) for axis in "xyz"] for point in points]
        if not points:
            rows = [[float(number) for number in line.split()] for line in text.splitlines() if line.strip()]
        landmarks = np.array(rows, np.float64)
    except (KeyError, ValueError) as error:
        raise MetricError(f"{uri}: a point is not three numbers") from error
    if landmarks.shape != (7, 3) or not np.isfinite(landmarks).all():
        raise MetricError(f"{uri}: an array of shape {landmarks.shape}, expected seven points")
    return landmarks
