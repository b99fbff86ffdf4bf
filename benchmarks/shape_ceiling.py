"""How much of a head's shape do landmarks tell, found how exactly? `python -m benchmarks.shape_ceiling`

A small network learns shape from the landmarks of people of the embedded world, moved by noise, with the true codes to
learn from; others are told to it. What it misses, no encoder finds that places landmarks no better. Errors are of the
face after the best similarity, RMS, over those of the mean face. Beside it, what fitting says of exact landmarks.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from deca_core.assets import procedural_head
from deca_core.camera import project
from deca_core.fitting import LandmarkHead, fit_landmarks
from deca_core.flame import FLAME
from deca_core.losses import CoarseWeights, gram
from deca_core.metrics import EYE_CORNERS_68
from deca_world import World

NOISES = (0.0, 0.005, 0.01, 0.02, 0.03)  # mean error over the distance of the outer eye corners
IMAGES, OTHERS, STEPS, BATCH, RATE, HIDDEN = 6, 80, 1500, 256, 1e-3, 512
MEAN_RADIUS = 1.2533  # of a normal point in the plane, in standard deviations


def landmarks_and_shapes(world: World, flame: FLAME, seed: int, people: range) -> tuple[Tensor, Tensor]:
    """Landmarks (N,68,2) in boxes of side 2, and shapes (N,100)."""
    points, shapes = list[Tensor](), list[Tensor]()
    for person in (world.subject(seed, index) for index in people):
        shots = [world.shot(person, image) for image in range(IMAGES)]
        shape = torch.from_numpy(person.shape).expand(IMAGES, -1)
        exp = torch.stack([torch.from_numpy(shot.exp) for shot in shots])
        pose = torch.stack([torch.cat([torch.from_numpy(shot.head), torch.from_numpy(shot.jaw)]) for shot in shots])
        seen = project(flame(shape, exp, pose).landmarks2d, torch.tensor([[1.0, 0.0, 0.0]]))[..., :2]
        low, high = seen.amin(1, keepdim=True), seen.amax(1, keepdim=True)
        points.append((seen - (low + high) / 2) / ((high - low).mean(2, keepdim=True) / 2))
        shapes.append(shape)
    return torch.cat(points), torch.cat(shapes)


def learnt(points: Tensor, shapes: Tensor, metric: Tensor, noise: float) -> nn.Module:
    """Landmarks (N,136) to shapes, trained under noise."""
    torch.manual_seed(0)
    width = points.shape[1]
    network = nn.Sequential(
        *(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 100))
    )
    optimiser = torch.optim.Adam(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        chosen = torch.randint(len(points), (BATCH,))
        found = network(points[chosen] + noise * torch.randn(BATCH, width))
        optimiser.zero_grad()
        distance(found - shapes[chosen], metric).mean().backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def distance(difference: Tensor, metric: Tensor) -> Tensor:
    return ((difference @ metric * difference).sum(1) + 1e-10).sqrt()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=1280)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    bundle = procedural_head()
    flame, world, face = FLAME(bundle), World(bundle), torch.from_numpy(bundle.face_vertices)
    metric = gram(flame.shape_basis[face], flame.v_template[face])
    with torch.no_grad():
        points, shapes = landmarks_and_shapes(world, flame, options.seed, range(options.people))
        others = range(options.people, options.people + OTHERS)
        told, true = landmarks_and_shapes(world, flame, options.seed, others)
    first, last = EYE_CORNERS_68
    eyes = float((points[:, first] - points[:, last]).norm(dim=1).mean())
    mean_face = float(distance(true, metric).mean())
    fits = fit_landmarks(LandmarkHead.of(flame), told, CoarseWeights(shape=1e-6, exp=1e-6)).shape
    fitted = float(distance(fits - true, metric).mean()) / mean_face
    print(f"mean face: {1e3 * mean_face:.2f} mm; fit to exact landmarks: {fitted:.0%} of that")
    spread = points.flatten(1).std()
    for noise in NOISES:
        level = noise * eyes / MEAN_RADIUS / float(spread)
        network = learnt(points.flatten(1) / spread, shapes, metric, level)
        with torch.no_grad():
            found = network(told.flatten(1) / spread + level * torch.randn(len(told), 136))
        share = float(distance(found - true, metric).mean()) / mean_face
        print(f"landmarks {noise:.1%} of the eyes' distance off: {share:.0%} of the mean face's error")


if __name__ == "__main__":
    main()
