"""Distance of codes from those that fit the picture's landmarks best."""

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


def gram(basis: Tensor) -> Tensor:
    """(N,N): d' G d is the mean squared displacement, m^2, of the vertices by code differences d; basis (V,3,N)."""
    return torch.einsum("vci,vcj->ij", basis, basis) / len(basis)


def fit_distance(codes: Codes, fits: Tensor, shape_gram: Tensor, exp_gram: Tensor) -> Tensor:
    """How far vertices move between codes and fits (B,156), cm: root mean squares by shape, expression, pose, summed.

    A loss on landmarks has hardly a slope along changes of the head that the picture does not show: a network that
    starts at the mean face puts there whatever reduces its error first. What fits the landmarks under the priors,
    found for every picture by itself, settles it (fits as labels: Kolotouros et al. 2019, SPIN). Rows of `fits` that
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
