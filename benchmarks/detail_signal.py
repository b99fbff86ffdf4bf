"""What the photometric loss of the detail stage sees of the displacement: `python -m benchmarks.detail_signal`.

Photographs of the embedded world, cropped as in training, with their true coarse codes. First with the true
displacement in place of F_d's, scaled: 0 is a flat map, 1 the truth. Then with one map for all pictures, free at every
texel, that lowers the loss as far as it goes: no network can learn from that loss what its own minimum does not show.
Beside it, how much one map could tell (the mean of the truth), and one that is linear in expression and jaw; and how
much the true displacement changes the shading, against how far the picture is from albedo times shading anyhow.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.overfit import without_networks
from deca_core import DECA, Codes
from deca_core.appearance import shading
from deca_core.assets import procedural_head
from deca_core.assets.bundle import FACE
from deca_core.camera import from_pixels
from deca_core.crop import LANDMARK_MARGIN, crop_transform, square_from_landmarks, warp
from deca_core.detail import detail_normals
from deca_core.losses import face_patch, photometric, recipe
from deca_core.training import CoarseSurface, DetailStep, FaceBatch
from deca_world import World
from tasks.training.datasets import WORLD_LIMITS, WORLD_SIZE

SCALES = (0.0, 0.5, 1.0, 1.5, -1.0)
CROP = 1.375  # sides over the face's: that of inference
BATCH, STEPS, RATE = 8, 160, 2e-5  # of the free map; metres a step
TINT_RATE = 0.02  # of the logarithm of the albedo's factor
RIDGE = 1e-2
TEST_PEOPLE = 20  # on whom the maps are judged

Maps = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Shots:
    """Pictures and what is true of them: codes in the frame of the crop, displacement (B,256,256) metres."""

    batch: FaceBatch
    codes: Codes
    displacement: Maps

    def drive(self) -> NDArray:
        """What a linear map can know of the pictures (B,52): 1, expression, opening of the jaw."""
        one = torch.ones(len(self.codes.exp), 1)
        return torch.cat([one, self.codes.exp, self.codes.pose[:, 3:4]], dim=1).numpy()


def photographs(world: World, seed: int, people: range, images: int) -> Shots:
    """`images` photographs of each of the people."""
    pixels, codes, displacement = list[NDArray](), list[Codes](), list[NDArray]()
    for person in (world.subject(seed, index) for index in people):
        for image in range(images):
            taken = world.photograph(person, world.shot(person, image, WORLD_LIMITS), WORLD_SIZE)
            transform = crop_transform(square_from_landmarks(taken.landmarks, CROP / LANDMARK_MARGIN))
            pixels.append(warp(np.dstack([taken.image, taken.skin_mask]), transform))
            codes.append(taken.codes.replace(cam=cropped_camera(taken.codes.cam, transform)))
            displacement.append(taken.displacement)
    stack = torch.from_numpy(np.stack(pixels))
    count = len(stack)
    batch = FaceBatch(
        images=stack[:, :3],
        landmarks=torch.zeros(count, 68, 3),
        masks=(stack[:, 3:] > 0.5).float(),
        subjects=torch.arange(len(people)).repeat_interleave(images),
        images_per_subject=images,
    )
    return Shots(batch, Codes.cat(codes), np.stack(displacement))


def cropped_camera(cam: Tensor, transform: NDArray) -> Tensor:
    """The camera (1,3) of a picture of WORLD_SIZE pixels, in the crop that an upright transform (2,3) takes from it."""
    scale, x, y = (float(value) for value in cam[0])
    growth = float(transform[0, 0]) * WORLD_SIZE / 224
    shift = from_pixels(torch.from_numpy(transform @ [WORLD_SIZE / 2, WORLD_SIZE / 2, 1]))  # of the picture's middle
    at_x, at_y = (float(value) / (scale * growth) for value in shift)
    return torch.tensor([[scale * growth, x + at_x, y - at_y]])


class Loss:
    """The photometric loss of the detail stage at given displacements, under the true coarse codes."""

    def __init__(self, model: DECA, shots: Shots) -> None:
        weights = dataclasses.replace(without_networks(recipe("paper")).detail, symmetry=0.0, displacement=0.0)
        self.model, self.shots, self.step = model, shots, DetailStep(model, weights)
        with torch.no_grad():
            self.surface = self.step._surface(shots.batch, shots.codes)

    def _shaded(self, z: Tensor, rows: slice = slice(None)) -> tuple[CoarseSurface, Tensor]:
        """The surfaces of the pictures `rows` and their shading (B,3,256,256) with z."""
        parts = {name: value[rows] for name, value in vars(self.surface).items()}
        surface, model = CoarseSurface(**parts), self.model
        normals = detail_normals(surface.positions, surface.normals, z, model.mask, model.fixed_displacement)
        return surface, shading(normals, self.shots.codes.light[rows])

    def signal(self, truth: Tensor) -> tuple[float, float]:
        """RMS over visible skin of the logarithm of intensity: what the true displacement (B,1,256,256) changes, and
        what lies between the photograph and the rendering with it."""
        surface, light = self._shaded(truth)
        _, flat = self._shaded(0 * truth)
        # Black and white of the sensor have no logarithm that tells of light.
        lit = surface.visibility * (surface.image > 0.02) * (surface.image < 0.98) * (torch.minimum(light, flat) > 0.05)
        change = torch.where(lit > 0.5, light / flat, 1).log()
        rest = torch.where(lit > 0.5, surface.image / (surface.albedo * light).clamp(min=0.01), 1).log()
        count = (lit > 0.5).sum()
        return float((change.square().sum() / count).sqrt()), float((rest.square().sum() / count).sqrt())

    def __call__(self, z: Tensor, rows: slice = slice(None), gain: Tensor | float = 1.0) -> Tensor:
        """z (B,1,256,256) metres, for the pictures `rows`; gain (1,3,256,256): a factor of everybody's albedo."""
        surface, light = self._shaded(z, rows)
        texture = face_patch(gain * surface.albedo * light * surface.visibility)
        target = face_patch(surface.image * surface.visibility)
        return self.step.weights.photometric * photometric(target, texture, torch.ones_like(texture[:, :1]))


