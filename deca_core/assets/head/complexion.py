"""The 50 albedo components: skin, hair, brows, lips, beard, blush, freckles, irises, make-up, and residual mottling.

One unit is one standard deviation; the first three span human skin tones. Each component is a mask times an RGB
change, so that the albedo stays linear in the coefficients.
"""

from __future__ import annotations

import numpy as np

from deca_core.assets.head.albedo import HAIR, SKIN, Layers, Texels, brow_band
from deca_core.assets.head.curves import Array, gaussian, smoothstep

NUM_COMPONENTS = 50

Colour = tuple[float, float, float]


def albedo_basis(texels: Texels, layers: Layers, mean: Array, rng: np.random.Generator) -> Array:
    """(50, size, size, 3)."""
    rows = _rows(texels, layers, mean)
    components = [mask[..., None] * np.array(colour) for mask, colour in rows.values()]
    components += [_freckles(texels, layers, rng) for _ in range(3)]
    bare = layers.skin * (1 - 0.75 * layers.brows) * (1 - 0.6 * layers.upper_lash)
    while len(components) < NUM_COMPONENTS:
        colour = 0.005 * rng.standard_normal() + 0.0008 * rng.standard_normal(3)
        components.append((texels.noise(rng, float(rng.choice([4, 7, 12, 20]))) * bare)[..., None] * colour)
    return np.stack(components)


def _freckles(texels: Texels, layers: Layers, rng: np.random.Generator) -> Array:
    spots = np.clip(texels.noise(rng, 1.0) - 1.5, 0, 1.5) * layers.face * np.exp(-(((texels.y + 15) / 32) ** 2))
    return spots[..., None] * np.array([-0.025, -0.035, -0.035])


def _rows(texels: Texels, layers: Layers, mean: Array) -> dict[str, tuple[Array, Colour]]:
    """Name: (mask, RGB change at one standard deviation)."""
    x, y, face, skin = texels.x, texels.y, layers.face, layers.skin
    # Shaded skin changes in proportion, as pigment does.
    shade = np.clip(mean.mean(-1) / np.mean(SKIN), 0, 1.2)
    tone = skin * shade * (1 - 0.75 * layers.brows) * (1 - 0.6 * layers.upper_lash)
    lids = gaussian(x, y, (32, 10), (13, 5)) * skin
    under_eyes = gaussian(x, y, (33, -10), (12, 5)) * skin
    cheeks = gaussian(x, y, (40, -30), (15, 12)) * skin
    nose = gaussian(x, y, (0, -37), (12, 9)) * skin
    hair, lips, brows, beard = layers.hair, layers.lips, layers.brows, layers.beard
    bald: Colour = (0.28 * (SKIN[0] - HAIR[0]), 0.28 * (SKIN[1] - HAIR[1]), 0.28 * (SKIN[2] - HAIR[2]))
    return {
        "skin_melanin": (tone + 0.35 * layers.hair + 0.35 * layers.brows, (-0.128, -0.112, -0.098)),
        "skin_redness": (tone, (0.010, -0.008, -0.009)),
        "skin_yellowness": (tone, (0.008, 0.003, -0.015)),
        "hair_lightness": (hair, (0.075, 0.055, 0.035)),
        "hair_redness": (hair, (0.030, 0.006, -0.004)),
        "hair_grey": (hair, (0.06, 0.065, 0.07)),
        "thin_hair": (hair, bald),
        "receding_hairline": (hair * smoothstep(70, 30, texels.degrees) * smoothstep(98, 78, y), bald),
        "low_hairline": (skin * smoothstep(50, 66, y) * (texels.degrees < 90), (-0.05, -0.045, -0.04)),
        "lip_darkness": (lips, (-0.068, -0.072, -0.060)),
        "lip_redness": (lips, (0.026, -0.018, -0.012)),
        "lip_paleness": (lips, (0.018, 0.022, 0.022)),
        "brow_lightness": (brows, (0.083, 0.068, 0.053)),
        "brow_height": (brow_band(texels, 1.0, 1.0) - brow_band(texels, -1.0, 1.0), (-0.165, -0.165, -0.150)),
        "brow_thickness": (brow_band(texels, 0.0, 1.4) - 0.5 * brow_band(texels, 0.0, 1.0), (-0.128, -0.128, -0.120)),
        "brows_joined": (gaussian(x, y, (4, 19), (5, 4)) * texels.front, (-0.090, -0.090, -0.083)),
        "beard": (beard, (-0.098, -0.086, -0.071)),
        "moustache": (beard * gaussian(x, y, (0, -54), (16, 5)), (-0.115, -0.104, -0.092)),
        "chin_beard": (beard * gaussian(x, y, (0, -98), (18, 14)), (-0.104, -0.098, -0.086)),
        "blush": (cheeks, (0.020, -0.011, -0.009)),
        "nose_redness": (nose, (0.016, -0.012, -0.012)),
        "dark_under_eyes": (under_eyes, (-0.068, -0.075, -0.053)),
        "lid_shadow": (lids, (-0.060, -0.068, -0.053)),
        "lid_colour": (lids, (0.010, -0.005, 0.015)),
        "lash_darkness": (layers.upper_lash + 0.6 * layers.lower_lash, (-0.05, -0.05, -0.05)),
        "fold_darkness": (layers.fold, (-0.105, -0.105, -0.105)),
        "iris_lightness": (layers.iris, (0.090, 0.090, 0.075)),
        "iris_blueness": (layers.iris, (-0.030, 0.060, 0.150)),
        "eye_redness": (layers.eye_white, (0.01, -0.03, -0.03)),
        "forehead_shine": (face * smoothstep(36, 56, y), (0.025, 0.025, 0.025)),
        "lower_face_tone": (tone * smoothstep(-30, -70, y), (-0.025, -0.028, -0.025)),
        "nasolabial_shade": (gaussian(x, y, (30, -52), (5, 12)) * face, (-0.045, -0.048, -0.045)),
        "ear_redness": (skin * smoothstep(80, 92, texels.degrees), (0.02, -0.013, -0.013)),
    }
