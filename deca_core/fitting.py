"""Landmark-only fitting: shape, expression, pose and camera of an image from its 68 landmarks, without a network.

It minimises, for each image by itself, what the pretrain stage minimises over images: re-projection (eq. 5), eye
closure (eq. 6), and the priors E_beta and E_psi. Landmarks do not determine texture, light and detail.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from deca_core.appearance import SH_CONSTANTS
from deca_core.codes import COARSE_LENGTHS, Codes
from deca_core.errors import DecaError
from deca_core.flame import FLAME, axis_angle, contour_bin, rotation_matrix
from deca_core.losses import CoarseWeights, landmark_weights, recipe
from deca_core.losses.landmarks import EYELIDS, LIPS, NO_DISTANCE

SHAPE, EXP = COARSE_LENGTHS["shape"], COARSE_LENGTHS["exp"]
COORDINATES = 2 * 68
PAIRS = EYELIDS + LIPS
JAW = 2  # joint
JAW_FEATURES = slice(9, 18)  # of the pose correctives' 36: (R - I) of the jaw; neck and eyes are at rest
# Where a fit starts: every head turned by a yaw and a pitch of this grid, degrees.
YAWS, PITCHES = range(-75, 76, 15), range(-30, 31, 15)
ITERATIONS = 20
# Steps before distances between lids count: the distance of lids that have changed places is right as well, and their
# own landmarks are too light to bring them back.
SETTLING = 4
# An absolute value counts as a parabola below this distance (crop of 2 units): it shrinks to 0.1 pixels of 224.
KINK_FIRST, KINK_LAST, KINK_SHRINK = 5e-2, 1e-3, 0.8
DAMPING, DAMPING_LEAST = 1e-3, 1e-9
NO_SLOPE = 1e-12  # curvature that even a direction without effect is given
FARTHEST = 10.0  # from the middle of a crop, in halves of it: beyond, landmarks are pixels
NO_EXTENT = 1e-4  # known landmarks closer together than this (a hundredth of a pixel) have no scale


class FitError(DecaError, ValueError):
    """Landmarks that do not determine the position and size of a head."""


def fittable(landmarks: Tensor) -> Tensor:
    """Whether `fit_landmarks` takes faces (B,68,2), all of whose landmarks are known: (B,) bool."""
    near = (landmarks.abs() <= FARTHEST).flatten(1).all(1)
    return near & _has_extent(landmarks, torch.ones_like(landmarks[..., 0]))


@torch.no_grad()
def fit_landmarks(head: LandmarkHead, landmarks: Tensor | NDArray[Any], weights: CoarseWeights | None = None) -> Codes:
    """Codes of faces from landmarks alone: (B,68,2) or (B,68,3), x, y in [-1, 1] of the crop and a weight.

    Landmarks of weight 0 are ignored. weights: of the losses, by default the paper's pretrain stage. There the
    landmark loss is a mean over the batch and the priors are sums, so their balance depends on the batch; here it is
    that of a batch of one. Returns float32 codes on the landmarks' device: even light, all else of texture and detail
    zero. An image's codes depend on that image alone. Raises FitError where the known landmarks of a face lie on
    one point, or are not finite.

    Start: the pose of a grid of yaws and pitches whose mean face comes nearest by a similarity of the plane. Then 20
    steps of Levenberg-Marquardt over everything on re-weighted squares, w r^2 / |r| for w |r|, on the landmarks that
    are visible at the yaw in hand. To come within 2 % of that loss Adam takes over 50 times as long; L-BFGS stops at
    the kinks of the absolute values (docs/reconstruct.md).

    >>> codes = fit_landmarks(LandmarkHead.of(model.flame), landmarks)  # doctest: +SKIP
    """
    goal = _goal(_landmarks(landmarks), weights or recipe("paper").pretrain)
    settling = replace(goal, force=goal.force.clone())
    settling.force[:, COORDINATES:] = 0
    state = _start(head, goal)
    residual, slope = _linearised(head, goal, state)
    damping = torch.full_like(residual[:, 0], DAMPING)
    for iteration in range(ITERATIONS):
        terms = settling if iteration < SETTLING else goal
        kink = max(KINK_FIRST * KINK_SHRINK**iteration, KINK_LAST)
        trial = state.moved(_step(terms, state, residual, slope, kink, damping))
        trial_residual, trial_slope = _linearised(head, goal, trial)
        # Also false where a step left the numbers.
        better = _loss(terms, trial, trial_residual) < _loss(terms, state, residual)
        state = state.where(better, trial)
        residual = torch.where(better[:, None], trial_residual, residual)
        slope = torch.where(better[:, None, None], trial_slope, slope)
        damping = torch.where(better, (damping / 10).clamp(min=DAMPING_LEAST), damping * 10)
    return state.codes()


@dataclass(frozen=True, eq=False)
class LandmarkHead:
    """The 2D landmarks of FLAME (eq. 1) and nothing else of it, for neck and eyes at rest: float64.

    With them at rest a vertex v is skinned to J + R (v + w (R_jaw - I) (v - J_jaw) - J), J the root joint and w the
    jaw's weight, and a landmark is a mean of three vertices. So it is J + R (a + (R_jaw - I) b - J), where a, b and J
    are linear in the columns 1, shape, exp and, for a and b, the 9 entries of R_jaw - I.

    whole, moving (51 + 79 * 17, 3, 160): a and b of the inner landmarks, then of the contour by its table's rows;
    root (3, 151): J.
    """

    whole: Tensor
    moving: Tensor
    root: Tensor

    @staticmethod
    def of(flame: FLAME) -> LandmarkHead:
        """The landmarks of a head; 40 ms on one core."""
        shaped = torch.cat([flame.v_template[..., None], flame.shape_basis, flame.exp_basis], dim=2).double()
        columns = torch.cat([shaped, flame.pose_basis[..., JAW_FEATURES].double()], dim=2)
        root, jaw = torch.einsum("jv,vcn->jcn", flame.joint_regressor[[0, JAW]].double(), shaped)
        triangles = torch.cat([flame.static_triangles, flame.dynamic_triangles.flatten(0, 1)])
        bary = torch.cat([flame.static_bary, flame.dynamic_bary.flatten(0, 1)]).double()
        with_jaw = bary * flame.skin_weights[triangles, JAW].double()
        whole, moving = (torch.einsum("lk,lkcn->lcn", share, columns[triangles]) for share in (bary, with_jaw))
        moving[..., : jaw.shape[1]] -= with_jaw.sum(1)[:, None, None] * jaw
        return LandmarkHead(whole, moving, root)

    def visible(self, rotation: Tensor) -> tuple[Tensor, Tensor]:
        """`whole` and `moving` of the landmarks that are seen at head rotations (B,3,3): (B,68,3,160) each."""
        at_rest = torch.eye(3, dtype=rotation.dtype, device=rotation.device).expand_as(rotation)
        row = contour_bin(torch.stack([rotation, at_rest], dim=1))
        contour = 51 + 17 * row[:, None] + torch.arange(17, device=row.device)
        index = torch.cat([contour, torch.arange(51, device=row.device).expand(len(row), -1)], dim=1)
        return self.whole[index], self.moving[index]


@dataclass(frozen=True, eq=False)
class _State:
    """Heads and cameras: code (B,150) shape and exp; rotation, jaw (B,3,3); scale (B,); shift (B,2), y up.

    A landmark is seen at scale * xy + shift: unlike the codes' s (xy + t), scale and shift do not pull at one another.
    """

    code: Tensor
    rotation: Tensor
    jaw: Tensor
    scale: Tensor
    shift: Tensor

    def moved(self, step: Tensor) -> _State:
        """After a step (B,159): code 150, turns after the head's and the jaw's 3 + 3, log scale 1, shift 2."""
        code, turn, jaw, growth, shift = step.split([SHAPE + EXP, 3, 3, 1, 2], dim=1)
        return _State(
            self.code + code,
            rotation_matrix(turn) @ self.rotation,
            rotation_matrix(jaw) @ self.jaw,
            self.scale * growth[:, 0].exp(),
            self.shift + shift,
        )

    def where(self, better: Tensor, other: _State) -> _State:
        """The other's faces where it is better (B,), else these."""
        pairs = ((name, value, getattr(other, name)) for name, value in vars(self).items())
        mask = {1: better, 2: better[:, None], 3: better[:, None, None]}
        return _State(**{name: torch.where(mask[own.ndim], new, own) for name, own, new in pairs})

    def codes(self) -> Codes:
        codes = Codes.zeros(len(self.code), self.code.device)
        codes.light[:, 0] = 1 / SH_CONSTANTS[0]
        return codes.replace(
            shape=self.code[:, :SHAPE].float(),
            exp=self.code[:, SHAPE:].float(),
            pose=torch.cat([axis_angle(self.rotation), axis_angle(self.jaw)], dim=1).float(),
            cam=torch.cat([self.scale[:, None], self.shift / self.scale[:, None]], dim=1).float(),
        )


