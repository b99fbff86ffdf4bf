"""Painting a subject's `Looks` onto the albedo map of a photograph.

Areas are drawn in frontal view on the 68 landmarks of the template, in millimetres on the subject's left half, so any
bundle with landmarks carries them. Hair and lipstick cover the skin; everything else scales it, and so suits every
complexion.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deca_core.assets.bundle import UV_SIZE, AssetBundle
from deca_world.looks import Beard, Brows, Looks, MakeUp, Skin
from deca_world.props import landmarks, smooth_noise, smoothstep

Float = NDArray[np.float32]

MM = 1e-3
NECK = 40  # mm below the chin that a beard may reach
EAR = 15  # mm behind the end of the contour that it begins
SHAPE = (UV_SIZE, UV_SIZE)
CIRCLES = np.array([0.42, 0.50, 0.42], np.float32)  # what full strength takes from red, green, blue
RED = np.array([-0.05, 0.22, 0.20], np.float32)
FRECKLE = np.array([0.22, 0.36, 0.45], np.float32)
PATCH = np.array([0.8, 1.0, 1.15], np.float32)


class FacePaint:
    """Areas of one bundle's face on the UV map, computed once.

    positions (3,T,T) of the template on the UV map, metres, zero where there is no texel.
    """

    def __init__(self, bundle: AssetBundle, positions: Float) -> None:
        points = landmarks(bundle, bundle.v_template) / MM
        points = np.concatenate([np.abs(points[:, :1]), points[:, 1:]], axis=1)
        self._points = points
        x, y, z = positions.astype(np.float64) / MM
        face = bundle.face_eye_mask.astype(np.float64)
        below_lip = points[57, 1]
        covered = np.any(positions != 0, axis=0)
        # The face's mask ends under the chin; a beard does not. That far below the lips there is only skin.
        skin = np.maximum(face, covered * smoothstep(below_lip - 14, below_lip - 20, y))
        near_face = (skin > 0) & (y > points[8, 1] - NECK) & (z > points[16, 2] - EAR)
        # Everything below is about these texels only, (N,).
        self._texels = np.flatnonzero((face > 0) | near_face)
        self._signed, self._x, self._y, self._depth = (v.ravel()[self._texels] for v in (x, np.abs(x), y, z))
        self._face, self._skin = face.ravel()[self._texels], skin.ravel()[self._texels]
        self._lips = self._lip_area()
        self._lid_distance, self._lid_height, self._eye_x = self._lid_area()
        self._regions = self._region_areas()

    def apply(self, albedo: Float, looks: Looks) -> Float:
        """Albedo (3,T,T) with the looks on it."""
        rng = np.random.default_rng(looks.seed)
        paint = albedo.reshape(3, -1)[:, self._texels].T.astype(np.float64)
        paint = self._paint_skin(paint, looks.skin, rng)
        if looks.make_up is not None:
            paint = self._paint_make_up(paint, looks.make_up)
        paint = self._paint_brows(paint, looks.brows, rng)
        if looks.beard is not None:
            paint = self._paint_beard(paint, looks.beard, rng)
        out = albedo.reshape(3, -1).copy()
        out[:, self._texels] = np.clip(paint, 0.01, 1.0).T
        return out.reshape(albedo.shape)

    # ------------------------------------------------------------ areas

    def _bell(self, x: float, y: float, width: float, height: float) -> NDArray:
        return np.exp(-0.5 * (((self._x - x) / width) ** 2 + ((self._y - y) / height) ** 2)) * self._face

    def _region_areas(self) -> list[NDArray]:
        """Soft areas in the order of `REGIONS`."""
        p = self._points
        mouth, corner = 0.5 * (p[62, 1] + p[66, 1]), p[54, 0]
        ring = np.hypot(self._x / (corner + 9), (self._y - mouth) / 19)
        eyes = smoothstep(17, 4, self._lid_distance) * self._face
        skin = 1 - self._lips
        areas = [
            smoothstep(p[24, 1] + 2, p[24, 1] + 18, self._y) * self._face,
            self._bell(p[45, 0] + 14, p[45, 1] + 14, 9, 20),
            self._bell(0, p[30, 1] + 2, 11, 9),
            self._bell(p[45, 0] - 2, p[30, 1] + 10, 14, 10),
            self._bell(corner + 22, mouth + 8, 10, 20),
            np.exp(-((ring / 1.05) ** 4)) * skin * self._face,
            self._bell(0, p[8, 1] + 14, 16, 9),
            eyes,
            self._bell(0, p[28, 1], 6, 16),
        ]
        return [np.minimum(area, 1.0) for area in areas]

    def _lip_area(self) -> NDArray:
        """1 on the red of the lips."""
        p = self._points
        aside = np.array([p[51, 0], p[52, 0], p[53, 0], p[54, 0]])
        top = np.interp(self._x, aside, p[[51, 52, 53, 54], 1])
        low = np.interp(self._x, [p[57, 0], p[56, 0], p[55, 0], p[54, 0]], p[[57, 56, 55, 54], 1])
        # dlib's outline is a little inside the upper edge.
        inside = smoothstep(-1.0, 1.2, top + 1.5 - self._y) * smoothstep(-1.0, 1.2, self._y - low)
        return inside * smoothstep(p[54, 0] + 1.5, p[54, 0] - 2, self._x) * self._face

    def _lid_area(self) -> tuple[NDArray, NDArray, NDArray]:
        """Distance in mm from the opening of the eye, height above its middle, and the place along it (0 inner, 1)."""
        p = self._points
        inner, outer = p[42, 0], p[45, 0]
        along = np.clip((self._x - inner) / (outer - inner), 0, 1)
        upper = np.interp(self._x, p[[42, 43, 44, 45], 0], p[[42, 43, 44, 45], 1])
        lower = np.interp(self._x, p[[42, 47, 46, 45], 0], p[[42, 47, 46, 45], 1])
        aside = np.maximum(np.maximum(inner - self._x, self._x - outer), 0)
        vertical = np.maximum(np.maximum(self._y - upper, lower - self._y), 0)
        return np.hypot(aside, vertical), self._y - 0.5 * (upper + lower), along

    def _noise(self, rng: np.random.Generator, cells: tuple[int, int]) -> NDArray:
        return smooth_noise(rng, cells, *SHAPE).ravel()[self._texels]

    def _grain(self, rng: np.random.Generator, low: float) -> NDArray:
        """Hairs: fine noise between `low` and 1."""
        noise = self._noise(rng, (128, 256))
        return low + (1 - low) * smoothstep(-1.6, 0.8, noise)

    # ------------------------------------------------------------ layers

    def _paint_skin(self, paint: NDArray, skin: Skin, rng: np.random.Generator) -> NDArray:
        p = self._points
        below = np.maximum(-self._lid_height, 0)
        under = np.exp(-0.5 * ((below - 4.5) / (0.5 * skin.circles_width)) ** 2) * (self._lid_height < 0)
        under = under * smoothstep(14, 2, self._lid_distance) * self._face
        factor = 1 - skin.circles * under[..., None] * CIRCLES
        socket = smoothstep(15, 2, self._lid_distance) * (self._lid_height > -1)
        socket = socket + 0.8 * self._bell(0.55 * p[42, 0], p[42, 1] + 2, 4, 7)
        factor *= 1 - 0.35 * np.clip(skin.sockets, -0.6, 1.2) * (np.minimum(socket, 1) * self._face)[..., None]
        red = (
            self._bell(42, p[33, 1] + 14, 15, 12)
            + self._bell(0, p[30, 1], 11, 10)
            + 0.5 * self._bell(0, p[8, 1] + 14, 13, 9)
        )
        factor *= 1 - skin.redness * np.minimum(red, 1)[..., None] * RED
        fold = np.exp(-0.5 * ((self._x - p[35, 0] - 7 - 0.45 * (p[33, 1] - self._y)) / 4) ** 2)
        fold = fold * smoothstep(p[57, 1] - 8, p[54, 1], self._y) * smoothstep(p[35, 1] + 8, p[35, 1], self._y)
        factor *= 1 - 0.28 * skin.mouth_fold * (fold * self._face)[..., None]
        lips = self._lips[..., None]
        factor *= 1 + lips * (np.array(skin.lips) - 1)
        rim = np.clip(4 * self._lips * (1 - self._lips), 0, 1)[..., None]
        factor *= 1 - 0.3 * skin.lip_line * rim
        for area, darkness in zip(self._regions, skin.regions, strict=True):
            factor *= 1 - darkness * area[..., None] * PATCH
        crease = np.exp(-0.5 * ((self._lid_distance - skin.lid_crease_height) / 0.9) ** 2) * (self._lid_height > 0)
        factor *= 1 - skin.lid_crease * (crease * self._face * smoothstep(-0.1, 0.2, self._eye_x))[..., None]
        factor *= self._patches(skin, rng)
        return paint * factor

    def _patches(self, skin: Skin, rng: np.random.Generator) -> NDArray:
        """Unevenness, freckles and age spots, as a factor (N,3)."""
        uneven = np.zeros(len(self._texels))
        for cells, strength in zip((12, 26, 60), skin.unevenness, strict=True):
            whole = smooth_noise(rng, (cells, cells), *SHAPE)
            noise, mirrored = whole.ravel()[self._texels], whole[:, ::-1].ravel()[self._texels]
            share = skin.symmetry if cells < 60 else 0.0
            mixed = np.where(self._signed > 0, noise, share * mirrored + (1 - share**2) ** 0.5 * noise)
            # Both halves agree on the midline.
            seam = smoothstep(10, 0, self._x)
            mixed = mixed * (1 - seam) + seam * 0.7 * (noise + mirrored) / 1.4
            uneven += strength * mixed
        factor = 1 - (uneven * self._face)[..., None] * PATCH
        if skin.freckles > 0:
            spots = smoothstep(0.9, 2.0, self._noise(rng, (110, 110))) * self._freckled()
            factor *= 1 - skin.freckles * spots[..., None] * FRECKLE
        if skin.spots > 0:
            spots = smoothstep(1.5, 2.2, self._noise(rng, (46, 46))) * self._face
            factor *= 1 - skin.spots * spots[..., None] * FRECKLE
        return np.clip(factor, 0.3, 1.4)

    def _freckled(self) -> NDArray:
        return self._face * np.exp(-0.5 * ((self._y - self._points[29, 1]) / 26) ** 2)

    def _paint_make_up(self, paint: NDArray, make_up: MakeUp) -> NDArray:
        p = self._points
        cheeks = self._bell(46, p[30, 1] + 6, 13, 9)[..., None]
        paint = paint * (1 - make_up.blush * cheeks * np.array([0.0, 0.28, 0.22]))
        brow = p[24, 1] - p[44, 1]
        lids = smoothstep(0.75 * brow, 0.15 * brow, self._lid_distance) * (self._lid_height > 0) * self._face
        paint = paint * (1 - make_up.lids * lids[..., None] * (1 - np.array(make_up.shadow)))
        line = smoothstep(2.6, 0.6, self._lid_distance) * np.where(self._lid_height > 0, 1.0, 0.5) * self._face
        paint = paint * (1 - 0.8 * make_up.liner * line[..., None])
        # The seam of the lips stays dark under paint.
        shade = np.minimum(paint.mean(-1, keepdims=True) / 0.42, 1.1)
        return _over(paint, np.array(make_up.lipstick) * shade, make_up.lips * self._lips)

    def _paint_brows(self, paint: NDArray, brows: Brows, rng: np.random.Generator) -> NDArray:
        p = self._points[22:27]
        along = np.clip((self._x - p[0, 0]) / (p[4, 0] - p[0, 0]), 0, 1)
        middle = np.interp(self._x, p[:, 0], p[:, 1]) - 1.0 + brows.lift + brows.arch * (np.sin(np.pi * along) - 0.6)
        half = brows.thickness * (1 - (1 - brows.taper) * along**2) * (0.75 + 0.25 * smoothstep(0.0, 0.2, along))
        ends = smoothstep(p[0, 0] - 3, p[0, 0] + 2, self._x) * smoothstep(p[4, 0] + 1, p[4, 0] - 5, self._x)
        away = np.abs(self._y - middle)
        bare = np.exp(-((away / 5.5) ** 4)) * ends * self._face
        skin = self._skin_near(paint)
        paint = _over(paint, skin, brows.bare * bare)
        band = np.exp(-((away / half) ** 3)) * ends
        between = brows.joined * np.exp(-((away / (0.8 * half)) ** 2)) * (self._x < p[0, 0] + 2)
        hair = np.maximum(band, between) * self._grain(rng, 0.55) * self._face
        return _over(paint, np.array(brows.colour), brows.density * hair)

    def _skin_near(self, paint: NDArray) -> NDArray:
        """The colour of the skin above the brows."""
        y = self._points[24, 1]
        above = (self._x < 45) & (self._y > y + 6) & (self._y < y + 16) & (self._face > 0.9)
        return np.median(paint[above], axis=0)

    def _paint_beard(self, paint: NDArray, beard: Beard, rng: np.random.Generator) -> NDArray:
        # Hairlines are not ruled: their noise in mm.
        wobble = 1.6 * self._noise(rng, (40, 40))
        cheeks, jaw = self._cheek_hair(beard, wobble)
        chin, moustache, link = self._mouth_hair(beard, wobble)
        opacity = np.maximum.reduce(
            [
                beard.cheeks * cheeks,
                beard.jaw * jaw,
                beard.chin * chin,
                beard.moustache * moustache,
                min(beard.moustache, beard.chin) * link,
            ]
        )
        p = self._points
        front = smoothstep(p[16, 2] - EAR, p[16, 2] - EAR + 12, self._depth)
        neck = smoothstep(p[8, 1] - 16 + beard.neck_line, p[8, 1] - 4 + beard.neck_line, self._y + wobble)
        opacity = opacity * front * neck * (1 - self._lips) * self._skin
        grain = self._grain(rng, 0.6)
        tone = np.array(beard.colour) * (0.75 + 0.5 * self._grain(rng, 0.0))[..., None]
        return _over(paint, tone, opacity * grain)

    def _cheek_hair(self, beard: Beard, wobble: NDArray) -> tuple[NDArray, NDArray]:
        """Areas below the line from the ear to the corner of the mouth, and its part along the jaw."""
        p, x, y = self._points, self._x, self._y
        corner, ear = p[54], p[15]
        line = np.interp(x, [corner[0] + 4, ear[0]], [corner[1] + 4, ear[1] - 4]) + beard.cheek_line
        line = line - 5 * np.sin(np.pi * np.clip((x - corner[0]) / (ear[0] - corner[0]), 0, 1)) + wobble
        cheeks = smoothstep(5, -9, y - line) * smoothstep(corner[0] + 2, corner[0] + 10, x)
        order = np.argsort(p[8:17, 0])
        edge = np.interp(x, p[8:17, 0][order], p[8:17, 1][order])
        return cheeks, smoothstep(edge + 24, edge + 10, y) * cheeks

    def _mouth_hair(self, beard: Beard, wobble: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        """Areas of the chin (with the patch below the lip), the moustache, and what links them beside the mouth."""
        p, x, y = self._points, self._x, self._y
        low, corner = p[57, 1], p[54, 1]
        wide = p[54, 0] * beard.width
        chin = smoothstep(wide + 6, wide - 1, x + wobble) * smoothstep(low - 3, low - 9, y + 0.25 * wobble)
        patch = np.exp(-((x / 6) ** 2)) * smoothstep(low, low - 4, y) * (y > low - 12)
        moustache = smoothstep(p[33, 1] - 1, p[33, 1] - 5, y + 0.12 * x) * smoothstep(wide + 6, wide, x)
        moustache = moustache * smoothstep(corner - 2, corner + 2, y)
        link = smoothstep(wide - 1, wide + 2, x) * smoothstep(wide + 9, wide + 6, x)
        link = link * smoothstep(corner + 6, corner, y) * smoothstep(low - 10, low - 4, y)
        return np.maximum(chin, 0.7 * patch), moustache, link


def _over(paint: NDArray, colour: NDArray, opacity: NDArray) -> NDArray:
    return paint + opacity[..., None] * (colour - paint)
