"""Random augmentation of a stored face crop for training; landmarks and mask follow exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deca_core.camera import IMAGE_SIZE
from deca_core.crop import Square, crop_transform, warp

STORED_SCALE = 2.0  # side of the stored crop over the size of the face, (w + h) / 2 of its landmarks

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes; ranges of one value switch a change off."""

    # Side of the training crop over the size of the face, the release's range.
    scale: tuple[float, float] = (1.4, 1.8)
    # Shift of its centre on each axis, in sizes of the face. At 0.1 the largest crop is still inside the stored one.
    shift: float = 0.1
    # Factors on brightness, contrast and saturation lie in 1 +- this; on each colour channel in 1 +- tint.
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    tint: float = 0.05
    # How often an image gets patches that hide part of it, how many at most, and their sides over the image's.
    occlusion: float = 0.3
    patches: int = 3
    patch_side: tuple[float, float] = (0.1, 0.35)


# For validation: the middle of the training crops and nothing else.
PLAIN = Augmentation(scale=(1.6, 1.6), shift=0, brightness=0, contrast=0, saturation=0, tint=0, occlusion=0)


@dataclass(frozen=True, eq=False)
class AugmentedFace:
    """image (3,224,224) float32 RGB in [0, 1]; landmarks (68,2) in [-1, 1]; mask (1,224,224) float32 in [0, 1]."""

    image: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    mask: NDArray[np.float32]


def augment(
    crop: NDArray[np.uint8],
    landmarks: NDArray,
    mask: NDArray[np.uint8],
    generator: np.random.Generator,
    settings: Augmentation | None = None,
) -> AugmentedFace:
    """A random view of a stored crop.

    crop (N,N,3) uint8 RGB, the square of STORED_SCALE face sizes; landmarks (68,2) in its pixels; mask (N,N) uint8, 255
    on visible skin. All randomness comes from the generator.
    """
    settings = settings or Augmentation()
    size = len(crop)
    transform = crop_jitter(size, generator, settings)
    pixels = warp(np.dstack([crop, mask]), transform)  # once for both: they cannot come apart
    image, skin = change_colours(pixels[:3], generator, settings), pixels[3:]
    hide(image, skin, generator, settings)
    points = landmarks @ transform[:, :2].T + transform[:, 2]
    return AugmentedFace(image, (points * (2 / IMAGE_SIZE) - 1).astype(np.float32), skin)


def crop_jitter(size: int, generator: np.random.Generator, settings: Augmentation) -> NDArray[np.float64]:
    """Similarity (2,3) from pixels of the stored crop, `size` on a side, to those of a random 224 px crop in it."""
    face = (size - 1) / STORED_SCALE  # the outermost pixels' centres are the corners of the stored square
    scale = generator.uniform(*settings.scale)
    x, y = (size - 1) / 2 + face * settings.shift * generator.uniform(-1, 1, 2)
    return crop_transform(Square((float(x), float(y)), face * scale))


def change_colours(
    image: NDArray[np.float32], generator: np.random.Generator, settings: Augmentation
) -> NDArray[np.float32]:
    """Random brightness, contrast, saturation and tint of an image (3,H,W) in [0, 1]; a new image."""
    spreads = (settings.brightness, settings.contrast, settings.saturation)
    brightness, contrast, saturation = (1 + np.array(spreads) * generator.uniform(-1, 1, 3)).astype(np.float32)
    tint = (1 + settings.tint * generator.uniform(-1, 1, (3, 1, 1))).astype(np.float32)
    grey = np.tensordot(LUMA, image, 1)
    changed = saturation * image + (1 - saturation) * grey
    changed = contrast * changed + (1 - contrast) * grey.mean()
    return np.clip(changed * (brightness * tint), 0, 1)


def hide(
    image: NDArray[np.float32], mask: NDArray[np.float32], generator: np.random.Generator, settings: Augmentation
) -> None:
    """Lay random patches over image and mask, in place: plain colours or noise, no longer skin.

    image (3,H,W); mask (1,H,W). Landmarks keep their weight: the network learns to infer what is hidden.
    """
    if generator.random() >= settings.occlusion:
        return
    height, width = image.shape[1:]
    for _ in range(generator.integers(1, settings.patches + 1)):
        rows, columns = (_span(side, generator, settings) for side in (height, width))
        colour = generator.random((3, 1, 1), np.float32)
        grain = generator.choice([0.0, 0.5]) * (generator.random(image[:, rows, columns].shape, np.float32) - 0.5)
        image[:, rows, columns] = np.clip(colour + grain, 0, 1)
        mask[:, rows, columns] = 0


def _span(side: int, generator: np.random.Generator, settings: Augmentation) -> slice:
    length = max(1, round(side * generator.uniform(*settings.patch_side)))
    start = int(generator.integers(0, side - length + 1))
    return slice(start, start + length)
