"""Joints, skinning weights and pose correctives: the second half of eq. 1."""

from __future__ import annotations

import numpy as np

from deca_core.assets.head.curves import Array, smoothstep
from deca_core.assets.head.expression import lid_closure
from deca_core.assets.head.fields import Push, keep_eyes_round, total
from deca_core.assets.head.mesh import HeadMesh, Part
from deca_core.assets.head.outlines import EYE_CENTRE, MOUTH_HALF_WIDTH, mouth_line

ROOT, NECK, JAW, LEFT_EYE, RIGHT_EYE = range(5)
# Design frame, mm. The jaw turns about the line through both condyles, just in front of the ears.
JOINTS = np.array(
    [
        [0.0, -148.0, -98.0],
        [0.0, -118.0, -96.0],
        [0.0, -18.0, -78.0],
        EYE_CENTRE,
        EYE_CENTRE * [-1, 1, 1],
    ]
)
# An open mouth is about 20 degrees of jaw; correctives are written for this sine.
WIDE_OPEN = float(np.sin(np.radians(20.0)))


def skin_weights(mesh: HeadMesh) -> Array:
    """(V, 5), rows sum to 1. The jaw's share is cut sharply along the lips and fades over the cheeks."""
    jaw = _jaw_share(mesh)
    root = smoothstep(0.08, 0.01, mesh.levels) * mesh.part(Part.SKIN)
    weights = np.zeros((len(mesh.vertices), 5))
    weights[:, ROOT] = root
    weights[:, JAW] = jaw * (1 - root)
    weights[:, NECK] = (1 - jaw) * (1 - root)
    for part, joint in ((Part.LEFT_EYE, LEFT_EYE), (Part.RIGHT_EYE, RIGHT_EYE)):
        weights[mesh.part(part)] = np.eye(5)[joint]
    return weights


def _jaw_share(mesh: HeadMesh) -> Array:
    x, y, z = np.abs(mesh.sites[:, 0]), mesh.sites[:, 1], mesh.sites[:, 2]
    # Angle below the horizontal as seen from the condyle; the fade lies round the ray through the mouth.
    angle = np.degrees(np.arctan2(JOINTS[JAW, 1] - y, z - JOINTS[JAW, 2]))
    mouth = np.degrees(np.arctan2(JOINTS[JAW, 1] - mouth_line(np.minimum(x, MOUTH_HALF_WIDTH)), 91.0))
    fade = 4 + 9 * smoothstep(24, 40, x)
    cheek = smoothstep(-1.0, 1.2, (angle - mouth) / fade)
    lips = smoothstep(MOUTH_HALF_WIDTH + 0.5, MOUTH_HALF_WIDTH - 13, x) ** 0.55 * (z > -25)
    share = cheek * (1 - lips) + (mesh.lip < 0) * lips
    longitude = np.degrees(np.abs(mesh.longitudes))
    share = share * smoothstep(0.02, 0.15, mesh.levels) * smoothstep(95, 65, longitude)
    mouth_bag = mesh.part(Part.MOUTH)
    share[mouth_bag & (mesh.lip > 0)] = 0.0
    share[mouth_bag & (mesh.lip == 0)] = 0.5
    share[mesh.part(Part.UPPER_TEETH, Part.LID_MARGIN)] = 0.0
    share[mesh.part(Part.LOWER_TEETH)] = 1.0
    return share


def joint_regressor(mesh: HeadMesh) -> Array:
    """(5, V): each joint as a weighted mean of the vertices round it, so that it follows the shape.

    The weights are the ones closest to equal that sum to 1 and hit the joint exactly.
    """
    x, y, z = np.abs(mesh.sites[:, 0]), mesh.sites[:, 1], mesh.sites[:, 2]
    skin = mesh.part(Part.SKIN)
    supports = (
        skin & (y < JOINTS[ROOT, 1] + 12),
        skin & (np.abs(y - JOINTS[NECK, 1]) < 22) & (z < -30),
        skin & (np.hypot(y - JOINTS[JAW, 1], z - JOINTS[JAW, 2]) < 14) & (x > 50),
        mesh.part(Part.LEFT_EYE),
        mesh.part(Part.RIGHT_EYE),
    )
    regressor = np.zeros((5, len(mesh.vertices)))
    for joint, support in enumerate(supports):
        points = mesh.vertices[support]
        constraints = np.concatenate([points - JOINTS[joint], np.ones((len(points), 1))], axis=1)
        equal = np.full(len(points), 1 / len(points))
        miss = np.array([0.0, 0.0, 0.0, 1.0]) - equal @ constraints
        regressor[joint, support] = equal + miss @ np.linalg.pinv(constraints)
    return regressor


def pose_basis(mesh: HeadMesh) -> Array:
    """(V, 3, 36) mm per unit of (R - I) of neck, jaw and eyes, each flattened row by row.

    For a turn by an angle a about x, element (2, 1) is sin a and (1, 2) is -sin a: a field written for a sine is put
    half on each. Opening the jaw hollows the cheeks and narrows the mouth; a looking eye takes its upper lid along.
    """
    basis = np.zeros((*mesh.vertices.shape, 36))
    opening = (
        Push(44, -58, 13, 18, (-2.4, 0.8, -1.6)),  # cheeks are drawn in
        Push(25, -68, 9, 9, (-2.6, 0, 0.6)),  # corners come together
        Push(30, -40, 12, 12, (-0.5, -0.8, -0.4)),
        Push(0, -130, 30, 13, (0, 1.0, -7.0)),  # the throat gives way to the chin
    )
    _add_sine(basis, JAW, keep_eyes_round(total(opening, mesh), mesh, move_eyes=False) / WIDE_OPEN)
    for joint, side in ((LEFT_EYE, 1), (RIGHT_EYE, -1)):
        # Looking down by 25 degrees lowers the lid by half of its way.
        _add_sine(basis, joint, 0.5 * lid_closure(mesh, side) / np.sin(np.radians(25.0)))
    return basis


def _add_sine(basis: Array, joint: int, field: Array) -> None:
    """Add a field per unit sine of the joint's turn about x, positive downwards."""
    first = 9 * (joint - 1)
    basis[:, :, first + 3 * 2 + 1] += 0.5 * field
    basis[:, :, first + 3 * 1 + 2] -= 0.5 * field
