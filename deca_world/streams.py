"""Random streams: every random choice of the world is a pure function of (seed, purpose, subject, image)."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Purpose of random numbers: a new choice in one stream leaves the others unchanged."""

    SHAPE = 1
    TEX = 2
    WRINKLES = 3
    HAIR = 4
    CLOTHING = 5
    SHOT = 6
    OCCLUDERS = 7
    COMPLEXION = 10
    GLASSES = 11
    LOOKS = 12


def stream(seed: int, purpose: Stream, subject: int, image: int = 0) -> np.random.Generator:
    """The generator of one purpose; the same numbers in any process and in any order of calls. All arguments >= 0."""
    return np.random.default_rng(np.random.SeedSequence([seed, int(purpose), subject, image]))
