"""Commands export and animate."""

from __future__ import annotations

from typing import Annotated, get_args

import typer

from pipelines.options import Bundle, Checkpoint, Dest
from pipelines.unit_command import UnitRun, unit_command
from schemas.animate import AnimateOutput
from schemas.export import Format

heads = typer.Typer()


@unit_command(heads, "export", extend=True)
def export_command(
    run: UnitRun,
    source: Annotated[str, typer.Argument(metavar="RECONSTRUCTIONS", help="Dataset of deca reconstruct (any URI).")],
    dest: Dest,
    formats: Annotated[
        str | None, typer.Option("--format", help=f"Some of {','.join(get_args(Format))}. Default glb.")
    ] = None,
    ids: Annotated[
        list[str] | None, typer.Option("--id", help="A face_id, image_id or identity_id; more with more --id.")
    ] = None,
    where: Annotated[str | None, typer.Option(help="Only rows that a filter lets through: 'det_score > 0.9'.")] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="obj, ply, npz: also the detailed surface, a vertex a texel.")
    ] = False,
    expressions: Annotated[
        int | None,
        typer.Option(help="glb: morph targets for the first N expression components. Default 10, at most 50."),
    ] = None,
    sparse: Annotated[
        bool | None,
        typer.Option(
            "--sparse/--dense-morphs", help="glb: smaller morph targets, which some importers refuse. Default dense."
        ),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Where the checkpoint of the rows is now. Default: where it was then.")
    ] = None,
    bundle: Bundle = None,
) -> int:
    """Heads out of reconstructions, for Blender, game engines and notebooks: glTF with skeleton, OBJ, PLY, NPZ.

    The same command resumes. Files are written to DEST/files/ab/<face_id>/.

    Examples:

      deca export heads/ meshes/

      deca export heads/ meshes/ --format glb,obj --dense --id 8c1f0a6f3b1d2e4a-00

      deca export s3://bucket/heads s3://bucket/meshes --where "det_score > 0.9 and identity_id != 'eve'"

      deca export heads/ meshes/ --expressions 50 --extend
    """
    options = {
        "source": source,
        "dest": dest,
        "formats": [name.strip() for name in formats.split(",")] if formats else None,
        "ids": ids or None,
        "where": where,
        "dense": dense or None,
        "expressions": expressions,
        "sparse": sparse,
        "checkpoint": checkpoint,
        "bundle": bundle,
    }
    return run(options)


@unit_command(heads, "animate")
def animate_command(
    run: UnitRun,
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
    }
    return run(options)
