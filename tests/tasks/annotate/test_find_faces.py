"""Images to faces: numbering, quarantine by stage, groups and batches. dlib finds the faces; faults are injected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

import tasks.annotate.find_faces
from schemas.annotate import AnnotateConfig
from schemas.ledger import Item, Quarantined
from tasks.annotate.annotators import CompositeAnnotator, Detection, load_annotator
from tasks.annotate.find_faces import FaceFinder, apart
from tasks.sources.read import MAX_BYTES


def portrait(size: int = 200) -> Image.Image:
    """A public-domain photograph, cut to the head."""
    return Image.fromarray(skimage.data.astronaut()).crop((110, 0, 330, 220)).resize((size, size))


def save(image: Image.Image, path: Path) -> Path:
    image.save(path, "JPEG", quality=92)
    return path


def items_of(*paths: Path, **changes: object) -> list[Item]:
    return [Item(index, str(path), **changes) for index, path in enumerate(paths)]


def dlib_finder() -> FaceFinder:
    config = AnnotateConfig()
    return FaceFinder(load_annotator(config), config, MAX_BYTES)


def find(finder: FaceFinder, items: list[Item]) -> tuple[list, list[Quarantined]]:
    quarantine: list[Quarantined] = []
    return [pair for group in finder.find(items, quarantine) for pair in group], quarantine


@pytest.fixture(scope="module")
def crowd(tmp_path_factory) -> Path:
    """Three faces of different sizes; the largest is neither the first nor the last from the left."""
    image = Image.new("RGB", (640, 320), "gray")
    for x, size in ((0, 140), (150, 300), (460, 180)):
        image.paste(portrait(size), (x, 10))
    return save(image, tmp_path_factory.mktemp("crowd") / "crowd.jpg")


def test_faces_are_numbered_from_the_largest(crowd):
    found, quarantine = find(dlib_finder(), items_of(crowd))
    assert quarantine == []
    assert [face.index for _, face in found] == [0, 1, 2]
    centres = [face.landmarks[:, 0].mean() for _, face in found]
    assert [sum(x > edge for edge in (145, 455)) for x in centres] == [1, 2, 0]  # middle, right, left
    assert all(face.size == (640, 320) and source.image.shape == (320, 640, 3) for source, face in found)


def test_one_face_is_tried_again_under_its_own_number(crowd):
    every, _ = find(dlib_finder(), items_of(crowd))
    (only,), quarantine = find(dlib_finder(), items_of(crowd, face_index=1))
    assert quarantine == []
    assert only[1].index == 1
    np.testing.assert_array_equal(only[1].landmarks, every[1][1].landmarks)
    none, (row,) = find(dlib_finder(), items_of(crowd, face_index=7))
    assert none == []
    assert (row.stage, row.error, row.face_index) == ("detect", "NoFaceError", 7)


def test_each_trouble_costs_one_image_and_says_where(tmp_path):
    good = save(portrait(), tmp_path / "good.jpg")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(good.read_bytes()[:3000])
    plain = save(Image.new("RGB", (100, 80), "white"), tmp_path / "plain.jpg")
    missing = tmp_path / "missing.jpg"
    again = save(portrait(180), tmp_path / "again.jpg")
    found, quarantine = find(dlib_finder(), items_of(good, cut, missing, plain, again))
    assert [Path(face.item.uri).name for _, face in found] == ["good.jpg", "again.jpg"]
    by_name = {Path(row.uri).name: (row.stage, row.error) for row in quarantine}
    assert by_name == {
        "cut.jpg": ("decode", "ImageError"),
        "missing.jpg": ("read", "FileNotFoundError"),
        "plain.jpg": ("detect", "NoFaceError"),
    }


class Faulty:
    """Every step of a provider: three faces at known places; a step fails, or answers NaN, where `bad` says so."""

    def __init__(self, bad: dict[str, set[float]]) -> None:
        self.bad = bad  # step: brightness of images (detect) or left edges of boxes (landmarks)
        self.batches: list[int] = []

    def detect_batch(self, images: list[np.ndarray]) -> list[list[Detection]]:
        if any(float(image[0, 0, 0]) in self.bad.get("detect", ()) for image in images):
            raise RuntimeError("out of memory")
        return [[Detection((x, 0, x + 10, 10), 1.0) for x in (30.0, 20.0, 10.0)] for _ in images]

    def landmarks_batch(self, images: list[np.ndarray], detections: list[Detection]) -> list[np.ndarray]:
        self.batches.append(len(images))
        edges = [detection.bbox[0] for detection in detections]
        if set(edges) & self.bad.get("landmarks", set()):
            raise RuntimeError("a bad row")
        points = [np.full((68, 2), edge, np.float32) for edge in edges]
        for edge, each in zip(edges, points, strict=True):
            each[3] = np.nan if edge in self.bad.get("nan", ()) else edge
        return points


def faulty_finder(bad: dict[str, set[float]]) -> tuple[FaceFinder, Faulty]:
    provider = Faulty(bad)
    annotator = CompositeAnnotator(dict.fromkeys(("detect", "landmarks", "segment", "embed"), provider))
    return FaceFinder(annotator, AnnotateConfig(), MAX_BYTES), provider


@pytest.fixture
def greys(tmp_path) -> list[Item]:
    paths = []
    for level in range(5):
        paths.append(tmp_path / f"{level}.png")
        Image.new("RGB", (60, 60), (level, level, level)).save(paths[-1])
    return items_of(*paths)


def outcome(finder: FaceFinder, items: list[Item]) -> tuple[list[tuple[int, int]], list[tuple[int, str, int | None]]]:
    found, quarantine = find(finder, items)
    return [(f.item.index, f.index) for _, f in found], [(q.index, q.stage, q.face_index) for q in quarantine]


def test_one_bad_image_in_a_batch_of_detections(greys):
    found, lost = outcome(faulty_finder({"detect": {2.0}})[0], greys)
    assert found == [(image, face) for image in (0, 1, 3, 4) for face in range(3)]
    assert lost == [(2, "detect", None)]


@pytest.mark.parametrize("fault", ["landmarks", "nan"])
def test_one_bad_face_in_a_batch_of_landmarks(greys, fault):
    finder, provider = faulty_finder({fault: {20.0}})
    found, lost = outcome(finder, greys)
    assert found == [(image, face) for image in range(5) for face in (0, 2)]
    assert lost == [(image, "landmark", 1) for image in range(5)]
    assert (
        max(provider.batches) == tasks.annotate.find_faces.ROWS_AT_ONCE
    )  # faces of several images went through together


def test_groups_are_bounded_by_images_and_by_pixels(greys, monkeypatch):
    everything = outcome(faulty_finder({})[0], greys)
    for limits in ({"IMAGES_AT_ONCE": 2}, {"PIXELS_AT_ONCE": 2 * 60 * 60}, {"PIXELS_AT_ONCE": 1}):
        with monkeypatch.context() as patch:
            for name, value in limits.items():
                patch.setattr(tasks.annotate.find_faces, name, value)
            finder = faulty_finder({})[0]
            groups = [len({source.item.index for source, _ in group}) for group in finder.find(greys, [])]
            assert max(groups) == (1 if limits.get("PIXELS_AT_ONCE") == 1 else 2)
            assert outcome(finder, greys) == everything


def test_apart_gives_each_row_its_own_answer_or_error():
    def work(rows: list[int]) -> list[int]:
        if 3 in rows or 8 in rows:
            raise ValueError(f"bad {rows}")
        return [row * 10 for row in rows]

    answers = apart(list(range(10)), work, at_once=4)
    assert [a for a in answers if not isinstance(a, Exception)] == [0, 10, 20, 40, 50, 60, 70, 90]
    assert {index: str(a) for index, a in enumerate(answers) if isinstance(a, Exception)} == {
        3: "bad [3]",
        8: "bad [8]",
    }
    assert apart([], work) == []
