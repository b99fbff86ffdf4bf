"""Rendering of photographs: the method's surface and light, plus what its model leaves out.

Like the method: orthographic z-buffer, albedo map, normals of the displaced surface M', SH irradiance. Beyond it:
props, shadows cast by one lamp, ambient occlusion, highlights, translucency, 2 x 2 samples a pixel. Where nothing is
in shadow, occlusion is 1 and the skin is matt, a photograph equals `DECA.render`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deca_core.appearance import SH_CONSTANTS
from deca_core.assets.bundle import AssetBundle
from deca_world.lighting import Light, direction_of
from deca_world.props import Prop

Float = NDArray[np.float32]

SAMPLES = 2  # on a side of a pixel
# Texels on a side of the maps from the lamp and from the directions of ambient occlusion, and metres from the head's
# middle that they cover.
SHADOW_TEXELS, SHADOW_REACH = 192, 0.19
OCCLUSION_TEXELS, OCCLUSION_REACH = 88, 0.24
LIFT = 2.5e-3  # metres along the normal: keeps a surface from shading itself
OCCLUSION_DIRECTIONS = 32
PROP_BIAS = 3e-3  # metres that props are drawn nearer to the viewer
OCCLUSION_SHARE = 0.5  # the albedo carries some of the occlusion of its folds already
BOUNCE = 0.15  # share of the lamp that reaches its shadows by way of skin, hair and walls
EYE_GLOSS, EYE_EXPONENT = 0.55, 140.0
PROP_EXPONENT = 22.0
CASTS_SHADOW = 0.35  # mean opacity above which a prop darkens what is behind it


@dataclass(frozen=True, eq=False)
class Assembly:
    """A head and its props as one mesh of N vertices; the first V are the head's.

    faces (F,3) int32; parts (F,) 0 head, k the k-th prop; uv (F,3,2); prop_vertices (N-V,3) at rest and
    prop_weights (N-V,5); prop_rides (N-V,) True where they turn with the head, False with the shoulders;
    textures (T,4), sheets (parts,3) start, height and width of each; gloss (parts,2) strength and exponent;
    solid (parts,) casts shadows; blended: faces with translucent texels.
    """

    faces: NDArray[np.int32]
    parts: NDArray[np.int32]
    uv: Float
    prop_vertices: Float
    prop_weights: Float
    prop_rides: NDArray[np.bool_]
    textures: Float
    sheets: NDArray[np.int64]
    gloss: Float
    solid: NDArray[np.bool_]
    blended: NDArray[np.int64]


def assemble(bundle: AssetBundle, props: Sequence[Prop]) -> Assembly:
    """Join a bundle's head and props."""
    from deca_world.kernels import CLEAR, OPAQUE

    faces, uv, parts = [bundle.faces], [bundle.uv[bundle.uv_faces]], [np.zeros(len(bundle.faces))]
    texels, sheets, gloss, solid = [], [(0, 2, 2)], [(0.0, 1.0)], [True]
    start, texel, blended = bundle.num_vertices, 0, []
    for index, prop in enumerate(props, start=1):
        faces.append(prop.faces + start)
        uv.append(prop.uv[prop.faces])
        parts.append(np.full(len(prop.faces), index))
        height, width = prop.texture.shape[:2]
        texels.append(prop.texture.reshape(-1, 4))
        sheets.append((texel, height, width))
        gloss.append((0.4 * prop.specular, PROP_EXPONENT))
        opacity = prop.texture[..., 3]
        solid.append(bool(opacity.mean() > CASTS_SHADOW))
        if ((opacity > CLEAR) & (opacity < OPAQUE)).any():
            blended.append(np.flatnonzero(np.concatenate(parts) == index))
        start, texel = start + len(prop.vertices), texel + height * width
    return Assembly(
        faces=np.concatenate(faces).astype(np.int32),
        parts=np.concatenate(parts).astype(np.int32),
        uv=np.concatenate(uv).astype(np.float32),
        prop_vertices=np.concatenate([np.zeros((0, 3)), *(prop.vertices for prop in props)]).astype(np.float32),
        prop_weights=np.concatenate([np.zeros((0, 5)), *(prop.weights for prop in props)]).astype(np.float32),
        prop_rides=np.concatenate([np.zeros(0, bool), *(np.full(len(p.vertices), p.follows_head) for p in props)]),
        textures=np.concatenate([np.zeros((4, 4)), *texels]).astype(np.float32)[4 if texels else 0 :],
        sheets=np.array(sheets, np.int64),
        gloss=np.array(gloss, np.float32),
        solid=np.array(solid),
        blended=np.concatenate([np.zeros(0, np.int64), *blended]).astype(np.int64),
    )


