"""The photographic renderer's inner loops (numba, float32, one thread): visibility, shading, translucency.

Sample grid: an image of n pixels has 2n x 2n samples. Vertices come in sample coordinates (x right, y down, smaller z
nearer). Surfaces are the head (part 0) and props (part k); the texels of all props lie in one flat array.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

from deca_core.raster.numba_kernel import pixel_span
from deca_world.shadows import FAR

OPAQUE = 0.75  # prop texels at least this opaque take part in the z-buffer; others are blended afterwards
CLEAR = 0.02  # prop texels at most this opaque are not there

_jit = numba.njit(cache=True, nogil=True, fastmath=True)


@_jit
def texel(textures: NDArray, start: int, height: int, width: int, u: float, v: float, out: NDArray) -> None:
    """Bilinear RGBA at (u, v) of the texture that begins at `start`; v up, edges repeated."""
    x = min(max(u * width - 0.5, 0.0), width - 1.0)
    y = min(max((1.0 - v) * height - 0.5, 0.0), height - 1.0)
    x0, y0 = min(int(x), width - 2), min(int(y), height - 2)
    ax, ay = x - x0, y - y0
    top, below = start + y0 * width + x0, start + (y0 + 1) * width + x0
    for c in range(out.shape[0]):
        upper = textures[top, c] * (1 - ax) + textures[top + 1, c] * ax
        lower = textures[below, c] * (1 - ax) + textures[below + 1, c] * ax
        out[c] = upper * (1 - ay) + lower * ay


@_jit
def opacity(textures: NDArray, start: int, height: int, width: int, u: float, v: float) -> float:
    """Nearest opacity at (u, v)."""
    x = min(max(int(u * width), 0), width - 1)
    y = min(max(int((1.0 - v) * height), 0), height - 1)
    return textures[start + y * width + x, 3]


@_jit
def visibility(
    points: NDArray,
    faces: NDArray,
    parts: NDArray,
    uv: NDArray,
    sheets: NDArray,
    textures: NDArray,
    depth: NDArray,
    face_map: NDArray,
    bary: NDArray,
) -> None:
    """Z-buffer of everything opaque.

    points (N,3); faces (F,3); parts (F,); uv (F,3,2); sheets (parts,3) start, height, width of every texture;
    fills depth (S,S), face_map (S,S) with -1 where nothing is seen, and bary (S,S,2), the weights of corners b and c.
    Heads are closed: their back faces are skipped. Props are sheets, seen from both sides.
    """
    height, width = depth.shape
    depth[:] = FAR
    face_map[:] = -1
    for face in range(len(faces)):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        ax, ay, bx, by, cx, cy = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        part = parts[face]
        if abs(area) < 1e-9 or (part == 0 and area > 0):
            continue
        x0, x1 = pixel_span(ax, bx, cx, width)
        y0, y1 = pixel_span(ay, by, cy, height)
        inverse = 1.0 / area
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                px, py = x + 0.5 - ax, y + 0.5 - ay
                wb = (px * (cy - ay) - py * (cx - ax)) * inverse
                wc = ((bx - ax) * py - (by - ay) * px) * inverse
                wa = 1.0 - wb - wc
                if wa < 0 or wb < 0 or wc < 0:
                    continue
                z = wa * points[a, 2] + wb * points[b, 2] + wc * points[c, 2]
                if z >= depth[y, x]:
                    continue
                if part > 0:
                    u = wa * uv[face, 0, 0] + wb * uv[face, 1, 0] + wc * uv[face, 2, 0]
                    v = wa * uv[face, 0, 1] + wb * uv[face, 1, 1] + wc * uv[face, 2, 1]
                    if opacity(textures, sheets[part, 0], sheets[part, 1], sheets[part, 2], u, v) < OPAQUE:
                        continue
                depth[y, x] = z
                face_map[y, x] = face
                bary[y, x, 0], bary[y, x, 1] = wb, wc


@_jit
def irradiance(normal: NDArray, light: NDArray, out: NDArray) -> None:
    """Spherical-harmonics irradiance (deca_core.appearance.shading) at one unit normal; light (9,3) with the
    constants multiplied in."""
    x, y, z = normal[0], normal[1], normal[2]
    for c in range(3):
        out[c] = (
            light[0, c]
            + light[1, c] * x
            + light[2, c] * y
            + light[3, c] * z
            + light[4, c] * x * y
            + light[5, c] * x * z
            + light[6, c] * y * z
            + light[7, c] * (x * x - y * y)
            + light[8, c] * (3 * z * z - 1)
        )


@_jit
def shade(
    base: NDArray,
    normal: NDArray,
    soft: float,
    sun: float,
    gloss: NDArray,
    ambient: NDArray,
    key: NDArray,
    lamp: NDArray,
    scratch: NDArray,
    out: NDArray,
) -> None:
    """Colour of one surface point: base (3,) albedo; soft (ambient occlusion) dims the surroundings' light, sun the
    lamp's; gloss (2,) strength and exponent of the highlight; lamp (6,) half vector and colour."""
    irradiance(normal, ambient, scratch)
    for c in range(3):
        out[c] = scratch[c] * soft
    irradiance(normal, key, scratch)
    for c in range(3):
        # Skin scatters: red light creeps into the edge of a shadow.
        through = sun if c > 0 else math.sqrt(sun)
        out[c] = base[c] * max(out[c] + scratch[c] * (0.85 * sun + 0.15 * through), 0.015)
    towards = normal[0] * lamp[0] + normal[1] * lamp[1] + normal[2] * lamp[2]
    if towards > 0 and gloss[0] > 0:
        highlight = gloss[0] * sun * towards ** gloss[1]
        for c in range(3):
            out[c] += highlight * lamp[3 + c]


