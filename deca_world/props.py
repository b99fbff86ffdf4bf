"""Props beside the head: a `Prop` is a small textured mesh in the head's rest space.

Hair, clothes and occluders are built on the shaped head, so they fit every identity, and carry FLAME's skin weights, so
that the renderer poses them with the head's own joint transforms. The bundle never contains any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deca_core.assets.bundle import NUM_JOINTS, AssetBundle

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Float = NDArray[np.float32]
Int = NDArray[np.int64]
Colour = tuple[float, float, float]

DEFAULT_SKIN: Colour = (0.70, 0.53, 0.44)  # sRGB, where the skin colour is not given
ROOT, HEAD = 0, 1  # joints: FLAME's neck joint carries the skull

# The frame's grid: azimuth from behind over the subject's right (-90), the face (0) and left (90) to behind again.
COLUMNS = 73
FALL_ROW, ROWS = 18, 40
FALL_DEGREES, LAST_DEGREES = 88.0, 142.0
NEIGHBOURS = 8


@dataclass(frozen=True, eq=False)
class Prop:
    """A textured mesh that rides on the head.

    vertices (N,3) metres in the frame of `v_template`; faces (M,3), drawn from both sides; weights (N,5) skin weights
    of the joints, rows sum to 1; uv (N,2), u right, v up; texture (H,W,4) sRGB and opacity in [0, 1], row 0 at v = 1;
    specular in [0, 1], strength of a highlight. Opacity is meant for blending: draw props over the head, far to near.
    `follows_head` False (clothing): the body turns less than the head, so the renderer poses it with a part of the
    global rotation of the head about the root joint.
    """

    name: str
    vertices: Float
    faces: Int
    weights: Float
    uv: Float
    texture: Float
    specular: float = 0.1
    follows_head: bool = True


@dataclass(frozen=True, eq=False)
class HeadFrame:
    """Places on a head by azimuth and polar angle about a vertical axis in the skull, the same on every identity.

    azimuth (C,) and polar (R,) degrees; places (R*C,V): every place is a weighted mean of nearby vertices of the skin;
    rest (R,C,3) the places on the template; brow and chin are heights there in metres.
    """

    azimuth: Float
    polar: Float
    places: csr_matrix
    rest: Float
    brow: float
    chin: float

    @property
    def unit(self) -> float:
        """Brows to chin in metres: the measure of all heights on a head."""
        return self.brow - self.chin

    def surface(self, vertices: Float) -> Float:
        """The places on a shaped head: (V,3) -> (R,C,3)."""
        return (self.places @ vertices).reshape(self.rest.shape)


@lru_cache(maxsize=4)
def head_frame(bundle: AssetBundle) -> HeadFrame:
    """The frame of a bundle's template; built once for each bundle."""
    from scipy.sparse import csr_matrix, identity, vstack
    from scipy.spatial import cKDTree

    template = bundle.v_template
    points = landmarks(bundle, template)
    brow, chin = float(points[17:27, 1].mean()), float(points[8, 1])
    above = template[template[:, 1] > brow]
    centre = np.array([0.0, brow - 0.005, (above[:, 2].min() + above[:, 2].max()) / 2])
    azimuth = np.linspace(-180, 180, COLUMNS)
    polar = np.r_[
        np.linspace(0, FALL_DEGREES, FALL_ROW), np.linspace(FALL_DEGREES, LAST_DEGREES, ROWS - FALL_ROW + 1)[1:]
    ]
    theta, phi = np.meshgrid(np.radians(azimuth), np.radians(polar))
    rays = np.stack([np.sin(phi) * np.sin(theta), np.cos(phi), np.sin(phi) * np.cos(theta)], axis=-1)
    rays[:, -1] = rays[:, 0]  # rounding must not open the seam

    # Vertices and centres of faces: where the mesh is coarse, vertices alone would cut the corners of the skull.
    count = len(bundle.faces)
    centres = csr_matrix(
        (np.full(3 * count, 1 / 3, np.float32), bundle.faces.ravel(), np.arange(0, 3 * count + 1, 3)),
        (count, len(template)),
    )
    skin = vstack([identity(len(template), np.float32), centres]).tocsr()
    offset = skin @ template - centre
    radius = np.linalg.norm(offset, axis=1)
    distance, index = cKDTree(offset / radius[:, None]).query(rays.reshape(-1, 3), k=NEIGHBOURS)
    # Eyeballs, the inside of the mouth and the backs of the ears lie behind the skin that is seen from outside.
    outer = radius[index] > 0.94 * radius[index].max(-1, keepdims=True)
    weight = outer / (distance + 0.01) ** 2
    weight /= weight.sum(-1, keepdims=True)
    pointers = np.arange(0, index.size + 1, NEIGHBOURS)
    places = csr_matrix((weight.ravel().astype(np.float32), index.ravel(), pointers), (len(index), len(offset))) @ skin
    return HeadFrame(
        azimuth=azimuth.astype(np.float32),
        polar=polar.astype(np.float32),
        places=places,
        rest=(places @ template).reshape(rays.shape),
        brow=brow,
        chin=chin,
    )