@dataclass(frozen=True, eq=False)
class _Goal:
    """The targets: points (B,68,2), y up, with their share of the centre, known (B,68), rows summing to 1.

    gaps (B,7): distances of the pairs of lids and lips; force (B,136+7): weight of every absolute value of the loss;
    prior (150,): weight of code^2 / 2.
    """

    points: Tensor
    known: Tensor
    gaps: Tensor
    force: Tensor
    prior: Tensor


def _landmarks(landmarks: Tensor | NDArray[Any]) -> Tensor:
    """Landmarks in float64; FitError where they are not (B,68,2) or (B,68,3), or are pixels and not [-1, 1]."""
    points = torch.as_tensor(landmarks)
    if points.ndim != 3 or points.shape[1] != 68 or points.shape[2] not in (2, 3):
        raise FitError(f"landmarks have shape {tuple(points.shape)}, expected (B, 68, 2), or (B, 68, 3) with weights")
    points = points.to(torch.float64)
    known = points[..., :2] if points.shape[2] == 2 else points[..., :2][points[..., 2] > 0]
    farthest = float(known.abs().max()) if known.numel() else 0.0
    if farthest > FARTHEST:
        raise FitError(
            f"a landmark lies at {farthest:.4g}, expected [-1, 1] over the crop. Pixels of it become that by "
            "from_pixels of deca_core.camera"
        )
    return points


