"""The skin mask of a face from its 68 landmarks and the colour of its cheeks; no network, no weights.

1. Outline: the jaw line (points 0..16) closed over the forehead by half an ellipse above the brows.
2. Colour: pixels of the outline far from the robust colour distribution of cheeks and nose are dropped (hair, dark
   glasses, background); lips and brows, which differ in colour but belong to the face, are kept. On the forehead,
   where hair is expected, less distance is allowed than between jaw and brows, where shadow and beard are.
3. Smoothing: one connected region without small holes.
4. Eyes and the inner mouth are cut out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

# The mask is computed at this resolution (long side of the outline's window, pixels) whatever the face's own is.
WORK_SIZE = 256

JAW, BROWS, EYES = slice(0, 17), (slice(17, 22), slice(22, 27)), (slice(36, 42), slice(42, 48))
OUTER_LIPS, INNER_LIPS = slice(48, 60), slice(60, 68)
# Cheek and side of the nose of both halves, clear of eyes, lips and beard.
CHEEKS = ([1, 2, 3, 48, 31, 30, 28], [15, 14, 13, 54, 35, 30, 28])

# Height of the forehead above the brows, in lengths from the brows to the nose base (the classical facial thirds
# make it 1; the hair line is left to the colour test, bald heads and fringes to the ellipse).
FOREHEAD = 0.9

# Smallest standard deviations of (Y, Cb, Cr) that the colour model may have: light falls off over a face, and JPEG
# blurs colour; and how many of them a pixel may lie away.
MIN_SIGMA = np.array([22.0, 4.5, 4.5])
MAX_DISTANCE_FACE, MAX_DISTANCE_FOREHEAD = 5.0, 3.0

SMALL_HOLE = 0.02  # of the outline's area: nostrils, highlights, moles


def skin_mask(image: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Visible facial skin: (H, W) uint8, 255 skin, 0 else.

    image (H, W, 3) uint8 RGB; landmarks (68, 2) in its pixels. A face outside the picture gives an empty mask.
    """
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    outline = np.concatenate([landmarks[JAW], _forehead(landmarks)])
    x0, y0 = (int(v) for v in np.maximum(np.floor(outline.min(axis=0)), 0))
    x1, y1 = (int(v) for v in np.minimum(np.ceil(outline.max(axis=0)) + 1, [width, height]))
    if x1 <= x0 or y1 <= y0:
        return mask
    scale = WORK_SIZE / max(x1 - x0, y1 - y0)
    size = max(round((x1 - x0) * scale), 1), max(round((y1 - y0) * scale), 1)
    patch = Image.fromarray(image[y0:y1, x0:x1]).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    to_patch = np.array([size[0] / (x1 - x0), size[1] / (y1 - y0)])
    points, outline = ((p - [x0, y0] + 0.5) * to_patch - 0.5 for p in (landmarks, outline))
    skin = Image.fromarray(_patch_mask(patch, points, outline).astype(np.uint8) * 255)
    mask[y0:y1, x0:x1] = (np.asarray(skin.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)) >= 128) * np.uint8(255)
    return mask


def _forehead(landmarks: NDArray[np.float32]) -> NDArray[np.float64]:
    """Half an ellipse from the right end of the jaw line (point 16) over the forehead to the left end (point 0)."""
    left, right = landmarks[0].astype(np.float64), landmarks[16].astype(np.float64)
    centre, half = (left + right) / 2, (right - left) / 2
    brow, nose = landmarks[17:27].mean(axis=0), landmarks[31:36].mean(axis=0)
    top = brow + FOREHEAD * (brow - nose)
    angle = np.linspace(0, np.pi, 25)[1:-1, None]
    return centre + np.cos(angle) * half + np.sin(angle) * (top - centre)


def _patch_mask(patch: Image.Image, points: NDArray[Any], outline: NDArray[Any]) -> NDArray[np.bool_]:
    size = patch.size
    inside = _fill(size, outline)
    eyes = _fill(size, *(points[eye] for eye in EYES))
    lips = _fill(size, points[OUTER_LIPS])
    brows = ndimage.binary_dilation(_fill(size, *(points[brow] for brow in BROWS)), iterations=3)
    cheeks = _fill(size, *(points[cheek] for cheek in CHEEKS)) & inside & ~eyes & ~lips
    face = _fill(size, np.concatenate([points[JAW], points[26:16:-1]]))
    limit = np.where(face, MAX_DISTANCE_FACE, MAX_DISTANCE_FOREHEAD)
    skin = inside & ((_colour_distance(patch, cheeks) <= limit) | lips | brows | eyes)
    skin = ndimage.binary_opening(ndimage.median_filter(skin, 5), iterations=2) | (inside & (lips | eyes))
    skin = _largest(skin)
    holes, count = ndimage.label(inside & ~skin)
    areas = ndimage.sum_labels(np.ones_like(holes), holes, np.arange(1, count + 1))
    small = 1 + np.flatnonzero(areas < SMALL_HOLE * inside.sum())
    return (skin | np.isin(holes, small)) & ~eyes & ~_fill(size, points[INNER_LIPS])


def _colour_distance(patch: Image.Image, cheeks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Distance of each pixel to the median colour of the cheeks, in robust standard deviations of (Y, Cb, Cr)."""
    colour = np.asarray(patch.convert("YCbCr"), np.float64)
    if not cheeks.any():  # the cheeks lie outside the picture: nothing to learn the colour from
        return np.zeros(cheeks.shape)
    sample = colour[cheeks]
    median = np.median(sample, axis=0)
    sigma = np.maximum(1.4826 * np.median(np.abs(sample - median), axis=0), MIN_SIGMA)
    return np.sqrt((((colour - median) / sigma) ** 2).sum(axis=-1))


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    labels, count = ndimage.label(mask)
    return labels == 1 + np.argmax(np.bincount(labels.ravel(), minlength=2)[1:]) if count else mask


def _fill(size: tuple[int, int], *polygons: NDArray[Any]) -> NDArray[np.bool_]:
    canvas = Image.new("L", size)
    draw = ImageDraw.Draw(canvas)
    for polygon in polygons:
        draw.polygon([(float(x), float(y)) for x, y in polygon], fill=255)
    return np.asarray(canvas) > 0
