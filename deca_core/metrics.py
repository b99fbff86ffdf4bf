"""Reconstruction errors: the NoW protocol against a scan, and errors against a fully known ground truth.

Source of the protocol: Sanyal et al. 2019 (RingNet, the NoW benchmark), used by the paper in section 6.2. Lengths are
millimetres wherever a name or a docstring does not say otherwise; the geometry is float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deca_core.appearance import SH_CONSTANTS
from deca_core.errors import DecaError
from deca_core.flame import rotation_matrix
from deca_core.losses.landmarks import EYELIDS

Float = NDArray[np.float64]

# Outer and inner corner of the right eye, inner and outer of the left, nose bottom, corners of the mouth: in NoW's
# order, as indices of the 51 inner landmarks.
SEVEN = (19, 22, 25, 28, 16, 31, 37)
EYE_CORNERS_68 = (36, 45)  # the outer ones
UNITS = {"m": 1000.0, "cm": 10.0, "mm": 1.0}
EYE_SPAN = (50.0, 200.0)  # millimetres between outer eye corners: from which the unit of a scan is inferred
STEPS, DAMPING, TOLERANCE = 60, 1e-4, 1e-8  # of the refinement; it ends when the error falls by less than this share


class MetricError(DecaError):
    """Scans, landmarks or maps that cannot be measured."""


# --- similarity transforms and distances to a surface -----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Similarity:
    """x -> scale * rotation x + shift."""

    scale: float
    rotation: Float  # (3, 3), or (2, 2) in the plane
    shift: Float

    def __call__(self, points: NDArray) -> Float:
        return self.scale * np.asarray(points, np.float64) @ self.rotation.T + self.shift


def fit_similarity(source: NDArray, target: NDArray, scaled: bool = True) -> Similarity:
    """The similarity (rigid motion with scaled=False) of least squares from source to target, (N,3) or (N,2) each.

    Source: Umeyama 1991.
    """
    a, b = np.asarray(source, np.float64), np.asarray(target, np.float64)
    centre_a, centre_b = a.mean(axis=0), b.mean(axis=0)
    a, b = a - centre_a, b - centre_b
    u, stretch, vt = np.linalg.svd(b.T @ a)
    sign = np.ones(len(u))
    sign[-1] = np.sign(np.linalg.det(u) * np.linalg.det(vt))  # a turn, never a mirror image
    rotation = (u * sign) @ vt
    scale = float((stretch * sign).sum() / (a * a).sum()) if scaled else 1.0
    return Similarity(scale, rotation, centre_b - scale * rotation @ centre_a)


def aligned_distance(predicted: NDArray, truth: NDArray, scaled: bool = True) -> float:
    """Mean distance of corresponding points (N,3) after the best similarity: in the truth's unit."""
    moved = fit_similarity(predicted, truth, scaled)(predicted)
    return float(np.linalg.norm(moved - truth, axis=1).mean())


class Surface:
    """A triangle mesh that answers how far points are: vertices (V,3), faces (F,3)."""

    def __init__(self, vertices: NDArray, faces: NDArray) -> None:
        from deca_core.closest import build_tree

        self.corners: Float = np.ascontiguousarray(np.asarray(vertices, np.float64)[faces])
        if not len(self.corners) or not np.isfinite(self.corners).all():
            raise MetricError(f"a surface of {len(self.corners)} triangles, not all of them finite: nothing to measure")
        self._tree = build_tree(self.corners)

    def nearest(self, points: NDArray, guess: NDArray | None = None) -> tuple[Float, Float, NDArray[np.int64]]:
        """(distance (N,), nearest point (N,3), its triangle (N,)) of points (N,3); exact.

        guess (N,): triangles that are probably near, from an earlier call with almost the same points.
        """
        from deca_core.closest import nearest

        points = np.ascontiguousarray(points, np.float64)
        face = np.zeros(len(points), np.int64) if guess is None else guess.copy()
        where = np.empty_like(points)
        return nearest(points, self.corners, *self._tree, face, where), where, face

    def normals(self, faces: NDArray) -> Float:
        """Unit normals (N,3) of triangles; zero where one has no area."""
        a, b, c = self.corners[faces].transpose(1, 0, 2)
        cross = np.cross(b - a, c - a)
        return cross / np.maximum(np.linalg.norm(cross, axis=1, keepdims=True), 1e-300)


