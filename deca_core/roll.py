"""Heads rolled in the image plane: encoded in an upright crop, their codes converted to the frame of the plain crop.

The release crops along the image's axes and trains without rotations, so its weights know only the roll of upright
heads. A crop turned with the face removes larger rolls. The codes are then converted to the axis-aligned crop, exactly:
under weak perspective, a turn of the image is a turn of the head about the optical axis, of the camera's shift and of
the light.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deca_core.camera import IMAGE_SIZE
from deca_core.codes import Codes
from deca_core.crop import CropError, crop_transform, face_direction, square_from_landmarks
from deca_core.flame import FLAME, axis_angle, rotation_matrix

# Degrees. Up to here the shipped weights find 95 % of a roll, a degree off; at 28 they find 80 %, at 45 a third
# (docs/conventions.md, `benchmarks/roll.py` of dcc546a).
UPRIGHT_FROM = 20.0
NEVER = 180.0


def roll_of(landmarks: NDArray) -> float:
    """The roll of a face in its image, -180 to 180 degrees: landmarks (68,2), pixels. Positive: counter-clockwise."""
    x, y = face_direction(landmarks)
    return float(np.degrees(np.arctan2(-y, x)))


def upright_transform(landmarks: NDArray, upright_from: float = UPRIGHT_FROM) -> NDArray[np.float64]:
    """The similarity (2,3) from source pixels to those of the crop that the networks see: landmarks (68,2), pixels.

    Up to a roll of `upright_from` degrees the release's crop along the image's axes, `crop_transform` of
    `square_from_landmarks`; beyond, that crop of the image turned until the face is upright. Raises CropError.
    """
    roll = roll_of(landmarks)
    if not abs(roll) > upright_from:
        return crop_transform(square_from_landmarks(landmarks))
    cosine, sine = np.cos(np.radians(roll)), np.sin(np.radians(roll))
    turn = np.array([[cosine, -sine], [sine, cosine]])  # of pixels, y down: clockwise where roll is positive
    upright = crop_transform(square_from_landmarks(landmarks @ turn.T))
    return np.column_stack([upright[:, :2] @ turn, upright[:, 2]])


def reframed(codes: Codes, flame: FLAME, seen: NDArray[np.float64], asked: NDArray[np.float64]) -> Codes:
    """Codes of crops `seen` as codes of crops `asked`: the same heads in the same places of the source images.

    seen, asked (B,2,3), or (2,3) of one: similarities from source to crop pixels. Head pose, camera and light change;
    faces whose two crops are one keep their codes to the last bit, and so do codes that are not finite. Raises
    CropError for what is no similarity.

    >>> codes = reframed(model.encode(crop), model.flame, seen, asked)  # doctest: +SKIP
    """
    seen, asked = (np.asarray(one, np.float64).reshape(-1, 2, 3) for one in (seen, asked))
    if len(seen) != len(codes) or len(asked) != len(codes):
        raise CropError(f"reframed: {len(codes)} codes, {len(seen)} crops seen and {len(asked)} asked for")
    changed = (seen != asked).any(axis=(1, 2))
    if not changed.any():
        return codes
    finite = torch.stack([value.flatten(1).isfinite().all(1) for _, value in codes.items()]).all(0)
    changed = np.flatnonzero(changed & finite.cpu().numpy())
    index = torch.from_numpy(changed).to(codes.cam.device)
    moved = _moved(codes[index], flame, *_similarity(seen[changed], asked[changed]))
    names = ("pose", "cam", "light")
    return codes.replace(**{name: getattr(codes, name).index_copy(0, index, getattr(moved, name)) for name in names})


def _similarity(
    seen: NDArray[np.float64], asked: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """From one crop's [-1, 1] to the other's, y up: u' = scale R(angle) u + shift. Angles (N,) counter-clockwise."""
    bottom = np.broadcast_to([[[0.0, 0.0, 1.0]]], (len(seen), 1, 3))
    between = asked @ np.linalg.inv(np.concatenate([seen, bottom], axis=1))
    linear, shift = between[:, :, :2], between[:, :, 2]
    scale = np.hypot(linear[:, 0, 0], linear[:, 1, 0])
    if not np.allclose(linear[:, 0], linear[:, 1, ::-1] * [1, -1], atol=1e-6 * float(scale.max())):
        raise CropError("reframed: the crops differ by more than a turn, a scale and a shift")
    half = IMAGE_SIZE / 2
    shift = linear.sum(axis=2) + shift / half - 1
    return np.arctan2(-linear[:, 1, 0], linear[:, 0, 0]), scale, shift * [1, -1]


def _moved(
    codes: Codes, flame: FLAME, angle: NDArray[np.float64], scale: NDArray[np.float64], shift: NDArray[np.float64]
) -> Codes:
    """Codes in another crop, in double precision inside.

    A head x is seen at s (x + t) and turns about its root joint J: R x = R_head' (rest - J) + J - (J - R J). So
    s' = scale s, and t' = R t - (J - R J) + shift / s'.
    """
    turns, zoom, off = (torch.from_numpy(value).to(codes.cam.device) for value in (angle, scale, shift))
    turn = rotation_matrix(torch.stack([0 * turns, 0 * turns, turns], dim=1))
    head = axis_angle(turn @ rotation_matrix(codes.pose[:, :3].double()))
    root = flame.joints(codes.shape, codes.exp)[:, 0, :2].double()
    size = zoom * codes.cam[:, 0].double()
    plane = turn[:, :2, :2]

    def turned(vectors: Tensor) -> Tensor:
        return (plane @ vectors[..., None])[..., 0]

    place = turned(codes.cam[:, 1:].double() + root) - root + off / size[:, None]
    return codes.replace(
        pose=torch.cat([head.to(codes.pose), codes.jaw], dim=1),
        cam=torch.cat([size[:, None], place], dim=1).to(codes.cam),
        light=_turned_light(codes.light.double(), plane).to(codes.light),
    )


def _turned_light(light: Tensor, plane: Tensor) -> Tensor:
    """Light (N,9,3) that shades turned heads as it did the unturned ones: (N,2,2) turns about z.

    Of the bands of `sh_basis`, x and y turn like a vector, as do xz and yz; x^2 - y^2 and 2 xy turn twice as far.
    """
    out = light.clone()
    for bands, turn in (((1, 2), plane), ((5, 6), plane), ((7, 4), plane @ plane)):
        out[:, bands] = turn @ light[:, bands]
    return out