def _goal(landmarks: Tensor, weights: CoarseWeights) -> _Goal:
    known = landmarks[..., 2] if landmarks.shape[2] == 3 else torch.ones_like(landmarks[..., 0])
    # What is not known may be anything, also NaN.
    points = torch.where(known[..., None] > 0, landmarks[..., :2], 0) * landmarks.new_tensor([1, -1])
    _check(points, known)
    share = known * landmark_weights(known)
    force = [weights.landmark * (share / (2 * share.sum(1, keepdim=True))).repeat_interleave(2, dim=1)]
    for pairs, weight in ((EYELIDS, weights.eye_closure), (LIPS, weights.lip_distance)):
        first, second = torch.tensor(pairs, device=known.device).T
        both = known[:, first] * known[:, second]
        force.append(weight * both / both.sum(1, keepdim=True).clamp(min=torch.finfo(both.dtype).tiny))
    prior = known.new_tensor([weights.shape] * SHAPE + [weights.exp] * EXP)
    return _Goal(points, known / known.sum(1, keepdim=True), _gaps(points)[0], torch.cat(force, dim=1), prior)


def _check(points: Tensor, known: Tensor) -> None:
    bad = ~_has_extent(points, known)
    if bad.any():
        raise FitError(
            f"face {int(bad.nonzero()[0, 0])} of {len(bad)}: its {int((known[bad][0] > 0).sum())} known landmarks lie "
            "on one point or are not finite, so they do not determine a head. Leave the face out"
        )


def _has_extent(points: Tensor, known: Tensor) -> Tensor:
    low, high = (torch.where(known[..., None] > 0, points, sign * torch.inf) for sign in (1, -1))
    extent = (high.amax(1) - low.amin(1)).amax(1)
    return (extent > NO_EXTENT) & points.isfinite().all(2).all(1)


