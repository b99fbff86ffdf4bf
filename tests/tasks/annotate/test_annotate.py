"""Rows of annotations/ against the embedded world's truth, and what each fault costs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tasks.annotate.annotate
from deca_core.assets import procedural_head
from deca_core.crop import warp
from deca_core.flame import rotation_matrix
from deca_world import Limits, Photograph, World
from schemas.annotate import AnnotateConfig, SidecarConfig
from schemas.faces import CROP_SIZE, QUALITY, annotations_schema
from schemas.ingest import IngestConfig
from schemas.ledger import Item
from schemas.parquet import fixed_values, write_table
from tasks.annotate.annotate import AnnotateWorker, CroppedFace, crop_face
from tasks.annotate.annotators import CompositeAnnotator, Detection
from tasks.annotate.annotators.geometry import apply, invert
from tasks.annotate.find_faces import DecodedImage, Face
from tasks.sources.discover import discover
from tasks.units.engine import UnitOutput
from tests.tasks.annotate.annotators.test_skin import drawn_face
from tests.tasks.sources.test_labels import npy, png

SIZE = 384
SIDECAR = AnnotateConfig(provider="sidecar", sidecar=SidecarConfig(identity=("{stem}.name.txt",)))


def worker(**annotate: Any) -> AnnotateWorker:
    return AnnotateWorker(IngestConfig(source="unused", dest="unused", annotate=AnnotateConfig(**annotate)))


def items_in(folder: Path) -> list[Item]:
    return [item for item in discover(str(folder)) if not item.uri.endswith("_mask.png")]


def opened(cell: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(cell["bytes"]))


def transforms(output: UnitOutput) -> np.ndarray:
    return fixed_values(output.table, "crop_transform").astype(np.float64)


@dataclass(frozen=True)
class Archive:
    """Four photographs, one image of two subjects, one damaged file; and what the worker makes of them."""

    folder: Path
    truth: dict[str, Photograph]
    turns: dict[str, np.ndarray]  # rotation of the head
    output: UnitOutput

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of the single photographs."""
        return [row for row in self.output.table.to_pylist() if Path(row["source_uri"]).name in self.truth]


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Archive:
    folder = tmp_path_factory.mktemp("world")
    world, truth, turns = World(procedural_head()), {}, {}
    for index in range(4):
        someone = world.subject(seed=5, index=index)
        shot = world.shot(someone, 0, Limits(yaw=(0, 30)))
        photograph = world.photograph(someone, shot, SIZE)
        name = f"{index}.jpg"
        truth[name], turns[name] = photograph, rotation_matrix(torch.from_numpy(shot.head)).numpy()
        (folder / name).write_bytes(photograph.jpeg())
    large, small = (Image.fromarray(truth[name].image) for name in ("1.jpg", "3.jpg"))
    both = Image.new("RGB", (SIZE + 200, SIZE), "gray")
    both.paste(small.resize((200, 200)), (0, 0))
    both.paste(large, (200, 0))
    both.save(folder / "both.png")
    (folder / "damaged.jpg").write_bytes((folder / "0.jpg").read_bytes()[:5000])
    return Archive(folder, truth, turns, worker().process(items_in(folder)))


def test_every_face_is_a_row_and_a_damaged_image_costs_itself(archive):
    assert archive.output.table.schema.equals(annotations_schema(128), check_metadata=True)
    names = [(Path(row["source_uri"]).name, row["face_index"]) for row in archive.output.table.to_pylist()]
    assert names == [*((f"{index}.jpg", 0) for index in range(4)), ("both.png", 0), ("both.png", 1)]
    ids = [row["face_id"] for row in archive.output.table.to_pylist()]
    assert ids[-2:] == [f"{archive.output.table['image_id'][-1]}-{index:02d}" for index in (0, 1)]
    ((row,),) = [archive.output.quarantine]
    assert (Path(row.uri).name, row.stage, row.error, row.face_index) == ("damaged.jpg", "decode", "ImageError", None)


