"""Which provider does which step, and that each is made once."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from pydantic import ValidationError

from schemas.annotate import OFFERS, STEPS, AnnotateConfig
from schemas.ledger import Item
from tasks.annotate.annotators import CompositeAnnotator, load_annotator
from tests.tasks.annotate.annotators.test_skin import drawn_face


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["dlib", "dlib", "dlib", "dlib"]),
        ({"provider": "dlib", "segment": "facexlib"}, ["dlib", "dlib", "facexlib", "dlib"]),
        ({"provider": "facexlib"}, ["facexlib", "dlib", "facexlib", "facexlib"]),
        (
            {"provider": "facexlib", "landmarks": "face_alignment"},
            ["facexlib", "face_alignment", "facexlib", "facexlib"],
        ),
        ({"provider": "face_alignment"}, ["dlib", "face_alignment", "dlib", "dlib"]),
        ({"provider": "sidecar"}, ["sidecar", "sidecar", "sidecar", "dlib"]),
        ({"provider": "sidecar", "segment": "dlib"}, ["sidecar", "sidecar", "dlib", "dlib"]),
    ],
)
def test_the_provider_of_each_step(settings, expected):
    config = AnnotateConfig.model_validate(settings)
    assert [config.provider_of(step) for step in STEPS] == expected
    for provider in OFFERS:
        assert config.steps_of(provider) == tuple(s for s, p in zip(STEPS, expected, strict=True) if p == provider)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"landmarks": "facexlib"},
            "landmarks: facexlib does not do this step; choose one of dlib, face_alignment, sidecar",
        ),
        ({"embed": "sidecar"}, "embed: sidecar does not do this step; choose one of dlib, facexlib"),
        ({"detect": "face_alignment"}, "detect: face_alignment does not do this step"),
        ({"detect": "mtcnn"}, "dlib"),
        ({"facexlib": {"parser": "other"}}, "bisenet"),
        ({"retinaface": {}}, "Extra inputs"),
    ],
)
def test_a_step_that_a_provider_does_not_do_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        AnnotateConfig.model_validate(settings)


class Recorder:
    """A provider whose answers are its name, the step and the arguments."""

    versions = {"recorder": "1"}  # noqa: RUF012

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, step: str):
        if step not in STEPS:
            raise AttributeError(step)
        return lambda *arguments: (self.name, step, *arguments)


class Batching(Recorder):
    def embed_batch(self, images, landmarks):
        return [("together", len(images))] * len(images)


def test_each_step_goes_to_its_provider_alone_or_in_batches():
    providers = {step: Recorder(step[0]) for step in STEPS} | {"embed": Batching("e")}
    annotator = CompositeAnnotator(providers)
    assert annotator.detect("image") == ("d", "detect", "image")
    assert annotator.landmarks("image", "face") == ("l", "landmarks", "image", "face")
    assert annotator.segment("image", "points") == ("s", "segment", "image", "points")
    assert annotator.embed("image", "points") == ("e", "embed", "image", "points")
    assert annotator.detect_batch(["p", "q"]) == [("d", "detect", "p"), ("d", "detect", "q")]
    assert annotator.segment_batch(["p", "q"], [1, 2]) == [("s", "segment", "p", 1), ("s", "segment", "q", 2)]
    assert annotator.embed_batch(["p", "q"], [1, 2]) == [("together", 2)] * 2
    assert annotator.embed_batch([], []) == []
    with pytest.raises(ValueError, match="zip"):
        annotator.landmarks_batch(["p", "q"], [1])
    assert annotator.versions == {"recorder": "1"}
    assert annotator.for_item(Item(0, "/a.jpg")) is annotator


def test_networks_are_made_once_in_a_thread():
    first, second = load_annotator(AnnotateConfig()), load_annotator(AnnotateConfig())
    assert first._providers["detect"] is second._providers["detect"] is first._providers["embed"]
    other: list = []
    thread = threading.Thread(target=lambda: other.append(load_annotator(AnnotateConfig())))
    thread.start()
    thread.join()
    assert other[0]._providers["detect"] is not first._providers["detect"]


@pytest.mark.slow
def test_a_mix_on_one_face(mirror, face):
    """dlib finds and marks, BiSeNet (untrained) segments, ArcFace (untrained) describes."""
    config = AnnotateConfig(segment="facexlib", embed="facexlib", weights_uri=str(mirror), device="cpu")
    annotator = load_annotator(config)
    (detection,) = annotator.detect(face)
    points = annotator.landmarks(face, detection)
    np.testing.assert_array_equal(points, load_annotator(AnnotateConfig()).landmarks(face, detection))
    assert annotator.segment(face, points).shape == face.shape[:2]
    assert annotator.embed(face, points).shape == (512,)
    assert "dlib_face_recognition_resnet_model_v1.dat" not in annotator.versions  # it computes no descriptors


def test_dlib_s_mask_needs_no_weights():
    image, points = drawn_face(100)
    annotator = load_annotator(AnnotateConfig(provider="sidecar", segment="dlib"))
    assert annotator.segment(image, points).any()
    assert set(annotator.versions) == {"sidecar", "dlib", "dlib_face_recognition_resnet_model_v1.dat"}


@pytest.mark.slow
def test_the_default_imports_neither_torch_nor_the_other_libraries():
    """Nor does any import fetch weights: importing every provider's module opens no connection."""
    script = """
import socket, sys
def refuse(*arguments): raise AssertionError("a connection at import time")
socket.socket.connect = refuse
from schemas.annotate import AnnotateConfig
from tasks.annotate.annotators import load_annotator
load_annotator(AnnotateConfig())
assert not {"torch", "facexlib", "face_alignment"} & set(sys.modules), sorted(sys.modules)
import tasks.annotate.annotators.facexlib_provider, tasks.annotate.annotators.face_alignment_provider
assert not {"facexlib", "face_alignment"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
