"""How much of a head's roll comes out, by how far the photograph is rolled: `python -m benchmarks.roll`.

Photographs of procedural people whom no training set of the repository has, turned about their middle: what dlib finds,
what the shipped weights recover in crops along the image's axes and in crops turned with the face (deca_core/roll.py),
by the true landmarks. The table of docs/conventions.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from deca_core import DECA
from deca_core.assets import procedural_head
from deca_core.checkpoint import SHIPPED, load_checkpoint
from deca_core.crop import crop_transform, square_from_landmarks, warp
from deca_core.flame import rotation_matrix
from deca_core.roll import NEVER, reframed, upright_transform
from deca_world import Limits, Photograph, World
from schemas.annotate import AnnotateConfig
from tasks.annotate.annotators import load_annotator

SEED = 2**20  # people that no training set of the repository has
SIZE = 384
ALWAYS = 0.0  # degrees from which a crop is turned


def rolls(codes_pose: torch.Tensor) -> NDArray[np.float64]:
    """Degrees of R_z in R = R_z R_x R_y: pose (B,6) -> (B,)."""
    head = rotation_matrix(codes_pose[:, :3].double()).numpy()
    return np.asarray(np.degrees(np.arctan2(-head[:, 0, 1], head[:, 1, 1])))


def turned(degrees: float) -> NDArray[np.float64]:
    """Pixels (2,3) to those of the image turned counter-clockwise about its middle."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    linear = np.array([[cosine, sine], [-sine, cosine]])
    middle = np.full(2, (SIZE - 1) / 2)
    return np.column_stack([linear, middle - linear @ middle])


def photographs(world: World, count: int) -> list[Photograph]:
    """One of each of `count` people, within 40 degrees of yaw."""
    people = [world.subject(SEED, number) for number in range(count)]
    return [world.photograph(one, world.shot(one, 0, Limits(yaw=(0, 40))), SIZE) for one in people]


@torch.inference_mode()
def recovered(
    model: DECA, images: Sequence[NDArray[np.uint8]], points: Sequence[NDArray], upright_from: float
) -> NDArray[np.float64]:
    """Degrees of roll that the networks find in the images, (B,), cropped by landmarks (68,2)."""
    seen = np.stack([upright_transform(one, upright_from) for one in points])
    asked = np.stack([crop_transform(square_from_landmarks(one)) for one in points])
    crops = np.stack([warp(image, one) for image, one in zip(images, seen, strict=True)])
    return rolls(reframed(model.encode(crops), model.flame, seen, asked).pose)


def measure(model: DECA, taken: Sequence[Photograph], degrees: float, detect: bool) -> list[str]:
    """The table's row about photographs turned by `degrees`: mean errors, and shares of the roll."""
    spin = turned(degrees)
    images = [(warp(one.image, spin, SIZE) * 255).round().astype(np.uint8).transpose(1, 2, 0) for one in taken]
    points = [one.landmarks @ spin[:, :2].T + spin[:, 2] for one in taken]
    expected = np.concatenate([rolls(one.codes.pose) for one in taken]) + degrees
    row = [f"{degrees:g}°"]
    for limit in (NEVER, ALWAYS):
        off = (recovered(model, images, points, limit) - expected + 180) % 360 - 180
        row += [f"{1 + (off / degrees).mean():.0%}" if degrees else "", f"{np.abs(off).mean():.1f}°"]
    if detect:
        annotator = load_annotator(AnnotateConfig())
        faces = [annotator.detect(image) for image in images]
        found = [place for place, one in enumerate(faces) if one]
        row.append(f"{len(found)} of {len(images)}")
        if found:
            some = [images[place] for place in found]
            marked = [annotator.landmarks(images[place], faces[place][0]) for place in found]
            off = (recovered(model, some, marked, ALWAYS) - expected[found] + 180) % 360 - 180
            row.append(f"{np.abs(off).mean():.1f}°")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=str(SHIPPED), help="folder; default: the package's small weights")
    parser.add_argument("--people", type=int, default=24)
    parser.add_argument("--degrees", default="-90,-75,-60,-45,-30,-15,0,15,30,45,60,75,90", help="with commas")
    parser.add_argument("--no-detect", action="store_true", help="leave dlib out: most of the time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_checkpoint(options.checkpoint, procedural_head())
    taken = photographs(World(model.bundle), options.people)
    print(
        "| Rolled by | axes: share | off by | turned: share | off by | dlib finds | turned by its landmarks: off by |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for degrees in map(float, options.degrees.split(",")):
        row = measure(model, taken, degrees, not options.no_detect)
        print(f"| {' | '.join(row + [''] * (7 - len(row)))} |", flush=True)


if __name__ == "__main__":
    main()
