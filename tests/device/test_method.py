"""deca_core on a GPU: every function takes tensors there, with the results of the CPU."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from deca_core import DECA, Codes
from deca_core.animation import Motion, preset
from deca_core.camera import from_pixels
from deca_core.crop import crop_transform, square_from_landmarks, warp
from deca_core.dlib_recognition import load_dlib
from deca_core.export import Animation, coarse_mesh, dense_mesh, head_glb
from deca_core.export.maps import png_of_displacement, tangent_normals, texture
from deca_core.fitting import LandmarkHead, fit_landmarks
from deca_core.inference import DTYPES, Inference, choose_precision, deviation, emulated, smooth_images
from deca_core.losses import CoarseWeights, DetailWeights, fitted_vector
from deca_core.metrics import light_error, normalized_mean_error, rotation_error
from deca_core.perceptual import random_vgg19
from deca_core.recognition import random_recognition
from deca_core.smoothing import Eyelids, smooth_codes
from deca_core.training import CoarseStep, DetailStep, FaceBatch, StepOutput, predicted_landmarks
from deca_core.uv import image_on_uv

EVERY_LOSS = CoarseWeights(lip_distance=0.5, fit=0.2)
RELEASE = DetailWeights(shading_smoothness=0.005, mrf_size=32)
SUBJECTS = 1


def seeded(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def codes_of(model: DECA, images: Tensor) -> Codes:
    with torch.inference_mode():
        codes = model.encode(images)
    return codes.replace(detail=codes.detail + 0.5)


def batch_of() -> FaceBatch:
    """Return two images of each of SUBJECTS subjects."""
    images = smooth_images(2 * SUBJECTS)
    landmarks = torch.cat([1.2 * seeded(2 * SUBJECTS, 68, 2) - 0.6, torch.ones(2 * SUBJECTS, 68, 1)], dim=2)
    return FaceBatch(
        images=images,
        landmarks=landmarks,
        masks=torch.ones(2 * SUBJECTS, 1, 224, 224),
        subjects=torch.arange(SUBJECTS).repeat_interleave(2),
        images_per_subject=2,
        fits=fitted_vector(Codes.zeros(2 * SUBJECTS)),
    )


def close(there: Tensor, here: Tensor, tolerance: float = 1e-4) -> None:
    """The same numbers, and the first of them on the GPU."""
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.detach().cpu(), here.detach(), rtol=tolerance, atol=tolerance)


# --- the model --------------------------------------------------------------------------------------------------------


def test_encode_decode_render(model, device):
    images = smooth_images(2)
    there = copy.deepcopy(model).to(device)
    with torch.inference_mode():
        codes, moved = model.encode(images), there.encode(images.to(device))
        out, far = model.decode(codes), there.decode(moved)
        drawn, seen = model.render(codes, out), there.render(moved, far)
        for name, value in vars(out).items():
            close(getattr(far, name), value)
        for name in vars(drawn):
            assert getattr(seen, name).device.type == "cuda", name
        assert float((seen.images.cpu() - drawn.images).abs().mean()) < 1e-3
        close(there.detail_normals(far), model.detail_normals(out), 1e-3)
        close(there.displacement(moved), model.displacement(codes))
        close(
            image_on_uv(there.atlas, far.projected, images.to(device)),
            image_on_uv(model.atlas, out.projected, images),
        )
    assert len(Codes.cat([moved, moved])[[0, 2]]) == 2
    close(Codes.animate(moved[:1], moved).exp, codes.exp)


def test_a_model_is_built_on_the_device(model, device):
    """`with torch.device("cuda")`, as accelerate and others build theirs."""
    with torch.device(device):
        built = DECA(model.bundle, backbone="mobilenet_v3_small")
    assert next(built.parameters()).device.type == "cuda"
    images = smooth_images(1).to(device)
    assert built.to(device).encode(images).cam.device.type == "cuda"


@pytest.mark.parametrize("precision", DTYPES)
def test_inference_from_a_model_on_the_device(model, device, precision):
    """As a worker has it: the model moves first, and the frozen networks are made of it there."""
    images = smooth_images(1)
    exact = Inference(model)
    frozen = Inference(copy.deepcopy(model).to(device), precision, device)
    codes = frozen.codes(images)
    assert {value.device.type for _, value in codes.items()} == {"cuda"}
    maps = frozen.displacement(codes)
    assert (maps.device.type, tuple(maps.shape), maps.dtype) == ("cuda", (1, 256, 256), torch.float32)
    off = deviation(model, exact, frozen, images)
    assert off.codes < 0.05
    assert off.displacement_um < 5


def test_the_precision_is_measured_there(model, device):
    choice = choose_precision(copy.deepcopy(model).to(device), device, batch=1)
    assert "fp32" in choice.milliseconds
    assert isinstance(emulated(torch.bfloat16, device), bool)


# --- training ---------------------------------------------------------------------------------------------------------


def coarse_step(**changes: float) -> Callable[[DECA], torch.nn.Module]:
    weights = dataclasses.replace(EVERY_LOSS, **changes)
    return lambda model: CoarseStep(model, weights, load_dlib() if weights.identity else None)


STEPS: dict[str, tuple[str, Callable[[DECA], torch.nn.Module]]] = {
    "pretrain": ("fp32", coarse_step(photometric=0, identity=0, shape_consistency=False)),
    "coarse": ("fp32", coarse_step()),
    "coarse, unlit": ("bf16", coarse_step(lit=False, identity=0, skin_mask=False)),
    "detail": ("fp32", lambda model: DetailStep(model, RELEASE, random_vgg19(RELEASE.mrf_layers))),
    "detail, no ID-MRF": ("bf16", lambda model: DetailStep(model, dataclasses.replace(RELEASE, mrf=0))),
}


FORWARD_ALONE = "detail, no ID-MRF"  # F_d backwards in bf16 takes CPUs without units for it 20 s


@pytest.mark.parametrize("stage", STEPS)
def test_step(model, device, stage):
    """Loss, its terms and the gradients, with codes exchanged; in float32 the terms are the CPU's."""
    precision, make = STEPS[stage]

    def run(place: torch.device) -> tuple[StepOutput, list[Tensor]]:
        own = copy.deepcopy(model)
        step = make(own).to(place)
        with torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16"):
            output = step(batch_of().to(place), torch.Generator().manual_seed(1))
        if place.type == "cuda" and stage != FORWARD_ALONE:
            output.loss.backward()
        return output, [value.grad for value in own.parameters() if value.grad is not None]

    output, gradients = run(device)
    assert (len(gradients) > 10) == (stage != FORWARD_ALONE)
    assert {value.device.type for value in (output.loss, *output.terms.values(), *gradients)} == {"cuda"}
    assert bool(output.loss.isfinite())
    if precision == "bf16":
        return
    expected, _ = run(torch.device("cpu"))
    assert output.terms.keys() == expected.terms.keys()
    for name, value in expected.terms.items():
        assert float(output.terms[name]) == pytest.approx(float(value), rel=1e-2, abs=1e-5), name


