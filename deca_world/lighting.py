"""Light of a photograph: one lamp that casts shadows, and everything else, both as the method's SH coefficients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deca_core.appearance import SH_CONSTANTS

Float = NDArray[np.float32]

# Factors of the cosine lobe in SH_CONSTANTS by band (Ramamoorthi & Hanrahan 2001); the method leaves the first at 1.
LOBE = np.array([1.0, *(2 * np.pi / 3,) * 3, *(np.pi / 4,) * 5])
FIRST_BAND = np.pi


@dataclass(frozen=True, eq=False)
class Light:
    """Light in world space, irradiance 1 = full exposure of white.

    ambient (9,3) and key (9,3): SH coefficients; their sum is the method's light code. direction (3,) unit, towards the
    lamp; colour (3,) its RGB strength; size: how soft its shadows are, 0 sharp .. 1 soft.
    """

    ambient: Float
    key: Float
    direction: Float
    colour: Float
    size: float

    @property
    def code(self) -> Float:
        """(9,3): shading a surface without shadow, as `deca_core.appearance.shading` does."""
        return self.ambient + self.key


def polynomials(direction: NDArray) -> NDArray:
    """The nine bands without constants at unit vectors (...,3) -> (...,9), in the order of `appearance.sh_basis`."""
    x, y, z = np.moveaxis(direction, -1, 0)
    return np.stack([np.ones_like(x), x, y, z, x * y, x * z, y * z, x * x - y * y, 3 * z * z - 1], axis=-1)


def directional(direction: NDArray, colour: NDArray) -> NDArray:
    """SH coefficients (9,3) whose irradiance is nearest to colour * max(n . direction, 0)."""
    harmonics = np.array(SH_CONSTANTS) / LOBE * polynomials(np.asarray(direction, float))
    harmonics[0] *= FIRST_BAND
    return harmonics[:, None] * colour


def irradiance(normals: NDArray, light: NDArray) -> NDArray:
    """Irradiance at unit normals (...,3) under SH light (9,3) -> (...,3)."""
    return (polynomials(normals) * np.array(SH_CONSTANTS)) @ light


def direction_of(azimuth: float, elevation: float) -> NDArray:
    """Unit vector from degrees: azimuth 0 from the camera, positive from the subject's left; elevation upwards."""
    a, e = np.radians(azimuth), np.radians(elevation)
    return np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])


@dataclass(frozen=True)
class Kind:
    """Ranges of one sort of light: share of images, strengths relative to each other, exposure of the face."""

    share: float
    ambient: tuple[float, float]
    key: tuple[float, float]
    fill: tuple[float, float]
    azimuth: float
    exposure: tuple[float, float]
    size: tuple[float, float]


KINDS = {
    "soft": Kind(0.57, (0.45, 0.75), (0.15, 0.40), (0.0, 0.25), 60, (0.95, 1.25), (0.6, 1.0)),
    "side": Kind(0.24, (0.35, 0.55), (0.40, 0.75), (0.0, 0.20), 65, (0.90, 1.20), (0.3, 0.9)),
    "harsh": Kind(0.06, (0.20, 0.35), (0.80, 1.10), (0.0, 0.12), 60, (0.85, 1.25), (0.0, 0.3)),
    "dim": Kind(0.07, (0.35, 0.60), (0.20, 0.60), (0.0, 0.15), 60, (0.50, 0.80), (0.3, 1.0)),
    "flash": Kind(0.06, (0.35, 0.55), (0.35, 0.60), (0.0, 0.05), 12, (1.0, 1.25), (0.0, 0.3)),
}


def sample_light(rng: np.random.Generator) -> Light:
    """Light of one photograph: sky gradient, key, fill from the other side, warm or cold, exposed for the face."""
    kind = list(KINDS.values())[rng.choice(len(KINDS), p=[kind.share for kind in KINDS.values()])]
    direction = direction_of(rng.uniform(-kind.azimuth, kind.azimuth), rng.uniform(0 if kind.azimuth < 20 else 5, 62))
    key_colour = rng.uniform(*kind.key) * _tint(rng, 0.045)
    sky = rng.uniform(*kind.ambient) * _tint(rng, 0.035)
    ambient = np.zeros((9, 3))
    ambient[0] = sky / SH_CONSTANTS[0]
    ambient[2] = sky * rng.uniform(-0.05, 0.30) / SH_CONSTANTS[2]  # brighter above than below
    ambient[1] = sky * rng.normal(0, 0.12) / SH_CONSTANTS[1]
    side = -np.sign(direction[0]) if direction[0] else 1.0
    fill = direction_of(side * rng.uniform(20, 95), rng.uniform(-20, 40))
    ambient = ambient + directional(fill, rng.uniform(*kind.fill) * _tint(rng, 0.045))
    key = directional(direction, key_colour)
    # A photographer exposes for the face: the mean over the directions that a face shows.
    seen = np.stack([direction_of(a, e) for a in (-50, -25, 0, 25, 50) for e in (-25, 0, 25)])
    gain = rng.uniform(*kind.exposure) / max(float(irradiance(seen, ambient + key).mean()), 1e-3)
    return Light(
        ambient=(ambient * gain).astype(np.float32),
        key=(key * gain).astype(np.float32),
        direction=direction.astype(np.float32),
        colour=(key_colour * gain).astype(np.float32),
        size=float(rng.uniform(*kind.size)),
    )


def _tint(rng: np.random.Generator, spread: float) -> NDArray:
    """A colour of mean 1 along warm to cold, and a little along green to purple."""
    warm, green = rng.normal(0, spread), rng.normal(0, 0.3 * spread)
    return np.array([1 + warm, 1 + green, 1 - warm])
