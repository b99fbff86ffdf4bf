"""Checks and conversion of a user's images to the batch that the networks take: RGB in [0, 1], (B,3,224,224)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deca_core.camera import IMAGE_SIZE
from deca_core.errors import DecaError

TOLERANCE = 0.01  # beyond [0, 1]: what rounding leaves; a resampling filter that overshoots is asked to be clamped
BLACK = 1.5 / 255  # brightest value of a batch that was divided by 255 twice
CROP = "warp(image, crop_transform(square_from_landmarks(landmarks))) of deca_core.crop makes such a crop"


class ImageError(DecaError, ValueError):
    """Images that the networks do not take; the message says what was found and how to fix it."""


def as_batch(images: Any, like: Tensor, name: str = "encode") -> Tensor:
    """Images as the networks take them: (B,3,224,224), RGB in [0, 1], of the type and on the device of `like`.

    images: a tensor or array (B,3,224,224) or (B,224,224,3), or one image without B: uint8 is divided by 255, floats
    are in [0, 1] already; or a list of such images or of PIL's, in mode RGB. The order of the channels cannot be seen:
    OpenCV's BGR goes through. name: of the caller, for errors. Raises ImageError.

    >>> as_batch(np.zeros((224, 224, 3), np.uint8), like=torch.zeros(1)).shape
    torch.Size([1, 3, 224, 224])
    """
    if isinstance(images, list | tuple):
        if not images:
            raise ImageError(f"{name}: an empty list of images")
        return torch.cat([as_batch(image, like, name) for image in images])
    values = _scaled(_batched(_tensor(images, name), name), name)
    check_range(values, name)
    return values.to(like.device, like.dtype)


def check_range(values: Tensor, name: str) -> None:
    """Raise ImageError where images are not finite or not in [0, 1]: one pass, some 0.3 ms for 8 crops."""
    if not values.numel():
        return
    low, high = (float(value) for value in torch.aminmax(values.detach()))
    if not np.isfinite([low, high]).all():
        raise ImageError(f"{name}: images hold values that are not finite. Leave those out, or replace them")
    if 0 < high <= BLACK:
        raise ImageError(f"{name}: no value is above {high:.2g}: were the images divided by 255 twice?")
    if low >= -TOLERANCE and high <= 1 + TOLERANCE:
        return
    if low >= 0 and high > 2:
        fix = f"divide by {65535 if high > 255 else 255}"
    elif low < -TOLERANCE and high <= 1 + TOLERANCE and low >= -1 - TOLERANCE:
        fix = "if they are in [-1, 1], take (images + 1) / 2; if a filter overshoots, images.clamp(0, 1)"
    elif low > -0.5 and high < 1.5:
        fix = "a resampling filter that overshoots: take images.clamp(0, 1)"
    else:
        fix = "undo the normalisation: images * std + mean. No mean or deviation is taken off"
    raise ImageError(f"{name}: images have values from {low:.3g} to {high:.3g}, expected RGB in [0, 1]. Fix: {fix}")


def pixels_of(image: NDArray[Any], name: str) -> float:
    """Divisor of an image array (H,W,C): 255 for uint8, 1 for floats and bool. Raises ImageError.

    `check_range` checks whether floats are in [0, 1], where they are read.
    """
    if not isinstance(image, np.ndarray) or image.ndim != 3:
        kind = f"shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ImageError(
            f"{name}: the image is of {kind}, expected an array (H, W, 3). "
            "np.asarray(image.convert('RGB')) makes one of PIL's, tensor.permute(1, 2, 0).numpy() of torch's"
        )
    if image.dtype == np.uint8:
        return 255.0
    if image.dtype.kind in "fb":
        return 1.0
    raise ImageError(f"{name}: the image is {image.dtype}, expected uint8 or floats in [0, 1]. {_divide(image.dtype)}")


def _tensor(images: Any, name: str) -> Tensor:
    if isinstance(images, Tensor):
        return images
    mode = getattr(images, "mode", None)
    if isinstance(mode, str):  # PIL's: not imported, so that torch and numpy are enough
        if mode != "RGB":
            raise ImageError(f"{name}: an image of mode {mode}. Fix: image.convert('RGB')")
        images = np.array(images)
    if not isinstance(images, np.ndarray):
        raise ImageError(
            f"{name}: got {type(images).__name__}, expected a tensor or array (B, 3, {IMAGE_SIZE}, {IMAGE_SIZE}), or a "
            "list of images"
        )
    try:
        return torch.from_numpy(np.ascontiguousarray(images))
    except TypeError as error:
        raise ImageError(
            f"{name}: an array of {images.dtype}, expected uint8 or floats in [0, 1]. {_divide(images.dtype)}"
        ) from error


def _batched(values: Tensor, name: str) -> Tensor:
    """(B,3,224,224) of whatever order of axes the extents leave no doubt about."""
    shape = tuple(values.shape)
    if values.ndim == 3:
        values = values[None]
    if values.ndim == 4 and values.shape[3] == 3 and values.shape[1] != 3:
        values = values.permute(0, 3, 1, 2)
    if values.ndim == 4 and values.shape[1:] == (3, IMAGE_SIZE, IMAGE_SIZE):
        return values
    expected = f"{name}: images have shape {shape}, expected (B, 3, {IMAGE_SIZE}, {IMAGE_SIZE})"
    if values.ndim == 4 and values.shape[1] == 3:
        raise ImageError(f"{expected}: the size is another. {CROP}")
    raise ImageError(f"{expected}: RGB, without alpha; of a grey one take expand(-1, 3, -1, -1)")


def _scaled(values: Tensor, name: str) -> Tensor:
    """uint8 in [0, 1]; floats as they are."""
    if values.dtype == torch.uint8:
        return values.float() / 255
    if values.dtype.is_floating_point:
        return values
    kind = str(values.dtype).removeprefix("torch.")
    raise ImageError(f"{name}: images are {kind}, expected uint8 or floats in [0, 1]. {_divide(kind)}")


def _divide(kind: Any) -> str:
    """Advice for whole numbers of another width: what they span, only their owner knows."""
    span = 65535 if "16" in str(kind) else 255
    return f"Fix: images / {span}, if they span 0 to {span}"


def require_floats(images: Tensor, name: str, size: int | None = None) -> Tensor:
    """The images themselves; ImageError where they are not floats (B,3,H,W), of `size` where it is given.

    For the frozen networks of the losses: a rendering may be brighter than 1, so the range is not checked, and
    no training step waits for the GPU.
    """
    sides = images.shape[2:] if isinstance(images, Tensor) and images.ndim == 4 and images.shape[1] == 3 else None
    if sides is None or (size is not None and tuple(sides) != (size, size)):
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ImageError(f"{name}: images are {found}, expected a tensor (B, 3, {size or 'H'}, {size or 'W'})")
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise ImageError(f"{name}: images are {kind}, expected floats in [0, 1]. {_divide(kind)}")
    return images
