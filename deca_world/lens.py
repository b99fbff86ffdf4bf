"""From irradiance to a file: lens, sensor, white balance, resolution, JPEG."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deca_world.background import enlarge

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Lens:
    """Camera and compression of one photograph."""

    blur: float  # Gaussian, pixels of a 224-pixel image
    shrink: float  # the image was stored at this share of its size and enlarged again; 1: not
    noise: float  # standard deviation of the sensor's noise, [0, 1] scale
    balance: tuple[float, float, float]  # gain by channel: white balance and colour cast
    contrast: float  # exponent around mid grey; 1: none
    quality: int  # of the JPEG
    seed: int  # of the noise


PLAIN = Lens(0.0, 1.0, 0.0, (1.0, 1.0, 1.0), 1.0, 95, 0)


def sample_lens(rng: np.random.Generator, imperfect: bool = True) -> Lens:
    """Most images are good, some are blurred, small, noisy or badly compressed."""
    blur = abs(rng.normal(0, 0.35)) if rng.uniform() < 0.8 else rng.uniform(0.5, 1.3)
    shrink = 1.0 if rng.uniform() < 0.8 else rng.uniform(0.45, 0.95)
    noise = abs(rng.normal(0, 0.008)) if rng.uniform() < 0.85 else rng.uniform(0.01, 0.035)
    warm, green = rng.normal(0, 0.03), rng.normal(0, 0.012)
    contrast = float(np.clip(rng.normal(1.0, 0.08), 0.8, 1.25))
    quality, seed = int(rng.integers(60, 97)), int(rng.integers(2**31))
    if not imperfect:
        return PLAIN
    balance = (float(1 + warm), float(1 + green), float(1 - warm))
    return Lens(float(blur), float(shrink), float(noise), balance, contrast, quality, seed)


def develop(image: Float, lens: Lens) -> NDArray[np.uint8]:
    """Image (n,n,3) float, 1 = white, to what the camera keeps, uint8; highlights roll off instead of clipping."""
    size = len(image)
    out = image * np.array(lens.balance, np.float32)
    if lens.contrast != 1.0:
        np.power(np.maximum(2 * out, 1e-4), lens.contrast, out=out)
        out *= 0.5
    # Smooth shoulder from 0.8 up.
    bright = out > 0.8
    out[bright] = 0.8 + 0.2 * np.tanh((out[bright] - 0.8) / 0.3)
    out = _blurred(out, lens.blur * size / 224)
    if lens.shrink < 1:
        from scipy.ndimage import zoom

        small = zoom(out, (lens.shrink, lens.shrink, 1), order=1, grid_mode=True, mode="nearest")
        out = enlarge(small, size)
    if lens.noise > 0:
        grain = np.random.default_rng(lens.seed).standard_normal(out.shape, dtype=np.float32)
        # Shot noise: brighter light is noisier, relative noise is smaller.
        grain *= np.float32(lens.noise) * (np.float32(0.4) + np.float32(0.8) * np.sqrt(np.maximum(out, 0)))
        out = out + grain
    return (np.clip(out, 0, 1) * 255 + 0.5).astype(np.uint8, order="C")


def _blurred(image: Float, spread: float) -> Float:
    if spread < 0.2:
        return image
    from scipy.ndimage import gaussian_filter1d

    for axis in (0, 1):
        image = gaussian_filter1d(image, spread, axis=axis, mode="nearest", truncate=3)
    return image


def encode_jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    """JPEG bytes of an (H,W,3) image."""
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(image).save(target, "JPEG", quality=quality)
    return target.getvalue()
