"""How far each precision lies from float32, and what it saves: `python -m benchmarks.precision`.

Codes, vertices and displacement of photographs of procedural people (unseen by the shipped weights), for a checkpoint,
or for an untrained network of a backbone. Limits: deca_core/inference.py. The last line says which precision `auto`
takes on this machine.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deca_core import DECA
from deca_core.assets import procedural_head
from deca_core.checkpoint import SHIPPED, load_checkpoint
from deca_core.crop import crop_transform, square_from_landmarks, warp
from deca_core.inference import LIMITS, Inference, choose_precision, deviation, milliseconds_of
from deca_world import World

SEED = 2**20  # people that no training set of the repository has


def photographs(model: DECA, count: int) -> Tensor:
    """Crops (count,3,224,224) of as many people."""
    world = World(model.bundle)
    crops = []
    for number in range(count):
        person = world.subject(SEED, number)
        taken = world.photograph(person, world.shot(person, 0), 384)
        crops.append(warp(taken.image, crop_transform(square_from_landmarks(taken.landmarks))))
    return torch.from_numpy(np.stack(crops))


def measure(model: DECA, images: Tensor, batch: int, precisions: list[str]) -> dict[str, Any]:
    """Milliseconds a face and the largest and the mean deviations, by precision."""
    exact = Inference(model, "fp32")
    batches = images.split(batch)
    rows: dict[str, Any] = {"fp32": {"ms": milliseconds_of(exact, batches[0])}}
    for name in precisions:
        tried = Inference(model, name)  # type: ignore[arg-type]
        found = [asdict(deviation(model, exact, tried, part)) for part in batches]
        rows[name] = {
            "ms": milliseconds_of(tried, batches[0]),
            "worst": {figure: max(one[figure] for one in found) for figure in found[0]},
            "mean of batches": {figure: float(np.mean([one[figure] for one in found])) for figure in found[0]},
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=str(SHIPPED), help="folder; default: the package's small weights")
    parser.add_argument("--backbone", help="an untrained network of it instead of a checkpoint")
    parser.add_argument("--faces", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precisions", default="bf16", help="with commas: bf16,fp16")
    parser.add_argument("--threads", type=int, default=1, help="of torch, as a worker has")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bundle = procedural_head()
    if options.backbone:
        torch.manual_seed(0)
        model = DECA(bundle, options.backbone)
    else:
        model = load_checkpoint(options.checkpoint, bundle=bundle)
    rows = measure(model, photographs(model, options.faces), options.batch, options.precisions.split(","))
    print(f"{model.backbone}, {options.faces} faces, {options.threads} threads; limits {asdict(LIMITS)}")
    for name, row in rows.items():
        worst = row.get("worst", {})
        words = ", ".join(f"{figure} {value:.3g}" for figure, value in worst.items())
        print(f"{name:<5} {row['ms']:7.2f} ms a face  worst: {words or 'is the measure'}")
    choice = choose_precision(model)
    print(f"auto takes {choice.precision}: {choice.milliseconds}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"backbone": model.backbone, "rows": rows, "choice": asdict(choice)}, file, indent=1)


if __name__ == "__main__":
    main()
