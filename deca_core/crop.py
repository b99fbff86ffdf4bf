"""From a face in a photograph to the square the networks see (numerics of the release: scale 1.25 at inference)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from deca_core.camera import IMAGE_SIZE
from deca_core.errors import DecaError
from deca_core.images import check_range, pixels_of

INFERENCE_SCALE = 1.25
LANDMARK_MARGIN = 1.1  # a box round 68 landmarks is smaller than a detector's
BOX_SHIFT = 0.12  # a detector's box sits too high by this share of its size


class CropError(DecaError):
    """A face without extent, or landmarks that are none: no square can be laid round them."""


@dataclass(frozen=True)
class Square:
    """An upright square in source pixels: centre (x, y) and side."""

    center: tuple[float, float]
    size: float

    def scaled(self, scale: float) -> Square:
        """The same centre, the side times `scale`, cut to whole pixels."""
        return Square(self.center, float(int(self.size * scale)))


def square_from_landmarks(landmarks: NDArray, scale: float = INFERENCE_SCALE) -> Square:
    """Landmarks (68,2) in pixels to the crop square: side 1.1 (w + h) / 2 of their box, times scale.

    Raises CropError for another number of landmarks, whose box would be another, and for a face without extent.
    """
    landmarks = _landmarks(landmarks)
    left, top = landmarks.min(axis=0)
    right, bottom = landmarks.max(axis=0)
    size = (right - left + bottom - top) / 2 * LANDMARK_MARGIN
    return _square((left + right) / 2, (top + bottom) / 2, size, scale)


def face_direction(landmarks: NDArray) -> NDArray[np.float64]:
    """From the face's right to its left, (2,) in the image: the mean of what the eyes say, and eyes and mouth.

    landmarks (68,2). Steadier under yaw and pitch than the line of the eyes alone (Karras et al. 2018, appendix C).
    """
    points = _landmarks(landmarks).astype(np.float64)
    right, left = points[36:42].mean(axis=0), points[42:48].mean(axis=0)
    to_mouth = (points[48] + points[54]) / 2 - (right + left) / 2
    return np.asarray(left - right + np.array([to_mouth[1], -to_mouth[0]]))


def _landmarks(points: NDArray) -> NDArray:
    """68 points, or CropError."""
    points = np.asarray(points)
    if points.shape != (68, 2) or points.dtype.kind not in "fiu":
        raise CropError(
            f"landmarks are {points.dtype} {points.shape}, expected the 68 of iBUG in pixels: (68, 2), one face at a "
            "time. A box goes to square_from_box"
        )
    return points


def square_from_box(box: NDArray, scale: float = INFERENCE_SCALE) -> Square:
    """A detector's box (left, top, right, bottom) in pixels to the crop square: side (w + h) / 2, 0.12 lower."""
    if np.shape(box) != (4,):
        raise CropError(f"a box has the shape {np.shape(box)}, expected left, top, right, bottom in pixels")
    left, top, right, bottom = box
    size = (right - left + bottom - top) / 2
    return _square((left + right) / 2, (top + bottom) / 2 + BOX_SHIFT * size, size, scale)


def _square(x: float, y: float, size: float, scale: float) -> Square:
    square = Square((float(x), float(y)), float(size)).scaled(scale) if np.isfinite([x, y, size]).all() else None
    if square is None or square.size < 2:
        raise CropError(f"the face has no extent: centre ({x:.1f}, {y:.1f}), side {size:.1f} pixels")
    return square


def crop_transform(square: Square, size: int = IMAGE_SIZE) -> NDArray[np.float64]:
    """The similarity (2,3) from source pixels to crop pixels: the square's corners go to 0 and size - 1."""
    scale = (size - 1) / square.size
    shift = [-scale * (centre - square.size / 2) for centre in square.center]
    return np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])


def warp(image: NDArray, transform: NDArray, size: int = IMAGE_SIZE) -> NDArray[np.float32]:
    """Sample the crop bilinearly; black outside the image.

    image (H,W,C) uint8 or float in [0, 1]; transform (2,3) source to crop pixels, any similarity -> (C,size,size).
    Only the part of the image under the crop is converted, so a large photograph costs no more than a small one.
    Raises ImageError for other types, and for floats under the crop that are out of range or not finite.
    """
    span = pixels_of(image, "warp")
    if np.shape(transform) != (2, 3) or not np.isfinite(transform).all():
        raise CropError(f"a transform of the shape {np.shape(transform)}, expected (2, 3) finite numbers")
    inverse = np.linalg.inv(np.vstack([transform, [0, 0, 1]]))[:2]
    ends = np.array([[0, 0, 1], [size - 1, 0, 1], [0, size - 1, 1], [size - 1, size - 1, 1]])
    corners = ends @ inverse.T
    height, width = image.shape[:2]
    low = np.clip(np.floor(corners.min(axis=0)).astype(int) - 1, 0, [width - 1, height - 1])
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 2, low + 1, [width, height])
    window = np.ascontiguousarray(image[low[1] : high[1], low[0] : high[0]].transpose(2, 0, 1))
    pixels = torch.from_numpy(window)[None].float() / span
    if span == 1:
        check_range(pixels, "warp")
    # In the corner-aligned frame of grid_sample, pixel 0 is at -1 and pixel n - 1 at 1; a window of one pixel still
    # needs a scale, and fades to black within one pixel like any other border.
    extent = np.maximum(high - low - 1, 1)
    if (high - low).min() < 2:
        pixels = functional.pad(
            pixels, (0, int(extent[0]) + 1 - pixels.shape[3], 0, int(extent[1]) + 1 - pixels.shape[2])
        )
    inverse[:, 2] -= low
    across, down, origin = (2 * inverse / extent[:, None]).T  # of x, of y, and of neither: crop pixel to that frame
    axis = np.arange(size)[:, None]
    rows, columns = axis * down + origin - 1, axis * across
    grid = torch.from_numpy(np.add(rows[:, None], columns, dtype=np.float32, casting="same_kind"))[None]
    return functional.grid_sample(pixels, grid, align_corners=True)[0].numpy()
