"""The embedded world: photographs of procedural subjects with ground truth.

subject, wrinkles (the identity) -> scene, lighting, background, lens (one photograph's settings) -> renderer ->
photograph. Everything is a pure function of (seed, subject, image): the same bytes in any process and in any order.
"""

from deca_world.photograph import Photograph, World
from deca_world.scene import Limits, Shot, shot
from deca_world.subject import Subject, subject
from deca_world.wrinkles import WrinkleModel

__all__ = [
    "Limits",
    "Photograph",
    "Shot",
    "Subject",
    "World",
    "WrinkleModel",
    "shot",
    "subject",
]