# --- NoW --------------------------------------------------------------------------------------------------------------


def to_millimetres(landmarks: NDArray, unit: str = "auto") -> float:
    """Millimetres per unit of a scan, inferred from the distance of its outer eye corners (some 90 mm) unless declared.

    landmarks (7,3) in the order of SEVEN. Raises MetricError where no unit gives a human face.
    """
    if unit != "auto":
        return UNITS[unit]
    span = float(np.linalg.norm(landmarks[3] - landmarks[0]))
    fitting = [factor for factor in UNITS.values() if EYE_SPAN[0] <= span * factor <= EYE_SPAN[1]]
    if len(fitting) != 1:
        raise MetricError(
            f"the outer eye corners of the scan are {span:g} apart: a face in neither m, cm nor mm. Are the seven "
            "landmarks in order? Else declare the unit: --set scan_units=mm"
        )
    return fitting[0]


def face_sphere(landmarks: NDArray) -> tuple[Float, float]:
    """Centre and radius of the sphere that cuts the face out of a scan: landmarks (7,3) in the order of SEVEN.

    Centre: nose bottom + 0.3 (middle of the inner eye corners - nose bottom); radius: 1.4 (outer eye distance + height
    of the nose) / 2.
    """
    points = np.asarray(landmarks, np.float64)
    bottom, bridge = points[4], points[1:3].mean(axis=0)
    span, height = np.linalg.norm(points[3] - points[0]), np.linalg.norm(bridge - bottom)
    return bottom + 0.3 * (bridge - bottom), float(1.4 * (span + height) / 2)


def scan_distances(
    scan: NDArray, scan_landmarks: NDArray, surface: Surface, landmarks: NDArray, scaled: bool = True
) -> Float:
    """Unsigned distance (M,) of every scan vertex of the face to a predicted neutral head, best aligned.

    scan (N,3) and scan_landmarks (7,3) millimetres, as are surface and its landmarks (7,3); scaled=False is the
    metrical variant, whose alignment is rigid. Raises MetricError where the sphere of the face contains no vertex.
    """
    centre, radius = face_sphere(scan_landmarks)
    face = np.asarray(scan, np.float64)
    face = face[np.linalg.norm(face - centre, axis=1) <= radius]
    if not len(face):
        raise MetricError(f"no vertex of the scan within {radius:.0f} mm of the nose: do scan and landmarks fit?")
    start = fit_similarity(scan_landmarks, landmarks, scaled)
    return _refine(face, surface, start, scaled)


def _refine(points: Float, surface: Surface, pose: Similarity, scaled: bool) -> Float:
    """Distances (N,) after Levenberg-Marquardt on the sum of squared distances over the similarity.

    The points move, not the surface: its tree is built once. Distances are those of the points' own frame, so they are
    divided by the scale; otherwise shrinking the points would count as fitting.
    """
    moved = pose(points)
    distance, where, face = surface.nearest(moved)
    cost, damping = float(np.square(distance / pose.scale).sum()), DAMPING
    for _ in range(STEPS):
        step, centre = _step(moved, distance, where, surface.normals(face), pose.scale, damping, scaled)
        trial = _moved(pose, step, centre)
        new = surface.nearest(trial(points), face)
        new_cost = float(np.square(new[0] / trial.scale).sum())
        if new_cost >= cost:
            damping *= 10
            if damping > 1e6:
                break
            continue
        settled = cost - new_cost <= TOLERANCE * cost
        pose, moved, (distance, where, face), cost, damping = trial, trial(points), new, new_cost, damping / 10
        if settled:
            break
    return distance / pose.scale


