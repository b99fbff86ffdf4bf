"""The steps of training: both halves, what is trained, what is computed, and images with nothing in them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deca_core import DECA, Codes, training
from deca_core.camera import project
from deca_core.codes import NUM_DETAIL
from deca_core.detail import NUM_CONDITION, DetailDecoder
from deca_core.losses import CoarseWeights, DetailWeights, fitted_vector, recipe, swap_order
from deca_core.losses.fits import NO_DISTANCE
from deca_core.perceptual import random_vgg19
from deca_core.training import CoarseStep, DetailStep, FaceBatch, StepOutput
from deca_world import World
from tests.deca_core.true_crops import CROP, DetailLoss, fit, true_crops, without_networks

SUBJECTS, K = 2, 2
NO_CODES = CoarseWeights(0, 0, 0, 0, 0, 0, 0, 0, 0)


class Table(nn.Module):
    """An encoder that knows the codes of its images: one row each."""

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.codes = nn.Parameter(codes.clone())
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        assert len(images) == len(self.codes)
        return self.codes * 1


class Bumps(nn.Module):
    """A displacement decoder of next to no cost: 8 x 8 numbers, made smooth."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(NUM_CONDITION, 64)

    def forward(self, condition: Tensor) -> Tensor:
        coarse = 0.001 * self.linear(condition).unflatten(1, (1, 8, 8))
        return nn.functional.interpolate(coarse, (256, 256), mode="bilinear")


class Patches(nn.Module):
    """A recognition network without weights: the colours of a coarse grid."""

    name = "patches"

    def features(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 8).flatten(1) - 0.5


def coarse_vector(codes: Codes) -> Tensor:
    return torch.cat([value.flatten(1) for name, value in codes.items() if name != "detail"], dim=1)


@pytest.fixture(scope="module")
def shots(bundle) -> tuple[FaceBatch, Codes]:
    """Two subjects of the world in two images each, with the truth."""
    world = World(bundle)
    photographs = []
    for subject in range(SUBJECTS):
        identity = world.subject(3, subject)
        photographs += [world.photograph(identity, world.shot(identity, image)) for image in range(K)]
    points = torch.from_numpy(np.stack([shot.landmarks for shot in photographs])) / 112 - 1
    batch = FaceBatch(
        images=torch.from_numpy(np.stack([shot.image for shot in photographs])).permute(0, 3, 1, 2).float() / 255,
        landmarks=torch.cat([points, torch.ones(SUBJECTS * K, 68, 1)], dim=-1),
        masks=torch.from_numpy(np.stack([shot.skin_mask for shot in photographs]))[:, None].float() / 255,
        subjects=torch.arange(SUBJECTS).repeat_interleave(K),
        images_per_subject=K,
    )
    return batch, Codes.cat([shot.codes for shot in photographs])


@pytest.fixture(scope="module")
def built(bundle) -> DECA:
    return DECA(bundle)


@pytest.fixture
def model(built, shots) -> DECA:
    """The model with light networks: true coarse codes, random detail codes."""
    built.E_flame = Table(coarse_vector(shots[1]))
    built.E_detail = Table(torch.randn(SUBJECTS * K, NUM_DETAIL, generator=torch.Generator().manual_seed(0)))
    built.D_detail = Bumps()
    return built


@pytest.fixture(scope="module")
def vgg():
    return random_vgg19(recipe("paper").detail.mrf_layers)


def terms(output: StepOutput) -> dict[str, float]:
    return {name: float(value) for name, value in output.terms.items()}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def doubled(batch: FaceBatch) -> FaceBatch:
    return FaceBatch(
        *(torch.cat([value, value]) for value in (batch.images, batch.landmarks, batch.masks, batch.subjects)),
        images_per_subject=K,
    )


def test_truth_explains_the_image(model, shots):
    """True codes: landmarks to rounding, and a photometric error far below that of any wrong code."""
    weights = dataclasses.replace(NO_CODES, landmark=1, eye_closure=1, photometric=1, lip_distance=1)
    batch, truth = shots
    right = terms(CoarseStep(model, weights)(batch))
    assert right["landmark"] < 1e-3
    assert right["eye_closure"] < 5e-3  # the codes do not hold the turn of the eyes, which moves the lids a little
    assert right["lip_distance"] < 1e-3
    for wrong in (
        truth.replace(light=truth.light * 0.7),
        truth.replace(tex=-truth.tex),
        truth.replace(pose=truth.pose + 0.15),
        truth.replace(cam=truth.cam * 0.9),
    ):
        model.E_flame = Table(coarse_vector(wrong))
        assert terms(CoarseStep(model, weights)(batch))["photometric"] > 1.1 * right["photometric"]


