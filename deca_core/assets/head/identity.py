"""The 100 identity components: sex, age, then named proportions, then smooth residual shapes.

One unit is one standard deviation of a mixed adult population. Sizes follow the standard deviations in Farkas (1994),
rounded (face height 6 mm, bizygomatic 5, bigonial 6, nose height 3.5, nose width 2.6, mouth width 3.5, interpupillary
3.6, ear length 4.5); forms without a tabulated measure were set by eye (tests/deca_core/assets/population.py measures
the population). Sex and age come first; the others are ordered by falling variance. Positive sex is male, positive age
is older.
"""

from __future__ import annotations

import numpy as np

from deca_core.assets.head.curves import Array, gaussian
from deca_core.assets.head.fields import (
    Move,
    Push,
    Side,
    SidePush,
    Stretch,
    carry_teeth,
    keep_eyes_round,
    keep_lids_alike,
    keep_lips_closed,
    total,
)
from deca_core.assets.head.mesh import HeadMesh, Part

NUM_IDENTITY = 100
SEED = 11
AGE_YEARS = 20  # one unit of age: a wide adult population

X, Y, Z = 0, 1, 2

# Half of the difference between men and women.
SEX: tuple[Move, ...] = (
    Stretch(X, 0.022),
    Stretch(Y, 0.022),
    Stretch(Z, 0.022, origin=-85),
    Stretch(Y, 0.030, origin=-45, beyond="below"),  # lower face
    Stretch(X, 0.042, origin=24, centre_y=-88, spread_y=22, beyond="aside"),  # width at the angles of the jaw
    Stretch(X, 0.085, centre_y=-150, spread_y=28),  # neck
    Stretch(Z, 0.060, origin=-100, centre_y=-150, spread_y=28),
    Push(26, 22, 20, 6, (0, -0.6, 1.4)),  # brow ridge
    Push(0, 21, 12, 8, (0, 0, 0.6)),
    Push(28, 24, 22, 8, (0, -1.1, 0)),  # lower brows
    Push(0, 50, 40, 18, (0, 0, -1.6)),  # sloping forehead
    Push(0, -20, 12, 20, (0, -0.8, 1.4)),  # larger nose
    Push(13, -41, 8, 8, (0.7, 0, 0.3)),
    Push(0, -63, 17, 5, (0, -0.5, -0.5), lip=1),  # thinner lips
    Push(0, -75, 17, 6, (0, 0.6, -0.5), lip=-1),
    Push(25, -68, 9, 8, (0.5, 0, 0)),
    Push(16, -103, 15, 14, (1.0, -0.7, 0.7)),  # square chin
    Push(44, -26, 13, 11, (0, 0, -0.9)),  # flatter cheeks
    Push(44, -58, 13, 16, (0.4, 0, -0.8)),
    Push(32, 1, 16, 10, (0, -0.2, -0.7)),  # deeper eyes
)
# Fifteen years of adult life: tissue sinks, nose and ears grow, lips thin, brows and lids come down.
AGE: tuple[Move, ...] = (
    Push(36, -92, 12, 11, (1.6, -2.6, 0.6)),  # jowls
    Push(43, -30, 14, 11, (0, -1.6, -1.3)),  # cheeks sink
    Push(46, -62, 12, 15, (-0.6, -1.0, -1.4)),
    Push(30, -50, 4.5, 12, (0, 0, -0.9)),  # nasolabial fold
    Push(34, -46, 6, 9, (0.3, -0.5, 1.1)),
    Push(26, -77, 5, 8, (0, -0.8, -1.2)),  # fold below the corners of the mouth
    Push(0, -38, 11, 11, (0, -1.9, 0.2)),  # the tip of the nose comes down
    Push(13, -42, 8, 7, (0.6, -0.6, 0)),
    Push(0, -62, 18, 5, (0, -0.9, -1.1), lip=1),
    Push(0, -75, 18, 6, (0, 0.5, -1.1), lip=-1),
    Push(25, -68, 8, 8, (0.4, -1.0, 0)),
    Push(36, 22, 18, 8, (0, -1.5, -0.4)),  # brows
    Push(38, 8, 10, 4, (0, -0.8, 0.3)),  # hooded lids
    Push(28, -12, 12, 4, (0, -0.6, 0.9)),  # bags
    Push(24, -19, 9, 4, (0, 0, -1.2)),  # tear troughs
    Push(62, 20, 10, 18, (-1.0, 0, 0)),  # temples
    SidePush(-92, -28, 12, 10, (0.8, -2.4, 0)),  # ear lobes
    SidePush(-92, 22, 12, 10, (0.4, 1.0, 0)),
    Stretch(Z, 0.045, origin=-100, centre_y=-140, spread_y=22),  # slack throat
)

