"""The 50 expression components, named after what they do (most are action units of Ekman and Friesen's FACS, 1978).

At coefficient 1 a component is fully shown. Symmetric components have a one-sided companion on the subject's left
where faces move that way; the right side alone is the difference of the two.
"""

from __future__ import annotations

import numpy as np

from deca_core.assets.head.curves import Array, gaussian, smoothstep
from deca_core.assets.head.fields import Move, Push, Side, keep_eyes_round, total
from deca_core.assets.head.mesh import HeadMesh, Part
from deca_core.assets.head.outlines import EYE_CENTRE, EYE_RADIUS, LID_INNER_X, LID_LENGTH, lid, lid_parameter

UPPER, LOWER = 1, -1
LID_OVERLAP = 0.7  # mm that a closed upper lid passes the lower one: enough for taller openings than the mean


def _smile(side: Side) -> tuple[Move, ...]:
    return (
        Push(27, -68, 12, 10, (5.5, 5.0, -3.5), side=side),
        Push(40, -34, 14, 12, (1.0, 3.2, 3.0), side=side),
        Push(32, -10, 14, 5, (0, 0.9, 0.3), side=side),
        Push(0, -62, 10, 5, (0, 1.0, -1.4), lip=UPPER, side=side),
    )


def _brow_raise(side: Side) -> tuple[Move, ...]:
    return (Push(28, 24, 24, 9, (0, 5.5, 0.5), side=side), Push(20, 50, 32, 18, (0, 2.0, 0), side=side))


def _brow_lower(side: Side) -> tuple[Move, ...]:
    return (Push(14, 20, 12, 8, (-2.2, -3.6, 0.8), side=side), Push(32, 21, 16, 7, (0, -2.2, 0), side=side))


def _upper_lip_raise(side: Side) -> tuple[Move, ...]:
    return (Push(9, -62, 13, 7, (0, 4.2, 1.0), lip=UPPER, side=side), Push(16, -45, 7, 9, (0.8, 1.8, 0), side=side))


def _frown(side: Side) -> tuple[Move, ...]:
    return (Push(26, -70, 10, 9, (1.0, -5.0, -1.0), side=side), Push(0, -90, 14, 6, (0, 1.2, 1.0), side=side))


def _cheek_raise(side: Side) -> tuple[Move, ...]:
    return (Push(40, -26, 16, 12, (0, 3.5, 2.5), side=side), Push(32, -9, 15, 5, (0, 1.6, 0.4), side=side))


def _nose_wrinkle(side: Side) -> tuple[Move, ...]:
    return (
        Push(13, -40, 8, 9, (1.2, 3.4, 1.0), side=side),
        Push(8, -8, 8, 8, (0, 2.2, 0.9), side=side),
        Push(12, 18, 10, 8, (-1.2, -2.6, 0.8), side=side),
    )


def _dimple(side: Side) -> tuple[Move, ...]:
    return (Push(28, -67, 6, 7, (2.5, 0.6, -2.8), side=side),)


def _mouth_aside(side: Side) -> tuple[Move, ...]:
    towards = 1.0 if side == "left" else -1.0
    return (
        Push(0, -70, 26, 15, (4.5 * towards, 0, 0), side="whole"),
        Push(27, -68, 9, 9, (1.6, 1.2, -1.4), side=side),
    )