def normals_of(vertices: Float, faces: NDArray[np.int32]) -> Float:
    """Unit vertex normals (N,3)."""
    from deca_world.kernels import vertex_normals

    out = np.empty_like(vertices)
    vertex_normals(vertices, faces, out)
    return out


def occlusion(assembly: Assembly, vertices: Float) -> Float:
    """Ambient visibility of each vertex, (N,) in [0, 1], cosine-weighted over its hemisphere.

    vertices (N,3) of the resting head with its props. Light from below counts less: rooms and bodies are darker there.
    """
    normals = normals_of(vertices, assembly.faces)
    golden = np.pi * (3 - np.sqrt(5))
    seen, total = np.zeros(len(vertices)), np.full(len(vertices), 1e-6)
    for index in range(OCCLUSION_DIRECTIONS):
        y = 1 - 1.6 * (index + 0.5) / OCCLUSION_DIRECTIONS  # the lowest fifth is left out
        azimuth = np.degrees(golden * index)
        direction = direction_of(azimuth, np.degrees(np.arcsin(y)))
        facing = np.maximum(normals @ direction, 0)
        lit = lamp_visibility(assembly, vertices, normals, direction, None)
        seen += facing * lit
        total += facing
    return (seen / total).astype(np.float32)


def lamp_visibility(
    assembly: Assembly,
    vertices: Float,
    normals: Float,
    direction: NDArray,
    softness: float | None,
) -> Float:
    """Share of a distant lamp that reaches every vertex, (N,) in [0, 1]; softness None: coarse, for averages."""
    from deca_world.shadows import lit, shadow_map

    texels, reach = (OCCLUSION_TEXELS, OCCLUSION_REACH) if softness is None else (SHADOW_TEXELS, SHADOW_REACH)
    side = np.cross([0.0, 1.0, 0.0], direction)
    side /= max(float(np.linalg.norm(side)), 1e-9)
    frame = np.stack([side, np.cross(direction, side), -direction]).astype(np.float32)
    centre = vertices[assembly.faces[assembly.parts == 0].ravel()].mean(0)
    scale = np.float32(texels / (2 * reach))
    shift = np.array([texels / 2, texels / 2, 0], np.float32) - scale * (frame @ centre)
    points = np.ascontiguousarray(vertices @ (frame.T * scale) + shift)
    depth = np.empty((texels, texels), np.float32)
    shadow_map(points, assembly.faces, assembly.parts, assembly.solid, depth)
    facing = np.where((normals @ direction.astype(np.float32))[:, None] >= 0, normals, -normals)
    lifted = np.ascontiguousarray(points + facing @ (frame.T * (scale * LIFT)))
    lifted[:, 2] -= scale * LIFT * 0.5
    out = np.empty(len(vertices), np.float32)
    if softness is None:
        lit(depth, lifted, 1, 0.0, out)
    else:
        lit(depth, lifted, 4, 0.7 + 2.6 * softness, out)
    return out


@dataclass(frozen=True, eq=False)
class Frame:
    """A rendered image: colour (n,n,3) over the background, skin (n,n) share of visible face skin in each pixel."""

    colour: Float
    skin: Float


