"""Skin tone of a photographed face as the individual typology angle, from the pixels under its skin mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Lower bounds in degrees: the four lighter classes by Chardon, Cretois and Hourseau (1991), the two darker ones by
# Del Bino and Bernerd (2013).
CLASSES = {"very light": 55.0, "light": 41.0, "intermediate": 28.0, "tan": 10.0, "brown": -30.0, "dark": -np.inf}
MIN_PIXELS = 200  # below, the colour of a mask is noise

# Linear sRGB to CIE XYZ over the white of D65 (IEC 61966-2-1), so that white becomes (1, 1, 1).
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_TO_XYZ /= _TO_XYZ.sum(1, keepdims=True)


def cielab(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """CIELAB (..., 3) under D65 of sRGB (..., 3). Source: IEC 61966-2-1, CIE 15."""
    value = rgb / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def typology_angle(crop: NDArray[np.uint8], mask: NDArray[np.uint8]) -> float | None:
    """Individual typology angle in degrees, arctan((L* - 50) / b*), of the median colour of the skin.

    crop (H,W,3) sRGB; mask (H,W), above 127 is skin. None where there is too little skin. It includes light and white
    balance of the photograph: it describes images, not subjects. Source: Chardon et al. 1991.
    """
    skin = crop[mask > 127]
    if len(skin) < MIN_PIXELS:
        return None
    lightness, _, yellow = np.median(cielab(skin), axis=0)
    return float(np.degrees(np.arctan2(lightness - 50, yellow)))


def tone_class(angle: float) -> str:
    """Name of the class of an angle in degrees."""
    return next(name for name, bound in CLASSES.items() if angle > bound)
