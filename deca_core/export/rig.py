"""FLAME as a skeleton with morph targets: what game engines and Blender can move.

Skinning and the expression offsets of eq. 1 carry over as they are. Two things of FLAME are not in that vocabulary:

- Pose correctives depend on rotations, (R - I) of each joint. They become morph targets whose weights are polynomials
  of the joint's rotation as a quaternion (w, x, y, z), exact for any rotation: the antisymmetric part of R - I is
  sin(a) n = 2 w (x, y, z), the symmetric one (1 - cos a)(n n^T - I) = 2 (q q^T - |q|^2 I) with q = (x, y, z). Whoever
  turns a joint sets these weights too; `CORRECTIVE_WEIGHTS` says how, and so does the file.
- Joints are regressed from the shaped and expressive face, so an expression moves the pivots a little (at most 0.14 mm
  a unit for the jaw of the procedural head). A skeleton has its pivots where the neutral face has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from deca_core.assets.bundle import NUM_EXP, AssetBundle
from deca_core.export.grid import Split, split_of
from deca_core.flame import rotation_matrix

Joint = Literal["root", "neck", "jaw", "left_eye", "right_eye"]
JOINTS: tuple[Joint, ...] = get_args(Joint)
INFLUENCES = 4  # joints that a vertex can hang on in a glTF file
STILL = 1e-7  # metres: an offset below is left out
REST = "expression_rest"  # the components that have no target of their own, as the image has them
# Part of R - I -> its weight by the joint's quaternion, as extras of the file and in docs/export.md.
CORRECTIVE_WEIGHTS = {
    "x": "2*w*x",
    "y": "2*w*y",
    "z": "2*w*z",
    "xx": "-2*(y*y+z*z)",
    "yy": "-2*(x*x+z*z)",
    "zz": "-2*(x*x+y*y)",
    "xy": "2*x*y",
    "xz": "2*x*z",
    "yz": "2*y*z",
}

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Corrective:
    """A morph target that follows a joint: `part` of CORRECTIVE_WEIGHTS."""

    joint: Joint
    part: str

    @property
    def name(self) -> str:
        """Name of the morph target: pose_jaw_x."""
        return f"pose_{self.joint}_{self.part}"


@dataclass(frozen=True, eq=False)
class Rig:
    """Arrays shared by all heads over a bundle. V vertices, S split vertices, K targets.

    joints (S,4) and weights (S,4): influences of each split vertex, weights summing to 1; offsets (K,V,3) metres at
    weight 1, of `names`: expression components, then correctives.
    """

    bundle: AssetBundle
    split: Split
    joints: NDArray[np.uint8]
    weights: Float
    expressions: tuple[str, ...]
    correctives: tuple[Corrective, ...]
    offsets: Float

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all targets, in order."""
        return (*self.expressions, *(one.name for one in self.correctives))

    def rest(self, shape: Float) -> Float:
        """The neutral head of a shape code (100,) before any joint turns, (V,3) metres."""
        bundle = self.bundle
        return np.asarray(bundle.v_template + bundle.shape_basis @ shape, np.float32)

    def pivots(self, rest: Float) -> NDArray[np.float64]:
        """Joint positions of a neutral head, (5,3) metres."""
        return np.asarray(self.bundle.joint_regressor.astype(np.float64) @ rest)

    def remainder(self, exp: Float) -> Float:
        """Offsets (V,3) of the expression components beyond those with a target of their own."""
        own = len(self.expressions)
        return np.asarray(self.bundle.exp_basis[:, :, own:] @ exp[own:], np.float32)

    def target_weights(self, exp: Float, rotations: dict[Joint, Float]) -> Float:
        """Weights (T,K) of all targets for expressions (T,50) and axis-angle rotations (T,3) by joint."""
        columns: list[NDArray[Any]] = [exp[:, : len(self.expressions)]]
        for one in self.correctives:
            turned = rotations.get(one.joint)
            columns.append(np.zeros((len(exp), 1)) if turned is None else corrective_weight(one.part, turned)[:, None])
        return np.asarray(np.concatenate(columns, axis=1), np.float32)


