"""Images/s and time profile of a training step, by stage: `python -m benchmarks.step`.

Random images, untrained networks (including an identity network and a VGG19 of the usual size), Adam. The profile
counts every operation for the part that called it, forward and backward; rendering is rasterise + render.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.common import parser, save
from deca_core import DECA, training
from deca_core.assets import procedural_head
from deca_core.losses import recipe
from deca_core.perceptual import random_vgg19
from deca_core.recognition import random_recognition
from deca_core.training import CoarseStep, DetailStep, FaceBatch

STAGES = ("pretrain", "coarse", "detail")
RENDERING = ("rasterise", "render")
PREFIX = "part: "
# Functions of the step by part; the rest counts as "losses".
FUNCTIONS = {
    "rasterise": ("rasterize",),
    "render": ("fragments", "vertex_normals", "render_surface", "sample_uv", "shading", "detail_normals"),
}
Work = Callable[[], Any]


def labelled(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its operations marked as the part's."""

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        with record_function(PREFIX + part):
            return function(*arguments, **named)

    return call


@contextlib.contextmanager
def parts(step: nn.Module, model: DECA) -> Iterator[None]:
    """Mark every operation of the step with its part while the context is open."""
    with contextlib.ExitStack() as stack:
        for part, names in FUNCTIONS.items():
            for name in names:
                stack.enter_context(mock.patch.object(training, name, labelled(part, getattr(training, name))))
        networks = [
            ("backbone", model.E_flame, "forward"),
            ("backbone", model.E_detail, "forward"),
            ("displacement decoder", model.D_detail, "forward"),
            ("FLAME", model.flame, "forward"),
            ("render", model.atlas, "forward"),
            ("render", model, "albedo"),
            ("identity network", getattr(step, "recognition", None), "features"),
            ("VGG19", getattr(step, "perceptual", None), "forward"),
        ]
        for part, network, name in networks:
            if network is not None:
                stack.enter_context(mock.patch.object(network, name, labelled(part, getattr(network, name))))
        yield


def shares(events: list[Any]) -> dict[str, dict[str, float]]:
    """Return the seconds of every part, forward and backward, of a profiled step.

    A node of the graph runs backward under the sequence number of the operation that made it.
    """
    spent: dict[str, Counter[str]] = {"forward": Counter(), "backward": Counter()}
    owner: dict[int, str] = {}
    backward = []
    for event in events:
        if event.name.startswith("autograd::engine::evaluate_function"):
            backward.append(event)
            continue
        above, inside = event, None
        while above is not None and not above.name.startswith("autograd::engine"):
            if inside is None and above.name.startswith(PREFIX):
                inside = above.name.removeprefix(PREFIX)
            above = above.cpu_parent
        if above is not None:  # inside the backward pass, counted by its node
            continue
        part = inside or "losses"
        if event.name.startswith("Optimizer.step") or part == "optimiser":
            part = "optimiser"
        spent["forward"][part] += event.self_cpu_time_total / 1e6
        if event.sequence_nr >= 0:
            owner.setdefault(event.sequence_nr, part)
    for event in backward:
        spent["backward"][owner.get(event.sequence_nr, "losses")] += event.cpu_time_total / 1e6
    return {direction: dict(counts) for direction, counts in spent.items()}


def build(stage: str, backbone: str, images: int, subjects: int) -> tuple[DECA, nn.Module, FaceBatch]:
    """Return model, step and batch of a stage; random images without a face cost the same."""
    torch.manual_seed(0)
    model = DECA(procedural_head(), backbone).to(memory_format=torch.channels_last)
    weights = recipe("paper")
    if stage == "detail":
        step: nn.Module = DetailStep(model, weights.detail, random_vgg19(weights.detail.mrf_layers))
    elif stage == "coarse":
        step = CoarseStep(model, weights.coarse, random_recognition())
    else:
        step = CoarseStep(model, weights.pretrain)
    pixels = torch.rand(images, 3, 224, 224).to(memory_format=torch.channels_last)
    landmarks = torch.cat([torch.rand(images, 68, 2) * 2 - 1, torch.ones(images, 68, 1)], dim=-1)
    labels = torch.arange(subjects).repeat_interleave(images // subjects)
    batch = FaceBatch(pixels, landmarks, torch.ones(images, 1, 224, 224), labels, images // subjects)
    return model, step.train(), batch


def measure(stage: str, backbone: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the images/s of a step, and the profile of one."""
    model, step, batch = build(stage, backbone, options.images, options.subjects)
    trained = [parameter for parameter in step.parameters() if parameter.requires_grad]
    optimiser, generator = torch.optim.Adam(trained, lr=1e-4), torch.Generator().manual_seed(0)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            loss = step(batch, generator).loss
        loss.backward()
        with record_function(PREFIX + "optimiser"):
            optimiser.step()
            optimiser.zero_grad()

    run()  # compiles and warms up
    seconds = []
    for _ in range(options.steps):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    with parts(step, model), profile(activities=[ProfilerActivity.CPU]) as recorded:
        run()
    spent = shares(list(recorded.events()))
    total = sum(sum(counts.values()) for counts in spent.values())
    names = sorted({name for counts in spent.values() for name in counts})
    share = {name: [spent[way].get(name, 0.0) / total for way in ("forward", "backward")] for name in names}
    return {
        "stage": stage,
        "backbone": backbone,
        "images_per_second": round(options.images / statistics.median(seconds), 2),
        "best_images_per_second": round(options.images / min(seconds), 2),
        "rendering": round(sum(sum(share.get(name, [0.0])) for name in RENDERING), 4),
        "share": {name: [round(value, 4) for value in values] for name, values in share.items()},
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    arguments.add_argument("--backbones", nargs="+", default=["resnet50", "dlib"])
    arguments.add_argument("--images", type=int, default=8, help="in a batch")
    arguments.add_argument("--subjects", type=int, default=4, help="in a batch; must divide the images")
    arguments.add_argument("--steps", type=int, default=3, help="that are timed, after one to warm up")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of the networks")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for backbone in options.backbones:
        for stage in options.stages:
            row = measure(stage, backbone, options)
            rows.append(row)
            print("{backbone} {stage}: {images_per_second} images/s, rendering {rendering:.1%}".format(**row))
            for name, (forward, backward) in sorted(row["share"].items(), key=lambda item: -sum(item[1])):
                print(f"    {name:<22} forward {forward:>6.1%}  backward {backward:>6.1%}", flush=True)
    settings = {"images": options.images, "threads": options.threads, "precision": options.precision}
    save(options, {**settings, "rows": rows})


if __name__ == "__main__":
    main()