@pytest.mark.parametrize("network", [random_recognition, load_dlib], ids=["vggface2", "dlib"])
def test_recognition(device, network):
    images = smooth_images(1)
    loss_network = network()
    with torch.no_grad():
        expected = loss_network.features(images)
        close(loss_network.to(device).features(images.to(device)), expected, 1e-3)


def test_what_validation_measures(model, device):
    batch = batch_of()
    there = copy.deepcopy(model).to(device)
    with torch.no_grad():
        points = predicted_landmarks(there, batch.images.to(device))
        error = normalized_mean_error(batch.landmarks[..., :2].to(device), points)
        close(error, normalized_mean_error(batch.landmarks[..., :2], predicted_landmarks(model, batch.images)), 1e-3)
    poses, lights = seeded(3, 3), seeded(3, 9, 3)
    close(rotation_error(poses.to(device), poses.flip(0).to(device)), rotation_error(poses, poses.flip(0)), 1e-3)
    close(light_error(lights.to(device), lights.flip(0).to(device)), light_error(lights, lights.flip(0)))


# --- codes without a network ------------------------------------------------------------------------------------------


def test_fitting(model, device):
    points = model.flame(torch.zeros(2, 100), torch.zeros(2, 50), torch.zeros(2, 6)).landmarks2d[..., :2] * 8
    points = points * torch.tensor([1, -1]) + 0.01 * seeded(2, 68, 2)
    expected = fit_landmarks(LandmarkHead.of(model.flame), points)
    found = fit_landmarks(LandmarkHead.of(copy.deepcopy(model.flame).to(device)), points.to(device))
    for name, value in expected.items():
        close(getattr(found, name), value, 1e-3)


def test_a_crop_of_a_photograph(device):
    """Crops are made on the CPU, whatever the networks run on."""
    image = (255 * seeded(64, 80, 3)).to(torch.uint8).numpy()
    landmarks = np.stack([np.linspace(20, 60, 68), np.linspace(15, 50, 68)], axis=1)
    transform = crop_transform(square_from_landmarks(landmarks))
    crop = torch.from_numpy(warp(image, transform)).to(device)
    assert crop.shape == (3, 224, 224)
    assert from_pixels(torch.from_numpy(landmarks).to(device)).device.type == "cuda"


def test_motions_and_tracks(model, device):
    names = model.bundle.expression_names
    still = Codes.zeros(1, device)
    moved = preset("smile", names, 5).on(still)
    assert moved.exp.device.type == "cuda"
    motion = Motion.of(moved, np.arange(len(moved)) / 5)
    np.testing.assert_allclose(motion.exp, preset("smile", names, 5).exp, atol=1e-6)
    lids = Eyelids.of(copy.deepcopy(model.flame).to(device))
    np.testing.assert_allclose(lids.measure, Eyelids.of(model.flame).measure, rtol=1e-4, atol=1e-9)
    transforms = np.tile([[1.0, 0, 0], [0, 1.0, 0]], (len(moved), 1, 1))
    cameras = moved.replace(cam=moved.cam + 1)
    assert smooth_codes(motion.times, cameras, transforms, lids).exp.device.type == "cuda"


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_of_a_head(model, device):
    """GLB, meshes and maps of a model and codes that lie on the GPU."""
    images = smooth_images(1)
    codes = codes_of(model, images)
    there, moved = copy.deepcopy(model).to(device), codes.to(device)
    clip = Animation(np.array([0, 0.5], np.float32), np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32))
    made = head_glb(there, moved, image=images.to(device), animation=clip)
    assert made[:4] == b"glTF"
    assert len(made) == pytest.approx(len(head_glb(model, codes, image=images, animation=clip)), rel=0.01)
    with torch.inference_mode():
        out, far = model.decode(codes), there.decode(moved)
        on_uv = image_on_uv(model.atlas, out.projected, images)
        close(texture(there, moved, far, on_uv.to(device)), texture(model, codes, out, on_uv), 1e-2)
        close(tangent_normals(there, far), tangent_normals(model, out), 1e-2)
        for make in (coarse_mesh, dense_mesh):
            np.testing.assert_allclose(make(there, far).vertices, make(model, out).vertices, atol=1e-6)
            np.testing.assert_allclose(make(there, far).normals, make(model, out).normals, atol=1e-2)
        assert png_of_displacement(far.displacement[0, 0], 0.02)[:4] == b"\x89PNG"
