"""Commands reconstruct, fit and plan."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Literal, get_args

import typer

from pipelines.launch import print_lines
from pipelines.options import (
    COMPLETE,
    Bundle,
    Checkpoint,
    Config,
    Dest,
    PricePerHour,
    Settings,
    Source,
    Workers,
    console,
)
from pipelines.settings import resolve
from pipelines.unit_command import UnitRun, unit_command
from schemas.annotate import Provider
from schemas.flows import UNIT_FLOWS
from schemas.reconstruct import Layout, Output, Precision

reconstructing = typer.Typer()


@unit_command(reconstructing, "reconstruct", extend=True)
def reconstruct_command(
    run: UnitRun,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="Folder, pattern, archive, list, image, video, or a faces/ dataset (any URI)."
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
        Literal["none", "identity"] | None, typer.Option(help="identity: images of one identity share one shape code.")
    ] = None,
    consensus_detail: Annotated[
        bool, typer.Option("--consensus-detail", help="They share the detail code as well.")
    ] = False,
    fps: Annotated[
        float | None, typer.Option(help="Frame rate of a folder of images that are the frames of a video.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="One image: write the result beside it; needs no DEST.")] = False,
    price_per_hour: PricePerHour = None,
) -> int:
    """Images, videos or faces in, codes and displacement maps out. The same command resumes.

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
    }
    if show:
        from pipelines.show import show_image

        return show_image(run, options)
    if dest is None:
        raise typer.BadParameter("DEST is missing: a folder or bucket prefix to write. Only --show goes without")
    return run(options)


@unit_command(reconstructing, "fit", flow="reconstruct", extend=True)
def fit_command(
    run: UnitRun,
    source: Source,
    dest: Dest,
    provider: Annotated[Provider | None, typer.Option(help="Annotator of faces. Default dlib.")] = None,
    bundle: Bundle = None,
) -> int:
    """Images in, codes fitted to the 68 landmarks out: reconstruct without a network, detail and albedo.

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
    }
    return run(options)


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
    """Freeze the plan of SRC in DEST, run a few of its units, and estimate the rest: bytes, hours, money.

    The flow with the same settings resumes from there.

    Examples:

      deca plan photos/ out/ --checkpoint ckpt/

      deca plan s3://bucket/archive.tar s3://bucket/heads --calibrate 8 --price-per-hour 2.5

      deca plan photos/ out/ --flow ingest --calibrate 0
    """
    options = {"source": source, "dest": dest, "checkpoint": checkpoint, "bundle": bundle, "ray.workers": workers}
    resolved = resolve(UNIT_FLOWS[flow].config, config, settings, options)
    from pipelines.places import check_places

    check_places(resolved)
    from pipelines.status import left_out_lines
    from pipelines.summaries import estimate_lines
    from tasks.units.estimate import estimate

    unit_flow = getattr(import_module(f"pipelines.{flow}"), flow)
    resolved = unit_flow.prepare(resolved)
    frozen = unit_flow.freeze_plan(resolved, unit_flow.weights(resolved))
    price_per_hour = getattr(resolved, "price_per_hour", None) if price_per_hour is None else price_per_hour
    console.print(f"{frozen.inputs.items} images in {frozen.units} units, plan {frozen.fingerprint[:8]}, {frozen.dest}")
    found = estimate(frozen, unit_flow.factory(frozen, resolved), unit_flow.ray(resolved), calibrate)
    lines = estimate_lines(found, price_per_hour)
    print_lines([*lines, *left_out_lines(frozen.record)])
    return COMPLETE
