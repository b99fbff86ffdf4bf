"""The embedded world: photographs of procedural people with ground truth.

person, wrinkles (who) -> scene, lighting, background, lens (how they are photographed) -> renderer -> photograph,
dataset. Everything is a pure function of (seed, person, image): the same bytes in any process and in any order.
"""

from deca_world.dataset import Sample, WorldDataset
from deca_world.person import Person, person
from deca_world.photograph import Photograph, World
from deca_world.scene import Limits, Shot, shot
from deca_world.wrinkles import WrinkleModel

__all__ = [
    "Limits",
    "Person",
    "Photograph",
    "Sample",
    "Shot",
    "World",
    "WorldDataset",
    "WrinkleModel",
    "person",
    "shot",
]
