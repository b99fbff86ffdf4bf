"""FAN's adapter: geometry on marked images and against the library's own way, and random weights end to end."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from schemas.annotate import AnnotateConfig
from tasks.annotate.annotators import AnnotatorError, Detection, load_annotator
from tasks.annotate.annotators.face_alignment_provider import FAN, FaceAlignmentAnnotator, peaks
from tests.tasks.annotate.annotators.markers import PLACES, centroid, discs, excess, turned

RED, GREEN = (230, 20, 20), (20, 230, 20)
NOSE, EYES = np.array([[0.0, 0.05]]), np.array([[-0.22, -0.15], [0.22, -0.15]])


class FindMarks(torch.nn.Module):
    """A perfect FAN: the red mark is every landmark but 36 and 45, which are the left and the right green one."""

    def forward(self, batch):
        assert batch.shape[1:] == (3, 256, 256)
        maps = torch.zeros(len(batch), 68, 64, 64)
        y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
        for k, image in enumerate(batch):
            assert 0 <= image.min() <= image.max() <= 1
            red, green = (excess(image, channel) for channel in (0, 1))
            side = torch.arange(256) < centroid(green)[0]
            points = [centroid(red)] * 68
            points[36], points[45] = centroid(green * side), centroid(green * ~side)
            for index, point in enumerate(points):
                u, v = ((point + 0.5) / 4 - 0.5).tolist()
                maps[k, index] = torch.exp(-((x - u) ** 2 + (y - v) ** 2) / 2)
        return [torch.zeros_like(maps), maps]


def annotator_with(network, **options) -> FaceAlignmentAnnotator:
    annotator = FaceAlignmentAnnotator(AnnotateConfig(landmarks="face_alignment", device="cpu", **options), {})
    annotator.__dict__["_fan"] = network
    return annotator


def marked(place) -> tuple[np.ndarray, Detection, np.ndarray]:
    """Image, the face's box and where nose, left and right eye are."""
    width, height, centre, size, degrees = place
    truth = np.concatenate([turned(points, centre, size, degrees) for points in (NOSE, EYES)])
    marks = [(point, 0.06 * size, colour) for point, colour in zip(truth, (RED, GREEN, GREEN), strict=True)]
    half = size / 2
    box = (centre[0] - half, centre[1] - half, centre[0] + half, centre[1] + half)
    return discs(width, height, marks), Detection(box, 1.0), truth


@pytest.mark.parametrize("flip", [True, False])
def test_landmarks_land_in_source_pixels(flip):
    """Each within the quarter cell of the network's heat map, and on average without a shift."""
    annotator = annotator_with(FindMarks(), face_alignment={"flip": flip})
    errors = []
    for place in PLACES:
        image, detection, truth = marked(place)
        points = annotator.landmarks(image, detection)
        assert points.shape == (68, 2)
        assert points.dtype == np.float32
        input_pixel = 200 / 195 * 2 * place[3] / 256  # side of the network's square over its pixels
        found = points[[30, 36, 45]]
        errors.append((found - truth) / input_pixel)
        np.testing.assert_array_equal(points[0], points[30])
    errors = np.concatenate(errors)
    assert np.abs(errors).max() < 1.3
    assert np.abs(errors.mean(axis=0)).max() < 0.35


def test_a_batch_of_faces_gives_what_each_gives_alone():
    annotator = annotator_with(FindMarks())
    images, detections, _ = zip(*(marked(place) for place in PLACES[:3]), strict=True)
    together = annotator.landmarks_batch(images, detections)
    for points, image, detection in zip(together, images, detections, strict=True):
        np.testing.assert_array_equal(points, annotator.landmarks(image, detection))


@pytest.mark.parametrize(("detect", "reference"), [("dlib", 195), ("facexlib", 165)])
def test_agrees_with_the_library_s_own_way(detect, reference, monkeypatch):
    """The library rounds to whole source pixels; the two may differ by that and half a cell."""
    from face_alignment import FaceAlignment, LandmarksType, utils

    for name in ("transform_np", "_get_preds_fromhm"):  # compiling them takes ten seconds
        monkeypatch.setattr(utils, name, getattr(utils, name).py_func)
    library = FaceAlignment.__new__(FaceAlignment)  # its constructor would fetch a detector
    library.__dict__ = {
        "face_alignment_net": FindMarks(),
        "face_detector": SimpleNamespace(reference_scale=reference),
        "landmarks_type": LandmarksType.TWO_D,
        "device": "cpu",
        "dtype": torch.float32,
        "flip_input": True,
        "max_batch_size": 1,
    }
    annotator = annotator_with(FindMarks(), detect=detect)
    for place in PLACES[:3]:
        image, detection, _ = marked(place)
        (expected,) = library.get_landmarks_from_image(image, detected_faces=[np.array([*detection.bbox, 1.0])])
        found = annotator.landmarks(image, detection)
        assert np.abs(found - expected).max() < 1 + 2.5 * 200 / reference * 2 * place[3] / 256


def test_peaks_lean_towards_the_larger_neighbour():
    maps = torch.zeros(1, 3, 64, 64)
    maps[0, 0, 10, 20], maps[0, 0, 10, 21], maps[0, 0, 9, 20] = 1, 0.5, 0.2
    maps[0, 1, 0, 63] = 1  # in the corner: no neighbours to compare
    maps[0, 2, 5, 5] = 1
    expected = [[(20.25 + 0.5) * 4 - 0.5, (9.75 + 0.5) * 4 - 0.5], [253.5, 1.5], [21.5, 21.5]]
    np.testing.assert_allclose(peaks(maps)[0], expected)


@pytest.mark.slow
def test_random_weights_end_to_end(mirror, face):
    annotator = load_annotator(AnnotateConfig(landmarks="face_alignment", weights_uri=str(mirror), device="cpu"))
    (detection,) = annotator.detect(face)
    points = annotator.landmarks(face, detection)
    assert points.shape == (68, 2)
    assert np.isfinite(points).all()
    np.testing.assert_array_equal(points, annotator.landmarks(face, detection))
    assert {"face-alignment", FAN, "dlib"} <= set(annotator.versions)


def test_a_box_without_extent(face):
    with pytest.raises(AnnotatorError, match="no extent"):
        annotator_with(FindMarks()).landmarks(face, Detection((5, 5, 5, 5), 1.0))
