"""facexlib's adapters: random weights against the library itself, and their geometry on marked images."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from deca_core.crop import CropError
from schemas.annotate import AnnotateConfig
from tasks.annotate.annotators import load_annotator
from tasks.annotate.annotators.facexlib_provider import FacexlibAnnotator, anchors
from tests.tasks.annotate.annotators.markers import PLACES, centroid, discs, excess, iou, polygon, turned
from tests.tasks.annotate.annotators.test_skin import drawn_face

RED, GREEN, BLUE = (230, 20, 20), (20, 230, 20), (20, 20, 230)


def config(mirror, **options) -> AnnotateConfig:
    steps = {"detect": "facexlib", "segment": "facexlib", "embed": "facexlib", "device": "cpu"}
    return AnnotateConfig.model_validate({**steps, "weights_uri": str(mirror), **options})


def library_state(mirror, name):
    return torch.load(mirror / name, weights_only=True)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (53, 61), (200, 120)])
def test_anchors_are_the_library_s(height, width):
    from facexlib.detection.retinaface import generate_config
    from facexlib.detection.retinaface_utils import PriorBox

    expected = PriorBox(generate_config("resnet50"), image_size=(height, width)).forward()
    found = anchors(height, width) / torch.tensor([width, height, width, height])
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [("mobile0.25", "detection_mobilenet0.25_Final.pth"), ("resnet50", "detection_Resnet50_Final.pth")],
)
def test_detections_are_the_library_s(mirror, face, kind, name):
    """Same weights, same image, no reduction: box for box what the library's own detector finds."""
    from facexlib.detection.retinaface import RetinaFace

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = RetinaFace(network_name=kind, device="cpu")
    library.load_state_dict(library_state(mirror, name))
    with torch.no_grad():
        expected = library.eval().detect_faces(face[..., ::-1], conf_threshold=0.8)
    annotator = load_annotator(config(mirror, facexlib={"detector": kind}, max_faces=100_000))
    found = annotator.detect(face)
    assert len(found) == len(expected) > 5
    key = np.lexsort(expected[:, :4].T[::-1])
    rows = np.array(sorted((*box.bbox, box.score) for box in found))
    np.testing.assert_allclose(rows, expected[key, :5], atol=0.02, rtol=1e-4)
    areas = [box.area for box in found]
    assert areas == sorted(areas, reverse=True)
    assert annotator.detect(face) == found
    assert load_annotator(config(mirror, facexlib={"detector": kind}, max_faces=3)).detect(face) == found[:3]
    assert name in annotator.versions


def test_images_of_one_size_go_through_together(mirror, face):
    annotator = load_annotator(config(mirror, facexlib={"detector": "mobile0.25", "max_side": 96}))
    images = [face, face[:100], np.ascontiguousarray(face[:, ::-1])]
    calls: list[tuple[int, ...]] = []
    network = annotator._providers["detect"]._detector
    handle = network.register_forward_pre_hook(lambda _, given: calls.append(tuple(given[0].shape)))
    together = annotator.detect_batch(images)
    handle.remove()
    assert sorted(shape[0] for shape in calls) == [1, 2]
    for found, image in zip(together, images, strict=True):
        alone = annotator.detect(image)
        assert len(found) == len(alone) > 0
        np.testing.assert_allclose([b.bbox for b in found], [b.bbox for b in alone], atol=0.05)
    assert annotator.detect_batch([]) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mobile0.25", "resnet50"])
def test_images_without_room_for_a_face(mirror, kind):
    """The network's outputs and the anchors keep their number, down to one pixel."""
    annotator = load_annotator(config(mirror, facexlib={"detector": kind, "max_side": 200}, min_score=1.5))
    for shape in ((1, 1), (1, 90), (700, 2), (33, 31)):
        assert annotator.detect(np.full((*shape, 3), 90, np.uint8)) == []


