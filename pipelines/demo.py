"""The demo's pictures: the astronaut that scikit-image carries, and a few people of the embedded world."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from deca_core.assets import procedural_head
from deca_world import Limits, World

PICTURE_SIZE = 384  # pixels
LIMITS = Limits(yaw=(0.0, 30.0))


def write_photos(folder: Path, people: int = 7, seed: int = 1) -> Path:
    """Write the astronaut and one picture of each of `people` procedural persons; returns the folder."""
    from skimage import data

    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(data.astronaut()).save(folder / "astronaut.png")
    world = World(procedural_head())
    for index in range(people):
        person = world.subject(seed, index)
        photograph = world.photograph(person, world.shot(person, 0, LIMITS), PICTURE_SIZE)
        (folder / f"person-{index:02d}.jpg").write_bytes(photograph.jpeg())
    return folder