def landmarks(bundle: AssetBundle, vertices: Float) -> Float:
    """The 68 landmarks fixed on the face: vertices (V,3) -> (68,3)."""
    corners = vertices[bundle.faces[bundle.full_landmark_faces]]
    return np.einsum("lk,lkd->ld", bundle.full_landmark_bary, corners)


def joint_weights(count: int, joint: int) -> Float:
    """Skin weights of vertices that hang on one joint, (count, 5)."""
    weights = np.zeros((count, NUM_JOINTS), np.float32)
    weights[:, joint] = 1
    return weights


@lru_cache(maxsize=32)
def grid_faces(rows: int, columns: int) -> Int:
    """Triangles of a grid of vertices stored row by row: (2 (rows-1) (columns-1), 3).

    Counter-clockwise seen from the side where columns run to the right and rows run down.
    """
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).reshape(-1, 1)
    return (corner + np.array([[0, columns, 1], [1, columns, columns + 1]]).reshape(1, 6)).reshape(-1, 3)


@lru_cache(maxsize=32)
def grid_uv(rows: int, columns: int) -> Float:
    """Texture coordinates of a grid: columns along u, row 0 at v = 1. (rows*columns, 2)."""
    u, v = np.meshgrid(np.linspace(0, 1, columns), np.linspace(1, 0, rows))
    return np.stack([u, v], axis=-1).reshape(-1, 2).astype(np.float32)


def to_texels(field: NDArray, height: int, width: int) -> Float:
    """A field on the nodes of a grid as a texture under `grid_uv`, interpolated bilinearly: (R,C) -> (height,width)."""
    # By look-ups, not by matrix products: the same bytes whatever BLAS is there and however many threads it has.
    left, share = _between(field.shape[0], height)
    field = field.astype(np.float32)
    tall = field[left] + share[:, None] * (field[left + 1] - field[left])
    left, share = _between(field.shape[1], width)
    return tall[:, left] + share * (tall[:, left + 1] - tall[:, left])


@lru_cache(maxsize=64)
def _between(source: int, target: int) -> tuple[Int, Float]:
    """For every texel centre the node before it and the share of the next one; nodes lie on both ends."""
    at = (np.arange(target) + 0.5) / target * (source - 1)
    left = np.minimum(at.astype(np.int64), source - 2)
    return left, (at - left).astype(np.float32)


def smooth_noise(rng: np.random.Generator, cells: tuple[int, int], height: int, width: int) -> Float:
    """Random texture of about `cells` blobs, mean 0, about unit variance: (height,width)."""
    return 1.5 * to_texels(rng.standard_normal((cells[0] + 1, cells[1] + 1)), height, width)


def smoothstep(low: float, high: float, value: NDArray) -> NDArray:
    """0 below `low`, 1 above `high` (or reversed), cubic between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def plain_texture(colour: Sequence[float]) -> Float:
    """Return an opaque texture of one colour, (2,2,4)."""
    return np.broadcast_to(np.array([*colour, 1.0], np.float32), (2, 2, 4)).copy()


def tube(path: Float, radius: NDArray | float, sides: int = 8) -> tuple[Float, Int, Float]:
    """A tube along a path; it is closed at an end where its radius goes to zero.

    path (N,3), radius (N,) or one number -> vertices (N*(sides+1),3), faces, uv (u round the tube, v along it).
    """
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-12
    # A fixed helper direction, the one least along the path, keeps the rings from twisting.
    helper = np.eye(3)[np.abs(tangent).mean(0).argmin()]
    across = np.cross(tangent, helper)
    across /= np.linalg.norm(across, axis=1, keepdims=True) + 1e-12
    up = np.cross(across, tangent)
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    ring = np.cos(angle)[:, None] * across[:, None] + np.sin(angle)[:, None] * up[:, None]  # (N, sides+1, 3)
    vertices = path[:, None] + np.broadcast_to(radius, len(path))[:, None, None] * ring
    return vertices.reshape(-1, 3).astype(np.float32), grid_faces(len(path), sides + 1), grid_uv(len(path), sides + 1)


def merge(parts: Sequence[tuple[Float, Int, Float]]) -> tuple[Float, Int, Float]:
    """Several (vertices, faces, uv) as one."""
    starts = np.cumsum([0, *(len(vertices) for vertices, _, _ in parts[:-1])])
    faces = [faces + start for start, (_, faces, _) in zip(starts, parts, strict=True)]
    return np.concatenate([p[0] for p in parts]), np.concatenate(faces), np.concatenate([p[2] for p in parts])
