"""Neck, shoulders and chest with clothes: what ends the head below in a photograph.

One torso sheet runs from the neck over the shoulders to the chest; its texture is skin inside the neckline and fabric
outside. Collars are extra sheets and rolls on top. The body hangs on the root joint and turns less than the head
(`Prop.follows_head` is False).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deca_core.assets.bundle import AssetBundle
from deca_world.props import (
    DEFAULT_SKIN,
    ROOT,
    Colour,
    Float,
    Prop,
    grid_faces,
    grid_uv,
    joint_weights,
    landmarks,
    smooth_noise,
    smoothstep,
    to_texels,
    tube,
)

COLUMNS, ROWS = 65, 30  # from behind over the subject's right, the front and left to behind; from the neck down
TEXTURE = (128, 256)

# Outline of an average torso from the neck down, metres: distance from the neck's axis and height below the chin, to
# the side, front and back. The rows of one index belong to one line round the body.
SIDE = ((0.060, -0.020), (0.064, -0.036), (0.079, -0.058), (0.120, -0.077), (0.166, -0.090), (0.202, -0.114),
        (0.220, -0.172), (0.228, -0.360))  # fmt: skip
FRONT = ((0.054, -0.035), (0.056, -0.055), (0.066, -0.078), (0.086, -0.100), (0.112, -0.130), (0.134, -0.172),
         (0.148, -0.235), (0.156, -0.380))  # fmt: skip
BACK = ((0.060, 0.010), (0.066, -0.015), (0.078, -0.052), (0.096, -0.078), (0.112, -0.108), (0.122, -0.150),
        (0.128, -0.220), (0.130, -0.380))  # fmt: skip
NECK_OFFSETS = (0.0010, 0.0065)  # rows 0 and 1 stand off the neck by this much; metres
OVERLAP = (0.022, 0.006)  # rows 0 and 1 lie this far above the end of the head's mesh, metres


@dataclass(frozen=True)
class Neckline:
    """Where fabric begins and what is sewn on there.

    front, side, back: rows of the sheet (0 neck .. 7 lowest, as in SIDE); point: 1 makes a V, 0 a round neckline;
    collar: "none", "rib", "shirt", "turtle" or "hood".
    """

    share: float
    front: tuple[float, float]
    side: tuple[float, float]
    point: float = 0.0
    collar: str = "none"


NECKLINES: dict[str, Neckline] = {
    "crew": Neckline(1.0, (1.5, 2.0), (1.3, 1.7), collar="rib"),
    "scoop": Neckline(0.5, (2.6, 4.4), (1.8, 3.0)),
    "v-neck": Neckline(0.7, (3.0, 5.0), (1.4, 1.9), point=1.0, collar="rib"),
    "shirt": Neckline(1.0, (1.6, 3.6), (0.9, 1.2), point=1.0, collar="shirt"),
    "turtleneck": Neckline(0.4, (0.9, 1.0), (0.9, 1.0), collar="turtle"),
    "hoodie": Neckline(0.6, (1.8, 2.5), (1.5, 1.9), collar="hood"),
}
PATTERNS = {"plain": 0.62, "stripes": 0.16, "pinstripes": 0.08, "check": 0.14}


@dataclass(frozen=True)
class Clothing:
    """Clothes of a subject; colours sRGB, lengths in metres."""

    neckline: str
    front: float  # row of the sheet where fabric begins
    side: float
    colour: Colour
    second: Colour  # of the pattern
    trim: Colour  # of rib or collar
    pattern: str
    period: float  # of the pattern
    upright: bool  # stripes run up instead of round
    build: float  # width of the shoulders, 1 average
    slope: float  # of the shoulders, 1 average
    seed: int


def sample_clothing(rng: np.random.Generator) -> Clothing:
    """Plausible clothes: muted and dark colours are more frequent than bright ones."""
    shares = np.array([line.share for line in NECKLINES.values()])
    name = str(rng.choice(list(NECKLINES), p=shares / shares.sum()))
    line = NECKLINES[name]
    pattern = str(rng.choice(list(PATTERNS), p=list(PATTERNS.values())))
    colour = _cloth_colour(rng)
    second = _cloth_colour(rng)
    return Clothing(
        neckline=name,
        front=float(rng.uniform(*line.front)),
        side=float(rng.uniform(*line.side)),
        colour=colour,
        second=second,
        trim=colour if rng.random() < 0.7 else _cloth_colour(rng),
        pattern=pattern,
        period=float(rng.uniform(0.006, 0.012) if pattern == "pinstripes" else rng.uniform(0.014, 0.05)),
        upright=bool(rng.random() < 0.5),
        build=float(rng.uniform(0.86, 1.14)),
        slope=float(rng.uniform(0.75, 1.35)),
        seed=int(rng.integers(2**31)),
    )


def _cloth_colour(rng: np.random.Generator) -> Colour:
    """Any hue; saturation and value lean to greys, navy, black and white."""
    hue, saturation, value = rng.random(), rng.beta(1.1, 2.2), 0.06 + 0.84 * rng.beta(0.9, 1.1)
    phase = (hue + np.array([0.0, 2 / 3, 1 / 3])) * 2 * np.pi
    red, green, blue = (float(c) for c in np.clip(value * (1 - saturation * (0.5 - 0.5 * np.cos(phase))), 0.02, 0.95))
    return red, green, blue


def build_clothing(
    bundle: AssetBundle, shaped_vertices: Float, clothing: Clothing, skin: Colour = DEFAULT_SKIN
) -> list[Prop]:
    """The torso and its collar for a shaped head (V,3). `skin` is the colour of neck and chest where they show."""
    sheet = _torso(bundle, shaped_vertices, clothing)
    torso = _prop("torso", sheet, _torso_texture(clothing, skin))
    return [torso, *_COLLARS[NECKLINES[clothing.neckline].collar](sheet, clothing)]


def _prop(name: str, grid: Float, texture: Float, specular: float = 0.03) -> Prop:
    rows, columns = grid.shape[:2]
    return Prop(
        name,
        grid.reshape(-1, 3).astype(np.float32),
        grid_faces(rows, columns),
        joint_weights(rows * columns, ROOT),
        grid_uv(rows, columns),
        texture,
        specular,
        follows_head=False,
    )


@lru_cache(maxsize=1)
def _rows() -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Row numbers (ROWS,) in units of the outline tables, and the outlines interpolated there, (ROWS,2) each."""
    from scipy.interpolate import PchipInterpolator

    at = np.linspace(0, len(SIDE) - 1, ROWS)
    side, front, back = (PchipInterpolator(np.arange(len(t)), np.array(t))(at) for t in (SIDE, FRONT, BACK))
    return at, side, front, back