def best_common_map(loss: Loss, paint: bool = False) -> Maps:
    """The map (256,256) for all pictures together that Adam finds from a flat one; with `paint` beside a factor of
    everybody's albedo, which takes what looks alike under every light."""
    z, tint = torch.zeros(1, 1, 256, 256, requires_grad=True), torch.zeros(1, 3, 256, 256, requires_grad=paint)
    optimiser = torch.optim.Adam([{"params": [z], "lr": RATE}, {"params": [tint] if paint else [], "lr": TINT_RATE}])
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, STEPS)
    count = len(loss.shots.displacement) // BATCH
    for step in range(STEPS):
        first = BATCH * (step % count)
        optimiser.zero_grad()
        loss(z.expand(BATCH, -1, -1, -1), slice(first, first + BATCH), tint.exp()).backward()
        optimiser.step()
        schedule.step()
    found: Maps = z.detach()[0, 0].numpy()
    return found


def correlation(made: NDArray, truth: NDArray) -> float:
    """Mean over pictures of Pearson's r between maps (N,T)."""
    return float(np.mean([np.corrcoef(one, other)[0, 1] for one, other in zip(made, truth, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=120)
    parser.add_argument("--images", type=int, default=3, help="pictures of each")
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    model = DECA(procedural_head(), "dlib")
    world, mask = World(model.bundle), model.bundle.face_mask > FACE
    shots = photographs(world, options.seed, range(options.people), options.images)
    others = photographs(world, options.seed, range(options.people, options.people + TEST_PEOPLE), 2)
    loss, truth = Loss(model, shots), torch.from_numpy(shots.displacement)[:, None]
    known, wanted = shots.displacement[:, mask], others.displacement[:, mask]
    print(f"true displacement: {1e6 * np.sqrt(np.square(known).mean()):.0f} um RMS inside the face")
    with torch.no_grad():
        flat = float(loss(0 * truth))
        for scale in SCALES:
            value = float(loss(scale * truth))
            print(f"photometric loss at {scale:+.1f} x the truth: {value:.5f} ({value / flat - 1:+.2%})")
        change, rest = loss.signal(truth)
        print(
            f"shading of the truth against a flat map: {change:.4f} RMS in logarithms; all else unexplained: {rest:.4f}"
        )
    found, painted = best_common_map(loss), best_common_map(loss, paint=True)
    with torch.no_grad():
        value = float(loss(torch.from_numpy(found).expand_as(truth)))
    print(f"one free map for all: {value:.5f} ({value / flat - 1:+.2%}), {1e6 * found[mask].std():.0f} um RMS")
    drive, count = shots.drive(), len(known)
    slope = np.linalg.solve(drive.T @ drive / count + RIDGE * np.eye(drive.shape[1]), drive.T @ known / count)
    maps = {
        "that map": np.broadcast_to(found[mask], wanted.shape),
        "the map, with a free factor of everybody's albedo": np.broadcast_to(painted[mask], wanted.shape),
        "the mean of the truth": np.broadcast_to(known.mean(0), wanted.shape),
        "the truth's regression on expression and jaw": others.drive() @ slope,
    }
    for name, made in maps.items():
        print(f"r with the truth of other people: {correlation(made, wanted):+.3f}  {name}")


if __name__ == "__main__":
    main()
