"""The demo's photographs: the astronaut that scikit-image carries, and a few heads rendered here."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from deca_core import DECA, Codes
from deca_core.appearance import SH_CONSTANTS
from deca_core.assets import procedural_head

PICTURE_SIZE = 384  # pixels
CAMERA_SCALE = 6.0  # the head fills two thirds of the picture


def write_photos(folder: Path, heads: int = 7, seed: int = 1) -> Path:
    """Write the demo's pictures as JPEG and PNG files; returns the folder."""
    from skimage import data

    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(data.astronaut()).save(folder / "astronaut.png")
    for index, picture in enumerate(render_heads(heads, seed)):
        Image.fromarray(picture).save(folder / f"head-{index:02d}.jpg", quality=92)
    return folder


@torch.inference_mode()
def render_heads(count: int, seed: int) -> list[NDArray[np.uint8]]:
    """Pictures of random people of the procedural head, (384,384,3) RGB, on a plain background."""
    generator = torch.Generator().manual_seed(seed)
    model = DECA(procedural_head())

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    codes = Codes.zeros(count).replace(shape=normal(count, 100), tex=0.8 * normal(count, 50))
    codes = codes.replace(
        exp=0.25 * normal(count, 50).abs() * (torch.arange(50) < 10),  # the named leading ones
        pose=torch.cat([normal(count, 3) * torch.tensor([0.08, 0.2, 0.04]), torch.zeros(count, 3)], dim=1),
        cam=torch.tensor([CAMERA_SCALE, 0.0, 0.0]).repeat(count, 1),
        light=_daylight(generator, count),
    )
    out = model.decode(codes)
    middle = out.landmarks2d.mean(1) / CAMERA_SCALE  # the face to the middle of the picture; y is down
    codes = codes.replace(cam=codes.cam + torch.stack([torch.zeros(count), -middle[:, 0], middle[:, 1]], dim=1))
    pictures = model.render(codes, model.decode(codes), size=2 * PICTURE_SIZE)
    background = 0.3 + 0.4 * torch.rand(count, 3, 1, 1, generator=generator)
    blended = pictures.images.clamp(0, 1) * pictures.alpha + background * (1 - pictures.alpha)
    smooth = torch.nn.functional.avg_pool2d(blended, 2)  # four samples a pixel
    return list((smooth * 255).round().byte().permute(0, 2, 3, 1).numpy())


def _daylight(generator: torch.Generator, count: int) -> torch.Tensor:
    """Light codes (count,9,3): even light plus one soft lamp from above on either side."""
    azimuth = (torch.rand(count, generator=generator) - 0.5) * math.pi * 2 / 3
    direction = torch.stack([azimuth.sin(), torch.full_like(azimuth, 0.4), azimuth.cos()], dim=1)
    light = torch.zeros(count, 9, 3)
    light[:, 0] = 0.75 / SH_CONSTANTS[0]
    light[:, 1:4] = 0.3 / SH_CONSTANTS[1] * direction[..., None]
    return light
