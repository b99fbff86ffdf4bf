"""The demo's images: the astronaut of scikit-image, and a few subjects of the embedded world."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from deca_core.assets import procedural_head
from deca_world import Limits, World

IMAGE_SIZE = 384  # pixels
LIMITS = Limits(yaw=(0.0, 30.0))


def write_photos(folder: Path, subjects: int = 7, seed: int = 1) -> Path:
    """Write the astronaut and one image of each of `subjects` procedural subjects; return the folder."""
    from skimage import data

    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(data.astronaut()).save(folder / "astronaut.png")
    world = World(procedural_head())
    for index in range(subjects):
        subject = world.subject(seed, index)
        photograph = world.photograph(subject, world.shot(subject, 0, LIMITS), IMAGE_SIZE)
        (folder / f"subject-{index:02d}.jpg").write_bytes(photograph.jpeg())
    return folder