class FindBox(torch.nn.Module):
    """A perfect RetinaFace for coloured rectangles: the anchor that fits best says exactly where the rectangle is."""

    def forward(self, batch):
        from facexlib.detection.retinaface import generate_config
        from facexlib.detection.retinaface_utils import PriorBox

        _, _, height, width = batch.shape
        prior = PriorBox(generate_config("resnet50"), image_size=(height, width)).forward()
        prior = prior * torch.tensor([width, height, width, height])
        boxes, scores = torch.zeros(len(batch), len(prior), 4), torch.zeros(len(batch), len(prior), 2)
        scores[..., 0] = 1
        for k, image in enumerate(batch + torch.tensor([104.0, 117.0, 123.0]).view(3, 1, 1)):
            for channel in (0, 2):  # blue and red, as the network expects them
                share = (excess(image, channel) / 210).clamp(max=1)
                across, down = share.amax(0), share.amax(1)
                if across.max() < 0.5:
                    continue
                size_x, size_y = float(across.sum()), float(down.sum())
                x0, y0 = (self._start(v) for v in (across, down))
                centre = torch.tensor([x0 + size_x / 2, y0 + size_y / 2])
                best = int((prior[:, :2] - centre).norm(dim=1).add((prior[:, 2] - max(size_x, size_y)).abs()).argmin())
                boxes[k, best, :2] = (centre - prior[best, :2]) / (0.1 * prior[best, 2:])
                boxes[k, best, 2:] = torch.log(torch.tensor([size_x, size_y]) / prior[best, 2:]) / 0.2
                scores[k, best] = torch.tensor([0.01, 0.99])
        return boxes, scores, torch.zeros(len(batch), len(prior), 10)

    @staticmethod
    def _start(profile) -> float:
        """Edge coordinate where a bar begins: its centre of mass less half of its mass."""
        return float((torch.arange(len(profile)) + 0.5).mul(profile).sum() / profile.sum() - profile.sum() / 2)


@pytest.mark.parametrize(
    ("width", "height", "max_side"), [(300, 200, 840), (90, 700, 840), (1500, 400, 300), (640, 1111, 333)]
)
def test_boxes_land_in_source_pixels(mirror, width, height, max_side):
    annotator = FacexlibAnnotator(config(mirror, facexlib={"max_side": max_side}), {})
    annotator.__dict__["_detector"] = FindBox()
    truth = np.array(
        [
            [0.1 * width, 0.2 * height, 0.55 * width, 0.6 * height],
            [0.6 * width, 0.5 * height, 0.85 * width, 0.7 * height],
        ]
    )
    truth = np.round(truth)
    image = np.full((height, width, 3), 100, np.uint8)
    for (x0, y0, x1, y1), colour in zip(truth.astype(int), (RED, BLUE), strict=True):
        image[y0:y1, x0:x1] = colour
    found = annotator.detect(image)
    assert len(found) == 2
    reduction = max(1.0, max(width, height) / max_side)
    np.testing.assert_allclose([face.bbox for face in found], truth, atol=0.35 * reduction)
    assert [face.score for face in found] == pytest.approx([0.99, 0.99])
    strict = FacexlibAnnotator(config(mirror, min_score=0.995), {})
    strict.__dict__["_detector"] = FindBox()
    assert strict.detect(image) == []


class FindSkin(torch.nn.Module):
    """A perfect face parser: what is red is class `skin`, what is blue is class `other`, the rest background."""

    def __init__(self, mean, deviation, skin: int, other: int) -> None:
        super().__init__()
        self.mean, self.deviation = (torch.tensor(v).view(3, 1, 1) for v in (mean, deviation))
        self.skin, self.other = skin, other

    def forward(self, batch):
        assert batch.shape[1:] == (3, 512, 512)
        classes = torch.zeros(len(batch), 19, 512, 512)
        for k, image in enumerate(batch * self.deviation + self.mean):
            assert -0.01 < image.min() <= image.max() < 1.01
            red = (excess(image, 0) / 0.5).clamp(0, 1)
            classes[k, 0] = 10 * (0.5 - red)
            classes[k, self.skin] = 10 * (red - 0.5)
            classes[k, self.other] = torch.where(excess(image, 2) > 0.2, 50.0, -50.0)
        return classes, None, None


# Class numbers of the CelebAMask-HQ labels as each network counts them: skin and hair.
PARSERS = {
    "bisenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1, 17),
    "parsenet": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1, 13),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["bisenet", "parsenet"])
def test_masks_land_in_source_pixels(mirror, kind, place):
    width, height, centre, size, degrees = place
    _, points = drawn_face(200)
    unit = (points - [100, 105]) / 150
    landmarks = turned(unit, centre, size, degrees).astype(np.float32)
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    oval = turned(np.stack([0.42 * np.cos(angle), 0.6 * np.sin(angle)], axis=1), centre, size, degrees)
    cover = polygon(width, height, oval)
    hair = polygon(
        width, height, turned(np.array([[-0.3, -0.3], [0.3, -0.3], [0.3, -0.15], [-0.3, -0.15]]), centre, size, degrees)
    )
    image = np.full((height, width, 3), 100.0)
    for share, colour in ((cover, RED), (hair, BLUE)):
        image = image * (1 - share[..., None]) + np.array(colour) * share[..., None]
    annotator = FacexlibAnnotator(config(mirror, facexlib={"parser": kind}), {})
    annotator.__dict__["_parser"] = FindSkin(*PARSERS[kind])
    mask = annotator.segment(np.round(image).astype(np.uint8), landmarks)
    assert mask.shape == (height, width)
    assert set(np.unique(mask)) == {0, 255}
    assert iou(mask > 0, (cover >= 0.5) & (hair < 0.5)) > (0.97 if size > 80 else 0.92)