def masked(batch: FaceBatch, value: float) -> FaceBatch:
    return dataclasses.replace(batch, masks=torch.full_like(batch.masks, value))


def test_without_the_skin_mask_the_image_counts_wherever_the_head_is(model, shots):
    """As if everything were skin, whatever the mask says; hair and hands before the face make it worse."""
    batch = shots[0]
    with_mask = dataclasses.replace(NO_CODES, photometric=1)
    without = CoarseStep(model, dataclasses.replace(with_mask, skin_mask=False))
    everywhere = terms(CoarseStep(model, with_mask)(masked(batch, 1)))["photometric"]
    assert terms(CoarseStep(model, with_mask)(masked(batch, 0)))["photometric"] == 0
    assert terms(without(masked(batch, 0)))["photometric"] == everywhere
    assert everywhere > terms(CoarseStep(model, with_mask)(batch))["photometric"]


def test_without_the_skin_mask_texels_need_only_face_the_camera(model, shots):
    batch, truth = shots
    far = truth.replace(cam=truth.cam * torch.tensor([2.0, 1.0, 1.0]))  # so near that the image cuts the face
    step = DetailStep(model, dataclasses.replace(DetailWeights(), mrf=0, skin_mask=False))
    surface = step._surface(masked(batch, 0), far)
    grid = project(surface.positions.flatten(2).transpose(1, 2), far.cam)[..., :2]
    inside = (grid.abs() < 1 - 1 / 112).all(-1).view(len(batch), 1, 256, 256)
    outside = (grid.abs() > 1 + 1 / 112).any(-1).view(len(batch), 1, 256, 256)
    facing = (surface.normals[:, 2:] > 0.05) & (model.mask > 0.99)
    assert (facing & outside).any()
    assert (surface.visibility[facing & inside] > 0.99).all()
    assert (surface.visibility[~(surface.normals[:, 2:] > 0.05) | outside] == 0).all()


@pytest.mark.slow
def test_codes_can_be_fitted(model, shots):
    """From the mean face in even light, a few steps on the codes of one subject take much of the coarse loss away."""
    batch = shots[0]
    one = dataclasses.replace(
        batch, **{name: getattr(batch, name)[:K] for name in ("images", "landmarks", "masks", "subjects")}
    )
    model.E_flame = Table(model._mean_face().expand(K, -1))
    result = fit(CoarseStep(model, without_networks(recipe("paper")).coarse), one, steps=25, rate=0.04)
    assert result.fall > 0.3
    assert result.last["photometric"] < 0.85 * result.first["photometric"]
    assert result.last["landmark"] < 0.75 * result.first["landmark"]


def test_unlit_leaves_out_the_light(model, shots):
    weights = dataclasses.replace(NO_CODES, photometric=1)
    for lit in (True, False):
        model.E_flame.zero_grad()
        CoarseStep(model, dataclasses.replace(weights, lit=lit))(shots[0]).loss.backward()
        slopes = Codes.from_vectors(model.E_flame.codes.grad, torch.zeros(SUBJECTS * K, NUM_DETAIL))
        assert (slopes.light != 0).any() == lit
        assert (slopes.tex != 0).any()


def test_second_half_has_exchanged_shapes(model, shots):
    """One step with exchange is one step over the doubled batch whose second half has the other images' shapes."""
    batch, truth = shots
    weights = recipe("release").coarse
    both = CoarseStep(model, weights, Patches())(batch, seeded())
    assert model.E_flame.calls == 1
    order = swap_order(SUBJECTS * K, K, seeded())
    codes = Codes.cat([truth, truth.replace(shape=truth.shape[order])])
    model.E_flame = Table(coarse_vector(codes))
    expected = terms(CoarseStep(model, weights, Patches())(doubled(batch)))
    assert set(expected) == {
        "landmark",
        "eye_closure",
        "lip_distance",
        "photometric",
        "identity",
        "shape",
        "exp",
        "tex",
        "light",
    }
    assert terms(both) == pytest.approx(expected, rel=1e-4)
    assert float(both.loss.detach()) == pytest.approx(sum(expected.values()), rel=1e-4)
    assert both.terms["landmark"].requires_grad is False


def test_identity_is_a_matter_of_geometry(model, shots):
    weights = dataclasses.replace(NO_CODES, identity=1)
    CoarseStep(model, weights, Patches())(shots[0]).loss.backward()
    slopes = Codes.from_vectors(model.E_flame.codes.grad, torch.zeros(SUBJECTS * K, NUM_DETAIL))
    assert (slopes.tex == 0).all()
    assert (slopes.light == 0).all()
    for name in ("shape", "exp", "pose", "cam"):
        assert (getattr(slopes, name) != 0).any(), name


