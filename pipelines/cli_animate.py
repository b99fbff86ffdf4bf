"""The command that makes heads move."""

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
        list[str] | None, typer.Option(help="Whose head: HEADS#ID, a picture, a video, codes (.npz). Repeatable.")
    ] = None,
    expression: Annotated[
        list[str] | None,
        typer.Option(help="Who moves it: the same, or smile, blink, jaw-open, talk, surprise, frown. Repeatable."),
    ] = None,
    identities: Annotated[
        str | None, typer.Option(metavar="TABLE", help="All of them: a reconstructions/ dataset, or a list of names.")
    ] = None,
    expressions: Annotated[str | None, typer.Option(metavar="TABLE", help="The same for motions.")] = None,
    identities_where: Annotated[
        str | None, typer.Option(metavar="FILTER", help="Rows of that dataset: det_score > 0.9")
    ] = None,
    expressions_where: Annotated[str | None, typer.Option(metavar="FILTER", help="The same for motions.")] = None,
    outputs: Annotated[
        str | None, typer.Option(help=f"Some of {','.join(get_args(AnimateOutput))}. Default all but npz.")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Of presets and single expressions. Default 25.")] = None,
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
    """One face's shape, skin, wrinkles and pose with the expression and jaw of others: codes, maps, clips, GLB.

    Every head is animated with every motion. Goes on where it stopped.

    Examples:

      deca animate moving/ --identity photo.jpg --expression smile --expression talk

      deca animate moving/ --identity heads/#0a1b2c3d4e5f6071-00 --expression clip.mp4

      deca animate moving/ --identity photo.jpg --expression other.jpg --outputs codes,clip --size 512

      deca animate s3://bucket/moving --identities s3://bucket/heads --expressions clips/ --set ray.workers=32

      deca animate pairs/ --identities heads/ --expressions heads/ --set stills=frame --outputs codes,displacement
    """
    options = {
        "dest": dest,
        "identity": identity or None,
        "expression": expression or None,
        "identities": identities,
        "expressions": expressions,
        "identities_where": identities_where,
        "expressions_where": expressions_where,
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
