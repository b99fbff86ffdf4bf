"""The figures of docs/conventions.md, drawn by the code they describe: `python -m tools.figures docs/conventions`.

Axes, camera, pose, landmarks, UV maps, order of the codes; all on the procedural head.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from deca_core.assets import procedural_head
from deca_core.camera import project, to_pixels
from deca_core.codes import COARSE_LENGTHS, NUM_DETAIL
from deca_core.flame import FLAME, Head, rotation_matrix
from deca_core.raster import rasterize
from deca_core.render import fragments, studio_shading, vertex_normals
from deca_core.uv import UVAtlas
from deca_world import World

PANEL = 300  # pixels on a side of most panels, drawn at twice that and averaged
QUALITY = 85
PAPER, INK, QUIET = (250, 250, 251), (34, 37, 43), (120, 126, 138)
RED, GREEN, BLUE, ORANGE = (200, 48, 48), (40, 140, 60), (50, 100, 200), (226, 120, 20)
CAM = (6.8, 0.0, 0.0)  # s, tx, ty of a head that fills the image

Vector = tuple[float, float, float]
Draw = ImageDraw.ImageDraw


@cache
def flame() -> FLAME:
    return FLAME(procedural_head())


@cache
def centre() -> Vector:
    """Return the centre of the neutral head, on which the axes figures are centred."""
    x, y, z = flame().v_template.mean(0).tolist()
    return x, y, z


def posed(pose: Sequence[float] = (0,) * 6) -> Head:
    """The mean head in a pose."""
    with torch.inference_mode():
        return flame()(torch.zeros(1, 100), torch.zeros(1, 50), torch.tensor([pose], dtype=torch.float32))


def clay(vertices: torch.Tensor, cam: Sequence[float], size: int = PANEL) -> Image.Image:
    """The head (1,V,3) in grey clay as the camera cam = s, tx, ty sees it."""
    faces = torch.from_numpy(procedural_head().faces)
    seen = project(vertices, torch.tensor([cam], dtype=torch.float32))
    visible = fragments(rasterize(seen, faces, 2 * size, 2 * size), seen, faces)
    normals = visible.vertex_attributes(vertex_normals(vertices, faces), faces)
    paper = torch.tensor(PAPER)[None, :, None, None] / 255
    image = studio_shading(normals) * visible.alpha + paper * (1 - visible.alpha)
    pixels = torch.nn.functional.avg_pool2d(image, 2)[0].clamp(0, 1)
    return Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy())


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def caption(panel: Image.Image, title: str, below: str = "") -> Image.Image:
    """The panel under a title, above a line of text."""
    page = Image.new("RGB", (panel.width, panel.height + 30 + (26 if below else 0)), PAPER)
    page.paste(panel, (0, 30))
    draw = ImageDraw.Draw(page)
    draw.text((panel.width / 2, 15), title, fill=INK, font=font(17), anchor="mm")
    if below:
        draw.text((panel.width / 2, page.height - 14), below, fill=QUIET, font=font(14), anchor="mm")
    return page


def beside(panels: Sequence[Image.Image], gap: int = 8) -> Image.Image:
    """Panels in a row."""
    page = Image.new("RGB", (sum(one.width + gap for one in panels) - gap, max(one.height for one in panels)), PAPER)
    left = 0
    for one in panels:
        page.paste(one, (left, 0))
        left += one.width + gap
    return page


def arrow(draw: Draw, start: Sequence[float], end: Sequence[float], colour: tuple[int, int, int], text: str) -> None:
    """An arrow with its name behind the tip; a ringed dot where it points at the viewer."""
    (x0, y0), (x1, y1) = start, end
    length = math.hypot(x1 - x0, y1 - y0)
    if length < 4:
        for radius, fill in ((9, colour), (6, PAPER), (3, colour)):
            draw.ellipse((x0 - radius, y0 - radius, x0 + radius, y0 + radius), fill=fill)
        draw.text((x0 - 14, y0 + 16), text, fill=colour, font=font(19), anchor="mm")
        return
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    draw.line((x0, y0, x1 - 8 * ux, y1 - 8 * uy), fill=colour, width=3)
    wing = [(x1 - 13 * ux - 6 * side * uy, y1 - 13 * uy + 6 * side * ux) for side in (1, -1)]
    draw.polygon([(x1, y1), *wing], fill=colour)
    draw.text((x1 + 13 * ux, y1 + 13 * uy), text, fill=colour, font=font(19), anchor="mm")


# --- the figures ------------------------------------------------------------------------------------------------------


def axes() -> Image.Image:
    """World axes at the head's origin, from the front, from the subject's left, and oblique."""
    views = {"front": (0.0, 0.0), "subject's left": (0.0, -math.pi / 2), "oblique": (0.35, -0.7)}
    return beside([caption(_axes_from(*turn), title) for title, turn in views.items()])


def _axes_from(pitch: float, yaw: float) -> Image.Image:
    """The head and the axes, rotated instead of the camera."""
    turn = rotation_matrix(torch.tensor([pitch, 0.0, 0.0])) @ rotation_matrix(torch.tensor([0.0, yaw, 0.0]))
    middle = torch.tensor(centre())
    cam = torch.tensor([[6.6, 0.0, 0.0]])
    panel = clay((posed().vertices - middle) @ turn.T, cam[0].tolist())
    ends = torch.cat([torch.zeros(1, 3), 0.13 * torch.eye(3)])[None]
    pixels = to_pixels(project((ends - middle) @ turn.T, cam)[0, :, :2], PANEL).tolist()
    draw = ImageDraw.Draw(panel)
    for name, colour, end in sorted(zip("xyz", (RED, GREEN, BLUE), pixels[1:], strict=True), reverse=True):
        arrow(draw, pixels[0], end, colour, name)
    return panel


def camera() -> Image.Image:
    """The effect of s, tx and ty on the image, with the image axes."""
    panels = []
    for title, cam in (
        ("cam = (6.8, 0, 0)", CAM),
        ("s = 9", (9.0, 0.0, 0.0)),
        ("tx = +0.03", (6.8, 0.03, 0.0)),
        ("ty = +0.03", (6.8, 0.0, 0.03)),
    ):
        panel = clay(posed().vertices, cam, 250)
        draw = ImageDraw.Draw(panel)
        draw.rectangle((0, 0, 249, 249), outline=QUIET)
        arrow(draw, (125, 125), (217, 125), RED, "x")
        arrow(draw, (125, 125), (125, 217), GREEN, "y")
        for place, text, anchor in (((6, 4), "(-1, -1)", "la"), ((244, 244), "(1, 1)", "rd")):
            draw.text(place, text, fill=INK, font=font(14), anchor=anchor)
        panels.append(caption(panel, title))
    return beside(panels)


def pose() -> Image.Image:
    """Every rotation alone, positive."""
    names = ("pose[0]", "pose[1]", "pose[2]", "pose[3], jaw")
    words = ("nods: face down", "turns to its left", "tilts to its right", "opens the mouth")
    panels = [caption(clay(posed().vertices, CAM, 250), "pose = 0", "at rest")]
    for index, (name, word) in enumerate(zip(names, words, strict=True)):
        angle = [0.0] * 6
        angle[index] = 0.3
        panels.append(caption(clay(posed(angle).vertices, CAM, 250), f"{name} = +0.3", word))
    return beside(panels, gap=4)


def landmarks() -> Image.Image:
    """The 68 points by number; and on a rotated head those that follow the contour against those fixed on the face."""
    cam, size = (9.6, 0.0, 0.012), 560
    front = _numbered(posed(), cam, size)
    turned = posed((0.0, -0.6, 0.0, 0.0, 0.0, 0.0))
    cam = (9.6, 0.03, 0.012)
    panel = clay(turned.vertices, cam, size)
    draw = ImageDraw.Draw(panel)
    for points, colour in ((turned.landmarks3d, BLUE), (turned.landmarks2d, ORANGE)):
        for x, y in to_pixels(project(points, torch.tensor([cam]))[0, :17, :2], size).tolist():
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
    draw.text((10, size - 46), "landmarks2d", fill=ORANGE, font=font(16))
    draw.text((10, size - 26), "landmarks3d", fill=BLUE, font=font(16))
    titles = "68 points, iBUG order", "points 0 to 16: 2D follow the contour, 3D the face"
    return beside([caption(one, title) for one, title in zip((front, panel), titles, strict=True)])


def _numbered(head: Head, cam: Sequence[float], size: int) -> Image.Image:
    panel = clay(head.vertices, cam, size)
    draw = ImageDraw.Draw(panel)
    points = to_pixels(project(head.landmarks2d, torch.tensor([cam]))[0, :, :2], size).numpy()
    middle = points.mean(0)
    for index, (x, y) in enumerate(points.tolist()):
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=ORANGE)
        away = (points[index] - middle) / np.linalg.norm(points[index] - middle)
        at = points[index] + (11 * away if index < 27 else np.array([0, 9 if index >= 60 else -9]))
        draw.text((float(at[0]), float(at[1])), str(index), fill=INK, font=font(11), anchor="mm")
    return panel


def uv() -> Image.Image:
    """The UV maps: the atlas, albedo, the mask of the detail, a displacement."""
    bundle = procedural_head()
    size = 256
    world = World(bundle)
    exp = np.zeros(50, np.float32)
    exp[bundle.expression_names.index("brow_raise")] = 1
    wrinkles = world.wrinkles.displacement(world.subject(2, 3), exp, np.zeros(3, np.float32))
    assert bundle.albedo_mean is not None
    position = UVAtlas(bundle)(torch.from_numpy(bundle.v_template)[None])[0].numpy()
    covered = (np.abs(position).sum(0) > 0)[None]
    low, high = bundle.v_template.min(0)[:, None, None], bundle.v_template.max(0)[:, None, None]
    paper = np.array(PAPER, np.float32)[:, None, None] / 255
    maps = (
        ("position", np.where(covered, (position - low) / (high - low), paper), "x, y, z as red, green, blue"),
        ("albedo, mean", bundle.albedo_mean, "RGB in [0, 1]"),
        ("face and eye mask", bundle.face_eye_mask[None].repeat(3, 0), "where detail counts"),
        ("displacement", (0.5 + wrinkles[None] / 0.002).repeat(3, 0), "grey 0, white +1 mm"),
    )
    panels = []
    for title, values, below in maps:
        pixels = (np.asarray(values).clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
        framed = Image.new("RGB", (size + 44, size + 44), PAPER)
        framed.paste(Image.fromarray(pixels), (30, 12))
        draw = ImageDraw.Draw(framed)
        arrow(draw, (30, size + 20), (30 + 90, size + 20), RED, "u")
        arrow(draw, (20, size + 12), (20, size - 78), GREEN, "v")
        panels.append(caption(framed, title, below))
    return beside(panels, gap=0)


def codes() -> Image.Image:
    """The code vectors as a strip, to scale except the short ones."""
    page = Image.new("RGB", (1200, 132), PAPER)
    draw = ImageDraw.Draw(page)
    colours = (BLUE, (150, 110, 70), ORANGE, GREEN, (140, 80, 160), (190, 160, 30), RED)
    entries = [*COARSE_LENGTHS.items(), ("detail", NUM_DETAIL)]
    left, first = 10.0, 0
    for (name, length), colour in zip(entries, colours, strict=True):
        width = max(2.6 * length, 62)
        if name == "detail":
            left, first = left + 26, 0
        draw.rectangle((left, 42, left + width - 2, 92), fill=colour)
        draw.text((left + width / 2, 67), f"{name} {length}", fill="white", font=font(15), anchor="mm")
        draw.text((left + 1, 106), str(first), fill=QUIET, font=font(13), anchor="lm")
        left, first = left + width, first + length
    draw.text((10, 20), f"E_c: {sum(COARSE_LENGTHS.values())} coarse codes", fill=INK, font=font(17), anchor="lm")
    draw.text((left, 20), f"E_d: {NUM_DETAIL}", fill=INK, font=font(17), anchor="rm")
    return page.crop((0, 0, round(left) + 10, page.height))


FIGURES: dict[str, Callable[[], Image.Image]] = {
    "axes": axes,
    "camera": camera,
    "pose": pose,
    "landmarks": landmarks,
    "uv": uv,
    "codes": codes,
}


def main(folder: Path) -> None:
    """Write every figure as a JPEG into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in FIGURES.items():
        path = folder / f"{name}.jpg"
        make().save(path, quality=QUALITY, optimize=True)
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/conventions"))