def test_landmarks_and_boxes_are_in_source_pixels(archive):
    for row in archive.rows:
        truth = archive.truth[Path(row["source_uri"]).name].landmarks
        points = np.array(row["landmarks"]).reshape(68, 2)
        eyes = np.hypot(*(truth[45] - truth[36]))
        assert np.hypot(*(points - truth).T).mean() / eyes < 0.1
        left, top, right, bottom = row["bbox"]
        assert left < truth[30, 0] < right
        assert top < truth[30, 1] < bottom
        assert (row["width"], row["height"]) == (SIZE, SIZE)


def test_the_transform_takes_source_pixels_to_where_the_crop_shows_them(archive):
    for row in archive.rows:
        transform = np.array(row["crop_transform"], np.float64).reshape(2, 3)
        crop = np.asarray(opened(row["crop"])).astype(np.float32)
        assert crop.shape == (CROP_SIZE, CROP_SIZE, 3)
        source = np.array(Image.open(row["source_uri"]))
        again = warp(source, transform, CROP_SIZE).transpose(1, 2, 0) * 255
        assert np.abs(crop - again).mean() < 3
        moved = transform + np.array([[0, 0, 3], [0, 0, 0]])
        shifted = warp(source, moved, CROP_SIZE).transpose(1, 2, 0) * 255
        assert np.abs(crop - shifted).mean() > 1.3 * np.abs(crop - again).mean()  # three pixels off are seen


def test_the_crop_holds_every_square_of_training(archive):
    """Side (w + h) / 2 times 1.8, moved by a tenth of (w + h) / 2 in any direction."""
    for points, transform in zip(
        fixed_values(archive.output.table, "landmarks"), transforms(archive.output), strict=True
    ):
        low, high = points.min(axis=0), points.max(axis=0)
        size, centre = float(np.mean(high - low)), (low + high) / 2
        for corner in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            place = apply(transform, (centre + np.array(corner) * size * (0.9 + 0.1))[None])[0]
            assert (place > -0.51 - CROP_SIZE / size).all()  # the square's side is cut to whole source pixels
            assert (place < CROP_SIZE - 0.49 + CROP_SIZE / size).all()
        np.testing.assert_allclose(apply(transform, centre[None])[0], (CROP_SIZE - 1) / 2, atol=1e-3)


def test_skin_masks_against_the_truth(archive):
    shares = []
    for row in archive.rows:
        mask = opened(row["skin_mask"])
        assert (mask.mode, mask.size) == ("L", (CROP_SIZE, CROP_SIZE))
        found = np.asarray(mask)
        assert set(np.unique(found)) == {0, 255}
        to_source = invert(np.array(row["crop_transform"], np.float64).reshape(2, 3))
        grid = np.stack(np.meshgrid(np.arange(CROP_SIZE), np.arange(CROP_SIZE)), axis=-1).reshape(-1, 2)
        x, y = np.rint(apply(to_source, grid)).astype(int).T
        inside = (x >= 0) & (y >= 0) & (x < SIZE) & (y < SIZE)
        true = archive.truth[Path(row["source_uri"]).name].skin_mask[y.clip(0, SIZE - 1), x.clip(0, SIZE - 1)] > 0
        true, found = true & inside, found.ravel() > 0
        shares.append((true & found).sum() / (true | found).sum())
    assert np.mean(shares) > 0.8
    assert min(shares) > 0.6


def test_quality_is_that_of_the_image(archive):
    for row in archive.rows:
        name = Path(row["source_uri"]).name
        turn, truth = archive.turns[name], archive.truth[name].landmarks
        assert row["yaw"] == pytest.approx(np.degrees(np.arctan2(-turn[2, 0], turn[2, 2])), abs=12)
        eyes = truth[42:48].mean(axis=0) - truth[36:42].mean(axis=0)
        assert row["eye_distance"] == pytest.approx(np.hypot(*eyes), rel=0.15)
        assert 0.5 < row["mask_coverage"] <= 1
        assert all(np.isfinite(row[figure]) for figure in QUALITY)