MOVES: dict[str, tuple[Move, ...]] = {
    "smile": _smile("both"),
    "frown": _frown("both"),
    "brow_raise": _brow_raise("both"),
    "brow_lower": _brow_lower("both"),
    "lids_close": (),  # see _lid_closure
    "pucker": (
        Push(22, -68, 11, 12, (-7.5, 0, 2.0)),
        Push(0, -68, 14, 11, (0, 0, 5.0)),
        Push(0, -62, 12, 4, (0, -0.8, 0), lip=UPPER),
        Push(0, -75, 12, 4, (0, 0.8, 0), lip=LOWER),
    ),
    "cheek_raise": _cheek_raise("both"),
    "nose_wrinkle": _nose_wrinkle("both"),
    "mouth_left": _mouth_aside("left"),
    "mouth_right": _mouth_aside("right"),
    "upper_lip_raise": _upper_lip_raise("both"),
    "lower_lip_depress": (Push(9, -76, 13, 8, (0, -4.2, 0.5), lip=LOWER),),
    "lip_stretch": (Push(27, -69, 12, 10, (6.0, -1.0, -4.0)),),
    "lip_press": (Push(0, -62, 16, 5, (0, -1.2, -2.0), lip=UPPER), Push(0, -75, 16, 5, (0, 1.4, -2.2), lip=LOWER)),
    "lips_part": (Push(0, -63, 17, 6, (0, 1.6, 0.3), lip=UPPER), Push(0, -74, 17, 7, (0, -2.0, 0.3), lip=LOWER)),
    "funnel": (
        Push(0, -63, 14, 6, (0, 2.2, 4.5), lip=UPPER),
        Push(0, -76, 14, 6, (0, -2.4, 4.5), lip=LOWER),
        Push(24, -68, 9, 9, (-4.5, 0, 1.0)),
    ),
    "lips_roll_out": (Push(0, -62, 16, 4, (0, 1.4, 2.0), lip=UPPER), Push(0, -76, 16, 5, (0, -1.6, 2.2), lip=LOWER)),
    "upper_lip_in": (Push(0, -63, 17, 5, (0, -1.4, -3.0), lip=UPPER),),
    "lower_lip_in": (Push(0, -75, 17, 6, (0, 1.4, -3.2), lip=LOWER),),
    "lip_corners_in": (Push(25, -68, 9, 8, (-3.2, 0, -0.6)),),
    "lip_corners_up": (Push(27, -67, 7, 7, (0.6, 4.0, -1.2)),),
    "mouth_up": (Push(0, -68, 26, 14, (0, 2.6, 0.6)),),
    "lips_forward": (Push(0, -69, 20, 12, (0, 0, 3.4)),),
    "chin_raise": (
        Push(0, -98, 16, 12, (0, 3.5, 2.0)),
        Push(0, -76, 15, 6, (0, 1.4, 2.0), lip=LOWER),
        Push(0, -63, 15, 5, (0, 1.4, 1.0), lip=UPPER),
    ),
    "chin_bunch": (Push(0, -102, 11, 8, (0, 1.4, 2.2)), Push(0, -88, 14, 5, (0, 0.6, -1.4))),
    "jaw_left": (Push(0, -95, 38, 24, (6.5, 0, 0), side="whole"), Push(0, -118, 30, 14, (1.0, -0.6, 0), side="whole")),
    "jaw_right": (Push(0, -95, 38, 24, (-6.5, 0, 0), side="whole"), Push(0, -80, 30, 14, (-0.8, 0.6, 0), side="whole")),
    "jaw_forward": (Push(0, -92, 36, 24, (0, 0, 4.5)),),
    "neck_tighten": (Push(18, -134, 8, 16, (1.5, 0, 2.5)), Push(34, -112, 12, 12, (0.6, -1.6, 0))),
    "cheek_puff": (Push(42, -62, 15, 16, (7.0, 0, 6.0)),),
    "cheek_suck": (Push(42, -60, 13, 15, (-3.0, 0, -4.0)), Push(24, -68, 8, 9, (-1.2, 0, 0.6))),
    "dimple": _dimple("both"),
    "nostril_flare": (Push(14, -41, 5, 5, (2.0, 0.6, 0)),),
    "nose_tip_lower": (Push(0, -40, 8, 8, (0, -1.8, 0)), Push(0, -56, 9, 6, (0, -0.8, 0), lip=UPPER)),
    "lids_wide": (),  # see _upper_lid
    "squint": (Push(32, -7, 15, 5, (0, 2.0, 0.4)), Push(30, 20, 18, 8, (0, -1.2, 0.3))),
    "lower_lids_raise": (Push(32, -6, 13, 4, (0, 1.8, 0)),),
    "brow_inner_raise": (Push(13, 21, 11, 9, (-0.6, 4.5, 0.5)),),
    "brow_outer_raise": (Push(42, 22, 13, 9, (0, 4.0, 0)),),
    "brow_squeeze": (Push(12, 21, 9, 8, (-2.8, 0, 0.9)),),
    "smile_left": _smile("left"),
    "frown_left": _frown("left"),
    "brow_raise_left": _brow_raise("left"),
    "brow_lower_left": _brow_lower("left"),
    "lids_close_left": (),  # see _lid_closure
    "cheek_raise_left": _cheek_raise("left"),
    "nose_wrinkle_left": _nose_wrinkle("left"),
    "upper_lip_raise_left": _upper_lip_raise("left"),
    "lower_lip_depress_left": (Push(11, -76, 10, 8, (0, -4.0, 0.5), lip=LOWER, side="left"),),
    "dimple_left": _dimple("left"),
}
EXPRESSION_NAMES = tuple(MOVES)
# Components that carry the lower row of teeth along.
JAW_MOVES = ("jaw_left", "jaw_right", "jaw_forward")