def _azimuth() -> NDArray:
    return np.linspace(-np.pi, np.pi, COLUMNS)


@lru_cache(maxsize=4)
def _neck(bundle: AssetBundle) -> tuple[NDArray, NDArray]:
    """Rows 0 and 1 on the neck: indices and weights (2,COLUMNS,K) of vertices near the end of its mesh."""
    from scipy.spatial import cKDTree

    chin = landmarks(bundle, bundle.v_template)[8, 1]
    below = np.flatnonzero(bundle.v_template[:, 1] < chin + 0.02)
    points = bundle.v_template[below]
    lowest = points[points[:, 1] < chin - 0.01]
    axis = (lowest[:, 2].min() + lowest[:, 2].max()) / 2
    # The neck unrolled; its turns to the left and right repeat the seam.
    around = np.arctan2(points[:, 0], points[:, 2] - axis)
    flat = np.concatenate([np.stack([(around + turn) * 0.06, points[:, 1]], -1) for turn in (0, 2 * np.pi, -2 * np.pi)])
    sectors = np.abs(np.angle(np.exp(1j * (around[:, None] - _azimuth())))) < 0.2
    end = _smooth(np.where(sectors, points[:, 1:2], np.inf).min(0), harmonics=1)
    wanted = np.stack([np.stack([_azimuth() * 0.06, end + above], -1) for above in OVERLAP])
    distance, index = cKDTree(flat).query(wanted, k=6)
    weight = 1 / (distance + 0.002) ** 2
    return below[index % len(below)], (weight / weight.sum(-1, keepdims=True)).astype(np.float32)


def _smooth(round_body: NDArray, harmonics: int) -> NDArray:
    """A quantity by column (COLUMNS, ...) reduced to its mean and lowest harmonics round the body."""
    spectrum = np.fft.rfft(round_body[:-1], axis=0)
    spectrum[harmonics + 1 :] = 0
    smooth = np.fft.irfft(spectrum, COLUMNS - 1, axis=0)
    return np.concatenate([smooth, smooth[:1]])