def test_two_subjects_in_one_image_are_themselves(archive):
    """The larger face first; each with the landmarks and the descriptor that it has alone."""
    points = fixed_values(archive.output.table, "landmarks")[-2:]
    codes = fixed_values(archive.output.table, "embedding")
    large = archive.truth["1.jpg"].landmarks + np.array([200, 0])
    small = archive.truth["3.jpg"].landmarks * 200 / SIZE
    for found, truth in zip(points, (large, small), strict=True):
        assert np.hypot(*(found - truth).T).mean() / np.hypot(*(truth[45] - truth[36])) < 0.1
    assert np.linalg.norm(codes[-2] - codes[1]) < 0.3 < np.linalg.norm(codes[-2] - codes[-1])


def test_the_same_images_give_the_same_bytes(archive, tmp_path):
    again = worker().process(items_in(archive.folder))
    write_table(archive.output.table, tmp_path / "first.parquet")
    write_table(again.table, tmp_path / "second.parquet")
    assert (tmp_path / "first.parquet").read_bytes() == (tmp_path / "second.parquet").read_bytes()


def test_a_unit_without_faces_has_the_schema(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "black.png")
    output = worker().process(items_in(tmp_path))
    assert output.table.num_rows == 0
    assert output.table.schema.equals(annotations_schema(128), check_metadata=True)
    assert worker().process([]).table.num_rows == 0


# --- labels beside the images ---


@pytest.fixture
def labelled(tmp_path) -> Path:
    """Five drawn faces with landmarks and masks; a is sound."""
    image, points = drawn_face(120)
    mask = np.zeros((120, 120), np.uint8)
    mask[40:100, 30:70] = 255
    for name in "abcde":
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.npy").write_bytes(npy(points))
        (tmp_path / f"{name}_mask.png").write_bytes(png(mask))
    (tmp_path / "a.name.txt").write_text("Ada\n")
    return tmp_path


def test_labels_reach_their_rows(labelled):
    output = AnnotateWorker(IngestConfig(source="-", dest="-", annotate=SIDECAR)).process(items_in(labelled))
    assert output.quarantine == []
    assert output.table["label"].to_pylist() == ["Ada", None, None, None, None]
    points = drawn_face(120)[1]
    np.testing.assert_array_equal(fixed_values(output.table, "landmarks")[0], points)
    mask = np.asarray(opened(output.table["skin_mask"][0].as_py())) > 0
    corners = apply(transforms(output)[0], np.array([[29.5, 39.5], [69.5, 99.5]]))
    axis = np.arange(CROP_SIZE)
    expected = (
        ((axis > corners[0, 1]) & (axis < corners[1, 1]))[:, None] & (axis > corners[0, 0]) & (axis < corners[1, 0])
    )
    assert (mask & expected).sum() / (mask | expected).sum() > 0.97


def test_each_wrong_label_costs_one_face(labelled):
    points = drawn_face(120)[1]
    (labelled / "b_mask.png").write_bytes(png(np.zeros((60, 120), np.uint8)))
    (labelled / "c.name.txt").write_text("\n")
    (labelled / "d.npy").write_bytes(npy(points * 0.001 + 50))
    (labelled / "e_mask.png").unlink()
    output = AnnotateWorker(IngestConfig(source="-", dest="-", annotate=SIDECAR)).process(items_in(labelled))
    assert [Path(row["source_uri"]).name for row in output.table.to_pylist()] == ["a.png"]
    found = {Path(row.uri).name: (row.stage, row.error, row.face_index) for row in output.quarantine}
    assert found == {
        "b.png": ("segment", "LabelError", 0),
        "c.png": ("read", "LabelError", None),
        "d.png": ("crop", "CropError", 0),
        "e.png": ("segment", "LabelError", 0),
    }
    said = {Path(row.uri).name: row.message for row in output.quarantine}
    assert "b_mask.png: the mask has 120 x 60 pixels, the image 120 x 120" in said["b.png"]
    assert "c.name.txt: the first line is empty" in said["c.png"]


