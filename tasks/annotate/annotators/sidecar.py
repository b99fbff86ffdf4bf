"""Sidecar labels beside the images: landmarks, skin masks, identities; in folders, buckets, tar and zip archives."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from schemas.annotate import AnnotateConfig
from schemas.ledger import Item
from tasks.annotate.annotators.base import AnnotatorError, Detection, check_image, largest_first
from tasks.sources.archives import GZIP_TAR_SUFFIXES, archive_members, listed_name, read_member
from tasks.sources.labels import LabelError, read_identity, read_landmarks, read_mask
from tasks.sources.read import read_item

FORMAT = "1"  # of the files that are understood; part of a plan's versions
LABEL_SUFFIXES = (".npy", ".txt", ".mat", ".pts", ".png")
MAX_BYTES = 256 * 2**20  # of one label file: a mask of 100 million float pixels would be 400 MB, one of bytes 100 MB
SAME_FACE = 0.1  # share of the union of two boxes that labels and a detected face must have in common

Label = TypeVar("Label")


class SidecarAnnotator:
    """Steps detect, landmarks and segment of the `Annotator` protocol, for the image of one item."""

    def __init__(self, config: AnnotateConfig, item: Item | None = None) -> None:
        self._config = config
        self._item = item

    def for_item(self, item: Item) -> SidecarAnnotator:
        """Return the labels of another image."""
        return SidecarAnnotator(self._config, item)

    @property
    def versions(self) -> dict[str, str]:
        return {"sidecar": FORMAT}

    def detect(self, image: NDArray[np.uint8]) -> list[Detection]:
        """Return a face per set of landmarks: their extent, with score 1."""
        check_image(image)
        faces = [_detection(points) for points in self._landmarks]
        height, width = image.shape[:2]
        for face in faces:
            x0, y0, x1, y1 = face.bbox
            if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
                raise LabelError(
                    f"the labelled face at {x0:.0f}..{x1:.0f}, {y0:.0f}..{y1:.0f} lies outside the image of "
                    f"{width} x {height} pixels: labels of another size, or made before the image was turned upright"
                )
        return largest_first(faces, self._config.max_faces)

    def landmarks(self, image: NDArray[np.uint8], detection: Detection) -> NDArray[np.float32]:
        """Return the labels whose extent overlaps most with a detected face."""
        overlaps = [_overlap(_detection(points), detection) for points in self._landmarks]
        if not overlaps or max(overlaps) < SAME_FACE:
            raise LabelError(
                f"no labels for the face at {tuple(round(v) for v in detection.bbox)}: "
                f"{len(overlaps)} labelled faces lie elsewhere"
            )
        return self._landmarks[int(np.argmax(overlaps))]

    def segment(self, image: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the mask of the whole image."""
        height, width = image.shape[:2]
        name, mask = self._mask
        if mask.shape != (height, width):
            raise LabelError(
                f"{name}: the mask has {mask.shape[1]} x {mask.shape[0]} pixels, the image {width} x {height}"
            )
        return mask.copy()

    def identity(self) -> str | None:
        """Return the identity label of the image, or None where no file of `sidecar.identity` exists."""
        found = self._search(self._config.sidecar.identity, read_identity)
        return found[1] if found else None

    @cached_property
    def _landmarks(self) -> NDArray[np.float32]:
        return self._first(self._config.sidecar.landmarks, read_landmarks, "landmarks")[1]

    @cached_property
    def _mask(self) -> tuple[str, NDArray[np.uint8]]:
        limit, sidecar = self._config.max_pixels, self._config.sidecar
        return self._first(sidecar.mask, lambda data, name: read_mask(data, name, limit, sidecar.mask_values), "mask")

    def _first(self, patterns: Sequence[str], read: Callable[[bytes, str], Label], what: str) -> tuple[str, Label]:
        """As `_search`. Raises LabelError if none exists."""
        found = self._search(patterns, read)
        if found is None:
            assert self._item is not None
            names = ", ".join(_names(patterns, self._item))
            raise LabelError(f"no {what} beside {self._item.source_uri}: looked for {names} (annotate.sidecar.{what})")
        return found

    def _search(self, patterns: Sequence[str], read: Callable[[bytes, str], Label]) -> tuple[str, Label] | None:
        """Name and content of the first pattern that exists."""
        if self._item is None:
            raise AnnotatorError("the provider sidecar needs to know whose labels: use annotator.for_item(item)")
        folder = _place(self._item).rpartition("/")[0]
        for label in _names(patterns, self._item):
            data = _read(self._item, folder, label)
            if data is not None:
                return label, read(data, label)
        return None


def _place(item: Item) -> str:
    return listed_name(item) or item.uri


def _names(patterns: Sequence[str], item: Item) -> list[str]:
    """Return the label file names of an image."""
    name = _place(item).rpartition("/")[2]
    stem = name.rpartition(".")[0] or name
    return [pattern.replace("{stem}", stem).replace("{name}", name) for pattern in patterns]


def _read(item: Item, folder: str, label: str) -> bytes | None:
    """Return the bytes of a file relative to the image's folder, or None if it does not exist."""
    if item.member is None:
        protocol, found, path = folder.rpartition("://")
        joined = posixpath.normpath(f"{path}/{label}")
        try:
            return read_item(Item(item.index, f"{protocol}{found}{joined}"), MAX_BYTES)
        except FileNotFoundError:
            return None
    if item.uri.lower().endswith(GZIP_TAR_SUFFIXES):
        raise LabelError(
            f"{item.uri}: labels inside a packed tar are not supported, because finding them means unpacking all of it "
            "for every image. Unpack it, or pack it as .tar or .zip"
        )
    place = _labels(item.uri, item.etag).get(posixpath.normpath(f"{folder}/{label}" if folder else label))
    if place is None:
        return None
    offset, size = place
    if size > MAX_BYTES:
        raise LabelError(f"{label}: {size} bytes, more than the limit of {MAX_BYTES}")
    return read_member(replace(item, member=label, offset=offset, size=size), MAX_BYTES)


@lru_cache(maxsize=4)
def _labels(uri: str, etag: str | None) -> dict[str, tuple[int, int]]:
    """Return (offset, size) of every possible label in an archive, listed once per process."""
    members = ((posixpath.normpath(name), offset, size) for name, offset, size in archive_members(uri))
    return {name: (offset, size) for name, offset, size in members if name.lower().endswith(LABEL_SUFFIXES)}


def _detection(points: NDArray[np.float32]) -> Detection:
    """Return the extent of landmarks (68, 2) as a box: a pixel's centre is half a pixel from its edges."""
    (x0, y0), (x1, y1) = points.min(axis=0) + 0.5, points.max(axis=0) + 0.5
    return Detection((float(x0), float(y0), float(x1), float(y1)), 1.0)


def _overlap(a: Detection, b: Detection) -> float:
    """Intersection over union of two boxes."""
    width = min(a.bbox[2], b.bbox[2]) - max(a.bbox[0], b.bbox[0])
    height = min(a.bbox[3], b.bbox[3]) - max(a.bbox[1], b.bbox[1])
    both = max(width, 0.0) * max(height, 0.0)
    return both / (a.area + b.area - both)
