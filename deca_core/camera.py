"""Weak-perspective camera (paper section 4.1): v = s Pi(M) + t, in the image frame of the method.

World: x to the subject's left, y up, z out of the face, metres. Image: x right, y down, both in [-1, 1] over the crop;
z grows away from the viewer, so the smaller z is nearer.
"""

from __future__ import annotations

import torch
from torch import Tensor

IMAGE_SIZE = 224  # pixels on a side of the crop that the networks see


def project(points: Tensor, cam: Tensor) -> Tensor:
    """Orthographic projection with scale and shift: points (B,N,3) metres, cam (B,3) = s, tx, ty -> (B,N,3).

    x' = s (x + tx), y' = -s (y + ty), z' = -s z.
    """
    scale, shift = cam[:, None, :1], cam[:, None, 1:]
    x, y = (scale * (points[..., :2] + shift)).unbind(-1)
    return torch.stack([x, -y, -scale[..., 0] * points[..., 2]], dim=-1)


def fit_camera(points: Tensor, landmarks: Tensor) -> Tensor:
    """The camera (B,3) that brings points (B,N,3), metres, nearest to landmarks (B,N,2) in [-1, 1]: least squares."""
    upright = landmarks * landmarks.new_tensor([1, -1])
    middle, goal = points[..., :2].mean(1), upright.mean(1)
    spread = points[..., :2] - middle[:, None]
    scale = (spread * (upright - goal[:, None])).sum((1, 2), keepdim=True) / spread.square().sum((1, 2), keepdim=True)
    return torch.cat([scale[:, 0], goal / scale[:, 0] - middle], dim=1)


def to_pixels(normalised: Tensor, size: int = IMAGE_SIZE) -> Tensor:
    """Image coordinates in [-1, 1] to pixels of a square image: p = (l + 1) size / 2."""
    return (normalised + 1) * (size / 2)


def from_pixels(pixels: Tensor, size: int = IMAGE_SIZE) -> Tensor:
    """Inverse of `to_pixels`."""
    return pixels * (2 / size) - 1
