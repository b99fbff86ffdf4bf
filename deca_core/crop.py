"""From a face in a photograph to the square the networks see (numerics of the release: scale 1.25 at inference)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from deca_core.camera import IMAGE_SIZE
from deca_core.errors import DecaError

INFERENCE_SCALE = 1.25
LANDMARK_MARGIN = 1.1  # a box round 68 landmarks is smaller than a detector's
BOX_SHIFT = 0.12  # a detector's box sits too high by this share of its size


class CropError(DecaError):
    """A face without extent: no square can be laid round it."""


@dataclass(frozen=True)
class Square:
    """An upright square in source pixels: centre (x, y) and side."""

    center: tuple[float, float]
    size: float

    def scaled(self, scale: float) -> Square:
        """The same centre, the side times `scale`, cut to whole pixels."""
        return Square(self.center, float(int(self.size * scale)))


def square_from_landmarks(landmarks: NDArray, scale: float = INFERENCE_SCALE) -> Square:
    """Landmarks (68,2) in pixels to the crop square: side 1.1 (w + h) / 2 of their box, times scale."""
    left, top = landmarks.min(axis=0)
    right, bottom = landmarks.max(axis=0)
    size = (right - left + bottom - top) / 2 * LANDMARK_MARGIN
    return _square((left + right) / 2, (top + bottom) / 2, size, scale)


def square_from_box(box: NDArray, scale: float = INFERENCE_SCALE) -> Square:
    """A detector's box (left, top, right, bottom) in pixels to the crop square: side (w + h) / 2, 0.12 lower."""
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
    """Sample the crop bilinearly; black outside the picture.

    image (H,W,3) uint8 or float in [0, 1]; transform (2,3) source to crop pixels, any similarity -> (3,size,size).
    Only the part of the picture under the crop is converted, so a large photograph costs no more than a small one.
    """
    inverse = np.linalg.inv(np.vstack([transform, [0, 0, 1]]))[:2]
    ends = np.array([[0, 0, 1], [size - 1, 0, 1], [0, size - 1, 1], [size - 1, size - 1, 1]])
    corners = ends @ inverse.T
    height, width = image.shape[:2]
    low = np.clip(np.floor(corners.min(axis=0)).astype(int) - 1, 0, [width - 1, height - 1])
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 2, low + 1, [width, height])
    window = np.ascontiguousarray(image[low[1] : high[1], low[0] : high[0]].transpose(2, 0, 1))
    pixels = torch.from_numpy(window)[None].float() / (255 if image.dtype == np.uint8 else 1)
    # In the corner-aligned frame of grid_sample, pixel 0 lies at -1 and pixel n - 1 at 1; a window of one pixel still
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
