"""Hair: one sheet from the crown over the skull, then on over the forehead or falling free, cut out by its opacity.

The styles are in `hairstyles`. Heights are measured in the head's own unit (brows to chin) from the brows, so one style
fits every identity. Azimuth 0 is the face.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deca_core.assets.bundle import AssetBundle
from deca_world.hairstyles import FAMILIES, HairStyle, sample_hair
from deca_world.props import (
    COLUMNS,
    DEFAULT_SKIN,
    FALL_ROW,
    HEAD,
    ROWS,
    Colour,
    Float,
    HeadFrame,
    Int,
    Prop,
    grid_faces,
    grid_uv,
    head_frame,
    joint_weights,
    smooth_noise,
    smoothstep,
    to_texels,
)

__all__ = ["FAMILIES", "HairStyle", "build_hair", "sample_hair"]

TEXTURE = (160, 384)  # height (crown to tips), width (once round the head)
SKULL_RADIUS = 0.095  # metres, to turn degrees on the head into lengths
SCALP_OFFSET = 0.0018
CURLY = 0.0025  # amplitude from which hair is seen as curls, metres
SHOULDERS_BELOW_CHIN = 0.055
BLEND_DEGREES = 5.0  # in front of the opening, where the sheet changes from lying on the head to falling
STRANDS = 4096  # entries of the table of strand shades

# Where hair begins on an average head: height above the brows by azimuth (temple 40, sideburn 60, over the ear 86,
# behind it 114, nape 180 degrees).
HAIRLINE_DEGREES = (0, 20, 30, 40, 50, 60, 66, 72, 80, 86, 96, 108, 114, 130, 145, 180)
HAIRLINE_HEIGHT = (
    0.30, 0.27, 0.18, 0.06, -0.07, -0.17, -0.14, -0.08, 0.00, 0.08, 0.04, -0.05, -0.30, -0.57, -0.67, -0.74,
)  # fmt: skip


def build_hair(
    bundle: AssetBundle, shaped_vertices: Float, style: HairStyle, skin: Colour = DEFAULT_SKIN
) -> list[Prop]:
    """The props of a head of hair on a shaped head (V,3): the scalp, the hair, and a knot where it is tied.

    `skin` is the colour of the scalp where it shows (thin, receding or no hair): that of the forehead's albedo.
    """
    frame = head_frame(bundle)
    layout = _layout(bundle, style)
    surface = frame.surface(shaped_vertices)
    outward = surface - surface[FALL_ROW].mean(0)
    outward /= np.linalg.norm(outward, axis=-1, keepdims=True)
    vertices = surface + layout.thickness[..., None] * outward
    if style.drop > 0:
        vertices = _let_fall(frame, style, vertices, surface)
    vertices = vertices + layout.bumps[..., None] * outward
    props = [
        _sheet("scalp", surface + SCALP_OFFSET * outward, _scalp_texture(bundle, style, skin), layout.scalp_part, 0.1),
        _sheet("hair", vertices, _hair_texture(bundle, style), layout.hair_part, 0.25),
    ]
    if style.bun > 0:
        props.append(_knot(frame, style, surface, outward))
    return props


@dataclass(frozen=True, eq=False)
class _Part:
    """The part of the grid that is drawn: used (N,) indices of its vertices, faces (M,3) among them."""

    used: Int
    faces: Int

    @classmethod
    def of(cls, faces: Int) -> _Part:
        used = np.unique(faces)
        return cls(used, np.searchsorted(used, faces))


@dataclass(frozen=True, eq=False)
class _Layout:
    """Geometry that depends on style and template only, on the grid (R,C), in metres."""

    thickness: NDArray
    bumps: NDArray
    depth: NDArray  # how far inside the outline of the hair, negative outside
    to_tip: NDArray  # the part of the depth that counts from the tips
    scalp: NDArray  # the depth in the skin that hair normally hides
    hair_part: _Part
    scalp_part: _Part


@lru_cache(maxsize=8)
def _layout(bundle: AssetBundle, style: HairStyle) -> _Layout:
    """Outline, thickness and drawn part of a style."""
    frame = head_frame(bundle)
    azimuth, polar = np.abs(frame.azimuth)[None], frame.polar[:, None]
    height = (frame.rest[..., 1] - frame.brow) / frame.unit
    scalp = (height - _bare_hairline(frame)) * frame.unit
    depth = (height - _outline(frame, style)) * frame.unit
    if style.crown > 0:
        bare = style.crown * (1 - 0.12 * np.cos(np.radians(azimuth)))
        depth = np.minimum(depth, np.radians(polar - bare) * SKULL_RADIUS)
    to_tip = depth.copy()
    if style.drop > 0:
        falls = azimuth > style.opening - BLEND_DEGREES
        hanging = np.linspace(1, 0, ROWS - FALL_ROW)[:, None] * 0.5 * style.drop * frame.unit
        aside = np.radians(azimuth - style.opening) * SKULL_RADIUS
        to_tip[FALL_ROW:] = np.where(falls, hanging, to_tip[FALL_ROW:])
        depth[FALL_ROW:] = np.where(falls, np.minimum(aside, hanging), depth[FALL_ROW:])
    rng = np.random.default_rng(style.seed)
    bumps = style.curl * _ripples(frame.rest, rng) * smoothstep(0.0, 0.015, depth)
    faces = grid_faces(ROWS, COLUMNS)
    seen = (depth > -0.010).ravel()[faces].any(1)
    if style.drop > 0:
        # The sheet is cut where hanging hair begins beside hair on the forehead.
        hangs = np.broadcast_to(falls, depth.shape).ravel()[faces]
        seen &= (faces.max(1) < (FALL_ROW + 1) * COLUMNS) | (hangs.any(1) == hangs.all(1))
    covered = (scalp > -0.022).ravel()[faces].any(1)
    thickness = _thickness(frame, style, depth)
    return _Layout(thickness, bumps, depth, to_tip, scalp, _Part.of(faces[seen]), _Part.of(faces[covered]))


def _thickness(frame: HeadFrame, style: HairStyle, depth: NDArray) -> NDArray:
    """Thickness of the hair over the skull (R,C), metres: thin at its edges, fuller on one side of a parting."""
    polar, x = frame.polar[:, None], frame.rest[..., 0] / SKULL_RADIUS
    full = style.side + (style.top - style.side) * smoothstep(100, 35, polar)
    if style.flow == "parted":
        fuller_side = np.tanh(-3 * (x - 0.6 * style.parting) * style.parting)
        full = full * (1 + 0.35 * fuller_side) * (1 - 0.55 * _part_line(frame, style))
    rise = 0.05 + 0.95 * smoothstep(-0.004, 0.018 if style.curl > CURLY else 0.030, depth)
    # A fringe is off the forehead down to its tips.
    least = 0.0015 + 0.004 * (style.fringe > 0) * smoothstep(70, 40, np.abs(frame.azimuth))
    return np.maximum(full * rise, least)


def _bare_hairline(frame: HeadFrame) -> NDArray:
    """Height of an average hairline by azimuth, in units above the brows; it passes over the ears. (C,)"""
    return np.interp(np.abs(frame.azimuth), HAIRLINE_DEGREES, HAIRLINE_HEIGHT)


def _outline(frame: HeadFrame, style: HairStyle) -> NDArray:
    """Height of the lower edge of hair that rests on the head, in units above the brows. (C,)"""
    azimuth, side = np.abs(frame.azimuth), np.sin(np.radians(frame.azimuth))
    height = _bare_hairline(frame)
    height = height + style.hairline * smoothstep(75, 35, azimuth) + style.nape * smoothstep(104, 150, azimuth)
    height = height + style.recess * np.exp(-(((azimuth - 38) / 14) ** 2))
    height = height - style.sideburn * np.exp(-(((azimuth - 61) / 6) ** 2))
    front = HAIRLINE_HEIGHT[0] + style.hairline
    if style.drop > 0:
        # Falling hair covers the temples: its edge runs from the middle of the hairline to the front of the curtain.
        curtain = front * (1 - (azimuth / style.opening) ** 2.2)
        height = np.where(azimuth < style.opening, np.minimum(height, curtain), -9.0)
    if style.fringe > 0:
        end = front * (1 - style.fringe) + style.sweep * side
        height = np.where(azimuth < 56, np.minimum(height, end + 0.5 * smoothstep(44, 58, azimuth)), height)
    return height


def _part_line(frame: HeadFrame, style: HairStyle) -> NDArray:
    """1 on the parting, which runs from the front of the hairline to the crown, 0 away from it. (R,C)"""
    x, z = frame.rest[..., 0] - 0.05 * style.parting, frame.rest[..., 2] - frame.rest[0, 0, 2]
    return np.exp(-((x / 0.006) ** 2)) * smoothstep(-0.03, 0.0, z) * smoothstep(88, 75, frame.polar)[:, None]


def _ripples(points: NDArray, rng: np.random.Generator) -> NDArray:
    """Smooth random field over points (...,3) with wavelengths of 25 to 50 mm, about unit variance."""
    directions = rng.standard_normal((10, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    waves = directions * (2 * np.pi / rng.uniform(0.025, 0.05, (10, 1)))
    return np.sin(np.einsum("...d,kd->...k", points, waves) + rng.uniform(0, 2 * np.pi, 10)).sum(-1) * np.sqrt(0.2)


def _let_fall(frame: HeadFrame, style: HairStyle, vertices: Float, surface: Float) -> Float:
    """Bend the lower rows of the sheet away from the head: behind the opening they hang from the widest place."""
    azimuth = np.radians(frame.azimuth)
    axis = surface[FALL_ROW - 1, :, [0, 2]].mean(1)
    start = vertices[FALL_ROW - 1]
    radius = np.hypot(start[:, 0] - axis[0], start[:, 2] - axis[1])
    below = surface[FALL_ROW - 1 : FALL_ROW + 9]
    widest = np.hypot(below[..., 0] - axis[0], below[..., 2] - axis[1]).max(0) + 0.7 * style.side + 0.003
    widest = (np.roll(widest, 1) + 2 * widest + np.roll(widest, -1)) / 4

    # The front edge is on the cheek, so that no gap opens between hair and head.
    beyond = smoothstep(0, 24, np.abs(frame.azimuth) - style.opening)
    widest = widest - 0.7 * (1 - beyond) * style.side

    t = (np.arange(1, ROWS - FALL_ROW + 1) / (ROWS - FALL_ROW))[:, None]
    y = start[:, 1] + (frame.brow - style.drop * frame.unit - start[:, 1]) * t
    fallen = start[:, 1] - y
    r = radius + (widest - radius) * smoothstep(0.0, 0.07, fallen) + style.flare * beyond * t**2
    phase = 1.5 * np.sin(2 * azimuth + style.seed % 7) + np.sin(5 * azimuth + style.seed % 11)
    r = r + style.wave * np.sin(fallen * (2 * np.pi / 0.07) + phase) * smoothstep(0.0, 0.05, fallen)
    # Long hair rests on the chest or on the back.
    on_body = np.maximum(frame.chin - SHOULDERS_BELOW_CHIN - y, 0)
    z = axis[1] + r * np.cos(azimuth) + on_body * np.where(np.cos(azimuth) > 0, 0.7, -0.35)
    fall = np.stack([axis[0] + r * np.sin(azimuth), y, z], axis=-1)
    free = smoothstep(style.opening - BLEND_DEGREES, style.opening - BLEND_DEGREES + 2, np.abs(frame.azimuth))[:, None]
    bent = vertices.copy()
    bent[FALL_ROW:] += free * (fall - bent[FALL_ROW:])
    return bent


@lru_cache(maxsize=8)
def _hair_texture(bundle: AssetBundle, style: HairStyle) -> Float:
    """Strands, shade and outline of the hair, (H,W,4)."""
    frame, layout = head_frame(bundle), _layout(bundle, style)
    rng = np.random.default_rng([style.seed, 1])
    strands = _strands(frame, style, rng)
    azimuth, polar = np.abs(frame.azimuth)[None], frame.polar[:, None]
    shade = 1 + 0.18 * np.exp(-(((polar - 48) / 14) ** 2))  # gloss round the crown
    shade = shade * (
        1 - 0.5 * smoothstep(84, 110, polar) * smoothstep(95, 140, azimuth)
    )  # behind the neck, from within
    shade = shade * (0.75 + 0.25 * smoothstep(0.0, 0.03, layout.depth))
    shade = shade + 0.12 * layout.bumps / 0.006  # hollows between curls are dark
    if style.flow == "parted":
        shade = shade * (1 - 0.4 * _part_line(frame, style))
    tone = to_texels(shade, *TEXTURE) * (0.82 + 0.12 * strands)
    if style.curl > CURLY:
        tone = tone + 0.12 * smooth_noise(rng, (44, 90), *TEXTURE)
    ragged = np.where(polar > 84, smoothstep(0.06, 0.0, layout.to_tip) * 0.007, 0.0) + 0.003
    opacity = smoothstep(
        -0.003, 0.004, to_texels(layout.depth, *TEXTURE) + to_texels(ragged, *TEXTURE) * strands - 0.002
    )
    opacity = opacity * (1 - (1 - style.density) * smoothstep(-0.8, 1.0, strands))
    texture = np.empty((*TEXTURE, 4), np.float32)
    texture[..., :3] = np.clip(tone[..., None] * np.array(style.colour, np.float32), 0, 1)
    texture[..., 3] = opacity
    return texture


def _strands(frame: HeadFrame, style: HairStyle, rng: np.random.Generator) -> Float:
    """Streaks along the hair, mean 0, about unit variance, (H,W): noise that varies across the flow only."""
    place = frame.rest - frame.rest[FALL_ROW].mean(0)
    x, y, z = np.moveaxis(place / np.linalg.norm(place, axis=-1, keepdims=True), -1, 0)
    # Both halves count from the front backwards, so that a flow on top goes over into the falling one without a break.
    turn = np.broadcast_to(np.abs(frame.azimuth) / 360, x.shape)
    on_top = {
        "radial": turn,
        "parted": 0.25 - z / 4,
        "back": 0.5 + np.arctan2(x, y + 0.3) / 6,
    }[style.flow]
    top = smoothstep(100, 60, frame.polar)[:, None]
    across = top * on_top + (1 - top) * turn
    table = sum(
        weight * np.interp(np.arange(STRANDS) * cells / STRANDS, np.arange(cells + 1), rng.standard_normal(cells + 1))
        for cells, weight in ((40, 0.4), (160, 0.6), (700, 0.9))
    )
    wander = to_texels(across, *TEXTURE) + 0.006 * smooth_noise(rng, (8, 16), *TEXTURE)
    return np.asarray(table, np.float32)[(wander * STRANDS).astype(np.int64) % STRANDS]


@lru_cache(maxsize=8)
def _scalp_texture(bundle: AssetBundle, style: HairStyle, skin: Colour) -> Float:
    """Skin where hair is missing, the colour of roots below hair; fades into the head's own skin. (H/2,W/2,4)"""
    layout = _layout(bundle, style)
    height, width = TEXTURE[0] // 2, TEXTURE[1] // 2
    rng = np.random.default_rng([style.seed, 2])
    noise = smooth_noise(rng, (60, 130), height, width)
    roots = style.density * smoothstep(-0.002, 0.012, to_texels(layout.depth, height, width) + 0.003 * noise)
    texture = np.empty((height, width, 4), np.float32)
    mixed = np.array(skin) + roots[..., None] * (0.9 * np.array(style.colour) - np.array(skin))
    texture[..., :3] = np.clip(mixed * (1 + 0.02 * noise[..., None]), 0, 1)
    texture[..., 3] = smoothstep(-0.021, -0.011, to_texels(layout.scalp, height, width))
    return texture


