"""Image panels of 224 pixels, and sheets of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from deca_core.camera import IMAGE_SIZE

HEADER, GAP = 26, 4  # pixels
DISPLACEMENT_SHOWN = 0.002  # metres shown as black and as white; wrinkles are below 1.5 mm


def to_bytes(image: NDArray[Any]) -> NDArray[np.uint8]:
    """(3,H,W) float in [0, 1] to (H,W,3) uint8."""
    return (image.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)


def grey_map(displacement: NDArray[Any]) -> NDArray[np.uint8]:
    """A displacement map (256,256) in metres as a grey panel (224,224,3): outwards is white."""
    grey = 0.5 + displacement / (2 * DISPLACEMENT_SHOWN)
    return np.array(Image.fromarray(to_bytes(grey[None].repeat(3, 0))).resize((IMAGE_SIZE, IMAGE_SIZE)))


def with_points(panel: NDArray[np.uint8], points: NDArray[Any]) -> NDArray[np.uint8]:
    """The panel with points (N,2), in pixels, drawn on it."""
    image = Image.fromarray(panel)
    draw = ImageDraw.Draw(image)
    for x, y in points:
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(60, 255, 90), outline=(0, 60, 0))
    return np.asarray(image)


def assemble(strips: list[list[NDArray[np.uint8]]], titles: Sequence[str], note: str) -> NDArray[np.uint8]:
    """A sheet of strips of panels below titles, with a note in red on top, if given."""
    step = IMAGE_SIZE + GAP
    top = HEADER * (2 if note else 1)
    sheet = Image.new("RGB", (len(titles) * step - GAP, top + len(strips) * step - GAP), (24, 24, 28))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    if note:
        draw.rectangle((0, 0, sheet.width, HEADER), fill=(176, 32, 32))
        draw.text((8, 4), note, fill="white", font=font)
    for column, title in enumerate(titles):
        draw.text((column * step + 8, top - HEADER + 4), title, fill=(210, 210, 215), font=font)
        for line, strip in enumerate(strips):
            sheet.paste(Image.fromarray(strip[column]), (column * step, top + line * step))
    return np.asarray(sheet)
