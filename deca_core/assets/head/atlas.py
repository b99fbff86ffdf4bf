"""The UV atlas: the head sheet above, a strip with eyes, lid margins, mouth and teeth below.

u to the right, v up, both in [0, 1], mirror-symmetric about u = 0.5; the cut runs down the back of the head. The face
from brows to chin and ear to ear fills the patch 50:206 of 256 that DECA's detail losses look at (u, v in 0.20..0.80).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from deca_core.assets.head.curves import Array, Pchip

SHEET_BOTTOM = 0.125  # v of the cut of the neck; the strip of the inner parts lies below

# Longitude in degrees -> |u - 0.5|, and level -> v: the denser the face, the more texels it gets (about 1 mm a texel).
_TO_U = Pchip([0, 30, 60, 90, 110, 180], [0.0, 0.118, 0.225, 0.305, 0.350, 0.5])
_TO_V = Pchip(
    [0.0, 0.08, 0.155, 0.32, 0.56, 0.70, 0.81, 1.0], [SHEET_BOTTOM, 0.163, 0.215, 0.405, 0.680, 0.820, 0.885, 1.0]
)
_LONGITUDES, _LEVELS = np.linspace(0, 180, 2001), np.linspace(0, 1, 2001)

# Discs of the inner parts, centre on the subject's left side (mirrored for the right) and radius.
EYE_ISLAND, EYE_ISLAND_RADIUS = np.array([0.92, 0.0625]), 0.057
LID_ISLAND, LID_ISLAND_RADIUS = np.array([0.79, 0.0625]), 0.050
MOUTH_ISLAND, MOUTH_ISLAND_RADIUS = np.array([0.5, 0.072]), 0.046
# Two strips for the rows of teeth: half width in u, and v from the biting edge to the gum.
TEETH_HALF_WIDTH, UPPER_TEETH_V, LOWER_TEETH_V = 0.08, (0.0145, 0.0225), (0.0115, 0.0035)


def uv_of(longitude: ArrayLike, level: ArrayLike) -> Array:
    """UV (..., 2) of a place on the head sheet."""
    longitude = np.asarray(longitude, float)
    u = 0.5 + np.sign(longitude) * _TO_U(np.degrees(np.abs(longitude)))
    return np.stack(np.broadcast_arrays(u, _TO_V(level)), axis=-1)


def place_of(u: ArrayLike, v: ArrayLike) -> tuple[Array, Array]:
    """Inverse of `uv_of`: (longitude, level); v below the sheet gives level 0."""
    aside = np.asarray(u, float) - 0.5
    longitude = np.sign(aside) * np.radians(np.interp(np.abs(aside), _TO_U(_LONGITUDES), _LONGITUDES))
    return longitude, np.interp(np.asarray(v, float), _TO_V(_LEVELS), _LEVELS)


def texel_centres(size: int) -> tuple[Array, Array]:
    """(u, v) of every texel, each (size, size); row 0 at the top (v = 1)."""
    centre = (np.arange(size) + 0.5) / size
    u, v = np.meshgrid(centre, 1 - centre)
    return u, v
