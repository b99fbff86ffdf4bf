"""Faces by facexlib: RetinaFace detection, BiSeNet or ParseNet face parsing, ArcFace identity descriptors.

Only the library's network classes are used: its loading functions would fetch and unpickle by themselves, its detector
builds anchors in Python loops, and its parsers and ArcFace come without a way from the image to their crop and back.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from schemas.annotate import SKIN_CLASSES, AnnotateConfig, Step
from tasks.annotate.annotators.base import AnnotatorError, Detection, check_image, largest_first
from tasks.annotate.annotators.geometry import cut, five_points, paste, portrait_transform, similarity
from tasks.annotate.annotators.weights import WeightFile, load_state, pick_device, versions

PACKAGE = "facexlib"
DETECTORS = {"resnet50": "detection_Resnet50_Final.pth", "mobile0.25": "detection_mobilenet0.25_Final.pth"}
PARSERS = {"bisenet": "parsing_bisenet.pth", "parsenet": "parsing_parsenet.pth"}
ARCFACE = "recognition_arcface_ir_se50.pth"

# The library's own threshold. A face has the score of the softmax, 0 to 1.
MIN_SCORE = 0.8
# Two boxes whose intersection over union is larger show the same face; the library's value.
SAME_FACE = 0.4

# RetinaFace: (stride, anchor sides) of each level in pixels, variances of the regression, mean of the BGR images.
LEVELS = ((8, (16, 32)), (16, (64, 128)), (32, (256, 512)))
VARIANCES = (0.1, 0.2)
MEAN_BGR = (104.0, 117.0, 123.0)

# Side of the portrait that the parsers were trained on, the classes that are skin, mean and deviation of the RGB input.
PARSE_SIZE = 512
SKIN = {"bisenet": SKIN_CLASSES["face-parsing"], "parsenet": SKIN_CLASSES["celebamask-hq"]}
PARSE_MEAN = {"bisenet": (0.485, 0.456, 0.406), "parsenet": (0.5, 0.5, 0.5)}
PARSE_STD = {"bisenet": (0.229, 0.224, 0.225), "parsenet": (0.5, 0.5, 0.5)}

EMBED_SIZE = 112


class FacexlibAnnotator:
    """Steps detect, segment and embed of the `Annotator` protocol on facexlib; networks load at first use."""

    embedding_size = 512

    def __init__(self, config: AnnotateConfig, weights: dict[str, Path]) -> None:
        self._config = config
        self._weights = weights
        self._device = pick_device(config.device)

    @staticmethod
    def weight_files(config: AnnotateConfig, steps: Sequence[Step]) -> list[WeightFile]:
        """Return the weight files of the steps, under the library's own names."""
        options = config.facexlib
        names = {"detect": DETECTORS[options.detector], "segment": PARSERS[options.parser], "embed": ARCFACE}
        return [_weight_file(name) for step, name in names.items() if step in steps]

    @cached_property
    def versions(self) -> dict[str, str]:
        return {PACKAGE: importlib.metadata.version(PACKAGE), **versions(self._weights)}

    def detect(self, image: NDArray[np.uint8]) -> list[Detection]:
        return self.detect_batch([image])[0]

    @torch.inference_mode()
    def detect_batch(self, images: Sequence[NDArray[np.uint8]]) -> list[list[Detection]]:
        """As `detect`, for several images; those that have the same size after reduction go through together."""
        groups: dict[tuple[int, ...], list[int]] = {}
        resized = [self._resize(image) for image in images]
        for index, image in enumerate(resized):
            groups.setdefault(image.shape, []).append(index)
        found: list[list[Detection]] = [[] for _ in images]
        for shape, members in groups.items():
            batch = _to_tensor([resized[index][..., ::-1] for index in members], self._device)
            batch -= torch.tensor(MEAN_BGR, device=self._device).view(3, 1, 1)
            boxes, scores, _ = self._detector(batch)
            corners = _decode(boxes, anchors(shape[0], shape[1]).to(self._device))
            for index, edges, score in zip(members, corners, scores[..., 1], strict=True):
                height, width = images[index].shape[:2]
                scale = edges.new_tensor([width / shape[1], height / shape[0]] * 2)
                found[index] = self._faces(edges * scale, score)
        return found

    def segment(self, image: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> NDArray[np.uint8]:
        return self.segment_batch([image], [landmarks])[0]

    @torch.inference_mode()
    def segment_batch(
        self, images: Sequence[NDArray[np.uint8]], landmarks: Sequence[NDArray[np.float32]]
    ) -> list[NDArray[np.uint8]]:
        """As `segment`, for several faces; images[i] is the image of face i."""
        parser = self._config.facexlib.parser
        frames = [portrait_transform(points, PARSE_SIZE) for points in landmarks]
        batch = _to_tensor(_crops(images, frames, PARSE_SIZE), self._device) / 255
        mean, deviation = (batch.new_tensor(values[parser]).view(3, 1, 1) for values in (PARSE_MEAN, PARSE_STD))
        classes = self._parser((batch - mean) / deviation)[0]
        skin = classes.softmax(dim=1)[:, list(SKIN[parser])].sum(dim=1).cpu().numpy()
        return [
            paste(*each, image.shape[:2]) for each, image in zip(zip(skin, frames, strict=True), images, strict=True)
        ]

    def embed(self, image: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.embed_batch([image], [landmarks])[0]

    @torch.inference_mode()
    def embed_batch(
        self, images: Sequence[NDArray[np.uint8]], landmarks: Sequence[NDArray[np.float32]]
    ) -> list[NDArray[np.float32]]:
        """As `embed`, for several faces; images[i] is the image of face i."""
        network, template = self._arcface
        frames = [similarity(five_points(points), template) for points in landmarks]
        crops = [crop[..., ::-1] for crop in _crops(images, frames, EMBED_SIZE)]  # it was trained on BGR images
        codes = network(_to_tensor(crops, self._device) / 127.5 - 1)
        return list(codes.cpu().numpy())

    def _resize(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        check_image(image)
        height, width = image.shape[:2]
        scale = self._config.facexlib.max_side / max(height, width)
        if scale >= 1:
            return image
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0))

    def _faces(self, boxes: torch.Tensor, scores: torch.Tensor) -> list[Detection]:
        """Boxes (anchors, 4) in source pixels and their scores to distinct faces."""
        from torchvision.ops import nms

        threshold = MIN_SCORE if self._config.min_score is None else self._config.min_score
        sure = scores >= threshold
        boxes, scores = boxes[sure].cpu(), scores[sure].cpu()
        kept = nms(boxes, scores, SAME_FACE)
        faces = []
        for (x0, y0, x1, y1), score in zip(boxes[kept].tolist(), scores[kept].tolist(), strict=True):
            faces.append(Detection((x0, y0, x1, y1), score))
        return largest_first(faces, self._config.max_faces)

    def check_weights(self) -> None:
        """Read each file once, on the CPU. Raises AnnotatorError naming the file and what is wrong with it."""
        options = self._config.facexlib
        readers = {
            DETECTORS[options.detector]: self._read_detector,
            PARSERS[options.parser]: self._read_parser,
            ARCFACE: self._read_arcface,
        }
        for name in self._weights:
            readers[name]()

    @cached_property
    def _detector(self) -> Any:
        return self._read_detector().to(self._device)

    @cached_property
    def _parser(self) -> Any:
        return self._read_parser().to(self._device)

    @cached_property
    def _arcface(self) -> tuple[Any, NDArray[np.float64]]:
        """The network, and where it expects the five points in its crop."""
        from facexlib.detection.align_trans import get_reference_facial_points

        template = get_reference_facial_points(default_square=True)
        return self._read_arcface().to(self._device), np.asarray(template, np.float64)

    def _read_detector(self) -> Any:
        from facexlib.detection.retinaface import RetinaFace

        kind = self._config.facexlib.detector
        with warnings.catch_warnings():  # the library asks torchvision for an untrained ResNet in an old-fashioned way
            warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
            network = RetinaFace(network_name=kind, device="cpu")
        return load_state(self._weights[DETECTORS[kind]], network)

    def _read_parser(self) -> Any:
        from facexlib.parsing import BiSeNet, ParseNet

        kind = self._config.facexlib.parser
        network = BiSeNet(num_class=19) if kind == "bisenet" else ParseNet(PARSE_SIZE, PARSE_SIZE, parsing_ch=19)
        return load_state(self._weights[PARSERS[kind]], network)

    def _read_arcface(self) -> Any:
        from facexlib.recognition.arcface_arch import Backbone

        return load_state(self._weights[ARCFACE], Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se"))


def anchors(height: int, width: int) -> torch.Tensor:
    """RetinaFace's anchors for an image: (N, 4) centre x, y and sides in pixels, in the order of the network's heads.

    Level by level, row by row, the smaller anchor of a cell first.
    """
    levels = []
    for stride, sides in LEVELS:
        y, x, side = torch.meshgrid(
            (torch.arange(-(-height // stride)) + 0.5) * stride,
            (torch.arange(-(-width // stride)) + 0.5) * stride,
            torch.tensor(sides, dtype=torch.float32),
            indexing="ij",
        )
        levels.append(torch.stack([x, y, side, side], dim=-1).reshape(-1, 4))
    return torch.cat(levels)


def _decode(regression: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """Box regressions (B, N, 4) to corners x0, y0, x1, y1 in pixels: centre + 0.1 side t, side exp(0.2 t)."""
    centre = prior[:, :2] + regression[..., :2] * VARIANCES[0] * prior[:, 2:]
    half = prior[:, 2:] * torch.exp(regression[..., 2:] * VARIANCES[1]) / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def _crops(images: Sequence[Any], frames: Sequence[Any], size: int) -> list[NDArray[np.uint8]]:
    for image in images:
        check_image(image)
    return [cut(image, frame, size) for image, frame in zip(images, frames, strict=True)]


def _to_tensor(images: Sequence[NDArray[np.uint8]], device: str) -> torch.Tensor:
    """Images (H, W, 3) of one size to (B, 3, H, W) float32, 0 to 255; contiguous, because ArcFace makes views."""
    return torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float().contiguous()


def _weight_file(name: str) -> WeightFile:
    return WeightFile(name, folder=_weights_folder, package=PACKAGE, url=lambda: weight_url(name))


def _weights_folder() -> Path:
    """Return the library's download folder."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise AnnotatorError(f"the package {PACKAGE} is not installed. Run: pip install {PACKAGE}")
    return Path(spec.submodule_search_locations[0]) / "weights"


def weight_url(name: str) -> str:
    """Return the library's URL of a weight file, read from the constants of its loading functions.

    The library has no table of them, and a copy of ours would go out of date.
    """
    from facexlib import detection, parsing, recognition

    loaders: list[FunctionType] = [
        detection.init_detection_model,
        parsing.init_parsing_model,
        recognition.init_recognition_model,
    ]
    for loader in loaders:
        for constant in loader.__code__.co_consts:
            if isinstance(constant, str) and constant.endswith(f"/{name}"):
                return constant
    return f"the model list of {PACKAGE} {importlib.metadata.version(PACKAGE)}"
