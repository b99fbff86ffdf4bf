"""Transforms between an image and the crop of a network. Pixel centres are at whole coordinates in both."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deca_core.crop import CropError, face_direction

# Groups of the 68 landmarks.
RIGHT_EYE, LEFT_EYE, NOSE_TIP, RIGHT_MOUTH, LEFT_MOUTH = slice(36, 42), slice(42, 48), 30, 48, 54


def similarity(source: NDArray[Any], target: NDArray[Any]) -> NDArray[np.float64]:
    """Return the rotation, scale and shift (2, 3) that maps points (N, 2) to others with least squares.

    With points as complex numbers z, w about their means, w = a z has the solution a = sum(conj(z) w) / sum |z|^2.
    Raises CropError when the points lie in one place.
    """
    z, w = (np.asarray(points, np.float64) @ [1, 1j] for points in (source, target))
    spread = z - z.mean()
    extent = float((np.abs(spread) ** 2).sum())
    if not np.isfinite(extent) or extent < 1e-9:
        raise CropError("the landmarks have no extent: no square can be laid round them")
    a = (spread.conj() * (w - w.mean())).sum() / extent
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def box_transform(centre: NDArray[Any], side: float, size: int) -> NDArray[np.float64]:
    """An upright square, centre and side in box coordinates (pixel edges), to a crop of `size` pixels."""
    scale = size / side
    shift_x, shift_y = (scale * (0.5 - float(middle) + side / 2) - 0.5 for middle in centre)
    return np.array([[scale, 0, shift_x], [0, scale, shift_y]])


def five_points(landmarks: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return eye centres, nose tip and mouth corners, left in the image first: (5, 2)."""
    points = landmarks.astype(np.float64)
    eyes = [points[RIGHT_EYE].mean(axis=0), points[LEFT_EYE].mean(axis=0)]
    return np.stack([*eyes, points[NOSE_TIP], points[RIGHT_MOUTH], points[LEFT_MOUTH]])


def portrait_transform(landmarks: NDArray[np.float32], size: int) -> NDArray[np.float64]:
    """Upright portrait frame of FFHQ and CelebA-HQ (Karras et al. 2018, appendix C), which face parsers learn from.

    The frame is turned with the eyes and the mouth; its half side is the larger of 2 eye distances and 1.8 distances
    from eyes to mouth, its centre is a tenth of the latter below the eyes.
    """
    right, left, _, *mouth = five_points(landmarks)
    eyes, to_mouth = (right + left) / 2, (mouth[0] + mouth[1]) / 2 - (right + left) / 2
    across, x = left - right, face_direction(landmarks)
    length = float(np.hypot(*x))
    if not np.isfinite(length) or length < 1e-9:
        raise CropError("the landmarks have no extent: no square can be laid round them")
    x *= max(2 * np.hypot(*across), 1.8 * np.hypot(*to_mouth)) / length
    centre, y = eyes + 0.1 * to_mouth, np.array([-x[1], x[0]])
    corners = np.array([centre - x - y, centre + x - y, centre + x + y, centre - x + y])
    far = size - 0.5
    return similarity(corners, np.array([[-0.5, -0.5], [far, -0.5], [far, far], [-0.5, far]]))


def apply(transform: NDArray[Any], points: NDArray[Any]) -> NDArray[np.float64]:
    """Points (N, 2) through a (2, 3) transform."""
    return points @ transform[:, :2].T + transform[:, 2]


def invert(transform: NDArray[Any]) -> NDArray[np.float64]:
    inverse: NDArray[np.float64] = np.linalg.inv(np.vstack([transform, [0, 0, 1]]))[:2]
    return inverse


def cut(image: NDArray[np.uint8], transform: NDArray[Any], size: int) -> NDArray[np.uint8]:
    """Return the crop (size, size, 3) under a similarity from source to crop pixels; black outside the image.

    A large face is reduced with a low-pass filter first, so that networks never see the image's sampling.
    """
    window = _window(transform, size, image.shape[:2])
    if window is None:
        return np.zeros((size, size, 3), np.uint8)
    x0, y0, x1, y1 = window
    patch = Image.fromarray(np.ascontiguousarray(image[y0:y1, x0:x1]))
    scale = min(float(np.sqrt(np.linalg.det(transform[:, :2]))), 1.0)
    reduced = max(round((x1 - x0) * scale), 1), max(round((y1 - y0) * scale), 1)
    if reduced != patch.size:
        patch = patch.resize(reduced, Image.Resampling.BICUBIC, reducing_gap=3.0)
    to_patch = np.array([reduced[0] / (x1 - x0), reduced[1] / (y1 - y0)])
    to_source = invert(transform)  # crop pixels to source pixels, then to those of the reduced window
    to_source[:, 2] = (to_source[:, 2] - [x0, y0] + 0.5) * to_patch - 0.5
    to_source[:, :2] *= to_patch[:, None]
    return np.array(patch.transform((size, size), Image.Transform.AFFINE, _edges(to_source), Image.Resampling.BILINEAR))


def paste(soft: NDArray[np.float32], transform: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """A crop's mask (size, size) in [0, 1] back in the image (H, W): 255 from one half on, 0 below and outside."""
    mask = np.zeros(shape, np.uint8)
    window = _window(transform, soft.shape[0], shape)
    if window is None:
        return mask
    x0, y0, x1, y1 = window
    to_crop = np.array(transform, np.float64)
    to_crop[:, 2] = apply(transform, np.array([[x0, y0]]))[0]
    crop = Image.fromarray(np.round(soft * 255).astype(np.uint8))
    size = x1 - x0, y1 - y0
    pasted = crop.transform(size, Image.Transform.AFFINE, _edges(to_crop), Image.Resampling.BILINEAR)
    mask[y0:y1, x0:x1] = (np.asarray(pasted) >= 128) * np.uint8(255)
    return mask


def _window(transform: NDArray[Any], size: int, shape: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """The part of an image (x0, y0, x1, y1) under a crop, with a small margin; None if there is none."""
    low, high = -0.5, size - 0.5
    corners = apply(invert(transform), np.array([[low, low], [high, low], [high, high], [low, high]]))
    x0, y0 = (int(v) for v in np.maximum(np.floor(corners.min(axis=0)) - 2, 0))
    x1, y1 = (int(v) for v in np.minimum(np.ceil(corners.max(axis=0)) + 3, [shape[1], shape[0]]))
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def _edges(transform: NDArray[Any]) -> tuple[float, ...]:
    """Pillow counts from the edge of the first pixel: its transform of pixel centres."""
    shifted = np.array(transform, np.float64)
    shifted[:, 2] += 0.5 - shifted[:, :2].sum(axis=1) / 2
    return tuple(shifted.ravel().tolist())
