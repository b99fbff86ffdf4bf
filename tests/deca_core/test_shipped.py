"""The weights that come with the package: small, trained, and for the head as it is now."""

from __future__ import annotations

import numpy as np
import torch

from deca_core import DECA
from deca_core.camera import IMAGE_SIZE
from deca_core.checkpoint import SHIPPED, WEIGHTS_FILE
from deca_core.crop import crop_transform, square_from_landmarks, warp
from deca_core.metrics import normalized_mean_error
from deca_core.training import predicted_landmarks
from deca_world import World


def test_they_are_small_and_say_where_they_come_from(shipped: DECA) -> None:
    assert (SHIPPED / WEIGHTS_FILE).stat().st_size <= 16e6
    assert shipped.info["trained"] == "yes"
    assert all(value.dtype == torch.float32 for value in shipped.parameters())
    card = (SHIPPED / "README.md").read_text()
    assert shipped.info["run"][:12] in card


def test_they_find_landmarks_of_subjects_they_never_saw(shipped: DECA) -> None:
    """Fails when vertices or landmarks of the head move: the weights must then be trained again."""
    world = World(shipped.bundle)
    images, landmarks = [], []
    for index in range(8):
        subject = world.subject(2718, index)
        taken = world.photograph(subject, world.shot(subject, 0), 320)
        transform = crop_transform(square_from_landmarks(taken.landmarks))
        images.append(warp(taken.image, transform))
        landmarks.append((taken.landmarks @ transform[:, :2].T + transform[:, 2]) * (2 / IMAGE_SIZE) - 1)
    crops, true = (torch.from_numpy(np.stack(values)).float() for values in (images, landmarks))
    untrained = DECA(shipped.bundle, shipped.backbone)
    with torch.inference_mode():
        found, mean_face = (
            normalized_mean_error(true, predicted_landmarks(own, crops)).median() for own in (shipped, untrained)
        )
    assert found < 0.5 * mean_face
