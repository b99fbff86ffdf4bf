"""Subjects: identities of the world. Everything about a subject is a pure function of (seed, index)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deca_core.assets.bundle import NUM_SHAPE, NUM_TEX
from deca_world.clothing import Clothing, sample_clothing
from deca_world.hair import HairStyle, sample_hair
from deca_world.looks import Looks, sample_looks
from deca_world.occluders import Occluder, sample_occluders
from deca_world.streams import Stream, stream

TRUNCATION = 2.2  # standard deviations: coefficients beyond are drawn again
SEX_DISTANCE = 0.88  # half the distance of men and women on the sex component
GLASSES_RATE = 1.5  # of the frequency in single photographs
SEX, AGE = 0, 1  # leading shape components of the procedural head: positive is male, positive is older


@dataclass(frozen=True, eq=False)
class Subject:
    """One identity. shape (100,) and tex (50,) float32, each about N(0, I); the rest follows from seed and index."""

    seed: int
    index: int
    shape: NDArray[np.float32]
    tex: NDArray[np.float32]
    age: float  # standard deviations, the skin's age: near that of the shape, not equal to it
    oiliness: float  # 0 matt .. 1 shiny skin
    hair: HairStyle
    looks: Looks
    clothing: Clothing
    glasses: Occluder | None  # worn in most images


def subject(seed: int, index: int) -> Subject:
    """The subject `index` of the world `seed`; same answer in any process, in any order."""
    shape = _truncated_normal(stream(seed, Stream.SHAPE, index), NUM_SHAPE)
    skin = stream(seed, Stream.COMPLEXION, index)
    # Sexes are two groups: still mean 0 and variance 1.
    shape[SEX] = np.copysign(SEX_DISTANCE, shape[SEX]) + np.sqrt(1 - SEX_DISTANCE**2) * skin.standard_normal()
    sex, age = float(shape[SEX]), float(shape[AGE])
    hair = sample_hair(stream(seed, Stream.HAIR, index), (age, sex))
    glasses = sample_occluders(stream(seed, Stream.GLASSES, index), GLASSES_RATE)
    return Subject(
        seed=seed,
        index=index,
        shape=shape,
        tex=_truncated_normal(stream(seed, Stream.TEX, index), NUM_TEX),
        age=0.8 * age + 0.6 * float(skin.standard_normal()),
        oiliness=float(skin.uniform()),
        hair=hair,
        looks=sample_looks(stream(seed, Stream.LOOKS, index), (age, sex), hair.colour),
        clothing=sample_clothing(stream(seed, Stream.CLOTHING, index)),
        glasses=next((occluder for occluder in glasses if occluder.kind == "glasses"), None),
    )


def _truncated_normal(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    values = rng.standard_normal(count)
    while (outside := np.abs(values) > TRUNCATION).any():
        values[outside] = rng.standard_normal(int(outside.sum()))
    return values.astype(np.float32)
