"""Pack trained weights as the package ships them, and print the deviation of half precision.

    python -m tools.shipped trained/model deca_core/weights

The model card stays. Prints the size, and how far codes, vertices and displacement deviate from those of the float32
weights, over random photographs of the world.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from deca_core.assets import procedural_head
from deca_core.checkpoint import WEIGHTS_FILE, load_checkpoint, save_shipped
from deca_world import World

CARD = "README.md"
SUBJECTS, IMAGES, SEED = 8, 2, 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path, help="model/ in the DEST of deca train")
    parser.add_argument("folder", type=Path, help="deca_core/weights")
    options = parser.parse_args()
    bundle = procedural_head()
    card = options.folder / CARD
    text = card.read_text() if card.exists() else None
    save_shipped(options.trained, options.folder, bundle)  # replaces the whole folder
    if text is not None:
        card.write_text(text)
    full, half = load_checkpoint(options.trained, bundle), load_checkpoint(options.folder, bundle)
    world = World(bundle)
    subjects = [world.subject(SEED, index) for index in range(SUBJECTS) for _ in range(IMAGES)]
    photographs = [world.photograph(one, world.shot(one, at % IMAGES)).image for at, one in enumerate(subjects)]
    images = torch.from_numpy(np.stack(photographs)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        codes = [model.encode(images) for model in (full, half)]
        heads = [model.decode(own) for model, own in zip((full, half), codes, strict=True)]
    size = (options.folder / WEIGHTS_FILE).stat().st_size
    apart = max(
        float((b - a).abs().max() / a.abs().max()) for (_, a), (_, b) in zip(*(c.items() for c in codes), strict=True)
    )
    vertices, displacement = (
        float((getattr(heads[1], name) - getattr(heads[0], name)).abs().max()) for name in ("vertices", "z")
    )
    print(f"{options.folder / WEIGHTS_FILE}: {size / 1e6:.2f} MB")
    print(f"float16 against float32, largest of {len(images)} faces: codes {apart:.2%} of the largest of their kind")
    print(f"vertices {vertices * 1e3:.3f} mm, displacement {displacement * 1e6:.1f} um")


if __name__ == "__main__":
    main()