def _sheet(name: str, vertices: Float, texture: Float, part: _Part, specular: float) -> Prop:
    """The drawn part of a grid of vertices (R,C,3)."""
    return Prop(
        name,
        vertices.reshape(-1, 3)[part.used].astype(np.float32),
        part.faces,
        joint_weights(len(part.used), HEAD),
        grid_uv(ROWS, COLUMNS)[part.used],
        texture,
        specular,
    )


def _knot(frame: HeadFrame, style: HairStyle, surface: Float, outward: Float) -> Prop:
    """A bun: a ball of hair at the back of the head."""
    row = int(np.abs(frame.polar - abs(style.bun_angle)).argmin())
    column = 0 if style.bun_angle >= 0 else COLUMNS // 2
    centre = surface[row, column] + 0.75 * style.bun * outward[row, column]
    theta, phi = np.meshgrid(np.linspace(-np.pi, np.pi, 25), np.linspace(0, np.pi, 13))
    ball = np.stack([np.sin(phi) * np.sin(theta), np.cos(phi), np.sin(phi) * np.cos(theta)], axis=-1)
    vertices = (
        centre + style.bun * np.array([1.1, 0.9, 1.0]) * (1 + 0.05 * np.sin(6 * theta + 9 * phi))[..., None] * ball
    )
    rng = np.random.default_rng([style.seed, 3])
    shade = 0.8 + 0.18 * smooth_noise(rng, (5, 60), 64, 64)
    texture = np.ones((64, 64, 4), np.float32)
    texture[..., :3] = np.clip(shade[..., None] * np.array(style.colour), 0, 1)
    return Prop(
        "bun",
        vertices.reshape(-1, 3).astype(np.float32),
        grid_faces(13, 25),
        joint_weights(325, HEAD),
        grid_uv(13, 25),
        texture,
        0.25,
    )
