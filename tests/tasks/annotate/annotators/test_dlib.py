"""dlib's annotators on the public-domain portrait that comes with scikit-image, and on images made from it."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
import skimage.data
from PIL import Image
from pydantic import ValidationError

from deca_world.lens import encode_jpeg
from schemas.annotate import AnnotateConfig, DlibConfig
from tasks.annotate.annotators import Annotator, AnnotatorError, Detection, base, load_annotator
from tasks.annotate.annotators.dlib_provider import DESCRIPTOR, PREDICTOR, DlibAnnotator, _distinct, _models_folder
from tasks.sources.images import decode_image


@pytest.fixture(scope="module")
def annotator() -> Annotator:
    return load_annotator(AnnotateConfig())


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    """384 x 384, one frontal face about 90 pixels wide at (176..266, 77..167)."""
    return np.ascontiguousarray(skimage.data.astronaut()[:384, 32:416])


def rescaled(image: np.ndarray, width: int) -> np.ndarray:
    height = round(image.shape[0] * width / image.shape[1])
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def face_of(annotator: Annotator, image: np.ndarray) -> Detection:
    faces = annotator.detect(image)
    assert len(faces) == 1
    return faces[0]


def landmarks_of(annotator: Annotator, image: np.ndarray) -> np.ndarray:
    return annotator.landmarks(image, face_of(annotator, image))


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union."""
    inner = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)


def test_the_face_is_found_where_it_is(annotator, portrait):
    face = face_of(annotator, portrait)
    assert overlap(face.bbox, (144, 77, 234, 167)) > 0.8
    assert face.score > 0.5


def test_landmarks_lie_on_the_features(annotator, portrait):
    points = landmarks_of(annotator, portrait)
    assert points.shape == (68, 2)
    assert points.dtype == np.float32
    # Read off the image by eye: the pupils, the tip of the nose, the mouth's middle, the chin.
    seen = {
        "right eye": (slice(36, 42), (171, 101)),
        "left eye": (slice(42, 48), (214, 103)),
        "nose": (slice(30, 31), (192, 126)),
        "mouth": (slice(48, 60), (192, 146)),
        "chin": (slice(8, 9), (192, 178)),
    }
    for name, (group, place) in seen.items():
        assert np.linalg.norm(points[group].mean(axis=0) - place) < 5, name


@pytest.mark.parametrize("width", [192, 768, 1500])
def test_half_and_double_size_agree(annotator, portrait, width):
    """Landmarks, mask and descriptor depend on the face, not on the resolution of the photograph."""
    points = landmarks_of(annotator, portrait)
    other = rescaled(portrait, width)
    scale = width / portrait.shape[1]
    other_points = landmarks_of(annotator, other)
    error = np.linalg.norm((other_points + 0.5) / scale - 0.5 - points, axis=1).mean()
    assert error < 0.02 * np.ptp(points[:, 0])
    assert np.linalg.norm(annotator.embed(other, other_points) - annotator.embed(portrait, points)) < 0.3
    areas = [(annotator.segment(*pair) > 0).sum() for pair in ((portrait, points), (other, other_points))]
    assert areas[1] / areas[0] == pytest.approx(scale**2, rel=0.1)


def test_the_mirrored_face_is_the_same_subject(annotator, portrait):
    mirrored = np.ascontiguousarray(portrait[:, ::-1])
    codes = [annotator.embed(image, landmarks_of(annotator, image)) for image in (portrait, mirrored)]
    assert codes[0].shape == (128,)
    assert codes[0].dtype == np.float32
    assert np.linalg.norm(codes[0] - codes[1]) < 0.3


def test_another_texture_is_another_descriptor(annotator, portrait):
    """Distances mean something: the same outline filled with noise is far away (dlib's own threshold is 0.6)."""
    points = landmarks_of(annotator, portrait)
    noise = np.random.default_rng(0).integers(0, 255, portrait.shape, np.uint8)
    assert np.linalg.norm(annotator.embed(noise, points) - annotator.embed(portrait, points)) > 0.6


