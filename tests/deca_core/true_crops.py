"""Crops of the world's photographs with their true codes, and the losses on them without pretrained networks."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deca_core import DECA, Codes
from deca_core.appearance import shading
from deca_core.camera import from_pixels
from deca_core.crop import LANDMARK_MARGIN, crop_transform, square_from_landmarks, warp
from deca_core.detail import detail_normals
from deca_core.losses import Recipe, face_patch, photometric, recipe
from deca_core.training import DetailStep, FaceBatch
from deca_world import Limits, World

CROP = 1.375  # image crop scale of inference: side of the crop over that of the face
SIZE = 432  # pixels on a side of the photographs
LIMITS = Limits(scale=(5.0, 5.0))
CLIP = 1.0  # largest norm of a gradient: single slivers of triangles can have steep ones


@dataclasses.dataclass(frozen=True)
class Fit:
    """Weighted loss terms before the first step and at the last one; their sum is the loss."""

    first: dict[str, float]
    last: dict[str, float]

    @property
    def fall(self) -> float:
        """Relative decrease of the loss."""
        return 1 - sum(self.last.values()) / sum(self.first.values())


def fit(step: nn.Module, batch: FaceBatch, steps: int, rate: float) -> Fit:
    """Minimise a step's loss on one batch by Adam, with a tenth of the rate in the last quarter."""
    parameters = [parameter for parameter in step.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, rate)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps * 3 // 4])
    generator = torch.Generator().manual_seed(0)
    history: list[dict[str, float]] = []
    for _ in range(steps):
        optimizer.zero_grad()
        output = step(batch, generator)
        output.loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP, error_if_nonfinite=True)
        optimizer.step()
        schedule.step()
        history.append({name: float(value) for name, value in output.terms.items()})
    return Fit(history[0], history[-1])


def without_networks(weights: Recipe) -> Recipe:
    """Return the recipe without identity loss and ID-MRF."""
    coarse, detail = weights.coarse, weights.detail
    return dataclasses.replace(
        weights, coarse=dataclasses.replace(coarse, identity=0.0), detail=dataclasses.replace(detail, mrf=0.0)
    )


def true_crops(world: World, seed: int, subjects: int) -> tuple[FaceBatch, Codes, NDArray[np.float32]]:
    """Return one crop of each subject, the codes in the crop's frame, and the displacement (B,256,256) in metres."""
    pixels, codes, displacement = list[NDArray](), list[Codes](), list[NDArray]()
    for subject in (world.subject(seed, index) for index in range(subjects)):
        taken = world.photograph(subject, world.shot(subject, 0, LIMITS), SIZE)
        transform = crop_transform(square_from_landmarks(taken.landmarks, CROP / LANDMARK_MARGIN))
        pixels.append(warp(np.dstack([taken.image, taken.skin_mask]), transform))
        codes.append(taken.codes.replace(cam=crop_camera(taken.codes.cam, transform)))
        displacement.append(taken.displacement)
    stack = torch.from_numpy(np.stack(pixels))
    batch = FaceBatch(
        images=stack[:, :3],
        landmarks=torch.zeros(subjects, 68, 3),
        masks=(stack[:, 3:] > 0.5).float(),
        subjects=torch.arange(subjects),
        images_per_subject=1,
    )
    return batch, Codes.cat(codes), np.stack(displacement)


def crop_camera(cam: Tensor, transform: NDArray) -> Tensor:
    """Return the camera (1,3) of a crop that an upright transform (2,3) takes from an image of SIZE pixels."""
    scale, x, y = (float(value) for value in cam[0])
    growth = float(transform[0, 0]) * SIZE / 224
    shift = from_pixels(torch.from_numpy(transform @ [SIZE / 2, SIZE / 2, 1]))  # of the image's centre
    at_x, at_y = (float(value) / (scale * growth) for value in shift)
    return torch.tensor([[scale * growth, x + at_x, y - at_y]])


class DetailLoss:
    """The photometric loss of the detail stage at given displacements, under the true coarse codes."""

    def __init__(self, model: DECA, batch: FaceBatch, codes: Codes) -> None:
        weights = dataclasses.replace(without_networks(recipe("paper")).detail, symmetry=0.0, displacement=0.0)
        self.model, self.codes, self.step = model, codes, DetailStep(model, weights)
        with torch.no_grad():
            self.surface = self.step._surface(batch, codes)

    def __call__(self, z: Tensor) -> Tensor:
        """z (B,1,256,256) metres."""
        surface, model = self.surface, self.model
        normals = detail_normals(surface.positions, surface.normals, z, model.mask, model.fixed_displacement)
        texture = face_patch(surface.albedo * shading(normals, self.codes.light) * surface.visibility)
        target = face_patch(surface.image * surface.visibility)
        return self.step.weights.photometric * photometric(target, texture, torch.ones_like(texture[:, :1]))