def expression_names(bundle: AssetBundle) -> tuple[str, ...]:
    """Names of the 50 components: the bundle's own (smile, frown), or exp_00 .. exp_49."""
    return bundle.expression_names or tuple(f"exp_{index:02d}" for index in range(NUM_EXP))


@lru_cache(maxsize=4)
def rig_of(bundle: AssetBundle, expressions: int = 10, correctives: Sequence[Joint] = ("jaw",)) -> Rig:
    """The rig with targets for the first `expressions` components and for what the rotation of some joints needs.

    correctives: a tuple of joints; targets that are empty in the bundle are left out.
    """
    if not 0 <= expressions <= NUM_EXP:
        raise ValueError(f"expressions: {expressions} of the {NUM_EXP} components")
    split = split_of(bundle)
    joints, weights = _influences(bundle.skin_weights[split.vertex])
    found = {
        Corrective(joint, part): offsets
        for joint in correctives
        for part, offsets in _corrective_offsets(bundle, joint).items()
        if np.abs(offsets).max() > STILL
    }
    offsets = np.stack([*np.moveaxis(bundle.exp_basis[:, :, :expressions], 2, 0), *found.values()])
    return Rig(bundle, split, joints, weights, expression_names(bundle)[:expressions], tuple(found), offsets)


def _influences(weights: Float) -> tuple[NDArray[np.uint8], Float]:
    """The four largest of (S,5) weights, scaled to sum to 1; joint 0 where a weight is 0, as glTF wants it."""
    order = np.argsort(-weights, axis=1, kind="stable")[:, :INFLUENCES]
    kept = np.take_along_axis(weights, order, axis=1).astype(np.float64)
    kept = (kept / kept.sum(axis=1, keepdims=True)).astype(np.float32)
    kept[:, 0] += 1 - kept.sum(axis=1, dtype=np.float64).astype(np.float32)
    return np.where(kept > 0, order, 0).astype(np.uint8), kept


def _corrective_offsets(bundle: AssetBundle, joint: Joint) -> dict[str, Float]:
    """Offsets (V,3) of every part of R - I of a joint; none for the root, which has no correctives."""
    index = JOINTS.index(joint)
    if index == 0:
        return {}
    basis = bundle.pose_basis[:, :, 9 * (index - 1) : 9 * index].reshape(-1, 3, 3, 3)  # V, xyz, row, column

    def entry(row: int, column: int) -> Float:
        return np.asarray(basis[:, :, row, column])

    return {
        "x": entry(2, 1) - entry(1, 2),
        "y": entry(0, 2) - entry(2, 0),
        "z": entry(1, 0) - entry(0, 1),
        "xx": entry(0, 0),
        "yy": entry(1, 1),
        "zz": entry(2, 2),
        "xy": entry(0, 1) + entry(1, 0),
        "xz": entry(0, 2) + entry(2, 0),
        "yz": entry(1, 2) + entry(2, 1),
    }


def corrective_weight(part: str, rotation: Float) -> NDArray[np.float64]:
    """Weights (T,) of a corrective for axis-angle rotations (T,3), as CORRECTIVE_WEIGHTS has it by quaternion."""
    matrix = rotation_matrix(torch.from_numpy(np.asarray(rotation, np.float64))).numpy()
    axes = ["xyz".index(letter) for letter in part]
    if len(axes) == 1:
        row, column = (axes[0] + 2) % 3, (axes[0] + 1) % 3
        return np.asarray((matrix[:, row, column] - matrix[:, column, row]) / 2)
    symmetric = (matrix + matrix.transpose(0, 2, 1)) / 2 - np.eye(3)
    return np.asarray(symmetric[:, axes[0], axes[1]])


def quaternions(rotation: Float) -> NDArray[np.float64]:
    """Axis-angle (T,3) as unit quaternions (T,4) in glTF's order x, y, z, w."""
    vectors = np.asarray(rotation, np.float64)
    angle = np.linalg.norm(vectors, axis=1, keepdims=True)
    sine = np.sinc(angle / (2 * np.pi)) / 2  # sin(a/2) / a
    return np.concatenate([vectors * sine, np.cos(angle / 2)], axis=1)