def test_every_face_of_a_group_largest_first(annotator, portrait):
    head = portrait[40:220, 100:280]
    widths = [300, 240, 180, 150, 120]
    group = np.full((700, 700, 3), 128, np.uint8)
    corners = [(390, 10), (10, 10), (10, 400), (200, 330), (560, 520)]  # y, x
    for (y, x), width in zip(corners, widths, strict=True):
        group[y : y + width, x : x + width] = rescaled(head, width)
    faces = annotator.detect(group)
    assert len(faces) == 5
    for face, (y, x), width in zip(faces, corners, widths, strict=True):
        centre = np.array([face.bbox[0] + face.bbox[2], face.bbox[1] + face.bbox[3]]) / 2
        assert np.abs(centre - [x + width / 2, y + width / 2]).max() < 0.15 * width
    assert annotator.detect(group) == faces  # the same again
    assert load_annotator(AnnotateConfig(max_faces=2)).detect(group) == faces[:2]


def test_equal_faces_are_ordered_from_left_to_right(annotator, portrait):
    row = np.concatenate([portrait[40:220, 100:280]] * 3, axis=1)
    faces = annotator.detect(row)
    assert len(faces) == 3
    areas = [(face.bbox[2] - face.bbox[0]) * (face.bbox[3] - face.bbox[1]) for face in faces]
    assert areas == sorted(areas, reverse=True)
    keys = [(-area, face.bbox[0]) for area, face in zip(areas, faces, strict=True)]
    assert keys == sorted(keys)


def test_a_small_image_is_enlarged(annotator, portrait):
    seventy = rescaled(portrait[45:185, 120:260], 96)
    assert 55 < np.ptp(face_of(annotator, seventy).bbox[::2]) < 80
    tiny = rescaled(portrait[45:185, 120:260], 64)
    assert 35 < np.ptp(face_of(annotator, tiny).bbox[::2]) < 55
    assert load_annotator(AnnotateConfig(dlib=DlibConfig(max_upsample=1))).detect(tiny) == []


def test_a_large_image_is_reduced(portrait):
    """6000 pixels wide: found as at 1600, boxes and landmarks in source pixels."""
    large = np.repeat(np.repeat(portrait, 16, axis=0), 16, axis=1)
    annotator = load_annotator(AnnotateConfig())
    face = face_of(annotator, large)
    assert overlap(face.bbox, tuple(16 * v for v in (144, 77, 234, 167))) > 0.75
    points = annotator.landmarks(large, face)
    small = landmarks_of(annotator, portrait)
    assert np.linalg.norm((points + 0.5) / 16 - 0.5 - small, axis=1).mean() < 0.02 * np.ptp(small[:, 0])


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (3000, 2), (60, 60)])
def test_images_without_room_for_a_face(annotator, shape):
    assert annotator.detect(np.full((*shape, 3), 90, np.uint8)) == []


def test_objects_are_not_faces(annotator):
    for name in ("coffee", "rocket", "chelsea", "brick", "coins"):
        image = getattr(skimage.data, name)()
        image = np.stack([image] * 3, axis=-1) if image.ndim == 2 else image
        assert annotator.detect(np.ascontiguousarray(image)) == [], name


def test_the_score_threshold(portrait):
    weak = load_annotator(AnnotateConfig(min_score=-1.0)).detect(portrait)
    strict = load_annotator(AnnotateConfig(min_score=3.0)).detect(portrait)
    assert len(weak) > 1
    assert min(face.score for face in weak) < 0.2
    assert strict == []


def test_boxes_of_one_face_are_merged_into_the_surest():
    boxes = [(0, 0, 100, 100), (10, 5, 108, 103), (20, 20, 70, 70), (80, 0, 180, 100)]
    faces = [Detection(box, score) for box, score in zip(boxes, (0.5, 0.9, 0.7, 0.6), strict=True)]
    assert _distinct(faces) == [faces[1], faces[3]]