def test_pretraining_renders_nothing(model, shots, monkeypatch):
    monkeypatch.setattr(training, "rasterize", None)
    output = CoarseStep(model, recipe("release").pretrain)(shots[0], seeded())
    assert set(output.terms) == {"landmark", "eye_closure", "lip_distance", "shape", "exp"}


def test_detail_is_of_the_uv_map(model, shots, vgg, monkeypatch):
    """Nothing is rasterised, E_c runs once, and both encoders see each image once."""
    monkeypatch.setattr(training, "rasterize", None)
    model.D_detail = DetailDecoder()
    weights = dataclasses.replace(recipe("release").detail, mrf_layers=recipe("paper").detail.mrf_layers, mrf_size=32)
    output = DetailStep(model, weights, vgg)(shots[0], seeded())
    assert set(output.terms) == {"photometric", "mrf", "symmetry", "displacement", "shading_smoothness"}
    assert model.E_flame.calls == model.E_detail.calls == 1
    output.loss.backward()
    assert model.E_flame.codes.grad is None
    assert (model.E_detail.codes.grad != 0).any(1).all()
    assert all(parameter.grad is not None for parameter in model.D_detail.parameters())


@pytest.mark.slow
def test_the_true_displacement_explains_the_image_better_than_its_opposite(bundle):
    """In crops of the world's photographs under their true codes, which frame the landmarks as the crop does."""
    model = DECA(bundle, "dlib")
    batch, codes, displacement = true_crops(World(bundle), 11, subjects=2)
    points = project(model.flame(codes.shape, codes.exp, codes.pose).landmarks2d, codes.cam)
    low, high = points[..., :2].amin(1), points[..., :2].amax(1)
    torch.testing.assert_close((low + high) / 2, torch.zeros_like(low), atol=0.02, rtol=0)
    torch.testing.assert_close((high - low).mean(1), torch.full((2,), 2 / CROP), atol=0.02, rtol=0)
    loss, truth = DetailLoss(model, batch, codes), torch.from_numpy(displacement)[:, None]
    with torch.no_grad():
        flat, half, opposite = (float(loss(scale * truth)) for scale in (0.0, 0.5, -1.0))
    assert half < flat < opposite


def test_second_half_has_exchanged_details(model, shots, vgg):
    batch, truth = shots
    weights = dataclasses.replace(recipe("paper").detail, mrf_size=32)
    details = model.E_detail.codes.detach()
    both = DetailStep(model, weights, vgg).eval()(batch, seeded())
    order = swap_order(SUBJECTS * K, K, seeded())
    model.E_flame = Table(coarse_vector(Codes.cat([truth, truth])))
    model.E_detail = Table(torch.cat([details, details[order]]))
    expected = DetailStep(model, weights, vgg).eval()(doubled(batch))
    assert terms(both) == pytest.approx(terms(expected), rel=1e-3)


def test_texture_is_warped_from_the_image(model, shots):
    """Texels of the landmarks hold the image's colour at the landmark; what is hidden or turned away is not seen."""
    batch, truth = shots
    step = DetailStep(model, dataclasses.replace(DetailWeights(), mrf=0))
    surface = step._surface(batch, truth)
    head = model.flame(truth.shape, truth.exp, truth.pose)
    # Where the atlas puts each texel, projected by itself, is where the image was read.
    grid = project(surface.positions.flatten(2).transpose(1, 2), truth.cam)[..., :2]
    pixels = ((grid + 1) * 112 - 0.5).round().long().clamp(0, 223)
    seen = surface.visibility.flatten(2)[:, 0] > 0.99
    for index in range(len(batch)):
        x, y = pixels[index][seen[index]].unbind(-1)
        colours = surface.image.flatten(2)[index][:, seen[index]]
        assert (colours - batch.images[index][:, y, x]).abs().mean() < 0.02
        assert (batch.masks[index, 0, y, x] > 0).float().mean() > 0.99
    normals = surface.normals
    assert (surface.visibility[(normals[:, 2:] <= 0.05)] == 0).all()
    assert (surface.visibility[:, 0][:, model.mask == 0] == 0).all()
    assert 0.1 < float(surface.visibility.mean()) < 0.9
    assert head.vertices.shape[0] == len(batch)