NAMED: dict[str, tuple[Move, ...]] = {
    # The head as a whole
    "head_size": (Stretch(X, 0.022), Stretch(Y, 0.022), Stretch(Z, 0.022, origin=-85)),
    "head_width": (Stretch(X, 0.038, origin=22, beyond="aside"),),
    "head_depth": (Stretch(Z, 0.026, origin=-70, beyond="below"),),  # behind the ears
    "skull_height": (Stretch(Y, 0.035, origin=20, beyond="above"),),
    "lower_face_height": (Stretch(Y, 0.042, origin=-10, beyond="below"),),
    "weight": (
        Push(54, -55, 17, 24, (2.3, 0, 1.6)),
        Push(30, -95, 22, 15, (1.5, -1.1, 0.9)),
        Stretch(X, 0.050, centre_y=-145, spread_y=30),
        Stretch(Z, 0.050, origin=-100, centre_y=-135, spread_y=26),
    ),
    "neck_width": (
        Stretch(X, 0.06, centre_y=-150, spread_y=26),
        Stretch(Z, 0.04, origin=-100, centre_y=-150, spread_y=26),
    ),
    "forehead_width": (Stretch(X, 0.030, centre_y=60, spread_y=35),),
    "forehead_slope": (Push(0, 62, 42, 22, (0, 0, 3.6)),),
    "forehead_height": (Push(0, 78, 60, 18, (0, 4.2, 0)),),
    "temples": (Push(62, 20, 12, 22, (2.0, 0, 0)),),
    # Jaw and chin
    "jaw_width": (Stretch(X, 0.055, origin=24, centre_y=-85, spread_y=26, beyond="aside"),),
    "jaw_angle": (SidePush(-68, -72, 20, 16, (1.4, -3.4, 0)),),
    "jaw_edge": (Push(40, -86, 20, 16, (1.8, -0.8, 0.5)),),
    "chin_height": (Push(0, -110, 22, 12, (0, -3.2, 0)),),
    "chin_forward": (Push(0, -103, 24, 15, (0, 0, 2.8)),),
    "chin_width": (Push(19, -103, 16, 15, (1.4, 0, 0)),),
    "chin_cleft": (Push(0, -103, 5, 7, (0, 0, -0.5)),),
    "lower_third_forward": (Push(0, -84, 34, 26, (0, 0, 2.8)),),
    # Nose
    "nose_length": (Push(0, -38, 14, 12, (0, -2.4, 0)), Push(0, -56, 12, 6, (0, -1.4, 0), lip=1)),
    "nose_tip_forward": (Push(0, -37, 11, 11, (0, 0, 2.2)),),
    "nose_tip_up": (Push(0, -40, 9, 6, (0, 1.9, 0.9)),),
    "nose_tip_width": (Push(6, -37, 5, 5, (1.3, 0, 0)),),
    "nose_width": (Push(12.5, -41, 6, 7, (1.1, 0, 0)),),
    "wing_height": (Push(13, -42, 5, 5, (0, 1.2, 0)),),
    "bridge_height": (Push(0, -4, 12, 14, (0, 0, 1.9)),),
    "bridge_width": (Push(9, -14, 6, 14, (0.8, 0, 0)),),
    "bridge_hump": (Push(0, -19, 9, 8, (0, 0, 1.3)),),
    # Eyes
    "eye_distance": (Push(32, 0, 20, 16, (1.2, 0, 0)),),
    "eye_height": (Push(32, 2, 22, 16, (0, 1.6, 0)),),
    "eye_depth": (Push(32, 2, 19, 14, (0, 0, 1.7)),),
    "eye_tilt": (Push(47, 0, 6, 7, (0, 1.3, 0)), Push(17, 0, 5, 6, (0, -0.6, 0))),
    "eye_length": (Push(47, 0, 7, 9, (1.1, 0, 0)), Push(16, -1, 4, 6, (-0.3, 0, 0))),
    "lid_fold": (Push(32, 8, 16, 5, (0, -1.0, 0.9)),),
    "lower_lid_bag": (Push(31, -11, 12, 4, (0, 0, 1.0)),),
    # Brows
    "brow_ridge": (Push(28, 22, 18, 8, (0, 0, 1.5)),),
    "brow_height": (Push(28, 22, 22, 8, (0, 2.0, 0)),),
    "brow_tilt": (Push(42, 20, 10, 8, (0, 1.7, 0)), Push(12, 20, 8, 7, (0, -0.8, 0))),
    # Cheeks
    "cheek_bones": (Push(45, -22, 16, 13, (1.0, 0, 2.8)),),
    "cheek_bone_height": (Push(45, -24, 14, 12, (0, 2.4, 0)),),
    "zygoma_width": (Stretch(X, 0.050, origin=30, centre_y=-20, spread_y=24, beyond="aside"),),
    "cheek_fullness": (Push(52, -48, 18, 22, (2.1, 0, 1.6)),),
    "front_cheek": (Push(34, -46, 13, 14, (0.8, 0, 2.2)),),
    # Mouth
    "mouth_width": (Push(25, -68, 10, 8, (0.9, 0, -0.4)),),
    "mouth_height": (Push(0, -68, 28, 13, (0, 1.3, 0)),),
    "mouth_forward": (Push(0, -68, 22, 12, (0, 0, 2.2)),),
    "mouth_corners": (Push(25, -68, 9, 8, (0, 0.8, 0)),),
    "upper_lip_full": (Push(0, -61, 15, 4.5, (0, 1.3, 1.0), lip=1),),
    "lower_lip_full": (Push(0, -77, 15, 5, (0, -1.4, 1.0), lip=-1),),
    "philtrum_length": (Push(0, -55, 12, 6, (0, -1.5, 0), lip=1),),
    "cupids_bow": (Push(0, -61, 3.5, 3, (0, -0.8, 0), lip=1), Push(7, -61, 4, 3, (0, 0.6, 0), lip=1)),
    # Ears
    "ear_off": (SidePush(-98, 2, 9, 24, (3.0, 0, 0)),),
    "ear_length": (SidePush(-92, 24, 12, 10, (0, 2.2, 0)), SidePush(-92, -30, 12, 10, (0, -2.2, 0))),
    "ear_height": (SidePush(-92, -3, 16, 26, (0, 2.4, 0)),),
    # Asymmetry: every face has some
    "chin_aside": (Push(0, -100, 30, 22, (1.3, 0, 0), side="whole"),),
    "nose_aside": (Push(0, -34, 11, 14, (1.0, 0, 0), side="whole"),),
    "mouth_aside": (Push(0, -68, 24, 10, (0.9, 0, 0), side="whole"),),
    "one_brow": (Push(30, 22, 18, 9, (0, 1.0, 0), side="whole"),),
    "one_corner": (Push(26, -68, 10, 8, (0, 0.6, 0), side="whole"),),
    "one_cheek": (Push(45, -48, 18, 20, (0, 0, 1.4), side="whole"),),
}


