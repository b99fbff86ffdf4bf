"""Smoothing of the codes of a video over time: noise between frames is removed, blinks are kept.

Expression, pose, camera and light follow a parabola fitted to the frames around each moment (Savitzky and Golay 1964,
with weights that fall towards the ends of the window: Cleveland 1979). The window is in seconds and the fit is made at
the frames' own times, so a variable frame rate and lost frames need no special case. A blink lasts a few frames and
would be half gone; so the opening of each eye is taken out of the expression first, goes through a filter of its own,
and is put back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deca_core.codes import Codes
from deca_core.crop import CropError
from deca_core.flame import FLAME

Floats = NDArray[np.float64]

WINDOW = 0.36  # seconds; docs/animate.md says what was measured
DEGREE = 2  # a parabola: the height of a smile of half a second stays
# Pairs of landmarks whose distances are the opening of an eye (upper and lower lid), of the right and of the left one.
LIDS = (((37, 41), (38, 40)), ((43, 47), (44, 46)))
NOTABLE = (2.0, 4.0)  # robust deviations from the eye's usual opening where keeping a frame as it is begins, is whole
ROUNDS = 4  # of the robust fit to the opening
RIDGE = 1.0  # of the code itself beside the vertices, relative: without it parallel components would be played off


def local_fit(times: Floats, values: Floats, window: float = WINDOW, weights: Floats | None = None) -> Floats:
    """Values (T,D) at increasing times (T,) in seconds, smoothed: at each moment a parabola fitted to the frames
    within half a window, nearer ones counting more (tricube).

    weights (T,D): of single values, for robust fits. A moment with too few frames around it keeps its value.
    """
    half = window / 2
    low, high = np.searchsorted(times, times - half), np.searchsorted(times, times + half, side="right")
    out = values.copy()
    for now in range(len(times)):
        near = slice(int(low[now]), int(high[now]))
        offset = (times[near] - times[now]) / half
        closeness = (1 - np.abs(offset).clip(max=1) ** 3) ** 3
        if (closeness > 1e-3).sum() <= DEGREE:
            continue
        powers = offset[:, None] ** np.arange(DEGREE + 1)  # (n, 3)
        if weights is None:
            out[now] = np.linalg.lstsq(
                powers * np.sqrt(closeness)[:, None], values[near] * np.sqrt(closeness)[:, None], rcond=None
            )[0][0]
            continue
        for column in range(values.shape[1]):
            root = np.sqrt(closeness * weights[near, column])
            out[now, column] = np.linalg.lstsq(powers * root[:, None], values[near, column] * root, rcond=None)[0][0]
    return out


@dataclass(frozen=True)
class Eyelids:
    """The opening of both eyes as a linear function of the expression, and the smallest movement that changes it.

    measure (2,50): metres of opening per unit coefficient; move (50,2): coefficients per metre, so that
    measure @ move = 1 and the vertices move as little as possible (least squares over the head).
    """

    measure: Floats
    move: Floats

    @staticmethod
    def of(flame: FLAME) -> Eyelids:
        """From the head's own landmarks: any bundle has them, whether or not its expressions have names."""
        vertices = flame.v_template.double()
        basis = flame.exp_basis.double()
        corners, bary = flame.full_triangles, flame.full_bary.double()
        points = (vertices[corners] * bary[..., None]).sum(1)  # (68, 3)
        moves = (basis[corners] * bary[..., None, None]).sum(1)  # (68, 3, 50)
        rows = []
        for pairs in LIDS:
            gaps = [points[upper] - points[lower] for upper, lower in pairs]
            changes = [moves[upper] - moves[lower] for upper, lower in pairs]
            rows.append(sum(gap / gap.norm() @ change for gap, change in zip(gaps, changes, strict=True)) / len(pairs))
        measure = torch.stack(rows)
        columns = basis.flatten(0, 1)
        metric = columns.T @ columns
        metric += RIDGE * metric.diagonal().mean() * torch.eye(len(metric), dtype=metric.dtype, device=metric.device)
        towards = torch.linalg.solve(metric, measure.T)  # (50, 2)
        move = towards @ torch.linalg.inv(measure @ towards)
        return Eyelids(measure.cpu().numpy(), move.cpu().numpy())

    def smooth(self, times: Floats, exp: Floats, window: float = WINDOW) -> Floats:
        """Expressions (T,50) smoothed, but for blinks."""
        opening = exp @ self.measure.T
        rest = local_fit(times, exp - opening @ self.move.T, window)
        return rest + keep_blinks(times, opening, window) @ self.move.T


