"""Commands that reconstruct: from photographs or faces, by networks or by fitting, and what it will take."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from pipelines.launch import print_lines, run_flow
from pipelines.options import (
    COMPLETE,
    Bundle,
    Checkpoint,
    Config,
    Dest,
    Extend,
    New,
    Prefect,
    PricePerHour,
    Resume,
    Settings,
    Source,
    Upgrade,
    UpgradeLimit,
    Workers,
    console,
    existing,
    upgrading,
)
from pipelines.settings import resolve
from schemas.annotate import Provider
from schemas.ingest import IngestConfig
from schemas.reconstruct import Layout, Output, Precision, ReconstructConfig

if TYPE_CHECKING:
    from tasks.units.engine import Factory
    from tasks.units.plan import Plan

reconstructing = typer.Typer()


@reconstructing.command("reconstruct")
def reconstruct_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="Folder, pattern, archive, list, picture, video, or a faces/ dataset (any URI)."
        ),
    ],
    dest: Annotated[
        str | None, typer.Argument(metavar="DEST", help="Dataset folder or bucket prefix (any fsspec URI).")
    ] = None,
    checkpoint: Checkpoint = None,
    bundle: Bundle = None,
    outputs: Annotated[
        str | None, typer.Option(help=f"Some of {','.join(get_args(Output))}. Default codes,displacement.")
    ] = None,
    layout: Annotated[
        Layout | None, typer.Option(help="Displacement maps in a column (default), or as 16-bit PNG files.")
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="auto (default): the fastest here whose error stays in its bounds.")
    ] = None,
    consensus: Annotated[
        Literal["none", "identity"] | None, typer.Option(help="identity: pictures of one person share one skull.")
    ] = None,
    consensus_detail: Annotated[
        bool, typer.Option("--consensus-detail", help="They share the detail code as well.")
    ] = False,
    fps: Annotated[
        float | None, typer.Option(help="Pictures in a folder are the frames of a clip, so many a second.")
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="One picture: write what was found beside it; goes without DEST.")
    ] = False,
    price_per_hour: PricePerHour = None,
    config: Config = None,
    settings: Settings = [],  # noqa: B006 typer reads the default, nobody writes it
    workers: Workers = None,
    resume: Resume = False,
    extend: Extend = False,
    new: New = False,
    upgrade: Upgrade = False,
    upgrade_limit: UpgradeLimit = None,
    prefect: Prefect = False,
) -> int:
    """Photos, videos or faces in, codes and displacement maps out. Running it again goes on where it stopped.

    Examples:

      deca reconstruct photos/ out/ --checkpoint ckpt/

      deca reconstruct s3://bucket/archive.tar s3://bucket/heads --set ray.workers=8

      deca reconstruct photo.jpg out/ --workers 0

      deca reconstruct 's3://bucket/**/*.jpg' s3://bucket/heads --extend

      deca reconstruct people/faces heads/ --outputs codes,displacement,texture --precision bf16

      deca reconstruct photos/ out/ --layout files

      deca reconstruct clip.mp4 out/

      deca reconstruct frames/ out/ --fps 25

      deca reconstruct photo.jpg --show
    """
    options = {
        "source": source,
        "dest": dest,
        "checkpoint": checkpoint,
        "bundle": bundle,
        "outputs": [name.strip() for name in outputs.split(",")] if outputs else None,
        "layout": layout,
        "precision": precision,
        "consensus": consensus,
        "consensus_detail": consensus_detail or None,
        "video.fps": fps,
        "price_per_hour": price_per_hour,
        "ray.workers": workers,
        "existing": existing(resume, new, extend),
        **upgrading(upgrade, upgrade_limit),
    }
    if show:
        from pipelines.show import show_picture

        return show_picture(options, config, settings, prefect)
    if dest is None:
        raise typer.BadParameter("DEST is missing: a folder or bucket prefix to write. Only --show goes without")
    return run_flow("reconstruct", resolve(ReconstructConfig, config, settings, options), prefect)


@reconstructing.command("fit")
def fit_command(
    source: Source,
    dest: Dest,
    provider: Annotated[Provider | None, typer.Option(help="Who finds and marks faces. Default dlib.")] = None,
    bundle: Bundle = None,
    config: Config = None,
    settings: Settings = [],  # noqa: B006
    workers: Workers = None,
    resume: Resume = False,
    extend: Extend = False,
    new: New = False,
    upgrade: Upgrade = False,
    upgrade_limit: UpgradeLimit = None,
    prefect: Prefect = False,
) -> int:
    """Photos in, codes fitted to the 68 landmarks out: reconstruct without a network, detail and albedo.

    Examples:

      deca fit photos/ out/

      deca fit photos/ out/ --provider sidecar

      deca fit s3://bucket/archive.tar s3://bucket/fits --set annotate.landmarks=face_alignment
    """
    options = {
        "source": source,
        "dest": dest,
        "codes": "landmarks",
        "annotate.provider": provider,
        "bundle": bundle,
        "ray.workers": workers,
        "existing": existing(resume, new, extend),
        **upgrading(upgrade, upgrade_limit),
    }
    return run_flow("reconstruct", resolve(ReconstructConfig, config, settings, options), prefect)


@reconstructing.command()
def plan(
    source: Source,
    dest: Dest,
    flow: Annotated[Literal["reconstruct", "ingest"], typer.Option(help="The command to plan for.")] = "reconstruct",
    checkpoint: Checkpoint = None,
    bundle: Bundle = None,
    calibrate: Annotated[
        int, typer.Option(min=0, help="Units to run first, for the estimate; they count as done. 0: none.")
    ] = 2,
    price_per_hour: PricePerHour = None,
    config: Config = None,
    settings: Settings = [],  # noqa: B006
    workers: Workers = None,
) -> int:
    """Freeze the plan of SRC in DEST, run a few of its units, and say what the rest takes: bytes, hours, money.

    The flow with the same settings goes on from there.

    Examples:

      deca plan photos/ out/ --checkpoint ckpt/

      deca plan s3://bucket/archive.tar s3://bucket/heads --calibrate 8 --price-per-hour 2.5

      deca plan photos/ out/ --flow ingest --calibrate 0
    """
    options = {"source": source, "dest": dest, "checkpoint": checkpoint, "bundle": bundle, "ray.workers": workers}
    settled: IngestConfig | ReconstructConfig
    if flow == "ingest":
        settled = resolve(IngestConfig, config, settings, options)
    else:
        settled = resolve(ReconstructConfig, config, settings, options)
    from pipelines.places import check_places

    check_places(settled)
    from pipelines import ingest as ingest_flow
    from pipelines import reconstruct as reconstruct_flow
    from pipelines.status import left_out_lines
    from pipelines.summaries import estimate_lines
    from tasks.annotate.annotate import AnnotateWorker
    from tasks.units.estimate import estimate

    frozen: Plan
    factory: Factory
    if isinstance(settled, IngestConfig):
        ingesting = ingest_flow.settle(settled)
        frozen = ingest_flow.freeze_plan(ingesting, ingest_flow.check_annotators(ingesting))
        ray, factory = ingest_flow.ray_of(ingesting), partial(AnnotateWorker, ingesting)
    else:
        rebuilding = reconstruct_flow.prepare(settled)
        frozen = reconstruct_flow.freeze_plan(rebuilding, reconstruct_flow.check_models(rebuilding))
        ray, factory = rebuilding.ray, reconstruct_flow.workers_of(frozen, rebuilding)
        price_per_hour = rebuilding.price_per_hour if price_per_hour is None else price_per_hour
    console.print(
        f"{frozen.inputs.items} pictures in {frozen.units} units, plan {frozen.fingerprint[:8]}, {frozen.dest}"
    )
    lines = estimate_lines(estimate(frozen, factory, ray, calibrate), price_per_hour)
    print_lines([*lines, *left_out_lines(frozen.record)])
    return COMPLETE