def _step(
    moved: Float, distance: Float, where: Float, normals: Float, scale: float, damping: float, scaled: bool
) -> tuple[Float, Float]:
    """One damped Gauss-Newton step (rotation 3, shift 3, logarithm of the scale) about the points' centre."""
    # The distance grows along the line from the nearest point; on the surface itself, along its normal.
    away = np.where(distance[:, None] > 1e-9, (moved - where) / np.maximum(distance, 1e-9)[:, None], normals)
    centre = moved.mean(axis=0)
    arm = moved - centre
    residual = distance / scale
    growth = (away * arm).sum(axis=1) / scale - residual
    jacobian = np.column_stack([np.cross(arm, away) / scale, away / scale, growth])[:, : 7 if scaled else 6]
    normal = jacobian.T @ jacobian
    normal[np.diag_indices_from(normal)] *= 1 + damping
    normal[np.diag_indices_from(normal)] += 1e-12 * np.trace(normal)  # a sphere may turn as it likes
    step = np.zeros(7)
    step[: len(normal)] = -np.linalg.solve(normal, jacobian.T @ residual)
    return step, centre


def _moved(pose: Similarity, step: Float, centre: Float) -> Similarity:
    """The pose, followed by a turn and growth about `centre` and a shift."""
    turn = rotation_matrix(torch.from_numpy(step[:3])).numpy()
    growth = float(np.exp(np.clip(step[6], -0.5, 0.5)))
    shift = growth * turn @ (pose.shift - centre) + centre + step[3:6]
    return Similarity(growth * pose.scale, turn @ pose.rotation, shift)


@dataclass(frozen=True)
class Spread:
    """Median, mean and standard deviation over `count` values."""

    median: float
    mean: float
    std: float
    count: int


def pooled(distances: NDArray) -> Spread:
    """The NoW figures: over all vertices of all images at once."""
    values = np.asarray(distances, np.float64)
    if not len(values):
        return Spread(np.nan, np.nan, np.nan, 0)
    return Spread(float(np.median(values)), float(values.mean()), float(values.std()), len(values))


def cumulative(distances: NDArray, thresholds: NDArray) -> Float:
    """Share of distances at or below each threshold, per cent: the cumulative error curve."""
    ordered = np.sort(np.asarray(distances, np.float64))
    return 100.0 * np.searchsorted(ordered, thresholds, side="right") / max(len(ordered), 1)


# --- against a known truth --------------------------------------------------------------------------------------------


def normalized_mean_error(target: Tensor, points: Tensor) -> Tensor:
    """Mean distance of landmarks over the size of the face, sqrt(w h) of the true ones' box; one number a face.

    target (B,N,2) and points (B,N,2) in the same unit; returns (B,). Source: the NME of AFLW2000-3D (Zhu et al. 2016).
    """
    sides = target.amax(1) - target.amin(1)
    return (target - points).norm(dim=-1).mean(1) / sides.prod(-1).sqrt()


def interocular_error(target: Tensor, points: Tensor) -> Tensor:
    """The same over the distance of the true outer eye corners, (B,68,2) each -> (B,).

    The custom for frontal faces (300-W); in profile the corners meet and it means nothing.
    """
    return (target - points).norm(dim=-1).mean(1) / _eye_span(target)


def lid_error(target: Tensor, points: Tensor) -> Tensor:
    """Error of the gaps between upper and lower lids: mean over the four pairs of eq. 6, over the distance of
    the true outer eye corners, (B,68,2) each -> (B,)."""
    upper, lower = (list(side) for side in zip(*EYELIDS, strict=True))
    gaps, true = ((face[:, upper] - face[:, lower]).norm(dim=-1) for face in (points, target))
    return (gaps - true).abs().mean(1) / _eye_span(target)


def _eye_span(landmarks: Tensor) -> Tensor:
    return (landmarks[:, EYE_CORNERS_68[0]] - landmarks[:, EYE_CORNERS_68[1]]).norm(dim=-1)