@pytest.mark.parametrize("place", PLACES)
def test_the_descriptor_sees_the_face_where_it_expects_it(mirror, place):
    """The five points land on ArcFace's template to half a pixel, in BGR, between -1 and 1."""
    width, height, centre, size, degrees = place
    template = np.array(
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
    )
    five = turned((template - [56, 66]) / 70, centre, size, degrees)
    landmarks = np.zeros((68, 2), np.float32)
    landmarks[36:42], landmarks[42:48], landmarks[30], landmarks[48], landmarks[54] = five
    seen: list[torch.Tensor] = []

    def network(batch):
        seen.append(batch)
        return torch.ones(len(batch), 512)

    annotator = FacexlibAnnotator(config(mirror), {})
    annotator.__dict__["_arcface"] = (network, template)
    for k in range(5):
        inside = (five[k] > 0.1 * size).all() and (five[k] < np.array([width, height]) - 0.1 * size).all()
        if not inside:
            continue
        image = discs(width, height, [(five[k], 0.07 * size, RED)])
        assert annotator.embed(image, landmarks).shape == (512,)
        (crop,) = seen.pop()
        assert crop.shape == (3, 112, 112)
        assert -1.001 <= crop.min() <= crop.max() <= 1.001
        found = centroid(excess(crop, 2))  # red is the third channel
        assert np.abs(found.numpy() - template[k]).max() < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("parser", ["bisenet", "parsenet"])
def test_random_weights_end_to_end(mirror, face, parser, monkeypatch):
    """Through load_annotator on real architectures: shapes, types, the same answer twice and in a batch."""
    annotator = load_annotator(config(mirror, facexlib={"parser": parser, "detector": "mobile0.25"}))
    _, points = drawn_face(150)
    points = points + np.float32([20, 0])
    if parser == "parsenet":  # five seconds a face at 512 pixels
        assert annotator._providers["segment"]._parser is not None
        monkeypatch.setattr("tasks.annotate.annotators.facexlib_provider.PARSE_SIZE", 128)
    mask = annotator.segment(face, points)
    assert mask.shape == face.shape[:2]
    assert set(np.unique(mask)) <= {0, 255}
    np.testing.assert_array_equal(annotator.segment_batch([face], [points])[0], mask)
    if parser == "parsenet":
        return
    code = annotator.embed(face, points)
    assert code.dtype == np.float32
    assert np.linalg.norm(code) == pytest.approx(1, abs=1e-4)
    both = annotator.embed_batch([face, face[:, ::-1].copy()], [points, points])
    np.testing.assert_allclose(both[0], code, atol=1e-4)
    assert np.linalg.norm(both[1] - code) > 1e-3
    assert set(annotator.versions) >= {"facexlib", "parsing_bisenet.pth", "recognition_arcface_ir_se50.pth", "dlib"}


@pytest.mark.slow
def test_bisenet_s_own_classes_reach_the_mask(mirror, face):
    """The adapter's mask is the library network's skin on the very crop, brought back."""
    from facexlib.parsing import BiSeNet

    from tasks.annotate.annotators.geometry import cut, paste, portrait_transform

    annotator = load_annotator(config(mirror))
    _, points = drawn_face(150)
    frame = portrait_transform(points, 512)
    network = BiSeNet(19).eval()
    network.load_state_dict(library_state(mirror, "parsing_bisenet.pth"))
    pixels = torch.from_numpy(cut(face, frame, 512)).permute(2, 0, 1)[None] / 255
    pixels = (pixels - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    with torch.no_grad():
        share = network(pixels)[0].softmax(1)[0]
    expected = paste(share[[1, 2, 3, 10, 12, 13]].sum(0).numpy(), frame, face.shape[:2])
    assert (annotator.segment(face, points) == expected).mean() > 0.999


def test_a_face_without_extent_is_an_error_of_that_face(mirror, face):
    annotator = FacexlibAnnotator(config(mirror), {})
    annotator.__dict__["_arcface"] = (None, np.zeros((5, 2)))
    for step in (annotator.segment, annotator.embed):
        with pytest.raises(CropError, match="no extent"):
            step(face, np.full((68, 2), 50, np.float32))