class Renderer:
    """Draws assemblies of one bundle. Not thread-safe: its sample buffers are reused."""

    def __init__(self, bundle: AssetBundle) -> None:
        self._eyes = bundle.skin_weights[:, 3:].max(axis=1) > 0.5
        self._count = bundle.num_vertices
        mask = bundle.face_eye_mask.reshape(-1, 1), bundle.face_mask.reshape(-1, 1)
        self._skin = np.concatenate([np.zeros((len(mask[0]), 6), np.float32), *mask], axis=1)
        self._size = 0

    def render(
        self,
        assembly: Assembly,
        vertices: Float,
        cam: NDArray,
        light: Light,
        soft: Float,
        albedo: Float,
        surface: Float,
        oiliness: float,
        background: Float,
    ) -> Frame:
        """Draw one image.

        vertices (N,3) posed, world space; cam (3,) of the square image; soft (N,) ambient occlusion;
        albedo (3,T,T); surface (T*T,3) normals of M' in world space; oiliness 0..1; background (n,n,3).
        """
        from deca_world import kernels

        size = len(background)
        self._prepare(size)
        points = self._project(vertices, cam, size)
        # Thin props on the skin must win over the head, whose expression they do not follow.
        points[self._count :, 2] -= PROP_BIAS * cam[0] * size
        normals = normals_of(vertices, assembly.faces)
        sun = lamp_visibility(assembly, vertices, normals, light.direction, light.size)
        sun = BOUNCE + (1 - BOUNCE) * sun
        share = 1 - OCCLUSION_SHARE * (1 - soft)
        attributes = np.concatenate([normals, share[:, None], sun[:, None]], axis=1)
        self._skin[:, :3] = albedo.reshape(3, -1).T
        self._skin[:, 3:6] = surface
        constants = np.array(SH_CONSTANTS, np.float32)[:, None]
        ambient, key = light.ambient * constants, light.key * constants
        lamp = _lamp(light)
        shared = (assembly.textures, assembly.sheets, assembly.gloss)
        kernels.visibility(
            points, assembly.faces, assembly.parts, assembly.uv, assembly.sheets, assembly.textures,
            self._depth, self._faces, self._bary,
        )  # fmt: skip
        for buffer in (self._colour, self._coverage, self._covered):
            buffer[:] = 0
        kernels.shade_opaque(
            self._faces, self._bary, assembly.faces, assembly.parts, assembly.uv, attributes, self._skin, *shared,
            self._gloss(len(vertices), oiliness), ambient, key, lamp, self._colour, self._coverage, self._covered,
        )  # fmt: skip
        if len(assembly.blended):
            depth = points[assembly.faces[assembly.blended], 2].mean(axis=1)
            order = assembly.blended[np.argsort(-depth, kind="stable")]
            kernels.blend_translucent(
                points, assembly.faces, order, assembly.parts, assembly.uv, attributes, *shared, ambient, key, lamp,
                self._depth, self._colour, self._coverage, self._covered,
            )  # fmt: skip
        frame = Frame(np.empty((size, size, 3), np.float32), np.empty((size, size), np.float32))
        kernels.resolve(self._colour, self._covered, self._coverage, background, frame.colour, frame.skin)
        return frame

    def _prepare(self, size: int) -> None:
        if size == self._size:
            return
        side = SAMPLES * size
        self._size = size
        self._depth, self._faces = np.empty((side, side), np.float32), np.empty((side, side), np.int32)
        self._bary, self._colour = np.empty((side, side, 2), np.float32), np.empty((side, side, 3), np.float32)
        self._coverage, self._covered = np.empty((2, side, side), np.float32)

    def _project(self, vertices: Float, cam: NDArray, size: int) -> Float:
        """Weak perspective into sample coordinates (N,3); as `deca_core.camera.project`."""
        scale = cam[0] * size * SAMPLES / 2
        middle = size * SAMPLES / 2
        x, y = scale * (vertices[:, 0] + cam[1]) + middle, middle - scale * (vertices[:, 1] + cam[2])
        return np.stack([x, y, -scale * vertices[:, 2]], axis=1).astype(np.float32)

    def _gloss(self, count: int, oiliness: float) -> Float:
        """Strength and exponent of highlights by vertex: skin is broad and weak, eyes are sharp."""
        out = np.zeros((count, 2), np.float32)
        out[: self._count] = 0.02 + 0.06 * oiliness, 8 + 12 * oiliness
        out[: self._count][self._eyes] = EYE_GLOSS, EYE_EXPONENT
        return out


def _lamp(light: Light) -> Float:
    """Half vector between the lamp and the viewer (on +z), and the lamp's colour: (6,)."""
    half = light.direction + np.array([0.0, 0.0, 1.0])
    half = half / max(float(np.linalg.norm(half)), 1e-6)
    return np.concatenate([half, light.colour]).astype(np.float32)