def _torso(bundle: AssetBundle, vertices: Float, clothing: Clothing) -> Float:
    """(ROWS,COLUMNS,3): the first rows hug the neck of this head, the lower ones are an average body."""
    at, side, front, back = _rows()
    index, weight = _neck(bundle)
    azimuth = _azimuth()
    sine, cosine = np.sin(azimuth), np.cos(azimuth)
    ring = np.einsum("rck,rckd->rcd", weight, vertices[index]) + np.reshape(NECK_OFFSETS, (2, 1, 1)) * _outward()
    ring = np.stack([_smooth(row, harmonics=4) for row in ring])
    chin, axis = landmarks(bundle, vertices)[8, 1], (ring[1, :, 2].min() + ring[1, :, 2].max()) / 2

    fore = np.where(cosine[:, None, None] > 0, front, back).transpose(1, 0, 2)  # (ROWS, COLUMNS, 2)
    # Round at the neck, squarer over the shoulders.
    power = 1 - 0.35 * smoothstep(1.0, 4.0, at)[:, None]
    drop = side[:, 1:] * (1 + (clothing.slope - 1) * smoothstep(1.0, 4.0, at)[:, None])
    lateral = np.abs(sine) ** 1.5
    x = side[:, :1] * clothing.build * np.sign(sine) * np.abs(sine) ** power
    z = axis + fore[..., 0] * np.sign(cosine) * np.abs(cosine) ** power
    body = np.stack([x, chin + drop * lateral + fore[..., 1] * (1 - lateral), z], axis=-1)

    along = at[:, None, None]
    neck = ring[0] + np.minimum(along, 1.5) * (ring[1] - ring[0])
    return neck + smoothstep(1.0, 2.4, along) * (body - neck)


def _neckline_row(clothing: Clothing) -> NDArray:
    """Row of the sheet where fabric begins, by column."""
    azimuth = np.abs(_azimuth())
    line = NECKLINES[clothing.neckline]
    toward_front = np.clip(1 - azimuth / (np.pi / 2), 0, 1)
    form = toward_front if line.point else toward_front**0.9 * (2 - toward_front**0.9)
    return clothing.side + (clothing.front - clothing.side) * form


@lru_cache(maxsize=8)
def _torso_texture(clothing: Clothing, skin: Colour) -> Float:
    """Skin above the neckline, fading into the head's own neck; patterned fabric below. (H,W,4)"""
    at = _rows()[0]
    rng = np.random.default_rng(clothing.seed)
    fabric = smoothstep(-0.08, 0.06, to_texels(at[:, None] - _neckline_row(clothing), *TEXTURE))
    weave = 1 + 0.03 * smooth_noise(rng, (80, 160), *TEXTURE) + 0.06 * smooth_noise(rng, (6, 14), *TEXTURE)
    hem = 1 - 0.25 * np.exp(-((to_texels(at[:, None] - _neckline_row(clothing), *TEXTURE) / 0.15) ** 2))
    cloth = _pattern(clothing) * (weave * hem)[..., None]
    # The jaw shades the neck; the head's own albedo is darker there, too.
    shade = np.broadcast_to(0.82 + 0.12 * smoothstep(0.5, 2.5, at)[:, None], (ROWS, COLUMNS))
    bare = np.array(skin) * (to_texels(shade, *TEXTURE) + 0.02 * smooth_noise(rng, (10, 20), *TEXTURE))[..., None]
    texture = np.empty((*TEXTURE, 4), np.float32)
    texture[..., :3] = np.clip(bare + fabric[..., None] * (cloth - bare), 0, 1)
    fade = to_texels(np.broadcast_to(smoothstep(0.0, 0.9, at)[:, None], (ROWS, COLUMNS)), *TEXTURE)
    texture[..., 3] = np.maximum(fade, fabric)
    return texture


def _pattern(clothing: Clothing) -> Float:
    """Colours of the fabric over the sheet, (H,W,3)."""
    _, _, front, _ = _rows()
    plain = np.broadcast_to(np.array(clothing.colour, np.float32), (*TEXTURE, 3))
    if clothing.pattern == "plain":
        return plain
    # Distances on the cloth, metres: down the front, and round the body.
    down = np.cumsum(np.r_[0, np.hypot(*np.diff(front, axis=0).T)])
    around = _azimuth() * 0.16
    v = to_texels(np.broadcast_to(down[:, None], (ROWS, COLUMNS)), *TEXTURE)
    u = to_texels(np.broadcast_to(around, (ROWS, COLUMNS)), *TEXTURE)
    width = 0.88 if clothing.pattern == "pinstripes" else 0.5
    across, along = ((np.mod(w / clothing.period, 1) > width).astype(np.float32) for w in (v, u))
    mix = (across + along) / 2 if clothing.pattern == "check" else (along if clothing.upright else across)
    return plain + mix[..., None] * (np.array(clothing.second, np.float32) - plain)


def _line_on(sheet: Float, rows: NDArray) -> Float:
    """Points of the sheet at a fractional row of every column: (COLUMNS,3)."""
    at = np.clip(rows / (len(SIDE) - 1) * (ROWS - 1), 0, ROWS - 1.001)
    row, column = at.astype(int), np.arange(COLUMNS)
    part = (at - row)[:, None]
    return sheet[row, column] * (1 - part) + sheet[row + 1, column] * part


