"""The command that exports heads."""

from __future__ import annotations

from typing import Annotated, get_args

import typer

from pipelines.launch import run_flow
from pipelines.options import (
    Bundle,
    Config,
    Dest,
    Extend,
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
from schemas.export import ExportConfig, Format

exporting = typer.Typer()


@exporting.command("export")
def export_command(
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
        str | None, typer.Option(help="Where the checkpoint of the rows lies now. Default: where it lay then.")
    ] = None,
    bundle: Bundle = None,
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
    """Heads out of reconstructions, for Blender, game engines and notebooks: glTF with skeleton, OBJ, PLY, NPZ.

    Running it again goes on where it stopped. Files lie in DEST/files/ab/<face_id>/.

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
        "ray.workers": workers,
        "existing": existing(resume, new, extend),
        **upgrading(upgrade, upgrade_limit),
    }
    return run_flow("export", resolve(ExportConfig, config, settings, options), prefect)
