"""Where the time of a training step goes: encoder, rendering and losses, recognition, VGG19, ID-MRF; on the CPU.

    python -m benchmarks.training_step --backbone resnet50 --batch 8

A part is what the step costs with it less what it costs without it, forward and backward, medians of several runs, on
one thread and in CPU time, so that neighbours on the machine do not count.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from deca_core import DECA
from deca_core.assets import procedural_head
from deca_core.codes import NUM_DETAIL
from deca_core.losses import recipe
from deca_core.perceptual import random_vgg19
from deca_core.recognition import random_recognition
from deca_core.training import CoarseStep, DetailStep, FaceBatch, StepOutput


class Table(nn.Module):
    """Codes without a network: what an encoder would answer, as its only parameter."""

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.codes = nn.Parameter(codes.detach().clone())

    def forward(self, images: Tensor) -> Tensor:
        return self.codes * 1


def faces(subjects: int, images_per_subject: int) -> FaceBatch:
    """Noise with landmarks and a mask: the cost depends on sizes alone."""
    generator = torch.Generator().manual_seed(0)
    count = subjects * images_per_subject
    return FaceBatch(
        images=torch.rand(count, 3, 224, 224, generator=generator),
        landmarks=torch.cat([torch.rand(count, 68, 2, generator=generator) * 2 - 1, torch.ones(count, 68, 1)], dim=-1),
        masks=torch.ones(count, 1, 224, 224),
        subjects=torch.arange(subjects).repeat_interleave(images_per_subject),
        images_per_subject=images_per_subject,
    )


def seconds(step: Callable[..., StepOutput], batch: FaceBatch, runs: int, bf16: bool) -> float:
    """Median CPU seconds of a forward and backward pass; the first run warms up."""
    taken = []
    for run in range(runs + 1):
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = step(batch, torch.Generator().manual_seed(run))
        output.loss.backward()
        taken.append(time.process_time() - start)
    return statistics.median(taken[1:])


def coarse_parts(model: DECA, batch: FaceBatch, runs: int, bf16: bool) -> dict[str, float]:
    weights = recipe("paper").coarse
    network = random_recognition()
    whole = seconds(CoarseStep(model, weights, network), batch, runs, bf16)
    plain = dataclasses.replace(weights, identity=0.0)
    encoder = model.E_flame
    with torch.no_grad():
        codes = encoder.train()(batch.images)
    model.E_flame = Table(codes)  # type: ignore[assignment]
    with_identity = seconds(CoarseStep(model, weights, network), batch, runs, bf16)
    rest = seconds(CoarseStep(model, plain), batch, runs, bf16)
    model.E_flame = encoder
    return {
        "encoder E_c": whole - with_identity,
        "recognition": with_identity - rest,
        "FLAME, rendering, losses": rest,
        "step": whole,
    }


def detail_parts(model: DECA, batch: FaceBatch, runs: int, bf16: bool, mrf_size: int) -> dict[str, float]:
    weights = dataclasses.replace(recipe("paper").detail, mrf_size=mrf_size)
    plain = dataclasses.replace(weights, mrf=0.0)
    vgg = random_vgg19(weights.mrf_layers)
    whole = seconds(DetailStep(model, weights, vgg), batch, runs, bf16)
    without = seconds(DetailStep(model, plain), batch, runs, bf16)
    networks = model.E_flame, model.E_detail, model.D_detail
    with torch.no_grad():
        coarse = networks[0].eval()(batch.images)
    model.E_flame, model.E_detail = Table(coarse), Table(torch.randn(len(batch), NUM_DETAIL))  # type: ignore[assignment]
    decoded = seconds(DetailStep(model, plain), batch, runs, bf16)
    model.D_detail = Table(torch.zeros(2 * len(batch), 1, 256, 256))  # type: ignore[assignment]
    rest = seconds(DetailStep(model, plain), batch, runs, bf16)
    model.E_flame, model.E_detail, model.D_detail = networks
    return {
        "encoders E_c (forward), E_d": without - decoded,
        "decoder F_d": decoded - rest,
        "VGG19 and ID-MRF": whole - without,
        "FLAME, UV maps, losses": rest,
        "step": whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images-per-subject", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mrf-size", type=int, default=256)
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = DECA(procedural_head(), arguments.backbone)
    batch = faces(arguments.batch // arguments.images_per_subject, arguments.images_per_subject)
    stages = {
        "coarse": coarse_parts(model, batch, arguments.runs, arguments.bf16),
        "detail": detail_parts(model, batch, arguments.runs, arguments.bf16, arguments.mrf_size),
    }
    for stage, parts in stages.items():
        print(f"\n{stage}: batch {len(batch)}, K {batch.images_per_subject}, {len(batch) / parts['step']:.2f} images/s")
        for name, value in parts.items():
            print(f"  {name:<30}{1000 * value:>9.0f} ms{value / parts['step']:>7.0%}")


if __name__ == "__main__":
    main()