def _gaps(points: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of the pairs (B,7) as the losses measure them, and their directions (B,7,2): points (B,68,2)."""
    between = _between(points)
    gaps = (between.square().sum(-1) + NO_DISTANCE).sqrt()
    return gaps, between / gaps[..., None]


def _between(values: Tensor) -> Tensor:
    """Differences of values at landmarks (B,68,...) over the pairs (B,7,...)."""
    return values[:, [first for first, _ in PAIRS]] - values[:, [second for _, second in PAIRS]]


def _start(head: LandmarkHead, goal: _Goal) -> _State:
    """The mean face, turned as on the grid, where the best similarity of the plane brings it nearest to the points."""
    turns = [[math.radians(pitch), math.radians(yaw)] for yaw in YAWS for pitch in PITCHES]
    pitch, yaw = goal.points.new_tensor(turns).T
    grid = rotation_matrix(_about(1, yaw)) @ rotation_matrix(_about(0, pitch))
    local = head.visible(grid)[0][..., 0] - head.root[:, 0]
    # Points of the plane as complex numbers, so that a similarity is a product and a sum. Heads turn about their root.
    model = torch.view_as_complex((local @ grid[:, :2].mT).contiguous())  # (G, 68)
    points = torch.view_as_complex(goal.points.contiguous())
    centre = (goal.known * points).sum(1, keepdim=True)
    mean = goal.known.to(model.dtype) @ model.T  # (B, G)
    spread = (goal.known @ model.abs().square().T - mean.abs().square()).clamp(min=torch.finfo(yaw.dtype).tiny)
    overlap = (goal.known * (points - centre)) @ model.mH
    best = (overlap.abs().square() / spread).argmax(1, keepdim=True)
    factor = (overlap / spread).gather(1, best)
    shift = torch.view_as_real(centre - factor * mean.gather(1, best))[:, 0] - factor.abs() * head.root[:2, 0]
    rotation = rotation_matrix(_about(2, factor[:, 0].angle())) @ grid[best[:, 0]]
    code = shift.new_zeros(len(shift), SHAPE + EXP)
    return _State(code, rotation, torch.eye(3).to(rotation).expand_as(rotation), factor[:, 0].abs(), shift)


def _about(axis: int, angle: Tensor) -> Tensor:
    """Axis-angle (N,3) of turns (N,) about a coordinate axis."""
    return torch.nn.functional.one_hot(torch.tensor(axis, device=angle.device), 3) * angle[:, None]


def _linearised(head: LandmarkHead, goal: _Goal, state: _State) -> tuple[Tensor, Tensor]:
    """Residuals of the loss (B,136+7) and their Jacobian along a step (B,136+7,159)."""
    whole, moving = head.visible(state.rotation)
    at_rest = torch.eye(3).to(state.jaw)
    opened, front = state.jaw - at_rest, state.rotation[:, :2]  # (B, 3, 3), (B, 2, 3)
    one = torch.ones_like(state.code[:, :1])
    columns = torch.cat([one, state.code, opened.flatten(1)], dim=1)[:, None, :, None]
    with_jaw = (moving @ columns)[..., 0]  # (B, 68, 3)
    root = torch.cat([one, state.code], dim=1) @ head.root.T
    local = (whole @ columns)[..., 0] + with_jaw @ opened.mT - root[:, None]
    turned = local @ state.rotation.mT
    centred = state.scale[:, None, None] * (turned + root[:, None])[..., :2]

    linear = front[:, None] @ whole[..., 1:] + (front @ opened)[:, None] @ moving[..., 1:]
    code = linear[..., : SHAPE + EXP] + (head.root[:2, 1:] - front @ head.root[:, 1:])[:, None]
    x, y, z = turned.unbind(-1)
    nil = torch.zeros_like(x)
    turn = torch.stack([nil, z, -y, -z, nil, x], dim=-1).unflatten(-1, (2, 3))  # d (x, y) by turns about x, y, z
    jaw_turn = torch.linalg.cross(at_rest[None, :, :, None], state.jaw[:, None], dim=2)  # (B, turn, 3, 3)
    jaw = torch.einsum("bia,bkac,blc->blik", front, jaw_turn, with_jaw)
    jaw = jaw + linear[..., SHAPE + EXP :] @ jaw_turn.flatten(2).mT[:, None]
    slope = state.scale[:, None, None, None] * torch.cat([code, turn, jaw], dim=-1)
    shift = torch.eye(2).to(slope).expand(*slope.shape[:2], 2, 2)
    slope = torch.cat([slope, centred[..., None], shift], dim=-1)  # (B, 68, 2, 159)

    points = centred + state.shift[:, None]
    gaps, direction = _gaps(points)
    residual = torch.cat([(points - goal.points).flatten(1), gaps - goal.gaps], dim=1)
    return residual, torch.cat([slope.flatten(1, 2), (direction[:, :, None] @ _between(slope))[:, :, 0]], dim=1)


def _loss(goal: _Goal, state: _State, residual: Tensor) -> Tensor:
    """The loss of every face (B,)."""
    return (goal.force * residual.abs()).sum(1) + (goal.prior * state.code.square()).sum(1) / 2


def _step(goal: _Goal, state: _State, residual: Tensor, slope: Tensor, kink: float, damping: Tensor) -> Tensor:
    """The damped Gauss-Newton step (B,159) on squares that touch every absolute value at its current residual."""
    weighted = (goal.force / residual.abs().clamp(min=kink))[..., None] * slope
    normal = weighted.mT @ slope
    gradient = (weighted.mT @ residual[..., None])[..., 0]
    gradient[:, : SHAPE + EXP] += goal.prior * state.code
    diagonal = normal.diagonal(dim1=1, dim2=2)  # a view
    diagonal[:, : SHAPE + EXP] += goal.prior
    diagonal.mul_(1 + damping[:, None]).add_(NO_SLOPE)
    factor, _ = torch.linalg.cholesky_ex(normal)
    return -torch.cholesky_solve(gradient[..., None], factor)[..., 0]
