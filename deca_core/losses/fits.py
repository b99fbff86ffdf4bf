"""Distance of codes from a fit to the image's landmarks."""

from __future__ import annotations

import torch
from torch import Tensor

from deca_core.codes import COARSE_LENGTHS, Codes
from deca_core.losses.precision import full_precision

FITTED = ("shape", "exp", "pose")  # what landmarks tell and cropping does not change
NUM_FITTED = sum(COARSE_LENGTHS[name] for name in FITTED)  # 156
LEVER = 0.1  # metres: a rotation by an angle a moves vertices by about a * LEVER
CENTIMETRES = 100.0
# Squared distances below this, m^2, are no distance: the root keeps a finite slope.
NO_DISTANCE = 1e-10


def fitted_vector(codes: Codes) -> Tensor:
    """Shape, expression and pose of codes as one vector (B,156)."""
    return torch.cat([getattr(codes, name) for name in FITTED], dim=1)


def gram(basis: Tensor, points: Tensor) -> Tensor:
    """(N,N): d' G d is the mean squared displacement, m^2, of points (V,3) by code differences d; basis (V,3,N).

    What a shift, turn and growth of all points takes back does not count: camera and pose absorb it, and so does every
    measure of a face (the NoW protocol aligns it away).
    """
    still = torch.cat([_similarities(points), basis.double().flatten(0, 1)], dim=1)
    left = torch.linalg.qr(still)[1][7:, 7:]  # the part at right angles to the seven, in coordinates of its own
    return (left.T @ left / len(points)).to(basis.dtype)


def _similarities(points: Tensor) -> Tensor:
    """Displacements (3V,7) of points (V,3) by small shifts along and turns about the three axes, and by scaling."""
    centred = (points - points.mean(0)).double()
    axes = torch.eye(3, dtype=centred.dtype, device=centred.device)
    moves = [*(axis.expand_as(centred) for axis in axes)]
    moves += [torch.linalg.cross(axis.expand_as(centred), centred) for axis in axes]
    return torch.stack([move.flatten() for move in (*moves, centred)], dim=1)


def fit_distance(codes: Codes, fits: Tensor, shape_gram: Tensor, exp_gram: Tensor) -> Tensor:
    """Displacement of the face between codes and fits (B,156), cm: RMS by shape, expression and pose, summed.

    A loss on landmarks has hardly a slope along changes of the head that the image does not show: a network that
    starts at the mean face puts there whatever reduces its error first. What fits the landmarks under the priors,
    found for every image by itself, settles it (fits as labels: Kolotouros et al. 2019, SPIN). Rows of `fits` that
    are NaN have no fit and do not count; 0 where none has.
    """
    known = fits.isfinite().all(1)
    target = torch.where(known[:, None], fits, 0)
    shape, exp, pose = (full_precision(fitted_vector(codes)) - target).split(
        [COARSE_LENGTHS[name] for name in FITTED], dim=1
    )
    squares = torch.stack([(shape @ shape_gram * shape).sum(1), (exp @ exp_gram * exp).sum(1), _moved(pose)])
    distances = (squares + NO_DISTANCE).sqrt().sum(0)
    return CENTIMETRES * (known * distances).sum() / known.sum().clamp(min=1)


def _moved(pose: Tensor) -> Tensor:
    """Squared displacement (B,) by differences of rotation (B,6), m^2."""
    return (LEVER * pose).square().sum(1)
