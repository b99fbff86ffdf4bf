"""A head in FLAME's format, drawn from anthropometric facts instead of scans.

profile (featureless head) -> features (sculpting) -> sheet, mesh (triangles, atlas) -> identity, expression, rig
(eq. 1) -> landmarks, albedo, complexion. `build_head` runs them all; `deca_core.assets.procedural` caches the result.
"""

from __future__ import annotations

import numpy as np

from deca_core.assets.bundle import UV_SIZE, AssetBundle
from deca_core.assets.head.albedo import Texels, mean_albedo, paint_layers
from deca_core.assets.head.complexion import albedo_basis
from deca_core.assets.head.curves import Array, smoothstep
from deca_core.assets.head.expression import EXPRESSION_NAMES, expression_basis
from deca_core.assets.head.identity import identity_basis
from deca_core.assets.head.landmarks import contour_landmarks, inner_landmarks
from deca_core.assets.head.mesh import build_mesh
from deca_core.assets.head.outlines import hair_cover
from deca_core.assets.head.rig import joint_regressor, pose_basis, skin_weights

# Design frame -> bundle: the origin moves behind the bridge of the nose, where FLAME has it, and mm become metres.
ORIGIN_MM = np.array([0.0, -22.0, -45.0])
METRES = 1e-3
ALBEDO_SEED = 7


def build_head(source: str = "deca procedural head") -> AssetBundle:
    """Build the procedural head (about a second); `source` is recorded as its provenance."""
    mesh = build_mesh()
    inner, contour = inner_landmarks(mesh), contour_landmarks(mesh)
    texels, rng = Texels(UV_SIZE), np.random.default_rng(ALBEDO_SEED)
    layers = paint_layers(texels, rng)
    mean = mean_albedo(texels, layers, rng)
    components = albedo_basis(texels, layers, mean, rng)
    face, face_and_eyes = _masks(texels)
    return AssetBundle(
        name="procedural-head",
        source=source,
        v_template=_single((mesh.vertices - ORIGIN_MM) * METRES),
        shape_basis=_single(identity_basis(mesh) * METRES),
        exp_basis=_single(expression_basis(mesh) * METRES),
        pose_basis=_single(pose_basis(mesh) * METRES),
        joint_regressor=_single(joint_regressor(mesh)),
        skin_weights=_single(skin_weights(mesh)),
        faces=mesh.faces,
        uv=_single(mesh.uv),
        uv_faces=mesh.uv_faces,
        static_landmark_faces=inner.faces,
        static_landmark_bary=_single(inner.bary),
        dynamic_landmark_faces=contour.faces,
        dynamic_landmark_bary=_single(contour.bary),
        full_landmark_faces=np.concatenate([contour.faces[0], inner.faces]),
        full_landmark_bary=_single(np.concatenate([contour.bary[0], inner.bary])),
        face_mask=_single(face),
        face_eye_mask=_single(face_and_eyes),
        fixed_displacement=np.zeros((UV_SIZE, UV_SIZE), np.float32),
        albedo_mean=_single(np.moveaxis(mean, -1, 0)),
        albedo_basis=_single(np.moveaxis(components, -1, 1)),
        expression_names=EXPRESSION_NAMES,
    )


def _single(array: Array) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=np.float32)


def _masks(texels: Texels) -> tuple[Array, Array]:
    """The skin of the face without and with the lids: forehead to chin, up to the front of the ears.

    The lids lie on the eyeballs; the second mask keeps them, the eyeballs' own discs belong to neither.
    """
    x, y = texels.x, texels.y
    face = smoothstep(88, 80, texels.degrees) * smoothstep(0.125, 0.155, texels.level)
    face = face * texels.on_sheet * (1 - hair_cover(texels.base, texels.longitude))
    eye = np.hypot((x - 31.3) / 18.5, y / 11.5)
    return face * smoothstep(0.9, 1.05, eye), face
