"""A hint for images without a detected face: whether one is found after rotation, as with a lost EXIF tag."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.annotate.annotators import Detection

# Long side in pixels of the rotated images. dlib's HOG then finds faces from an eighth of that side on; the three
# detections take 95 to 190 ms of a core where the one that failed took 35 to 380 (images of 320 to 3000 pixels), at
# 480 pixels twice as much.
LOOK_SIDE = 320
# Degrees clockwise that put an image upright, and the value of EXIF's tag Orientation that says so.
TURNS = {90: 6, 180: 3, 270: 8}

DetectBatch = Callable[[Sequence[NDArray[np.uint8]]], Sequence[list[Detection]]]


def turned_hint(image: NDArray[np.uint8], detect_batch: DetectBatch) -> str:
    """Return an addition to the error of an image (H, W, 3) without a face; empty where rotation finds none either."""
    small = Image.fromarray(image)
    small.thumbnail((LOOK_SIDE, LOOK_SIDE), Image.Resampling.BOX)
    turned = [np.ascontiguousarray(np.rot90(np.asarray(small), -degrees // 90)) for degrees in TURNS]
    try:
        answers = detect_batch(turned)
    except Exception:  # of any library: it is a hint, and the image has its reason already
        return ""
    scores = [max((face.score for face in faces), default=0.0) for faces in answers]
    _, (degrees, orientation) = max(zip(scores, TURNS.items(), strict=True), key=lambda pair: pair[0])
    if not any(answers):
        return ""
    return (
        f"; turned by {degrees} degrees clockwise it shows one: is its EXIF orientation ({orientation}) lost? "
        "Turn the file"
    )