def keep_blinks(times: Floats, opening: Floats, window: float = WINDOW) -> Floats:
    """Openings (T,2) smoothed where they stay near the eye's usual one, and as they are where they do not.

    The usual opening is a fit that frames far from it do not count in (Tukey's biweight); what is far is measured by
    the robust deviation of all frames from it.
    """
    usual, weights = opening, np.ones_like(opening)
    for _ in range(ROUNDS):
        usual = local_fit(times, opening, 4 * window, weights)
        off = opening - usual
        spread = 1.4826 * np.median(np.abs(off), axis=0) + 1e-9
        weights = (1 - (off / (NOTABLE[1] * spread)).clip(-1, 1) ** 2) ** 2 + 1e-6
    calm = local_fit(times, np.clip(opening, usual - NOTABLE[0] * spread, usual + NOTABLE[0] * spread), window)
    share = ((np.abs(off) / spread - NOTABLE[0]) / (NOTABLE[1] - NOTABLE[0])).clip(0, 1)
    share = share * share * (3 - 2 * share)
    return calm + share * (opening - calm)


def source_camera(cam: Floats, transforms: Floats) -> Floats:
    """Cameras (T,3) of crops as (pixels per metre, x, y of the head's origin in source pixels), (T,3).

    transforms (T,2,3): upright, source pixels to pixels of the 224 crop. A projected point is linear in these three,
    so that smoothing them smooths the head's path through the image, whatever the crop did.
    """
    scale = transforms[:, 0, 0]
    size = 112 * cam[:, 0] / scale
    return np.stack(
        [
            size,
            size * cam[:, 1] + (112 - transforms[:, 0, 2]) / scale,
            -size * cam[:, 2] + (112 - transforms[:, 1, 2]) / scale,
        ],
        axis=1,
    )


def crop_camera(seen: Floats, transforms: Floats) -> Floats:
    """Inverse of `source_camera`: cameras (T,3) in the frame of each crop."""
    size, scale = seen[:, 0], transforms[:, 0, 0]
    across = (seen[:, 1] - (112 - transforms[:, 0, 2]) / scale) / size
    up = -(seen[:, 2] - (112 - transforms[:, 1, 2]) / scale) / size
    return np.stack([size * scale / 112, across, up], axis=1)


def smooth_codes(times: Floats, codes: Codes, transforms: Floats, lids: Eyelids, window: float = WINDOW) -> Codes:
    """Codes of one subject's consecutive frames with expression, pose, camera and light smoothed.

    times (T,) seconds, increasing; transforms (T,2,3) of the crops. Shape, albedo and detail stay as they are: a track
    has one of each. Pose is smoothed as axis-angle, carried on beyond 180 degrees where a head turns through them.
    Raises CropError for turned crops: `reframed` of deca_core.roll converts their codes to upright ones.
    """
    if (transforms[:, 0, 1] != 0).any() or (transforms[:, 1, 0] != 0).any():
        raise CropError("smooth_codes: a crop is turned in its image. Convert its codes to an upright one: reframed")

    def array(value: Tensor) -> Floats:
        return np.asarray(value.flatten(1).double().cpu().numpy())

    light = local_fit(times, array(codes.light), window).reshape(-1, 9, 3)
    camera = crop_camera(local_fit(times, source_camera(array(codes.cam), transforms), window), transforms)
    found = {
        "exp": lids.smooth(times, array(codes.exp), window),
        "pose": local_fit(times, _carried_on(array(codes.pose)), window),
        "cam": camera,
        "light": light,
    }
    return codes.replace(**{name: torch.from_numpy(value).to(codes.exp) for name, value in found.items()})


def _carried_on(pose: Floats) -> Floats:
    """Poses (T,6) whose head rotations do not jump: axis-angle v and v - 2 pi v / |v| are one rotation."""
    out = pose.copy()
    for now in range(1, len(out)):
        head, before = out[now, :3], out[now - 1, :3]
        angle = float(np.linalg.norm(head))
        if angle > 1e-9:
            turns = round((float(before @ head) / angle - angle) / (2 * np.pi))  # whole ones along the same axis
            out[now, :3] += head * (2 * np.pi * turns / angle)
    return out
