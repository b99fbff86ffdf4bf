"""Can the losses be fitted? Eight pictures of the embedded world, coarse and then detail stage, over and over.

    python -m benchmarks.overfit --backbone resnet50 --coarse-steps 400 --detail-steps 200

Prints how far each loss falls and how well the re-rendered faces match the photographs (PSNR on visible skin).
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from deca_core import DECA
from deca_core.assets import procedural_head
from deca_core.assets.bundle import AssetBundle
from deca_core.dlib_recognition import load_dlib
from deca_core.dlib_resnet import DlibBackbone
from deca_core.losses import Recipe, recipe
from deca_core.perceptual import random_vgg19
from deca_core.raster import rasterize
from deca_core.recognition import random_recognition
from deca_core.render import fragments, render_surface, vertex_normals
from deca_core.training import CoarseStep, DetailStep, FaceBatch
from deca_world import Photograph, World

CLIP = 1.0  # largest norm of a gradient: single slivers of triangles can have steep ones


@dataclasses.dataclass(frozen=True)
class Fit:
    """Terms before the first step and at the last one, weighted; their sum is the loss."""

    first: dict[str, float]
    last: dict[str, float]
    seconds: float

    @property
    def fall(self) -> float:
        """Share of the loss that is gone."""
        return 1 - sum(self.last.values()) / sum(self.first.values())


def world_batch(bundle: AssetBundle, people: int, images: int, seed: int = 0) -> FaceBatch:
    """Pictures of the world with the true landmarks and masks."""
    world = World(bundle)
    shots: list[Photograph] = []
    for index in range(people):
        person = world.subject(seed, index)
        shots += [world.photograph(person, world.shot(person, image)) for image in range(images)]
    points = torch.from_numpy(np.stack([shot.landmarks for shot in shots])) * (2 / 224) - 1
    return FaceBatch(
        images=torch.from_numpy(np.stack([shot.image for shot in shots])).permute(0, 3, 1, 2).float() / 255,
        landmarks=torch.cat([points, torch.ones(len(shots), 68, 1)], dim=-1),
        masks=torch.from_numpy(np.stack([shot.skin_mask for shot in shots]))[:, None].float() / 255,
        subjects=torch.arange(people).repeat_interleave(images),
        images_per_subject=images,
    )


def fit(step: nn.Module, batch: FaceBatch, steps: int, rate: float) -> Fit:
    """Adam on one batch; a tenth of the rate in the last quarter, so that the last loss is not a swing's."""
    parameters = [parameter for parameter in step.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, rate)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps * 3 // 4])
    generator = torch.Generator().manual_seed(0)
    history: list[dict[str, float]] = []
    start = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        output = step(batch, generator)
        output.loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP, error_if_nonfinite=True)
        optimizer.step()
        schedule.step()
        history.append({name: float(value) for name, value in output.terms.items()})
    return Fit(history[0], history[-1], time.perf_counter() - start)


@torch.no_grad()
def psnr(model: DECA, batch: FaceBatch) -> dict[str, float]:
    """Decibels between photographs and renderings, coarse and detailed, on visible skin inside the face.

    The encoders see the batch as in training (BN of the batch), which a handful of pictures needs.
    """
    codes = model.encode(batch.images)
    out = model.decode(codes)
    pictures = model.render(codes, out)
    seen = fragments(rasterize(out.projected, model.faces, 224, 224), out.projected, model.faces)
    mask = model.mask.expand(len(codes), 1, -1, -1)
    normals = vertex_normals(out.vertices, model.faces)
    face = render_surface(seen, model.faces, model.uv_corners, normals, mask, codes.light)[0]
    weight = ((batch.masks * face) > 0.5).float()

    def decibels(rendering: torch.Tensor) -> float:
        error = (weight * (rendering.clamp(0, 1) - batch.images).square()).sum() / (3 * weight.sum())
        return float(-10 * error.log10())

    return {"coarse": decibels(pictures.images), "detail": decibels(pictures.detail_images)}


def without_networks(weights: Recipe) -> Recipe:
    """The recipe without identity loss and ID-MRF: for machines where VGG and ResNet cost more than they tell."""
    coarse, detail = weights.coarse, weights.detail
    return dataclasses.replace(
        weights, coarse=dataclasses.replace(coarse, identity=0.0), detail=dataclasses.replace(detail, mrf=0.0)
    )


def overfit(
    model: DECA, batch: FaceBatch, weights: Recipe, steps: Sequence[int], rates: Sequence[float]
) -> tuple[list[Fit], dict[str, float]]:
    """Coarse and detail stage on one batch; the fits of both and the PSNR."""
    recognition = random_recognition() if weights.coarse.identity else None
    perceptual = random_vgg19(weights.detail.mrf_layers) if weights.detail.mrf else None
    fits = [
        fit(CoarseStep(model, weights.coarse, recognition), batch, steps[0], rates[0]),
        fit(DetailStep(model, weights.detail, perceptual), batch, steps[1], rates[1]),
    ]
    model.train()
    return fits, psnr(model, batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--people", type=int, default=4)
    parser.add_argument("--images", type=int, default=2, help="pictures of each")
    parser.add_argument("--coarse-steps", type=int, default=400)
    parser.add_argument("--detail-steps", type=int, default=200)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--mrf-size", type=int, default=64, help="pixels of the patch that VGG19 sees; 256 in training")
    parser.add_argument("--without-networks", action="store_true", help="no identity loss, no ID-MRF")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    weights = recipe("paper")
    detail = dataclasses.replace(weights.detail, mrf_size=arguments.mrf_size)
    weights = dataclasses.replace(weights, detail=detail)
    if arguments.without_networks:
        weights = without_networks(weights)
    bundle = procedural_head()
    batch = world_batch(bundle, arguments.people, arguments.images)
    model = DECA(bundle, arguments.backbone)
    for encoder in (model.E_flame.encoder, model.E_detail.encoder):
        if isinstance(encoder, DlibBackbone):
            encoder.start_from(load_dlib().resnet, batch.images)
    steps, rates = (arguments.coarse_steps, arguments.detail_steps), (arguments.rate, arguments.rate)
    fits, decibels = overfit(model, batch, weights, steps, rates)
    for stage, count, result in zip(("coarse", "detail"), steps, fits, strict=True):
        print(f"{stage}: the loss falls by {result.fall:.1%} in {count} steps, {result.seconds:.0f} s")
        for name, value in result.first.items():
            print(f"  {name:<20}{value:>10.4f} -> {result.last[name]:.4f}")
    print(f"PSNR on visible skin: coarse {decibels['coarse']:.1f} dB, detail {decibels['detail']:.1f} dB")


if __name__ == "__main__":
    main()
