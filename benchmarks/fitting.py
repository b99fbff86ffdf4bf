"""Fitting 68 landmarks: `deca_core.fitting` against Adam and L-BFGS, in processor time: `python -m benchmarks.fitting`.

Faces are the embedded world's, their true landmarks with noise of a pixel. All begin at the same pose and camera with
the mean face; the others minimise the same losses (the paper's pretrain stage) through the layer of training.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from benchmarks.overfit import world_batch
from deca_core import Codes, losses
from deca_core.assets import procedural_head
from deca_core.camera import project
from deca_core.fitting import LandmarkHead, fit_landmarks
from deca_core.flame import FLAME
from deca_core.losses import recipe

WEIGHTS = recipe("paper").pretrain
FREE = ("shape", "exp", "pose", "cam")
RATES = (3e-3, 1e-2, 3e-2)
NEAR = (1.5, 1.1, 1.02)  # times the loss that the fit reaches, mean over the faces
PIXEL = 2 / 224
LBFGS_STEPS = 300


def objective(flame: FLAME, codes: Codes, target: Tensor) -> Tensor:
    """The loss of every face as a batch of its own (B,)."""
    points = project(flame(codes.shape, codes.exp, codes.pose).landmarks2d, codes.cam)[..., :2]
    return torch.stack(
        [
            WEIGHTS.landmark * losses.landmark(target[[row]], points[[row]])
            + WEIGHTS.eye_closure * losses.eye_closure(target[[row]], points[[row]])
            + WEIGHTS.shape * losses.code_energy(codes.shape[row])
            + WEIGHTS.exp * losses.code_energy(codes.exp[row])
            for row in range(len(target))
        ]
    )


def leaves(codes: Codes) -> dict[str, Tensor]:
    return {name: getattr(codes, name).clone().requires_grad_() for name in FREE}


def adam(flame: FLAME, start: Codes, target: Tensor, rate: float, steps: int, goal: float) -> str:
    """All faces at once: steps and processor seconds until the best losses so far come near the goal."""
    free = leaves(start)
    optimizer = torch.optim.Adam(free.values(), rate)
    best = torch.full((len(target),), torch.inf)
    left, reached, begun = list(NEAR), [], time.process_time()
    for step in range(steps):
        optimizer.zero_grad()
        loss = objective(flame, start.replace(**free), target)
        best = torch.minimum(best, loss.detach())
        while left and best.mean() <= left[0] * goal:
            seconds = time.process_time() - begun
            reached.append(f"{left.pop(0)}x after {step} steps, {1e3 * seconds / len(target):.0f} ms a face")
        if not left:
            break
        loss.sum().backward()
        optimizer.step()
    seconds = time.process_time() - begun
    end = f"end {best.mean() / goal:.3f}x, {1e3 * seconds / len(target):.0f} ms a face"
    return f"Adam, rate {rate}: {'; '.join([*reached, end])}"


def lbfgs(flame: FLAME, start: Codes, target: Tensor) -> tuple[Tensor, float]:
    """Face by face with a line search: losses reached (B,), processor seconds."""
    found, begun = [], time.process_time()
    for row in range(len(target)):
        codes, points = start[row : row + 1], target[row : row + 1]
        free = leaves(codes)
        optimizer = torch.optim.LBFGS(
            free.values(), max_iter=LBFGS_STEPS, tolerance_change=0, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()  # noqa: B023
            loss = objective(flame, codes.replace(**free), points).sum()  # noqa: B023
            loss.backward()
            return loss

        optimizer.step(closure)
        found.append(objective(flame, codes.replace(**free), points).detach())
    return torch.cat(found), time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1000, help="of Adam, at most")
    options = parser.parse_args()
    torch.set_num_threads(1)
    flame = FLAME(procedural_head())
    head = LandmarkHead.of(flame)
    target = world_batch(procedural_head(), options.people, 1).landmarks.clone().float()
    target[..., :2] += PIXEL * torch.randn(target[..., :2].shape, generator=torch.Generator().manual_seed(0))

    placed = fit_landmarks(head, target)  # also warms up
    start = placed.replace(shape=torch.zeros_like(placed.shape), exp=torch.zeros_like(placed.exp))
    begun = time.process_time()
    fitted = fit_landmarks(head, target)
    seconds = time.process_time() - begun
    reached = objective(flame, fitted, target)
    print(f"fit: loss {reached.mean():.5f}, {1e3 * seconds / len(target):.1f} ms a face")
    print(f"start: {objective(flame, start, target).mean() / reached.mean():.1f}x")
    for rate in RATES:
        print(adam(flame, start, target, rate, options.steps, float(reached.mean())), flush=True)
    found, seconds = lbfgs(flame, start, target)
    ratio = found / reached
    print(
        f"L-BFGS, {LBFGS_STEPS} steps: {ratio.mean():.2f}x ({ratio.min():.2f} to {ratio.max():.2f}), "
        f"{1e3 * seconds / len(target):.0f} ms a face"
    )


if __name__ == "__main__":
    main()
