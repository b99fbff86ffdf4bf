"""dlib's recognition network in torch: against dlib itself, slopes, the square it sees, files that are not its own."""

from __future__ import annotations

import copy
import hashlib
import struct
from importlib.util import find_spec
from pathlib import Path

import dlib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from deca_core import dlib_recognition
from deca_core.assets import procedural_head
from deca_core.crop import LANDMARK_MARGIN, crop_transform, square_from_landmarks, warp
from deca_core.dlib_recognition import CHIP, DLIB_FILE, LEFT, SIDE, TOP, DlibRecognition, load_dlib
from deca_core.recognition import RecognitionError
from deca_world import Limits, World

FRONTAL = Limits(yaw=(0.0, 10.0), pitch=5.0, roll=5.0, scale=(5.0, 5.0), occluders=False)


@pytest.fixture(scope="module")
def network() -> DlibRecognition:
    return load_dlib()


@pytest.fixture(scope="module")
def weights() -> Path:
    spec = find_spec("face_recognition_models")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "models"


@pytest.fixture(scope="module")
def original(weights):
    """dlib's own network."""
    return dlib.face_recognition_model_v1(str(weights / DLIB_FILE))


@pytest.fixture(scope="module")
def faces() -> list[tuple[NDArray[np.uint8], NDArray[np.float64]]]:
    """Two images of each of three subjects of the world as training's crops (224,224,3), with their landmarks."""
    world, found = World(procedural_head()), []
    for someone in (world.subject(1, index) for index in range(3)):
        for image in range(2):
            taken = world.photograph(someone, world.shot(someone, image, FRONTAL), 432)
            transform = crop_transform(square_from_landmarks(taken.landmarks, 1.6 / LANDMARK_MARGIN))
            crop = np.rint(warp(taken.image, transform).transpose(1, 2, 0) * 255).astype(np.uint8)
            found.append((np.ascontiguousarray(crop), taken.landmarks @ transform[:, :2].T + transform[:, 2]))
    return found


def shape_of(landmarks: NDArray[np.float64]) -> dlib.full_object_detection:
    points = [dlib.point(round(x), round(y)) for x, y in landmarks.tolist()]
    return dlib.full_object_detection(dlib.rectangle(0, 0, 223, 223), points)


def tensor_of(*images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def test_descriptors_are_dlibs(network, original, faces):
    """On dlib's own chips of faces, on noise, and on black and white images."""
    noise = np.random.default_rng(0).integers(0, 256, (3, CHIP, CHIP, 3), np.uint8)
    chips = [dlib.get_face_chip(crop, shape_of(landmarks), CHIP, 0.25) for crop, landmarks in faces]
    chips += [*noise, np.zeros_like(noise[0]), np.full_like(noise[0], 255)]
    expected = np.array([original.compute_face_descriptor(chip) for chip in chips])
    with torch.inference_mode():
        found = network(tensor_of(*chips)).numpy()
    assert np.abs(found - expected).max() < 2e-5  # of vectors 1.3 long
    assert np.ptp(expected, axis=0).max() > 0.1


def test_the_square_shows_what_dlib_would_cut(network, original, faces):
    """The fixed square of an upright crop is where dlib's own is, and separates identities as dlib does."""
    places = []
    for _, landmarks in faces:
        rect = dlib.get_face_chip_details(shape_of(landmarks), CHIP, 0.25).rect
        places.append([rect.top() + rect.bottom(), rect.left() + rect.right(), 2 * rect.width()])
    middle = (SIDE - 1) / 2
    assert np.abs(np.mean(places, axis=0) / 2 - (TOP + middle, LEFT + middle, SIDE)).max() < 6
    assert LEFT * 2 + SIDE == 224
    with torch.inference_mode():
        descriptors = network.features(tensor_of(*(crop for crop, _ in faces)))
    own = torch.tensor([original.compute_face_descriptor(crop, shape_of(points)) for crop, points in faces])
    assert functional.cosine_similarity(descriptors, own).min() > 0.95
    alike = functional.cosine_similarity(descriptors[:, None], descriptors[None], dim=2)
    assert min(alike[i, i + 1] for i in (0, 2, 4)) > max(
        alike[i, j] for i in range(6) for j in range(6) if i // 2 != j // 2
    )


def test_the_square_is_resized_as_pillow_does(network, faces):
    """Bilinear over the area that a pixel of the chip covers."""
    seen = []
    hook = network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.features(tensor_of(faces[0][0]))
    hook.remove()
    square = Image.fromarray(faces[0][0]).crop((LEFT, TOP, LEFT + SIDE, TOP + SIDE))
    expected = tensor_of(np.array(square.resize((CHIP, CHIP), Image.Resampling.BILINEAR)))
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1.5 / 255)