def test_what_is_trained(bundle):
    """Parameters with a slope and modules in train mode, of each stage."""
    model = DECA(bundle)
    coarse = CoarseStep(model, recipe("paper").pretrain)
    assert {name.split(".")[0] for name, value in model.named_parameters() if value.requires_grad} == {"E_flame"}
    assert model.E_flame.training
    assert not model.E_detail.training
    assert not coarse.eval().model.E_flame.training
    detail = DetailStep(model, dataclasses.replace(DetailWeights(), mrf=0)).train()
    trained = {name.split(".")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {"E_detail", "D_detail"}
    assert detail.training
    assert (model.E_flame.training, model.E_detail.training, model.D_detail.training) == (False, True, True)


@pytest.mark.parametrize("empty", ["everything", "one", "black"])
def test_nothing_to_see(model, shots, vgg, empty):
    """Blank images, masks without skin, landmarks without weight: finite losses and slopes."""
    batch, _ = shots
    images, landmarks, masks = batch.images.clone(), batch.landmarks.clone(), batch.masks.clone()
    rows = slice(None) if empty == "everything" else slice(0, 1)
    images[rows] = 0
    if empty != "black":
        masks[rows] = 0
        landmarks[rows, :, 2] = 0
    batch = dataclasses.replace(batch, images=images, landmarks=landmarks, masks=masks)
    weights = dataclasses.replace(recipe("paper").detail, mrf_size=32)
    for make in (
        lambda: CoarseStep(model, recipe("release").coarse, Patches()),
        lambda: DetailStep(model, weights, vgg),
    ):
        step = make()
        output = step(batch, seeded())
        output.loss.backward()
        assert output.loss.isfinite()
        for parameter in step.parameters():
            assert not parameter.requires_grad or parameter.grad.isfinite().all()


def test_face_outside_of_the_image(model, shots):
    """A head that the camera misses renders nothing, and the landmarks still pull it back."""
    model.E_flame = Table(coarse_vector(shots[1].replace(cam=shots[1].cam + torch.tensor([0.0, 5.0, 0.0]))))
    output = CoarseStep(model, recipe("paper").coarse, Patches())(shots[0], seeded())
    output.loss.backward()
    assert output.loss.isfinite()
    assert output.terms["photometric"] == 0
    assert model.E_flame.codes.grad.isfinite().all()
    assert (model.E_flame.codes.grad != 0).any()


def test_autocast_keeps_losses_in_full_precision(model, shots, vgg):
    weights = dataclasses.replace(recipe("paper").detail, mrf_size=32)
    for step in (CoarseStep(model, recipe("paper").coarse, Patches()), DetailStep(model, weights, vgg)):
        plain = terms(step.eval()(shots[0], seeded()))
        with torch.autocast("cpu", torch.bfloat16):
            output = step(shots[0], seeded())
        assert output.loss.dtype == torch.float32
        for name, value in terms(output).items():
            assert value == pytest.approx(plain[name], rel=0.1, abs=1e-4), name


def test_fits_pull_codes_and_exchanged_shapes_have_the_subjects(model, shots):
    batch, truth = shots
    fits = fitted_vector(truth)
    weights = dataclasses.replace(NO_CODES, fit=2.0)
    step = CoarseStep(model, weights)
    assert terms(step(dataclasses.replace(batch, fits=fits)))["fit"] == pytest.approx(0, abs=0.01)
    away = dataclasses.replace(batch, fits=fits + 0.5 * torch.eye(1, len(fits[0])))  # the first shape component
    output = step(away)
    ends = 2 * NO_DISTANCE**0.5  # where the roots of the other two distances end
    expected = 2.0 * 100 * (0.5 * float(step.shape_gram[0, 0].sqrt()) + ends)
    assert terms(output)["fit"] == pytest.approx(expected, rel=0.02)
    output.loss.backward()
    slope = model.E_flame.codes.grad
    assert (slope[:, 0] < 0).all()
    assert slope[:, 0].abs().min() > 10 * slope[:, 150:].abs().max()
    # The truth has one shape per subject, so exchanging changes nothing.
    assert terms(step(away, seeded()))["fit"] == pytest.approx(expected, rel=0.02)


def test_single_images_have_no_second_half(model, shots):
    single = dataclasses.replace(shots[0], images_per_subject=1)
    step = CoarseStep(model, dataclasses.replace(NO_CODES, shape=1))
    alone = float(step(single, seeded()).loss.detach())
    assert alone == float(step(single).loss.detach())
    assert alone == pytest.approx(float(step(shots[0], seeded()).loss.detach()) / 2)  # a sum over the batch


def test_refusals(model, shots, vgg):
    with pytest.raises(ValueError, match="give a recognition network or weight 0"):
        CoarseStep(model, recipe("paper").coarse)
    with pytest.raises(ValueError, match="the batch no fits; give them or weight 0"):
        CoarseStep(model, dataclasses.replace(NO_CODES, fit=1.0))(shots[0])
    with pytest.raises(ValueError, match="ID-MRF needs VGG19's relu3_1, relu4_1"):
        DetailStep(model, recipe("release").detail, vgg)
