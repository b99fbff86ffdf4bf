"""Quality of a face image: sharpness, head pose, size and mask coverage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from tasks.annotate.annotators.geometry import apply, invert
from tasks.annotate.annotators.skin import bare_region

# Mean places of landmarks that neither expression nor the turn of the head moves much (brows, nose, corners of the
# eyes): millimetres, x to the subject's left, y up, z forward, on the mean of the procedural head; the midline first,
# then the subject's right side with the number of the left twin.
MIDLINE = {27: (25, 53), 28: (11, 60), 29: (-2, 68), 30: (-17, 77), 33: (-29, 61)}
RIGHT_SIDE = {
    (17, 26): (-52, 41, 27),
    (19, 24): (-32, 51, 48),
    (21, 22): (-10, 43, 57),
    (31, 35): (-13, -26, 62),
    (36, 45): (-43, 25, 38),
    (39, 42): (-18, 20, 41),
}
RIGHT_EYE, LEFT_EYE = slice(36, 42), slice(42, 48)
BORDER = 2  # pixels: the Laplacian sees no further


@dataclass(frozen=True)
class Quality:
    """Quality figures of one face, named as their columns."""

    sharpness: float
    yaw: float
    pitch: float
    eye_distance: float
    mask_coverage: float


def measure(
    crop: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    landmarks: NDArray[np.float32],
    transform: NDArray[Any],
    size: tuple[int, int],
) -> Quality:
    """Return all quality figures of a face.

    crop (N, N, 3) and mask (N, N) uint8; landmarks (68, 2) in source pixels; transform (2, 3) from source to crop
    pixels; size: width and height of the source image.
    """
    region = bare_region((len(crop), len(crop)), apply(transform, landmarks))
    yaw, pitch = head_turn(landmarks)
    eyes = landmarks[LEFT_EYE].mean(axis=0) - landmarks[RIGHT_EYE].mean(axis=0)
    return Quality(
        sharpness=sharpness(crop, region & _seen(transform, size, len(crop))),
        yaw=yaw,
        pitch=pitch,
        eye_distance=float(np.hypot(*eyes)),
        mask_coverage=float((mask[region] > 0).mean()) if region.any() else 0.0,
    )


def sharpness(crop: NDArray[np.uint8], region: NDArray[np.bool_]) -> float:
    """Return the variance of the Laplacian (4 neighbours) of grey values 0 to 255 over `region`; 0 where it is empty.

    Crops show every face at the same size (160 of 320 pixels), so that the figure does not grow or fall with the
    camera's resolution: it falls with blur, and for faces that were smaller than that. Pech-Pacheco et al. 2000.
    """
    if not region.any():
        return 0.0
    grey = np.asarray(Image.fromarray(crop).convert("L"), np.float32)
    return float(ndimage.laplace(grey)[region].var(dtype=np.float64))


def head_turn(landmarks: NDArray[np.float32]) -> tuple[float, float]:
    """Return yaw and pitch in degrees from 68 landmarks; yaw positive to the subject's left, pitch upwards.

    Scaled orthographic pose of mean 3-D points (the first step of DeMenthon & Davis 1995): the affine map X -> p of
    least squares, then the nearest pair of orthonormal rows. Angles are those of R = Rz(roll) Rx(-pitch) Ry(yaw).
    """
    numbers = [*MIDLINE, *(number for pair in RIGHT_SIDE for number in pair)]
    model = [(0, *place) for place in MIDLINE.values()]
    model += [place for x, y, z in RIGHT_SIDE.values() for place in ((x, y, z), (-x, y, z))]
    points, places = landmarks[numbers].astype(np.float64) * [1, -1], np.array(model, np.float64)
    affine = np.linalg.lstsq(places - places.mean(axis=0), points - points.mean(axis=0), rcond=None)[0].T
    left, _, right = np.linalg.svd(affine, full_matrices=False)
    across, up = left @ right
    forward = np.cross(across, up)
    yaw, pitch = np.arctan2(-forward[0], forward[2]), -np.arcsin(np.clip(forward[1], -1, 1))
    return float(np.degrees(yaw)), float(np.degrees(pitch))


def _seen(transform: NDArray[Any], size: tuple[int, int], side: int) -> NDArray[np.bool_]:
    """Return the crop's pixels (side, side) that are in the image, clear of its edges."""
    to_source = invert(transform)
    axis = np.arange(side)
    border = BORDER * to_source[0, 0]
    across, down = (to_source[row, row] * axis + to_source[row, 2] for row in (0, 1))
    inside_x, inside_y = (
        (place >= border) & (place <= count - 1 - border) for place, count in zip((across, down), size, strict=True)
    )
    inside: NDArray[np.bool_] = inside_y[:, None] & inside_x
    return inside