def rotation_error(predicted: Tensor, truth: Tensor) -> Tensor:
    """Angle of the turn between two rotations, degrees: axis-angle (...,3) each -> (...)."""
    between = rotation_matrix(predicted.double()).mT @ rotation_matrix(truth.double())
    # Half the sine from the skew part: unlike the trace alone, it keeps small angles.
    skew = between - between.mT
    sine = torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], dim=-1).norm(dim=-1) / 2
    cosine = (between.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return torch.rad2deg(torch.atan2(sine, cosine))


def light_error(predicted: Tensor, truth: Tensor) -> Tensor:
    """Difference of two lights: RMS of the shading's difference over the sphere of normals, over the true RMS.

    Codes (B,9,3) each -> (B,). The bands are orthogonal on the sphere, so no normals are drawn.
    """
    # Mean square over the sphere of 1, x, y, z, xy, xz, yz, x^2 - y^2, 3z^2 - 1.
    square = truth.new_tensor([1, 1 / 3, 1 / 3, 1 / 3, 1 / 15, 1 / 15, 1 / 15, 4 / 15, 4 / 5])
    weight = (square * truth.new_tensor(SH_CONSTANTS).square())[:, None]
    error, total = ((value.square() * weight).sum((1, 2)) for value in (predicted - truth, truth))
    return (error / total).sqrt()


def correlation(a: NDArray, b: NDArray, mask: NDArray) -> float:
    """Pearson's correlation of two maps inside a mask; NaN where one of them is constant."""
    x, y = (np.asarray(values, np.float64)[mask] for values in (a, b))
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum() / scale) if scale > 0 else np.nan


def strength_error(map_: NDArray, truth: NDArray, mask: NDArray) -> float:
    """|1 - RMS / true RMS| inside a mask: 0 as strong as the truth, 1 for a flat map; NaN where the truth is flat."""
    own, true = (rms_difference(values, np.zeros_like(values), mask) for values in (map_, truth))
    return abs(1 - own / true) if true > 0 else np.nan


def rms_difference(a: NDArray, b: NDArray, mask: NDArray) -> float:
    """Root of the mean squared difference of two maps inside a mask."""
    return float(np.sqrt(np.square(np.asarray(a, np.float64)[mask] - np.asarray(b, np.float64)[mask]).mean()))


def normal_error(a: NDArray, b: NDArray, mask: NDArray) -> float:
    """Mean angle between two maps of normals (3,H,W) inside a mask (H,W), degrees."""
    x, y = (np.asarray(values, np.float64)[:, mask] for values in (a, b))
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(x, y, axis=0), axis=0), (x * y).sum(axis=0))).mean())


def psnr(a: NDArray, b: NDArray, mask: NDArray) -> float:
    """Peak signal-to-noise ratio of images (3,H,W) in [0, 1] over the pixels of a mask (H,W), decibels."""
    return float(-20 * np.log10(max(rms_difference(a.transpose(1, 2, 0), b.transpose(1, 2, 0), mask), 1e-10)))


def shape_points(shapes: NDArray, basis: NDArray) -> Float:
    """Coordinates (N,K) of shape codes (N,K) about their mean: their Euclidean distance is the RMS over the vertices of
    the neutral heads' difference, in the unit of the basis (V,3,K)."""
    flat = np.asarray(basis, np.float64).reshape(-1, shapes.shape[1])
    values, vectors = np.linalg.eigh(flat.T @ flat / len(basis))
    points = np.asarray(shapes, np.float64) @ (vectors * np.sqrt(values.clip(min=0)))
    return points - points.mean(axis=0)


def shape_spread(shapes: NDArray, subjects: Sequence[str], basis: NDArray) -> tuple[float, float]:
    """RMS distance of shapes of one subject, and of different subjects: (within, between), in the basis' unit.

    shapes (N,K) codes, subjects (N,) names, basis (V,3,K). The distance of two shapes is the RMS over the vertices of
    the neutral heads' difference; each result is the RMS over all pairs of images of one subject, or of different
    subjects. NaN where there is no such pair.
    """
    points = shape_points(shapes, basis)
    _, index, count = np.unique(np.asarray(subjects), return_inverse=True, return_counts=True)
    own = np.zeros((len(count), points.shape[1]))
    np.add.at(own, index, points)
    square = np.zeros(len(count))
    np.add.at(square, index, (points * points).sum(axis=1))
    # The squared distances of all pairs among n points sum to n sum |x|^2 - |sum x|^2.
    within = float((count * square - (own * own).sum(axis=1)).sum())
    total = float(len(points) * square.sum() - np.square(points.sum(axis=0)).sum())
    within_pairs = int((count * (count - 1)).sum()) // 2
    between_pairs = len(points) * (len(points) - 1) // 2 - within_pairs
    return (
        float(np.sqrt(max(within, 0.0) / within_pairs)) if within_pairs else np.nan,
        float(np.sqrt(max(total - within, 0.0) / between_pairs)) if between_pairs else np.nan,
    )
