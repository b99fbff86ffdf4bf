"""Contact sheets of the embedded world for docs/: `python -m tools.sheets docs/world`.

Identities, expressions, wrinkles with and without displacement, skin tones, albedo extremes, photographs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from deca_core.appearance import SH_CONSTANTS, albedo, shading
from deca_core.assets import AssetBundle, procedural_head
from deca_core.camera import project
from deca_core.detail import detail_normals
from deca_core.flame import FLAME
from deca_core.raster import rasterize
from deca_core.render import fragments, render_surface, sample_uv, studio_shading, vertex_normals
from deca_core.uv import UVAtlas, uv_to_grid
from deca_world import World

PANEL = 224  # pixels on a side; drawn at twice that and averaged
HEAD_SCALE, FACE_SCALE = 7.4, 12.0  # of the camera: the whole head, or the face alone
GREY = 0.55

Image8 = NDArray[np.uint8]


class Studio:
    """Renders heads of a bundle frontally under one light; clay or coloured, with or without displacement."""

    def __init__(self, bundle: AssetBundle) -> None:
        self.bundle, self.flame, self.atlas = bundle, FLAME(bundle), UVAtlas(bundle)
        self.faces = torch.from_numpy(bundle.faces)
        self.corners = torch.from_numpy(uv_to_grid(bundle.uv)[bundle.uv_faces])
        self.mask = torch.from_numpy(bundle.face_eye_mask)
        self.light = torch.zeros(1, 9, 3)
        self.light[:, 0] = 0.7 / SH_CONSTANTS[0]
        self.light[:, 1:4] = 0.4 / SH_CONSTANTS[1] * torch.tensor([0.45, 0.35, 0.8])[:, None]

    @torch.inference_mode()
    def draw(
        self,
        shape: NDArray | None = None,
        exp: NDArray | None = None,
        tex: NDArray | None = None,
        jaw: float = 0.0,
        yaw: float = 0.0,
        displacement: NDArray | None = None,
        clay: bool = False,
        scale: float = HEAD_SCALE,
    ) -> Image8:
        """One panel (224,224,3). Codes default to zero; jaw and yaw in radians; displacement (256,256) metres."""
        codes = [
            torch.zeros(1, size) if value is None else torch.from_numpy(np.asarray(value, np.float32))[None]
            for value, size in ((shape, 100), (exp, 50), (tex, 50))
        ]
        head = self.flame(codes[0], codes[1], torch.tensor([[0.0, yaw, 0.0, jaw, 0.0, 0.0]]))
        middle = head.landmarks3d[0, 27:36, 1].mean() if scale == FACE_SCALE else head.vertices[0, :, 1].mean()
        seen = project(head.vertices, torch.tensor([[scale, 0.0, -float(middle)]]))
        visible = fragments(rasterize(seen, self.faces, 2 * PANEL, 2 * PANEL), seen, self.faces)
        normals = vertex_normals(head.vertices, self.faces)
        skin = self._albedo(codes[2])
        colour, shade, normal_image, alpha, grid = render_surface(
            visible, self.faces, self.corners, normals, skin, self.light
        )
        if displacement is not None:
            z = torch.from_numpy(displacement)[None, None]
            maps = detail_normals(self.atlas(head.vertices), self.atlas(normals), z, self.mask, torch.zeros(256, 256))
            normal_image = sample_uv(maps, grid) * alpha
            shade = shading(normal_image, self.light)
        image = studio_shading(normal_image) if clay else colour * shade
        blended = (image * alpha + GREY * (1 - alpha)).clamp(0, 1)
        small = torch.nn.functional.avg_pool2d(blended, 2)[0]
        return (small * 255).round().byte().permute(1, 2, 0).numpy()

    def _albedo(self, tex: torch.Tensor) -> torch.Tensor:
        mean, basis = self.bundle.albedo_mean, self.bundle.albedo_basis
        assert mean is not None
        assert basis is not None
        return albedo(tex, torch.from_numpy(mean), torch.from_numpy(basis)).clamp(0, 1)


def identities(studio: Studio) -> list[list[Image8]]:
    """N(0, I) identities in clay: all different, none broken."""
    rng = np.random.default_rng(0)
    return [[studio.draw(shape=rng.standard_normal(100), clay=True) for _ in range(8)] for _ in range(4)]


def leading(studio: Studio) -> list[list[Image8]]:
    """The first six identity components at -2.5 .. 2.5; the first two are sex and age."""
    steps = np.linspace(-2.5, 2.5, 7)
    return [[studio.draw(shape=step * np.eye(100)[row], clay=True) for step in steps] for row in range(6)]


def expressions(studio: Studio) -> list[list[Image8]]:
    """Every expression component at 1, in order, after the open jaw."""
    panels = [studio.draw(jaw=0.3)] + [studio.draw(exp=unit) for unit in np.eye(50)]
    return _rows(panels[:48], 8)


def skin_tones(studio: Studio) -> list[list[Image8]]:
    """The leading albedo component from end to end, then subjects with random albedo."""
    rng = np.random.default_rng(1)
    steps = np.linspace(-2.5, 2.5, 8)
    tones = [studio.draw(tex=step * np.eye(50)[0]) for step in steps]
    return [tones, *([studio.draw(tex=rng.standard_normal(50)) for _ in range(8)] for _ in range(2))]


def albedo_extremes(studio: Studio) -> list[list[Image8]]:
    """The first 24 albedo components at -2.5 and 2.5, side by side."""
    units = np.eye(50)[:24]
    return _rows([studio.draw(tex=sign * 2.5 * unit) for unit in units for sign in (-1, 1)], 8)


def wrinkles(studio: Studio) -> list[list[Image8]]:
    """Five subjects at rest and with four expressions: above without, below with displacement."""
    world, names = World(studio.bundle), studio.bundle.expression_names
    rows: list[list[Image8]] = []
    for index in (0, 3, 4, 7):
        subject = world.subject(2, index)
        flat, bumpy = [], []
        for name in (None, "brow_raise", "smile", "brow_lower", "nose_wrinkle", "cheek_raise"):
            exp = np.zeros(50, np.float32)
            if name is not None:
                exp[names.index(name)] = 1
            truth = world.wrinkles.displacement(subject, exp, np.zeros(3, np.float32))
            flat.append(studio.draw(shape=subject.shape, exp=exp, clay=True, scale=FACE_SCALE))
            bumpy.append(studio.draw(shape=subject.shape, exp=exp, clay=True, scale=FACE_SCALE, displacement=truth))
        rows += [flat, bumpy]
    return rows


def photographs(studio: Studio) -> list[list[Image8]]:
    """Six subjects, seven photographs of each."""
    world = World(studio.bundle)
    subjects = [world.subject(3, index) for index in range(6)]
    return [[world.photograph(one, world.shot(one, image), PANEL).image for image in range(7)] for one in subjects]


SHEETS: dict[str, Callable[[Studio], list[list[Image8]]]] = {
    "identities": identities,
    "leading": leading,
    "expressions": expressions,
    "skin_tones": skin_tones,
    "albedo_extremes": albedo_extremes,
    "wrinkles": wrinkles,
    "photographs": photographs,
}


def _rows(panels: list[Image8], width: int) -> list[list[Image8]]:
    return [panels[start : start + width] for start in range(0, len(panels), width)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs/world"))
    parser.add_argument("--only", choices=SHEETS, help="one sheet")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    studio = Studio(procedural_head())
    for name in [arguments.only] if arguments.only else SHEETS:
        sheet = np.vstack([np.hstack(row) for row in SHEETS[name](studio)])
        path = arguments.folder / f"{name}.jpg"
        Image.fromarray(sheet).save(path, quality=88)
        print(path)


if __name__ == "__main__":
    main()