def _cloth_texture(colour: Colour, seed: int, ribs: int = 0) -> Float:
    rng = np.random.default_rng([seed, 1])
    shade = 1 + 0.05 * smooth_noise(rng, (12, 24), 48, 192)
    if ribs:
        shade = shade + 0.06 * np.sin(np.arange(192) / 192 * 2 * np.pi * ribs)
    texture = np.ones((48, 192, 4), np.float32)
    texture[..., :3] = np.clip(shade[..., None] * np.array(colour), 0, 1)
    return texture


def _no_collar(sheet: Float, clothing: Clothing) -> list[Prop]:
    return []


def _rib(sheet: Float, clothing: Clothing) -> list[Prop]:
    """A knitted band along the neckline."""
    rows = _neckline_row(clothing)
    band = np.stack([_line_on(sheet, rows + shift) for shift in (-0.16, -0.1, 0.12, 0.22)])
    lifted = band + np.array([0.0, 0.0025, 0.002, -0.001])[:, None, None] * _outward()
    return [_prop("collar", lifted, _cloth_texture(clothing.trim, clothing.seed, ribs=40))]


def _shirt_collar(sheet: Float, clothing: Clothing) -> list[Prop]:
    """A stand round the neck and a folded leaf that ends in two points; open in front."""
    azimuth = np.abs(_azimuth())
    outward, front = _outward(), smoothstep(0.9, 0.2, azimuth)[:, None]
    down, forward = np.array([0.0, -1.0, 0.0]), np.array([0.0, 0.0, 1.0])
    inside = _line_on(sheet, np.full(COLUMNS, 1.3))
    ridge = _line_on(sheet, np.full(COLUMNS, 0.5)) + 0.013 * outward + front * (0.010 * down + 0.004 * forward)
    leaf = 0.030 + 0.028 * smoothstep(1.2, 0.3, azimuth)[:, None]
    tips = ridge + 0.014 * outward + leaf * down + 0.012 * front * forward
    grid = np.stack(
        [inside + 0.002 * outward, ridge, ridge + 0.003 * outward, (ridge + tips) / 2 + 0.003 * outward, tips]
    )
    texture = _cloth_texture(clothing.trim, clothing.seed)
    middle = COLUMNS // 2
    return [_prop("right collar", grid[:, : middle - 1], texture), _prop("left collar", grid[:, middle + 2 :], texture)]


def _turtleneck(sheet: Float, clothing: Clothing) -> list[Prop]:
    """A knitted tube, folded over, up to below the chin."""
    base = _line_on(sheet, np.full(COLUMNS, 1.1))
    outward = _outward()
    heights = np.array([-0.012, 0.002, 0.014, 0.024, 0.027, 0.020])
    stand_off = np.array([0.006, 0.011, 0.013, 0.012, 0.008, 0.004])
    grid = base + heights[::-1, None, None] * np.array([0, 1, 0]) + stand_off[::-1, None, None] * outward
    return [_prop("collar", grid, _cloth_texture(clothing.trim, clothing.seed, ribs=64))]


def _hood(sheet: Float, clothing: Clothing) -> list[Prop]:
    """A hood round the neck as a thick roll, with two cords."""
    azimuth = np.abs(_azimuth())
    line = _line_on(sheet, _neckline_row(clothing) + 0.15)
    radius = 0.008 + 0.016 * smoothstep(0.3, 1.6, azimuth)
    path = line + 0.6 * radius[:, None] * (_outward() + np.array([0, 1, 0]))
    vertices, faces, uv = tube(path.astype(np.float32), radius, sides=9)
    roll = Prop(
        "collar",
        vertices,
        faces,
        joint_weights(len(vertices), ROOT),
        uv,
        _cloth_texture(clothing.colour, clothing.seed),
        0.03,
        follows_head=False,
    )
    props = [roll]
    for name, column in (("right", COLUMNS // 2 - 3), ("left", COLUMNS // 2 + 3)):
        cord = sheet[np.linspace(8, 24, 7).astype(int), column] + [0, 0, 0.004]
        vertices, faces, uv = tube(cord.astype(np.float32), 0.0024, sides=6)
        props.append(
            Prop(
                f"{name} cord",
                vertices,
                faces,
                joint_weights(len(vertices), ROOT),
                uv,
                _cloth_texture(clothing.second, clothing.seed),
                0.03,
                follows_head=False,
            )
        )
    return props


def _outward() -> NDArray:
    """Horizontal direction away from the neck's axis by column, (COLUMNS,3)."""
    azimuth = _azimuth()
    return np.stack([np.sin(azimuth), np.zeros(COLUMNS), np.cos(azimuth)], axis=-1)


_COLLARS = {"none": _no_collar, "rib": _rib, "shirt": _shirt_collar, "turtle": _turtleneck, "hood": _hood}