# --- faults of providers ---


class Provider:
    """One face in the middle of each image; what goes wrong hangs on the red of the image's first pixel."""

    embedding_size = 4

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []  # shapes that segment was given
        self.batches: list[int] = []

    def detect(self, image: np.ndarray) -> list[Detection]:
        height, width = image.shape[:2]
        return [Detection((width / 2 - 20, height / 2 - 20, width / 2 + 20, height / 2 + 20), 1.0)]

    def landmarks(self, image: np.ndarray, detection: Detection) -> np.ndarray:
        x0, y0, x1, _ = detection.bbox
        return (drawn_face(120)[1] / 120 * (x1 - x0) + [x0, y0]).astype(np.float32)

    def segment(self, image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        self.seen.append(image.shape)
        if image[0, 0, 0] == 1:
            raise ValueError("no mask for this one")
        return np.full(image.shape[:2], 255, np.uint8)

    def embed_batch(self, images: Sequence[np.ndarray], landmarks: Sequence[np.ndarray]) -> list[np.ndarray]:
        self.batches.append(len(images))
        if any(image[0, 0, 0] == 2 for image in images):
            raise RuntimeError("out of memory")
        return [np.full(4, np.nan if image[0, 0, 0] == 3 else 1, np.float32) for image in images]


def provided(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> AnnotateWorker:
    steps = CompositeAnnotator(dict.fromkeys(("detect", "landmarks", "segment", "embed"), provider))
    monkeypatch.setattr(tasks.annotate.annotate, "load_annotator", lambda config: steps)
    return worker()


def test_a_failing_row_does_not_cost_its_batch(tmp_path, monkeypatch):
    for level in range(5):
        Image.new("RGB", (100, 100), (level, 0, 0)).save(tmp_path / f"{level}.png")
    provider = Provider()
    output = provided(provider, monkeypatch).process(items_in(tmp_path))
    assert [Path(row["source_uri"]).name for row in output.table.to_pylist()] == ["0.png", "4.png"]
    assert [(Path(row.uri).name, row.stage, row.error, row.face_index) for row in output.quarantine] == [
        ("1.png", "segment", "ValueError", 0),
        ("2.png", "embed", "RuntimeError", 0),
        ("3.png", "embed", "EmbedError", 0),
    ]
    assert provider.batches == [5, 1, 1, 1, 1, 1]  # together first, then one by one


def test_segment_sees_a_window_of_the_face_and_not_the_image(tmp_path, monkeypatch):
    Image.new("RGB", (2000, 1500)).save(tmp_path / "large.png")
    provider = Provider()
    output = provided(provider, monkeypatch).process(items_in(tmp_path))
    assert output.table.num_rows == 1
    assert max(provider.seen[0]) < 150  # a face of some 30 pixels
    assert np.asarray(opened(output.table["skin_mask"][0].as_py())).min() == 255  # the window holds the whole crop


def test_landmarks_outside_the_image_are_no_crop():
    image, points = drawn_face(120)
    for shift in ([500, 0], [0, -500]):
        face = Face(Item(0, "x.png"), 0, (120, 120), Detection((0, 0, 1, 1), 1.0), points + np.float32(shift))
        with pytest.raises(tasks.annotate.annotate.CropError, match="outside the image of 120 x 120"):
            crop_face(DecodedImage(face.item, image, CompositeAnnotator({})), face)
    inside = Face(Item(0, "x.png"), 0, (120, 120), Detection((0, 0, 1, 1), 1.0), points - np.float32([60, 0]))
    assert isinstance(crop_face(DecodedImage(inside.item, image, CompositeAnnotator({})), inside), CroppedFace)
