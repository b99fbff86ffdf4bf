"""Heads for other programs: glTF with skeleton and morph targets, OBJ, PLY, NPZ. Nothing but torch and numpy at import.

>>> from deca_core.export import head_glb
>>> glb = head_glb(model, codes[:1], image=images[:1])  # doctest: +SKIP
"""

from deca_core.export.gltf import Animation, RiggedHead, glb, head_glb, rigged_head, write_glb
from deca_core.export.mesh import Mesh, coarse_mesh, dense_mesh
from deca_core.export.rig import Rig, rig_of

__all__ = [
    "Animation",
    "Mesh",
    "Rig",
    "RiggedHead",
    "coarse_mesh",
    "dense_mesh",
    "glb",
    "head_glb",
    "rig_of",
    "rigged_head",
    "write_glb",
]
