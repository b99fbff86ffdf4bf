"""The synth flow: images of procedural subjects, and the truth about them."""

from __future__ import annotations

from typing import Any

from pipelines.unit_flow import Inputs, Lines, UnitFlow, effective_config, rate
from schemas.world import SynthConfig, SynthSummary
from tasks.measure.synth import PHOTOS, SynthWorker, truth_dest, world_items, world_source
from tasks.models.loading import bundle_at
from tasks.store.storage import Store
from tasks.units.engine import RunSummary
from tasks.units.plan import Plan
from tasks.units.verify import Status


def prepare(config: SynthConfig) -> SynthConfig:
    """Return the effective config; the dataset is the truth beside the images."""
    return effective_config(config, truth_dest(config))


def check_bundle(config: SynthConfig) -> dict[str, str]:
    """Return the hash of the head."""
    return {"bundle": bundle_at(config.bundle).hash}


def number_images(config: SynthConfig) -> Inputs:
    """Return the world's images. A tar file is a unit: its bytes must not depend on the machine."""
    return Inputs(world_source(config), world_items(config), sized_by_workers=config.layout != "tar")


def figures(plan: Plan, config: SynthConfig, run: RunSummary, now: Status) -> dict[str, Any]:
    """Return the summary's own fields."""
    return {
        "photos": Store(config.dest).join(PHOTOS),
        "truth": now.dest,
        "identities": config.identities,
        "images": now.rows,
        "images_per_second": rate(run),
    }


def lines(summary: SynthSummary) -> Lines:
    """Return the summary's own lines."""
    return [
        ("images", f"{summary.images} of {summary.identities} subjects ({summary.images_per_second} a second)"),
        ("folder", summary.photos),
        ("truth", summary.truth),
    ]


synth = UnitFlow(
    name="synth",
    worker=SynthWorker,
    weights=check_bundle,
    inputs=number_images,
    summary=SynthSummary,
    figures=figures,
    lines=lines,
    prepare=prepare,
    dest=truth_dest,
    ray=lambda config: config.ray.without_gpus(),
)