def test_a_rotated_jpeg_gives_the_boxes_of_the_upright_one(annotator, portrait):
    """The camera stored the image on its side: what the annotators see is upright."""
    sideways = Image.fromarray(np.ascontiguousarray(np.rot90(portrait)))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    sideways.save(buffer, "JPEG", quality=95, exif=exif)
    stored = decode_image(buffer.getvalue())
    upright = decode_image(encode_jpeg(portrait, 95))
    assert overlap(face_of(annotator, stored).bbox, face_of(annotator, upright).bbox) > 0.95


def test_a_face_that_reaches_over_the_border(annotator, portrait):
    """A tight crop: the box may leave the image, everything after it still works."""
    cut = np.ascontiguousarray(portrait[85:200, 140:240])
    points = landmarks_of(annotator, cut)
    assert np.isfinite(points).all()
    assert annotator.segment(cut, points).shape == cut.shape[:2]
    assert np.isfinite(annotator.embed(cut, points)).all()


def test_the_cnn_detector_finds_the_same_face(portrait):
    small = DlibConfig(detector="cnn", min_side=80, max_upsample=1)
    detector = load_annotator(AnnotateConfig(dlib=small))
    face = face_of(detector, np.ascontiguousarray(portrait[45:185, 120:260]))
    assert overlap(face.bbox, (24, 32, 114, 122)) > 0.5
    assert "mmod_human_face_detector.dat" in detector.versions


def test_versions_name_the_library_and_the_weights(annotator):
    import dlib

    assert annotator.versions["dlib"] == dlib.__version__
    assert set(annotator.versions) == {"dlib", PREDICTOR, DESCRIPTOR}
    assert all(len(value) == 12 for name, value in annotator.versions.items() if name != "dlib")


def test_detection_alone_loads_no_network(portrait):
    lazy = DlibAnnotator(AnnotateConfig(), {})
    lazy.detect(portrait)
    assert not {"_predictor", "_descriptor", "_cnn"} & set(vars(lazy))


def test_the_module_does_not_hide_dlib():
    """Started from the folder of the annotators, `import dlib` is still the library."""
    folder = Path(base.__file__).parent
    code = "import dlib; print(dlib.get_frontal_face_detector)"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize("image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3))])
def test_what_is_not_an_rgb_array_is_refused(annotator, image):
    with pytest.raises(AnnotatorError, match="uint8"):
        annotator.detect(image)


def test_a_missing_weight_is_named_before_any_work(tmp_path, monkeypatch):
    with pytest.raises(AnnotatorError, match=rf"{PREDICTOR}: not found in .*{tmp_path.name}.*face_recognition_models"):
        load_annotator(AnnotateConfig(weights_uri=str(tmp_path)))
    monkeypatch.setattr("tasks.annotate.annotators.dlib_provider._models_folder", lambda: tmp_path)
    with pytest.raises(AnnotatorError, match="weights_uri"):
        load_annotator(AnnotateConfig())


def test_weights_from_a_folder_and_from_a_bucket(tmp_path, monkeypatch):
    monkeypatch.setenv("DECA_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "mirror"
    folder.mkdir()
    bucket = fsspec.filesystem("memory")
    for name in (PREDICTOR, DESCRIPTOR):
        (folder / name).symlink_to(_models_folder() / name)
        bucket.pipe_file(f"/mirror/{name}", (_models_folder() / name).read_bytes())
    local = load_annotator(AnnotateConfig(weights_uri=str(folder)))
    assert local.versions == load_annotator(AnnotateConfig()).versions
    fetched = load_annotator(AnnotateConfig(weights_uri="memory://mirror"))
    assert fetched.versions == local.versions
    bucket.rm("/mirror", recursive=True)
    files = sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size)
    assert files == sorted([PREDICTOR, DESCRIPTOR])


def test_the_config_is_strict():
    for wrong in ({"provider": "other"}, {"unknown": 1}, {"dlib": {"min_side": 2000}}, {"dlib": {"max_upsample": 0.5}}):
        with pytest.raises(ValidationError):
            AnnotateConfig.model_validate(wrong)