@_jit
def corner_mix(values: NDArray, faces: NDArray, face: int, wb: float, wc: float, out: NDArray) -> None:
    """Barycentric mixture of vertex attributes (N,C) at one point of a face."""
    a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
    wa = 1.0 - wb - wc
    for k in range(out.shape[0]):
        out[k] = wa * values[a, k] + wb * values[b, k] + wc * values[c, k]


@_jit
def unit(vector: NDArray, sign: float) -> None:
    """Scale to length 1 (times sign), in place."""
    length = math.sqrt(vector[0] ** 2 + vector[1] ** 2 + vector[2] ** 2) + 1e-12
    for k in range(3):
        vector[k] *= sign / length


@_jit
def shade_opaque(
    face_map: NDArray,
    bary: NDArray,
    faces: NDArray,
    parts: NDArray,
    uv: NDArray,
    attributes: NDArray,
    skin: NDArray,
    textures: NDArray,
    sheets: NDArray,
    gloss: NDArray,
    head_gloss: NDArray,
    ambient: NDArray,
    key: NDArray,
    lamp: NDArray,
    colour: NDArray,
    coverage: NDArray,
    covered: NDArray,
) -> None:
    """Shade the visible samples; samples of one pixel that show the same face share one colour.

    attributes (N,5) normal, ambient occlusion, lamp visibility of the vertices; skin (T*T,8) albedo, detail normal,
    detail mask, face mask of the head's UV map; gloss (parts,2); head_gloss (N,2) by vertex.
    Fills colour (S,S,3) where covered, coverage (S,S) with the face mask and covered (S,S) with 1.
    """
    size = face_map.shape[0] // 2
    side = int(math.sqrt(skin.shape[0]) + 0.5)
    mixed, texels = np.empty(5, np.float32), np.empty(8, np.float32)
    normal, scratch, shine = np.empty(3, np.float32), np.empty(3, np.float32), np.empty(2, np.float32)
    for y in range(size):
        for x in range(size):
            for sample in range(4):
                sy, sx = 2 * y + sample // 2, 2 * x + sample % 2
                face = face_map[sy, sx]
                if face < 0:
                    continue
                covered[sy, sx] = 1
                found = -1
                for earlier in range(sample):
                    if face_map[2 * y + earlier // 2, 2 * x + earlier % 2] == face:
                        found = earlier
                        break
                if found >= 0:
                    ey, ex = 2 * y + found // 2, 2 * x + found % 2
                    coverage[sy, sx] = coverage[ey, ex]
                    for c in range(3):
                        colour[sy, sx, c] = colour[ey, ex, c]
                    continue
                wb, wc = bary[sy, sx, 0], bary[sy, sx, 1]
                wa = 1.0 - wb - wc
                corner_mix(attributes, faces, face, wb, wc, mixed)
                for k in range(3):
                    normal[k] = mixed[k]
                u = wa * uv[face, 0, 0] + wb * uv[face, 1, 0] + wc * uv[face, 2, 0]
                v = wa * uv[face, 0, 1] + wb * uv[face, 1, 1] + wc * uv[face, 2, 1]
                part = parts[face]
                if part == 0:
                    texel(skin, 0, side, side, u, v, texels)
                    if texels[6] > 0.01:
                        for k in range(3):
                            normal[k] = texels[3 + k]
                    coverage[sy, sx] = texels[7]
                    corner_mix(head_gloss, faces, face, wb, wc, shine)
                    unit(normal, 1.0)
                else:
                    texel(textures, sheets[part, 0], sheets[part, 1], sheets[part, 2], u, v, texels[:4])
                    shine[0], shine[1] = gloss[part, 0], gloss[part, 1]
                    unit(normal, 1.0 if normal[2] > 0 else -1.0)
                shade(texels, normal, mixed[3], mixed[4], shine, ambient, key, lamp, scratch, colour[sy, sx])


@_jit
def blend_translucent(
    points: NDArray,
    faces: NDArray,
    order: NDArray,
    parts: NDArray,
    uv: NDArray,
    attributes: NDArray,
    textures: NDArray,
    sheets: NDArray,
    gloss: NDArray,
    ambient: NDArray,
    key: NDArray,
    lamp: NDArray,
    depth: NDArray,
    colour: NDArray,
    coverage: NDArray,
    covered: NDArray,
) -> None:
    """Blend translucent texels of the faces in `order` (far to near) over what is behind them.

    `covered` (S,S) becomes the opacity against the background; colour, unweighted, that of the texels before it.
    """
    height, width = depth.shape
    mixed, rgba = np.empty(5, np.float32), np.empty(4, np.float32)
    normal, scratch, result = np.empty(3, np.float32), np.empty(3, np.float32), np.empty(3, np.float32)
    for index in range(len(order)):
        face = order[index]
        part = parts[face]
        start, rows, columns = sheets[part, 0], sheets[part, 1], sheets[part, 2]
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        ax, ay, bx, by, cx, cy = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if abs(area) < 1e-9:
            continue
        x0, x1 = pixel_span(ax, bx, cx, width)
        y0, y1 = pixel_span(ay, by, cy, height)
        inverse = 1.0 / area
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                px, py = x + 0.5 - ax, y + 0.5 - ay
                wb = (px * (cy - ay) - py * (cx - ax)) * inverse
                wc = ((bx - ax) * py - (by - ay) * px) * inverse
                wa = 1.0 - wb - wc
                if wa < 0 or wb < 0 or wc < 0:
                    continue
                if wa * points[a, 2] + wb * points[b, 2] + wc * points[c, 2] >= depth[y, x]:
                    continue
                u = wa * uv[face, 0, 0] + wb * uv[face, 1, 0] + wc * uv[face, 2, 0]
                v = wa * uv[face, 0, 1] + wb * uv[face, 1, 1] + wc * uv[face, 2, 1]
                alpha = opacity(textures, start, rows, columns, u, v)
                if alpha <= CLEAR or alpha >= OPAQUE:
                    continue
                texel(textures, start, rows, columns, u, v, rgba)
                corner_mix(attributes, faces, face, wb, wc, mixed)
                for k in range(3):
                    normal[k] = mixed[k]
                unit(normal, 1.0 if normal[2] > 0 else -1.0)
                shade(rgba, normal, mixed[3], mixed[4], gloss[part], ambient, key, lamp, scratch, result)
                behind = covered[y, x] * (1 - alpha)
                total = behind + alpha
                for k in range(3):
                    colour[y, x, k] = (colour[y, x, k] * behind + result[k] * alpha) / total
                covered[y, x] = total
                coverage[y, x] *= 1 - alpha


@_jit
def resolve(
    colour: NDArray, covered: NDArray, coverage: NDArray, background: NDArray, image: NDArray, skin: NDArray
) -> None:
    """Mean of the four samples of every pixel over the background: image (n,n,3), skin (n,n) share of face skin."""
    size = image.shape[0]
    for y in range(size):
        for x in range(size):
            share, visible_skin, r, g, b = 0.0, 0.0, 0.0, 0.0, 0.0
            for sample in range(4):
                sy, sx = 2 * y + sample // 2, 2 * x + sample % 2
                weight = covered[sy, sx]
                if weight > 0:
                    r += weight * colour[sy, sx, 0]
                    g += weight * colour[sy, sx, 1]
                    b += weight * colour[sy, sx, 2]
                    share += weight
                    visible_skin += coverage[sy, sx]
            rest = 1 - 0.25 * share
            image[y, x, 0] = 0.25 * r + rest * background[y, x, 0]
            image[y, x, 1] = 0.25 * g + rest * background[y, x, 1]
            image[y, x, 2] = 0.25 * b + rest * background[y, x, 2]
            skin[y, x] = 0.25 * visible_skin


@_jit
def vertex_normals(vertices: NDArray, faces: NDArray, out: NDArray) -> None:
    """Area-weighted unit vertex normals: (N,3), (F,3) -> out (N,3)."""
    out[:] = 0
    for face in range(len(faces)):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        px, py, pz = vertices[b, 0] - vertices[a, 0], vertices[b, 1] - vertices[a, 1], vertices[b, 2] - vertices[a, 2]
        qx, qy, qz = vertices[c, 0] - vertices[a, 0], vertices[c, 1] - vertices[a, 1], vertices[c, 2] - vertices[a, 2]
        x, y, z = py * qz - pz * qy, pz * qx - px * qz, px * qy - py * qx
        for corner in (a, b, c):
            out[corner, 0] += x
            out[corner, 1] += y
            out[corner, 2] += z
    for index in range(len(out)):
        unit(out[index], 1.0)
