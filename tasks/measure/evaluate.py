"""Evaluate units: images to predictions to figures, a row per image and method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deca_core import DECA, Codes
from deca_core.crop import crop_transform, square_from_landmarks, warp
from deca_core.errors import DecaError
from deca_core.metrics import MetricError
from schemas.evaluate import METRICS, EvaluateConfig, evaluations_schema
from schemas.ledger import Item, Quarantined, Stage
from tasks.annotate.annotators import load_annotator
from tasks.annotate.find_faces import FaceFinder, record_batch
from tasks.measure.methods import FaceCrop, Method, load_methods
from tasks.measure.now import NowDataset, NowImage
from tasks.measure.world_figures import Prediction, WorldFigures, neutral_distances
from tasks.measure.world_truth import TrueFace, WorldTruth
from tasks.models.loading import GeometryModel, bundle_at
from tasks.sources.images import decode_image
from tasks.sources.read import MAX_BYTES, read_items
from tasks.units.engine import UnitOutput
from tasks.units.plan import load_plan

Row = dict[str, Any]


class EncodeError(DecaError):
    """Codes that are not finite."""


class EvaluateWorker:
    """Turns units into rows; holds networks and truth, one per Ray actor."""

    def __init__(self, config: EvaluateConfig) -> None:
        self.config = config
        self.geometry = GeometryModel(bundle_at(config.bundle))
        self.methods: list[Method] = load_methods(config, self.geometry)
        kind = WorldBenchmark if config.benchmark == "world" else NowBenchmark
        self.benchmark: WorldBenchmark | NowBenchmark = kind(config, self.geometry)

    def process(self, items: Sequence[Item]) -> UnitOutput:
        """Return rows in the order of items, then methods.

        An image that one method fails on is quarantined and has no row of any method: all share the same images."""
        quarantine: list[Quarantined] = []
        crops = list(self.benchmark.crops(items, quarantine))
        beside = list(self.benchmark.companions(crops))
        rows: dict[int, list[Row]] = {crop.item.index: [] for crop in crops}
        for method in self.methods:
            crops = [crop for crop in crops if crop.item.index in rows]
            found = _encoded(method, [*crops, *beside])
            for crop in crops:
                try:
                    rows[crop.item.index].append(self._row(method, crop, found))
                except (EncodeError, MetricError) as error:
                    stage: Stage = "encode" if isinstance(error, EncodeError) else "measure"
                    quarantine.append(Quarantined.of(crop.item, stage, error, message=f"{method.name}: {error}"))
                    del rows[crop.item.index]
        return UnitOutput(_table([row for own in rows.values() for row in own]), quarantine)

    def _row(self, method: Method, crop: FaceCrop, found: dict[int, Codes]) -> Row:
        codes = found.get(crop.item.index)
        if codes is None:
            raise EncodeError("the networks' output is not finite; is the checkpoint sound? Run: deca verify")
        return {
            "source_uri": crop.item.source_uri,
            "challenge": None,
            "method": method.name,
            "shape": codes.shape[0].numpy(),
            **self.benchmark.measure(method, crop, found),
        }


def _encoded(method: Method, crops: Sequence[FaceCrop]) -> dict[int, Codes]:
    """Return codes (1, ...) by item index; those that are not finite are left out."""
    codes = method.encode(crops) if crops else Codes.zeros(0)
    single = {crop.item.index: codes[row : row + 1] for row, crop in enumerate(crops)}
    return {index: own for index, own in single.items() if all(value.isfinite().all() for _, value in own.items())}


class WorldBenchmark:
    """An archive of `deca synth` with its truth."""

    def __init__(self, config: EvaluateConfig, geometry: DECA) -> None:
        self.config = config
        self.truth = WorldTruth(config.source)
        self.figures = WorldFigures(geometry)
        self.plan = load_plan(config.dest)
        self._known: dict[int, TrueFace] = {}  # of the unit in hand
        self.finder = None
        if config.landmarks == "annotator":
            self.finder = FaceFinder(load_annotator(config.annotate), config.annotate, MAX_BYTES)

    def crops(self, items: Sequence[Item], quarantine: list[Quarantined]) -> Iterator[FaceCrop]:
        """Yield the faces of the unit's images."""
        self._known = {}
        yield from self._crops(items, quarantine)

    def companions(self, crops: Sequence[FaceCrop]) -> Iterator[FaceCrop]:
        """Yield faces outside the unit whose expressions drive its faces; one that fails drives none."""
        own = {crop.item.index for crop in crops}
        drivers = {self.truth.driver(index) for index in own} - own - {None}
        size = self.plan.record.size
        units = self.plan.iter_units({index // size for index in drivers if index is not None})
        yield from self._crops([item for unit in units for item in unit.items if item.index in drivers], [])

    def measure(self, method: Method, crop: FaceCrop, found: dict[int, Codes]) -> Row:
        """Return the figures of one face."""
        index = crop.item.index
        truth, codes = self._known[index], found[index]
        driver = self.truth.driver(index)
        driver = driver if driver in found else None
        animated = None
        if driver is not None:
            moved = Codes.animate(codes, found[driver])
            animated = moved, method.detail(moved)[0, 0].numpy()
        predicted = Prediction(codes, method.detail(codes)[0, 0].numpy(), animated)
        person = self.truth.subject(truth.identity)
        figures = self.figures.measure(crop, predicted, truth, person, None if driver is None else self._known[driver])
        return {"face_id": truth.face_id, "identity_id": truth.identity, **figures}

    def _crops(self, items: Sequence[Item], quarantine: list[Quarantined]) -> Iterator[FaceCrop]:
        self._known |= zip(
            (item.index for item in items), self.truth.faces([item.index for item in items]), strict=True
        )
        for item, image, landmarks in self._found(items, quarantine):
            try:
                transform = crop_transform(square_from_landmarks(landmarks))
                crop = warp(image, transform)
            except Exception as error:  # a library error costs this face only
                quarantine.append(Quarantined.of(item, "crop", error))
                continue
            yield FaceCrop(item, transform, crop, self._known[item.index].landmarks, landmarks)

    def _found(
        self, items: Sequence[Item], quarantine: list[Quarantined]
    ) -> Iterator[tuple[Item, NDArray[np.uint8], NDArray[np.float32]]]:
        """Yield images with the landmarks to crop by: the truth, or those of the detected face nearest to it."""
        if self.finder is None:
            for item, image in decoded(items, self.config.annotate.max_pixels, quarantine):
                yield item, image, self._known[item.index].landmarks
            return
        for group in self.finder.find(items, quarantine):
            best: dict[int, tuple[float, Any, Any]] = {}
            for source, face in group:
                true = self._known[face.item.index].landmarks
                apart = float(np.linalg.norm(face.landmarks - true, axis=1).mean())
                if face.item.index not in best or apart < best[face.item.index][0]:
                    best[face.item.index] = apart, source, face
            for _, source, face in best.values():
                yield source.item, source.image, face.landmarks


class NowBenchmark:
    """The NoW dataset: images of subjects with a neutral scan of each."""

    def __init__(self, config: EvaluateConfig, geometry: DECA) -> None:
        self.config, self.geometry = config, geometry
        self.dataset = NowDataset(config.source, config.pictures, config.scan_units)

    def crops(self, items: Sequence[Item], quarantine: list[Quarantined]) -> Iterator[FaceCrop]:
        """Yield the faces in the dataset's boxes."""
        for item, image in decoded(items, self.config.annotate.max_pixels, quarantine):
            try:
                transform = crop_transform(self.dataset.square(self._listed(item)))
                crop = warp(image, transform)
            except Exception as error:  # as in the world
                quarantine.append(Quarantined.of(item, "crop", error))
                continue
            yield FaceCrop(item, transform, crop, None, None)

    def companions(self, crops: Sequence[FaceCrop]) -> Iterator[FaceCrop]:
        """Yield nothing: expressions are unknown."""
        return iter(())

    def measure(self, method: Method, crop: FaceCrop, found: dict[int, Codes]) -> Row:
        """Return the distances of one face."""
        source = self._listed(crop.item)
        scan, landmarks = self.dataset.scan(source.subject)
        return {
            "face_id": source.name,
            "identity_id": source.subject,
            "challenge": source.challenge,
            **neutral_distances(self.geometry, found[crop.item.index].shape, scan, landmarks),
        }

    def _listed(self, item: Item) -> NowImage:
        return self.dataset.images[item.index]


def decoded(
    items: Sequence[Item], max_pixels: int, quarantine: list[Quarantined]
) -> Iterator[tuple[Item, NDArray[np.uint8]]]:
    """Yield images (H,W,3) in the order of the items; those that cannot be read or decoded are quarantined."""
    for item, data in read_items(items):
        stage: Stage = "read"
        try:  # a library error costs this image only
            if isinstance(data, Exception):
                raise data
            stage = "decode"
            image = decode_image(data, max_pixels=max_pixels)
        except Exception as error:
            quarantine.append(Quarantined.of(item, stage, error))
            continue
        yield item, image


def _table(rows: Sequence[Row]) -> pa.Table:
    schema = evaluations_schema()
    figures = {metric.name for metric in METRICS}  # a benchmark has some of them
    columns: dict[str, Any] = {
        name: [row.get(name) if name in figures else row[name] for row in rows] for name in schema.names
    }
    columns["shape"] = np.array([row["shape"] for row in rows], np.float32).reshape(-1, 100)
    return pa.Table.from_batches([record_batch(schema, columns)])