def expression_basis(mesh: HeadMesh) -> Array:
    """(V, 3, 50) mm per unit coefficient, in the order of EXPRESSION_NAMES."""
    left, right = lid_closure(mesh, 1), lid_closure(mesh, -1)
    lids = {
        "lids_close": left + right,
        "lids_close_left": left,
        "squint": 0.35 * (left + right),
        "lids_wide": _upper_lid(mesh, 1.6),
    }
    teeth, lower_teeth = mesh.part(Part.UPPER_TEETH, Part.LOWER_TEETH), mesh.part(Part.LOWER_TEETH)
    fields = []
    for name, moves in MOVES.items():
        field = total(moves, mesh) if moves else np.zeros_like(mesh.sites)
        carried = field[lower_teeth].mean(axis=0) if name in JAW_MOVES else 0.0
        field = keep_eyes_round(field, mesh, move_eyes=False)
        field[teeth] = 0.0
        field[lower_teeth] = carried
        fields.append(field + lids.get(name, 0.0))
    return np.stack(fields, axis=-1)


def _around_eye(mesh: HeadMesh, side: int) -> Array:
    """1 on the skin and lid margin between the canthi of one eye, fading at both, 0 elsewhere."""
    t = (side * mesh.sites[:, 0] - LID_INNER_X) / LID_LENGTH
    soft = mesh.part(Part.SKIN, Part.LID_MARGIN) & (mesh.sites[:, 2] > -30)
    return soft * smoothstep(-0.02, 0.07, t) * smoothstep(1.02, 0.93, t)


def lid_closure(mesh: HeadMesh, side: int) -> Array:
    """The upper lid comes down over the eyeball until it meets the lower one; +1 the subject's left eye."""
    t = lid_parameter(np.abs(mesh.sites[:, 0]))
    upper, lower = lid(t, upper=True)[:, 1], lid(t, upper=False)[:, 1]
    height = mesh.sites[:, 1]
    share = np.where(height >= 0.5 * (upper + lower), smoothstep(9.5, 0.0, height - upper), 0.0)
    share = share * _around_eye(mesh, side)
    margin = mesh.part(Part.LID_MARGIN)
    down = (lower - LID_OVERLAP - upper) * share
    # Where the lid arrives it must lie on the eyeball again: the depth of the sphere there, minus its own.
    x, y, z = mesh.vertices.T
    radius = np.where(margin, EYE_RADIUS + 1.3, EYE_RADIUS + 2.3)
    off_axis = np.hypot(np.abs(x) - EYE_CENTRE[0], y + down - EYE_CENTRE[1])
    ball = EYE_CENTRE[2] + np.sqrt(np.clip(radius**2 - off_axis**2, 0.0, None))
    forward = np.where(off_axis < radius - 0.6, np.clip(ball - z, -3.0, 8.0), 0.0) * smoothstep(0.0, 0.5, share)
    return np.stack([np.zeros_like(x), down, forward], axis=-1)


def _upper_lid(mesh: HeadMesh, height: float) -> Array:
    """Both upper lids lifted by `height` mm, sliding along the eyeballs."""
    x, y, z = np.abs(mesh.sites[:, 0]), mesh.sites[:, 1], mesh.sites[:, 2]
    lift = gaussian(x, y, (32, 7), (11, 3.5)) * (y > 2) * (z > -30) * mesh.part(Part.SKIN, Part.LID_MARGIN)
    field = np.stack([np.zeros_like(x), height * lift, np.zeros_like(x)], axis=-1)
    return keep_eyes_round(field, mesh, move_eyes=False)
