"""What the detail losses see of the displacement: `python -m benchmarks.detail_signal`.

Photographs of the embedded world with their true coarse codes, and in place of F_d the true displacement, scaled: 0 is
a flat map, 1 the truth. Where the photometric loss is hardly lower at 1 than at 0, no network can learn it from it.
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.overfit import without_networks, world_batch
from deca_core import DECA, Codes
from deca_core.assets import procedural_head
from deca_core.losses import recipe
from deca_core.training import DetailStep
from deca_core.world import World

SCALES = (0.0, 0.5, 1.0, 1.5, -1.0)


class Known(nn.Module):
    """An encoder that answers one tensor, whatever it is shown."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Tensor:
        return self.answer


class Scaled(nn.Module):
    """A decoder that answers `scale` times a map."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer, self.scale = answer, 1.0

    def forward(self, condition: Tensor) -> Tensor:
        return self.scale * self.answer


@torch.no_grad()
def photometric_by_scale(people: int, images: int, seed: int) -> tuple[float, dict[float, float]]:
    """RMS of the true displacement inside the face, metres; and the photometric loss by its scale."""
    bundle = procedural_head()
    world = World(bundle)
    everybody = [world.person(seed, index) for index in range(people)]
    shots = [world.photograph(person, world.shot(person, image)) for person in everybody for image in range(images)]
    model = DECA(bundle, "dlib")
    codes = Codes.cat([shot.codes for shot in shots])
    coarse = torch.cat([value.flatten(1) for name, value in codes.items() if name != "detail"], dim=1)
    truth = torch.from_numpy(np.stack([shot.displacement for shot in shots]))[:, None].float()
    decoder = Scaled(truth)
    model.E_flame, model.D_detail = Known(coarse), decoder
    model.E_detail = Known(codes.detail)
    weights = dataclasses.replace(without_networks(recipe("paper")).detail, symmetry=0.0, displacement=0.0)
    step, batch, found = DetailStep(model, weights), world_batch(bundle, people, images, seed), {}
    for decoder.scale in SCALES:
        found[decoder.scale] = float(step(batch).terms["photometric"])
    return float(truth[:, 0, model.mask > 0.5].square().mean().sqrt()), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=4)
    parser.add_argument("--images", type=int, default=2, help="pictures of each")
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    size, found = photometric_by_scale(options.people, options.images, options.seed)
    print(f"true displacement: {size * 1e6:.0f} um RMS inside the face")
    for scale, loss in found.items():
        print(f"photometric loss at {scale:+.1f} x the truth: {loss:.5f} ({loss / found[0.0] - 1:+.2%})")


if __name__ == "__main__":
    main()
