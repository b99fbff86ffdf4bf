"""Images with coloured marks at known places, and answers that a perfect network would give for them.

The adapters cut, scale, turn and normalise an image, and bring the network's answer back. A stand-in that finds the
marks in what it is given proves both ways at once, for any size, aspect and rotation.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw

OVER = 8  # sample points of a disc per pixel and axis, so that its centre is exact to a fraction of a pixel

# (width, height, centre of the face, its size, rotation in degrees): wide, tall, tiny, large, turned either way.
PLACES = [
    (320, 240, (160.0, 120.0), 90.0, 0.0),
    (700, 200, (520.3, 101.7), 120.0, 25.0),
    (150, 640, (70.6, 480.2), 100.0, -40.0),
    (61, 53, (31.0, 25.5), 34.0, 12.0),
    (1900, 1300, (1201.4, 640.8), 830.0, -15.0),
    (401, 403, (60.0, 70.0), 110.0, 8.0),  # the crop reaches over the border
]


def turned(points: np.ndarray, centre: tuple[float, float], size: float, degrees: float) -> np.ndarray:
    """Points of a face of size 1 about the origin, placed in an image."""
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return points @ rotation.T * size + centre


def discs(width: int, height: int, marks: list[tuple[np.ndarray, float, tuple[int, int, int]]]) -> np.ndarray:
    """A grey image with filled discs (centre in pixels, radius, colour)."""
    image = np.full((height, width, 3), 100, np.float32)
    for centre, radius, colour in marks:
        x0, y0 = (int(v) for v in np.floor(np.asarray(centre) - radius - 2))
        side = int(np.ceil(2 * radius)) + 5
        fine = (np.arange(side * OVER) + 0.5) / OVER - 0.5  # sample points in pixels of the image, less (x0, y0)
        away = np.hypot(fine[None] + x0 - centre[0], fine[:, None] + y0 - centre[1])
        alpha = (away <= radius).reshape(side, OVER, side, OVER).mean(axis=(1, 3), dtype=np.float32)
        rows, columns = np.arange(y0, y0 + side), np.arange(x0, x0 + side)
        inside_y, inside_x = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
        alpha = alpha[np.ix_(inside_y, inside_x)][..., None]
        where = np.ix_(rows[inside_y], columns[inside_x])
        image[where] = image[where] * (1 - alpha) + np.array(colour) * alpha
    return np.round(image).astype(np.uint8)


def polygon(width: int, height: int, points: np.ndarray) -> np.ndarray:
    """The part of each pixel that a polygon covers, (height, width); points in pixels, centres at whole coordinates."""
    over = 4
    canvas = Image.new("L", (width * over, height * over))
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in ((points + 0.5) * over - 0.5).tolist()], fill=1)
    return np.asarray(canvas, np.float32).reshape(height, over, width, over).mean(axis=(1, 3))


def centroid(weight: torch.Tensor) -> torch.Tensor:
    """Weighted mean (x, y) of the pixel centres of (H, W)."""
    y, x = torch.meshgrid(torch.arange(weight.shape[0]), torch.arange(weight.shape[1]), indexing="ij")
    return torch.stack([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


def excess(image: torch.Tensor, channel: int) -> torch.Tensor:
    """How far one channel of (3, H, W) exceeds the others; 0 for grey."""
    others = [image[other] for other in range(3) if other != channel]
    return (image[channel] - torch.maximum(*others)).clamp(min=0)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())
