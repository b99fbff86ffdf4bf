"""Heads as glTF 2.0 in one binary file (GLB): skeleton, skin, morph targets, textures, animation.

Metres and y up as the method has them, which is what glTF asks for: nothing is converted. Buffers that all heads over
a bundle share are laid out once (`_shared`); a head adds its positions, pivots and images. Specification: Khronos
glTF 2.0.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deca_core.assets.bundle import NUM_EXP, PARENTS
from deca_core.codes import SHAPES, Codes
from deca_core.export.maps import jpeg, png_of_normals, tangent_normals, texture, vertex_tangents
from deca_core.export.mesh import MILLIMETRES, ExportError, only_head, require_finite
from deca_core.export.rig import CORRECTIVE_WEIGHTS, JOINTS, REST, STILL, Float, Joint, Rig, quaternions, rig_of
from deca_core.images import as_batch
from deca_core.model import DECA, Reconstruction
from deca_core.render import vertex_normals
from deca_core.uv import image_on_uv

GENERATOR = "deca-pipeline"
MAGIC, VERSION, JSON_CHUNK, BINARY_CHUNK = 0x46546C67, 2, 0x4E4F534A, 0x004E4942
FLOAT, UNSIGNED_BYTE, UNSIGNED_SHORT, UNSIGNED_INT = 5126, 5121, 5123, 5125
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
LINEAR, LINEAR_MIPMAP_LINEAR, CLAMP_TO_EDGE = 9729, 9987, 33071
ROUGHNESS = 0.6  # of skin, about
KINDS = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
COMPONENTS = {"f4": FLOAT, "u1": UNSIGNED_BYTE, "u2": UNSIGNED_SHORT, "u4": UNSIGNED_INT}
MESH_NODE, FIRST_JOINT = 0, 1  # nodes


@dataclass(frozen=True, eq=False)
class RiggedHead:
    """One head: codes as numpy arrays, and its images.

    shape (100,), exp (50,), pose (6,) axis-angle of head and jaw, as in `Codes`; base_colour a JPEG or PNG and normals
    a PNG, tangent space, of the UV map. extras: whatever a reader should know, as JSON.
    """

    name: str
    shape: Float
    exp: Float
    pose: Float
    base_colour: bytes | None = None
    normals: bytes | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        codes = {"shape": self.shape, "exp": self.exp, "pose": self.pose}
        for name, value in codes.items():
            if value.shape != SHAPES[name]:
                raise ExportError(
                    f"{self.name}: {name} has the shape {value.shape}, expected {SHAPES[name]} of one head"
                )
        require_finite(self.name, **codes)


@dataclass(frozen=True, eq=False)
class Animation:
    """A clip: times (T,) seconds, growing; weights (T,K) expression coefficients of the first K components, the others
    staying as in the image; jaw (T,3), head (T,3) axis-angle, None staying as in the image.
    """

    times: Float
    weights: Float
    jaw: Float
    head: Float | None = None
    name: str = "clip"


def head_glb(
    model: DECA,
    codes: Codes,
    name: str = "head",
    image: Any = None,
    expressions: int = 10,
    animation: Animation | None = None,
    sparse: bool = False,
) -> bytes:
    """A GLB file of one face (codes of length 1). image (1,3,224,224): the crop that its colours come from.

    image: as `DECA.encode` takes images. sparse: see `glb`. Raises ExportError for codes of several faces.

    >>> Path("head.glb").write_bytes(head_glb(model, codes[:1], image=images[:1]))  # doctest: +SKIP
    """
    only_head(len(codes), None, "head_glb")
    if image is not None:
        image = as_batch(image, like=model.flame.v_template, name="head_glb")
        only_head(len(image), None, "head_glb, image")
    with torch.inference_mode():
        out = model.decode(codes)
        on_uv = None if image is None else image_on_uv(model.atlas, out.projected, image)
    if animation is not None:
        expressions = max(expressions, animation.weights.shape[1])
    return glb(rig_of(model.bundle, expressions), rigged_head(model, codes, out, name, on_uv), animation, sparse)


def rigged_head(
    model: DECA,
    codes: Codes,
    out: Reconstruction,
    name: str = "head",
    image: torch.Tensor | None = None,
    extras: dict[str, Any] | None = None,
) -> RiggedHead:
    """One decoded face with its maps; image (1,3,256,256): the photograph on the UV map.

    Codes and maps are detached and copied to the CPU. Raises ExportError for several faces.
    """
    only_head(len(codes), None, "rigged_head")
    shape, exp, pose = (value[0].detach().cpu().numpy() for value in (codes.shape, codes.exp, codes.pose))
    return RiggedHead(
        name=name,
        shape=shape,
        exp=exp,
        pose=pose,
        base_colour=jpeg(texture(model, codes, out, image)[0]),
        normals=png_of_normals(tangent_normals(model, out)),
        extras=extras or {},
    )


def write_glb(
    path: str | Path, rig: Rig, head: RiggedHead, animation: Animation | None = None, sparse: bool = False
) -> None:
    """`glb` as a file."""
    Path(path).write_bytes(glb(rig, head, animation, sparse))


def glb(rig: Rig, head: RiggedHead, animation: Animation | None = None, sparse: bool = False) -> bytes:
    """The bytes of a GLB file: the head as its image has it, on a skeleton whose rest pose is the neutral head.

    sparse: morph targets name only the vertices that they move, which is smaller and which some importers refuse
    (docs/export.md). Raises ExportError for an animation that the rig cannot play.
    """
    shared = _shared(rig, sparse)
    file = _Buffers(bytearray(shared.data), list(shared.views), list(shared.accessors), shared.zeros)
    rest = rig.rest(head.shape)
    pivots = rig.pivots(rest)
    attributes = _surface(file, rig, rest)
    remainder = rig.remainder(head.exp)
    names, targets = list(rig.names), list(shared.targets)
    rotations: dict[Joint, Float] = {"root": head.pose[None, :3], "jaw": head.pose[None, 3:]}
    weights = rig.target_weights(head.exp[None], rotations)[0].tolist()
    if np.abs(remainder).max() > STILL:  # always last, so that the others keep their places
        names.append(REST)
        targets.append(file.offsets(remainder[rig.split.vertex]))
        weights.append(1.0)
    primitive: dict[str, Any] = {
        "attributes": {**shared.attributes, **attributes},
        "indices": shared.indices,
        "material": 0,
    }
    mesh: dict[str, Any] = {"name": head.name, "primitives": [primitive]}
    if targets:
        primitive["targets"] = [{"POSITION": target} for target in targets]
        mesh |= {"weights": weights, "extras": {"targetNames": names, "correctives": _drivers(rig)}}
    gltf: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": GENERATOR},
        "scene": 0,
        "scenes": [{"nodes": [MESH_NODE, FIRST_JOINT], "extras": head.extras} if head.extras else {"nodes": [0, 1]}],
        "nodes": [{"name": head.name, "mesh": 0, "skin": 0}, *_joints(pivots, rotations)],
        "meshes": [mesh],
        "skins": [{
            "joints": [FIRST_JOINT + index for index in range(len(JOINTS))],
            "skeleton": FIRST_JOINT,
            "inverseBindMatrices": file.accessor(_inverse_bind(pivots)),
        }],
        **_material(file, head),
    }  # fmt: skip
    if animation is not None:
        gltf["animations"] = [_clip(file, rig, head, animation, len(names))]
    gltf |= {"accessors": file.accessors, "bufferViews": file.views, "buffers": [{"byteLength": len(file.data)}]}
    return _container(gltf, bytes(file.data))


def _drivers(rig: Rig) -> dict[str, dict[str, str]]:
    """Joint and angle of every corrective shape, for programs that drive them."""
    return {one.name: {"joint": one.joint, "weight": CORRECTIVE_WEIGHTS[one.part]} for one in rig.correctives}


# --- buffers ----------------------------------------------------------------------------------------------------------


@dataclass
class _Buffers:
    """The binary chunk while it grows, and the JSON that finds things in it."""

    data: bytearray = field(default_factory=bytearray)
    views: list[dict[str, Any]] = field(default_factory=list)
    accessors: list[dict[str, Any]] = field(default_factory=list)
    # Buffer view of the zeros that sparse morph targets change; None: targets are dense.
    zeros: int | None = None

    def view(self, data: bytes, target: int | None = None) -> int:
        """Index of a new buffer view."""
        self.data += b"\0" * (-len(self.data) % 4)
        one = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)}
        self.views.append(one if target is None else {**one, "target": target})
        self.data += data
        return len(self.views) - 1

    def accessor(self, values: NDArray[Any], target: int | None = None, bounds: bool = False) -> int:
        """Index of a new accessor over rows of values."""
        rows = np.ascontiguousarray(values)
        one = self._described(rows, bounds) | {"bufferView": self.view(rows.tobytes(), target)}
        self.accessors.append(one)
        return len(self.accessors) - 1

    def offsets(self, values: Float) -> int:
        """As `accessor` for offsets (S,3) of a morph target; where targets are sparse and that saves bytes, only those
        that are not zero.
        """
        moved = np.flatnonzero(np.abs(values).max(axis=1) > STILL)
        rows = np.zeros_like(values)
        rows[moved] = values[moved]
        index = moved.astype(np.uint16 if len(values) <= 2**16 else np.uint32)
        if self.zeros is None or not len(moved) or len(moved) * (index.itemsize + 12) >= len(values) * 12:
            return self.accessor(rows, ARRAY_BUFFER, bounds=True)
        sparse = {
            "count": len(moved),
            "indices": {"bufferView": self.view(index.tobytes()), "componentType": COMPONENTS[index.dtype.str[1:]]},
            "values": {"bufferView": self.view(rows[moved].tobytes())},
        }
        self.accessors.append(self._described(rows, bounds=True) | {"bufferView": self.zeros, "sparse": sparse})
        return len(self.accessors) - 1

    @staticmethod
    def _described(rows: NDArray[Any], bounds: bool) -> dict[str, Any]:
        width = 1 if rows.ndim == 1 else rows.shape[1]
        one: dict[str, Any] = {
            "componentType": COMPONENTS[rows.dtype.str[1:]],
            "count": len(rows),
            "type": KINDS[width],
        }
        if bounds:
            flat = rows.reshape(len(rows), width)
            one |= {"min": flat.min(axis=0).tolist(), "max": flat.max(axis=0).tolist()}
        return one


@dataclass(frozen=True, eq=False)
class _Shared:
    """The beginning of every file of a rig."""

    data: bytes
    views: list[dict[str, Any]]
    accessors: list[dict[str, Any]]
    attributes: dict[str, int]
    indices: int
    targets: list[int]
    zeros: int | None


@lru_cache(maxsize=4)
def _shared(rig: Rig, sparse: bool) -> _Shared:
    file, split = _Buffers(), rig.split
    if sparse:  # one base for all targets: with none, which glTF allows, more importers stumble
        file.zeros = file.view(bytes(12 * len(split.vertex)), ARRAY_BUFFER)
        file.views[file.zeros]["byteStride"] = 12  # asked for where several accessors lie in one view
    uv = rig.bundle.uv[split.uv]
    small = len(split.vertex) < 2**16 - 1  # the largest index has a meaning of its own
    indices = file.accessor(split.faces.astype(np.uint16 if small else np.uint32).ravel(), ELEMENT_ARRAY_BUFFER)
    attributes = {
        "TEXCOORD_0": file.accessor(np.stack([uv[:, 0], 1 - uv[:, 1]], 1).astype(np.float32), ARRAY_BUFFER),
        "JOINTS_0": file.accessor(rig.joints, ARRAY_BUFFER),
        "WEIGHTS_0": file.accessor(rig.weights, ARRAY_BUFFER),
    }
    targets = [file.offsets(offsets[split.vertex]) for offsets in rig.offsets]
    return _Shared(bytes(file.data), file.views, file.accessors, attributes, indices, targets, file.zeros)


def _surface(file: _Buffers, rig: Rig, rest: Float) -> dict[str, int]:
    """Positions, normals and tangents of the neutral head."""
    vertices = torch.from_numpy(rest)[None]
    normals = vertex_normals(vertices * MILLIMETRES, torch.from_numpy(rig.bundle.faces))
    normals[normals.norm(dim=-1) < 0.5] = torch.tensor([0.0, 0.0, 1.0])  # no face, so nothing is seen of it
    tangents = vertex_tangents(rig.bundle, vertices, normals)
    split = rig.split.vertex
    return {
        "POSITION": file.accessor(rest[split], ARRAY_BUFFER, bounds=True),
        "NORMAL": file.accessor(normals[0].numpy()[split], ARRAY_BUFFER),
        "TANGENT": file.accessor(tangents[0].numpy(), ARRAY_BUFFER),
    }


# --- skeleton ---------------------------------------------------------------------------------------------------------


def _joints(pivots: NDArray[np.float64], rotations: dict[Joint, Float]) -> list[dict[str, Any]]:
    """Nodes of the joints, turned as in the image."""
    nodes = []
    for index, (name, parent) in enumerate(zip(JOINTS, PARENTS, strict=True)):
        offset = pivots[index] - (pivots[parent] if parent >= 0 else 0)
        node: dict[str, Any] = {"name": name, "translation": offset.tolist()}
        if name in rotations:
            node["rotation"] = quaternions(rotations[name])[0].tolist()
        if children := [FIRST_JOINT + child for child, of in enumerate(PARENTS) if of == index]:
            node["children"] = children
        nodes.append(node)
    return nodes


def _inverse_bind(pivots: NDArray[np.float64]) -> Float:
    """From the rest pose to each joint, (5,16) column by column: shifts alone, for joints have no rest rotation."""
    matrices = np.tile(np.eye(4), (len(pivots), 1, 1))
    matrices[:, 3, :3] = -pivots
    return np.asarray(matrices.reshape(-1, 16), np.float32)


# --- images ---------------------------------------------------------------------------------------------------------


def _material(file: _Buffers, head: RiggedHead) -> dict[str, Any]:
    """The skin and what it needs."""
    surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": ROUGHNESS}
    material: dict[str, Any] = {"name": "skin", "pbrMetallicRoughness": surface, "doubleSided": True}
    images: list[dict[str, Any]] = []
    for data, name, place, key in (
        (head.base_colour, "base_colour", surface, "baseColorTexture"),
        (head.normals, "normals", material, "normalTexture"),
    ):
        if data is not None:
            kind = "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"
            place[key] = {"index": len(images)}
            images.append({"name": name, "mimeType": kind, "bufferView": file.view(data)})
    if not images:
        return {"materials": [material]}
    sampler = {
        "magFilter": LINEAR,
        "minFilter": LINEAR_MIPMAP_LINEAR,
        "wrapS": CLAMP_TO_EDGE,
        "wrapT": CLAMP_TO_EDGE,
    }
    return {
        "materials": [material],
        "images": images,
        "samplers": [sampler],
        "textures": [{"sampler": 0, "source": index} for index in range(len(images))],
    }


# --- animation --------------------------------------------------------------------------------------------------------


def _clip(file: _Buffers, rig: Rig, head: RiggedHead, clip: Animation, targets: int) -> dict[str, Any]:
    """The glTF animation, with the weights of the correctives that its rotations ask for."""
    frames, own = len(clip.times), len(rig.expressions)
    _check(clip, own)
    exp = np.repeat(np.asarray(head.exp[None, :NUM_EXP], np.float32), frames, axis=0)
    exp[:, : clip.weights.shape[1]] = clip.weights
    turned = {"jaw": clip.jaw} if clip.head is None else {"jaw": clip.jaw, "root": clip.head}
    weights = rig.target_weights(exp, {"jaw": clip.jaw})
    if targets > weights.shape[1]:  # what the image has beyond the targets stays
        weights = np.concatenate([weights, np.ones((frames, 1), np.float32)], axis=1)
    times = file.accessor(np.asarray(clip.times, np.float32), bounds=True)
    outputs = [(MESH_NODE, "weights", weights.reshape(-1))] if targets else []
    for name, rotation in turned.items():
        outputs.append((FIRST_JOINT + JOINTS.index(name), "rotation", _steady(quaternions(rotation))))  # type: ignore[arg-type]
    return {
        "name": clip.name,
        "samplers": [
            {"input": times, "output": file.accessor(values.astype(np.float32)), "interpolation": "LINEAR"}
            for _, _, values in outputs
        ],
        "channels": [
            {"sampler": index, "target": {"node": node, "path": path}} for index, (node, path, _) in enumerate(outputs)
        ],
    }


def _check(clip: Animation, own: int) -> None:
    """ExportError where a clip does not fit together, or not to the rig."""
    frames, count = clip.weights.shape
    if not frames or any(len(part) != frames for part in (clip.times, clip.jaw, clip.head) if part is not None):
        raise ExportError(f"animation: {len(clip.times)} times, {frames} rows of weights and {len(clip.jaw)} of jaws")
    require_finite("animation", times=clip.times, weights=clip.weights, jaw=clip.jaw, head=clip.head)
    if np.diff(clip.times).min(initial=1) <= 0 or clip.times[0] < 0:
        raise ExportError("animation: times must grow from 0 on")
    if count > own:
        raise ExportError(
            f"animation: {count} expression components, the rig has targets for {own}. Export with expressions={count}"
        )


def _steady(rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quaternions with signs such that neighbours lie near each other: q and -q are one rotation."""
    turns = np.sign((rotations[1:] * rotations[:-1]).sum(axis=1))
    rotations[1:] *= np.cumprod(np.where(turns == 0, 1, turns))[:, None]
    return rotations


# --- the file ---------------------------------------------------------------------------------------------------------


def _container(gltf: dict[str, Any], data: bytes) -> bytes:
    """JSON and binary chunk in a GLB container."""
    text = json.dumps(gltf, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    data += b"\0" * (-len(data) % 4)
    total = 12 + 8 + len(text) + 8 + len(data)
    head = struct.pack("<III", MAGIC, VERSION, total)
    return b"".join(
        [head, struct.pack("<II", len(text), JSON_CHUNK), text, struct.pack("<II", len(data), BINARY_CHUNK), data]
    )