def test_slopes_are_those_of_differences(network, faces):
    """In double precision, along a random direction: the derivative is the quotient of a small difference."""
    double = copy.deepcopy(network).double()
    image = tensor_of(faces[0][0]).double().requires_grad_()
    target = double.features(tensor_of(faces[1][0]).double())
    (1 - functional.cosine_similarity(double.features(image), target)).sum().backward()
    slope = image.grad
    assert slope is not None
    assert slope.isfinite().all()
    inside = slope[..., TOP : TOP + SIDE, LEFT : LEFT + SIDE]
    assert (inside != 0).double().mean() > 0.9
    assert (slope != 0).sum() == (inside != 0).sum()  # nothing outside the square matters
    direction = torch.randn(image.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = 1e-9  # at 1e-7 the two images lie on either side of kinks of max-pooling and ReLU: quotients off by 1e-3
    with torch.inference_mode():
        ahead, behind = (
            functional.cosine_similarity(double.features(image + sign * step * direction), target).sum()
            for sign in (-1, 1)
        )
    torch.testing.assert_close((ahead - behind) / (2 * step), (slope * direction).sum(), rtol=1e-4, atol=0)


def test_it_is_frozen_and_named_by_its_file(network, weights):
    assert network.name == "dlib-resnet29-" + hashlib.sha256((weights / DLIB_FILE).read_bytes()).hexdigest()[:12]
    assert load_dlib(weights / DLIB_FILE).name == network.name
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(module.training for module in network.modules())


def test_refusals(weights, tmp_path, monkeypatch):
    content = (weights / DLIB_FILE).read_bytes()

    def refused(damaged: bytes, match: str) -> None:
        path = tmp_path / "some.dat"
        path.write_bytes(damaged)
        with pytest.raises(RecognitionError, match=rf"(?s)some\.dat: not dlib's face recognition network: {match}"):
            load_dlib(path)

    first = content.index(b"con_4") + 20
    refused(b"not\0weights", "0x6e where a whole number begins")
    refused(content[:1_000_000], "it ends too early")
    refused(content[:-1], "it ends too early")
    refused(content + b"\0", "1 bytes too many")
    refused(content.replace(b"affine_", b"affinE_", 1), r"b'affinE_' instead of affine_")
    refused(content[:first] + struct.pack("<f", np.nan) + content[first + 4 :], "weights that are not finite")
    refused((weights / "shape_predictor_5_face_landmarks.dat").read_bytes()[:4096], "")
    refused((weights / "mmod_human_face_detector.dat").read_bytes(), "")
    with pytest.raises(RecognitionError, match=rf"none\.dat: no such file; expected {DLIB_FILE}"):
        load_dlib(tmp_path / "none.dat")
    monkeypatch.setattr(dlib_recognition, "PACKAGE", "no_such_face_recognition_models")
    with pytest.raises(RecognitionError, match="Run: pip install no_such_face_recognition_models"):
        load_dlib()


def test_damage_is_never_anything_but_refused(weights, tmp_path):
    """Bytes of the first 350, which hold no weights, replaced at random in a file that is too short."""
    content = (weights / DLIB_FILE).read_bytes()
    draw, path, refusals = np.random.default_rng(0), tmp_path / "some.dat", 0
    for _ in range(25):
        damaged = bytearray(content[:20_000])  # short, so that a file that passes so far ends too early
        damaged[draw.integers(350)] = draw.integers(256)
        path.write_bytes(damaged)
        with pytest.raises(RecognitionError) as caught:
            load_dlib(path)
        refusals += "it ends too early, at byte 19" not in str(caught.value)
    assert refusals > 12