def identity_basis(mesh: HeadMesh) -> Array:
    """(V, 3, 100) mm per unit coefficient."""
    leading = [total(SEX, mesh), AGE_YEARS / 15 * total(AGE, mesh)]
    others = [total(moves, mesh) for moves in NAMED.values()]
    others += _residual_shapes(mesh, NUM_IDENTITY - len(leading) - len(others))
    skin = mesh.part(Part.SKIN)
    finished = [_fit_openings(field, mesh) for field in leading + others]
    variance = [float((field[skin] ** 2).sum()) for field in finished]
    order = [0, 1, *sorted(range(2, NUM_IDENTITY), key=lambda index: -variance[index])]
    return np.stack([finished[index] for index in order], axis=-1)


def _fit_openings(field: Array, mesh: HeadMesh) -> Array:
    """A field that leaves eyeballs, lids, lips and teeth in order."""
    field = keep_eyes_round(keep_lids_alike(field, mesh), mesh, move_eyes=True)
    return carry_teeth(keep_lips_closed(field, mesh), mesh)


def _residual_shapes(mesh: HeadMesh, count: int) -> list[Array]:
    """Smooth bumps at seeded places: what the named components leave out. Every fourth one is asymmetric."""
    rng = np.random.default_rng(SEED)
    shapes = []
    for index in range(count):
        x, y = rng.uniform(0, 60), rng.uniform(-112, 70)
        spread = rng.uniform(10, 24)
        direction = rng.standard_normal(3) * [0.75, 0.75, 1.0]
        # Keep the surroundings of eyes and mouth calm: broad and shallow moves only.
        delicate = float(gaussian(np.array(x), np.array(y), (32, 0), (18, 14)))
        delicate = max(delicate, float(gaussian(np.array(x), np.array(y), (0, -68), (26, 14))))
        spread += 8 * delicate
        dx, dy, dz = (direction * (1 - 0.6 * delicate)).tolist()
        whole = index % 4 == 3
        centre = x * (rng.choice([-1, 1]) if whole else 1)
        side: Side = "whole" if whole else "both"
        push = Push(centre, y, spread, spread * rng.uniform(0.8, 1.25), (dx, dy, dz), side=side)
        shapes.append((0.6 if whole else 1.0) * push.field(mesh))
    return shapes
