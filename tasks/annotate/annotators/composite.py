"""The composite annotator of a config: each step by its own provider."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.annotate import STEPS, AnnotateConfig, Provider, Step
from schemas.ledger import Item
from tasks.annotate.annotators.base import Detection
from tasks.annotate.annotators.sidecar import SidecarAnnotator
from tasks.annotate.annotators.weights import WeightFile, locate

Image = NDArray[np.uint8]
Points = NDArray[np.float32]


class CompositeAnnotator:
    """The `Annotator` protocol, each step done by the provider chosen for it.

    The `_batch` forms take several images or faces (images[i] is the image of face i) and hand them to the provider
    at once where it can, one by one where it cannot. One that fails, fails the batch.
    """

    def __init__(self, providers: dict[Step, Any]) -> None:
        self._providers = providers

    def for_item(self, item: Item) -> CompositeAnnotator:
        """Return the annotator for the image of `item`, with its sidecar labels; itself without `sidecar`."""
        if not any(isinstance(provider, SidecarAnnotator) for provider in self._providers.values()):
            return self
        labels: dict[int, SidecarAnnotator] = {}  # one for all its steps: a label file is read once
        bound = {
            step: labels.setdefault(id(provider), provider.for_item(item))
            if isinstance(provider, SidecarAnnotator)
            else provider
            for step, provider in self._providers.items()
        }
        return CompositeAnnotator(bound)

    def detect(self, image: Image) -> list[Detection]:
        found: list[Detection] = self._providers["detect"].detect(image)
        return found

    def landmarks(self, image: Image, detection: Detection) -> Points:
        points: Points = self._providers["landmarks"].landmarks(image, detection)
        return points

    def segment(self, image: Image, landmarks: Points) -> Image:
        mask: Image = self._providers["segment"].segment(image, landmarks)
        return mask

    def embed(self, image: Image, landmarks: Points) -> NDArray[np.float32]:
        code: NDArray[np.float32] = self._providers["embed"].embed(image, landmarks)
        return code

    def detect_batch(self, images: Sequence[Image]) -> list[list[Detection]]:
        return self._batch("detect", images)

    def landmarks_batch(self, images: Sequence[Image], detections: Sequence[Detection]) -> list[Points]:
        return self._batch("landmarks", images, detections)

    def segment_batch(self, images: Sequence[Image], landmarks: Sequence[Points]) -> list[Image]:
        return self._batch("segment", images, landmarks)

    def embed_batch(self, images: Sequence[Image], landmarks: Sequence[Points]) -> list[NDArray[np.float32]]:
        return self._batch("embed", images, landmarks)

    @property
    def embedding_size(self) -> int:
        """Return the length of the descriptor, without loading a network."""
        size: int = self._providers["embed"].embedding_size
        return size

    @property
    def versions(self) -> dict[str, str]:
        """Return the versions of libraries and weights of the providers in use."""
        parts: dict[int, Any] = {id(provider): provider for provider in self._providers.values()}
        return {name: value for provider in parts.values() for name, value in provider.versions.items()}

    def _batch(self, step: Step, *arguments: Sequence[Any]) -> list[Any]:
        provider = self._providers[step]
        if not arguments[0]:
            return []
        together = getattr(provider, f"{step}_batch", None)
        if together is not None:
            return list(together(*arguments))
        return [getattr(provider, step)(*each) for each in zip(*arguments, strict=True)]


def load_annotator(config: AnnotateConfig) -> CompositeAnnotator:
    """Return the annotator of the config; its weight files are located (or fetched) and read once.

    A provider is made once in a process and thread however often this is called. Raises AnnotatorError naming every
    weight file that is missing, or the one that is damaged or another thing: a file that cannot be read would cost
    every face of a run, one by one.
    """
    chosen = {config.provider_of(step): config.steps_of(config.provider_of(step)) for step in STEPS}
    needed = {provider: _weight_files(provider, config, steps) for provider, steps in chosen.items()}
    paths = locate([file for files in needed.values() for file in files], config.weights_uri)
    built = {}
    for provider, files in needed.items():
        weights = tuple((file.name, paths[file.name]) for file in files)
        built[provider] = _provider(provider, config, weights, threading.get_ident())
    return CompositeAnnotator({step: built[config.provider_of(step)] for step in STEPS})


def _weight_files(provider: Provider, config: AnnotateConfig, steps: Sequence[Step]) -> list[WeightFile]:
    if provider == "sidecar":
        return []
    files: list[WeightFile] = _class_of(provider).weight_files(config, steps)
    return files


def _class_of(provider: Provider) -> Any:
    """Import a provider on demand: dlib takes a quarter of a second to import, torch several."""
    if provider == "dlib":
        from tasks.annotate.annotators.dlib_provider import DlibAnnotator

        return DlibAnnotator
    if provider == "facexlib":
        from tasks.annotate.annotators.facexlib_provider import FacexlibAnnotator

        return FacexlibAnnotator
    from tasks.annotate.annotators.face_alignment_provider import FaceAlignmentAnnotator

    return FaceAlignmentAnnotator


@lru_cache(maxsize=8)
def _provider(provider: Provider, config: AnnotateConfig, weights: tuple[tuple[str, Path], ...], thread: int) -> Any:
    """Return this thread's instance of a provider: dlib objects and network buffers are not thread-safe."""
    if provider == "sidecar":
        return SidecarAnnotator(config)
    made = _class_of(provider)(config, dict(weights))
    made.check_weights()
    return made
