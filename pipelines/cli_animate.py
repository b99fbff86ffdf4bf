"""The command `deca animate`."""

from __future__ import annotations

from typing import Annotated, get_args

import typer

from pipelines.launch import run_flow
from pipelines.options import (
    Bundle,
    Checkpoint,
    Config,
    Dest,
    New,
    Prefect,
    Resume,
    Settings,
    Upgrade,
    UpgradeLimit,
    Workers,
    existing,
    upgrading,
)
from pipelines.settings import resolve
from schemas.animate import AnimateConfig, AnimateOutput

animating = typer.Typer()


@animating.command("animate")
def animate_command(
    dest: Dest,
    identity: Annotated[
        list[str] | None, typer.Option(help="The head: HEADS#ID, an image or a video. Repeatable.")
    ] = None,
    expression: Annotated[
        list[str] | None,
        typer.Option(help="The motion: the same, or smile, blink, jaw-open, talk, surprise, frown. Repeatable."),
    ] = None,
    identities: Annotated[
        str | None, typer.Option(metavar="HEADS", help="All heads of a reconstructions/ dataset.")
    ] = None,
    identities_where: Annotated[
        str | None, typer.Option(metavar="FILTER", help="Rows of that dataset: det_score > 0.9")
    ] = None,
    outputs: Annotated[
        str | None, typer.Option(help=f"Some of {','.join(get_args(AnimateOutput))}. Default all but npz.")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frame rate of presets and single expressions. Default 25.")] = None,
    size: Annotated[int | None, typer.Option(help="Pixels on a side of a clip's views. Default 384.")] = None,
    checkpoint: Checkpoint = None,
    bundle: Bundle = None,
    config: Config = None,
    settings: Settings = [],  # noqa: B006
    workers: Workers = None,
    resume: Resume = False,
    new: New = False,
    upgrade: Upgrade = False,
    upgrade_limit: UpgradeLimit = None,
    prefect: Prefect = False,
) -> int:
    """Animate heads: shape, albedo, detail code and pose of one face, expression and jaw of another.

    Every head is animated with every motion; the same command resumes.

    Examples:

      deca animate moving/ --identity photo.jpg --expression smile --expression talk

      deca animate moving/ --identity heads/#0a1b2c3d4e5f6071-00 --expression clip.mp4

      deca animate moving/ --identity photo.jpg --expression other.jpg --outputs codes,clip --size 512

      deca animate s3://bucket/moving --identities s3://bucket/heads --expression smile --set ray.workers=32
    """
    options = {
        "dest": dest,
        "identity": identity or None,
        "expression": expression or None,
        "identities": identities,
        "identities_where": identities_where,
        "outputs": [name.strip() for name in outputs.split(",")] if outputs else None,
        "fps": fps,
        "size": size,
        "checkpoint": checkpoint,
        "bundle": bundle,
        "ray.workers": workers,
        "existing": existing(resume, new),
        **upgrading(upgrade, upgrade_limit),
    }
    return run_flow("animate", resolve(AnimateConfig, config, settings, options), prefect)
