"""The `deca` command. Exit code 0: complete, 2: partial (something quarantined or pending), 1: failed."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer
import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from deca_core.assets import BundleError, import_flame, load_bundle, procedural_head
from deca_core.checkpoint import CheckpointError
from pipelines.reconstruct import SUMMARY, check_models, freeze_plan, reconstruct, stored_config
from schemas.reconstruct import ReconstructConfig, ReconstructSummary
from tasks.annotators import AnnotatorError
from tasks.discover import SourceError
from tasks.engine import EngineError
from tasks.plan import PlanError, standing_quarantine
from tasks.plan import status as read_status
from tasks.plan import verify as verify_dataset
from tasks.progress import TerminalProgress
from tasks.storage import StorageError, Store

COMPLETE, FAILED, PARTIAL = 0, 1, 2
KNOWN_ERRORS = (
    AnnotatorError,
    BundleError,
    CheckpointError,
    EngineError,
    PlanError,
    SourceError,
    StorageError,
)

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
assets = typer.Typer(no_args_is_help=True, help="Head models: import FLAME, write the procedural head, show a bundle.")
app.add_typer(assets, name="assets")
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

Dest = Annotated[str, typer.Argument(metavar="DEST", help="Dataset folder or bucket prefix (any fsspec URI).")]
Source = Annotated[str, typer.Argument(metavar="SRC", help="Folder, bucket prefix, tar, zip or picture (any URI).")]
Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file with settings (docs/reconstruct.md lists them).")
]
Settings = Annotated[list[str], typer.Option("--set", "-s", metavar="KEY=VALUE", help="One setting: ray.workers=4.")]
Workers = Annotated[int | None, typer.Option(help="Worker processes; 0 runs in this process without Ray.")]
Checkpoint = Annotated[str | None, typer.Option(help="Checkpoint folder. Without one the network is untrained.")]
Bundle = Annotated[str | None, typer.Option(help="Head bundle folder; default: the procedural head.")]
Prefect = Annotated[bool, typer.Option("--prefect", help="Run as a Prefect flow (also when PREFECT_API_URL is set).")]


class ConfigError(Exception):
    """Settings that cannot be read."""


def main() -> None:
    """Entry point of the console script: every failure ends as one line on stderr and an exit code."""
    log = logging.getLogger("deca")
    log.handlers, log.propagate = [logging.StreamHandler(sys.stderr)], False
    log.setLevel(logging.INFO)
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as error:
        errors.print(f"[bold red]error:[/] {_plain(error)} Try: deca --help", soft_wrap=True)
        code = FAILED
    except (*KNOWN_ERRORS, ConfigError) as error:
        errors.print(f"[bold red]error:[/] {_plain(error)}", soft_wrap=True)
        code = FAILED
    except (KeyboardInterrupt, typer.Abort):
        errors.print("[bold red]stopped.[/] What is committed stays; the same command goes on.")
        code = FAILED
    sys.exit(code or COMPLETE)


def _plain(error: Exception) -> str:
    return str(error).replace("[", r"\[")


@app.command("reconstruct")
def reconstruct_command(
    source: Source,
    dest: Dest,
    checkpoint: Checkpoint = None,
    bundle: Bundle = None,
    config: Config = None,
    settings: Settings = [],  # noqa: B006 typer reads the default, nobody writes it
    workers: Workers = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the plan in DEST as it is.")] = False,
    new: Annotated[bool, typer.Option("--new", help="Drop the plan in DEST with its results.")] = False,
    prefect: Prefect = False,
) -> int:
    """Photos in, codes and displacement maps out. Running it again goes on where it stopped.

    Examples:

      deca reconstruct photos/ out/ --checkpoint ckpt/

      deca reconstruct s3://bucket/archive.tar s3://bucket/heads --set ray.workers=8

      deca reconstruct photo.jpg out/ --workers 0
    """
    if resume and new:
        raise typer.BadParameter("--resume and --new exclude one another")
    resolved = _resolve(
        config,
        settings,
        source=source,
        dest=dest,
        checkpoint=checkpoint,
        bundle=bundle,
        workers=workers,
        existing="resume" if resume else "new" if new else None,
    )
    return _run(resolved, prefect)


@app.command()
def retry(dest: Dest, workers: Workers = None, prefect: Prefect = False) -> int:
    """Try the quarantined rows of a dataset once more, with the settings it was made with.

    Example: deca retry out/
    """
    stored = stored_config(dest)
    ray = stored.ray if workers is None else stored.ray.model_copy(update={"workers": workers})
    return _run(stored.model_copy(update={"existing": "retry", "ray": ray}), prefect)


@app.command()
def plan(
    source: Source,
    dest: Dest,
    checkpoint: Checkpoint = None,
    bundle: Bundle = None,
    config: Config = None,
    settings: Settings = [],  # noqa: B006
) -> int:
    """List SRC and freeze the plan in DEST without doing the work; `reconstruct` with the same settings goes on.

    Example: deca plan photos/ out/
    """
    resolved = _resolve(config, settings, source=source, dest=dest, checkpoint=checkpoint, bundle=bundle)
    frozen = freeze_plan(resolved, check_models(resolved))
    console.print(
        f"{frozen.record.items} pictures in {frozen.units} units, plan {frozen.fingerprint[:8]}, {frozen.dest}"
    )
    return COMPLETE


@app.command()
def status(
    dest: Dest,
    quarantine: Annotated[int, typer.Option(help="How many quarantined rows to list.")] = 10,
) -> int:
    """Where a dataset stands: units, rows, what is in quarantine and why.

    Example: deca status out/ --quarantine 100
    """
    now = read_status(dest)
    table = Table(show_header=False, box=None)
    for name in ("source", "dest", "fingerprint", "code", "items", "units", "committed", "pending", "rows", "bytes"):
        table.add_row(name, str(getattr(now, name)))
    for stage, count in now.quarantined.items():
        table.add_row(f"quarantined: {stage}", str(count))
    console.print(table)
    rows = standing_quarantine(dest)
    for row in rows[:quarantine]:
        face = "" if row.face_index is None else f" face {row.face_index}"
        console.print(f"  {row.uri}{face}  [{row.stage}] {row.error}: {row.message}", markup=False, soft_wrap=True)
    if len(rows) > quarantine:
        console.print(f"  and {len(rows) - quarantine} more; list them with --quarantine {len(rows)}")
    if rows:
        console.print(f"Try them once more with: deca retry {now.dest}", markup=False, soft_wrap=True)
    return COMPLETE if now.complete else PARTIAL


@app.command()
def verify(dest: Dest) -> int:
    """Hash every committed file again; exit code 1 when one is missing, changed or doubled.

    Example: deca verify s3://bucket/heads
    """
    found = verify_dataset(dest)
    for problem in found.problems:
        errors.print(f"[bold red]problem:[/] {problem}")
    for leftover in found.leftovers:
        console.print(f"left over, never read: {leftover}", markup=False)
    console.print(f"{found.files} files hashed, {found.rows} rows, {len(found.problems)} problems")
    return COMPLETE if found.ok else FAILED


@app.command()
def demo(
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="Folder for pictures and results.")] = Path(
        "demo-output"
    ),
) -> int:
    """Make a small archive (a public-domain photograph and rendered heads) and reconstruct it.

    Example: deca demo demo-output
    """
    from pipelines.demo import write_photos

    photos = write_photos(dest / "photos")
    resolved = ReconstructConfig(source=str(photos), dest=str(dest / "reconstructions"), existing="new")
    code = _run(resolved, prefect=False)
    console.print(f"\n  pictures        {photos}")
    console.print(f"  contact sheet   {dest / 'reconstructions' / '_report' / 'contact_sheet.png'}")
    console.print(f"  Parquet parts   {dest / 'reconstructions'}/part-*.parquet")
    return code


@assets.command("import")
def assets_import(
    source: Annotated[Path, typer.Argument(metavar="FLAME_FILES", help="Folder with the licensed files.")],
    dest: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder to write.")],
) -> int:
    """Turn the licensed FLAME files into a bundle. Pickles are read without executing anything.

    The folder holds generic_model.pkl, landmark_embedding.npy, head_template.obj, uv_face_mask.png,
    uv_face_eye_mask.png, fixed_displacement_256.npy and, if you have it, FLAME_albedo_from_BFM.npz.

    Example: deca assets import ~/flame bundle/
    """
    return _show(import_flame(source, dest), dest)


@assets.command("head")
def assets_head(dest: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder to write.")]) -> int:
    """Write the procedural head as a bundle.

    Example: deca assets head bundle/
    """
    bundle = procedural_head()
    bundle.save(dest)
    return _show(bundle, dest)


@assets.command("show")
def assets_show(bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder.")]) -> int:
    """Check a bundle and print what is in it.

    Example: deca assets show bundle/
    """
    return _show(load_bundle(bundle), bundle)


def _show(bundle: Any, folder: Path) -> int:
    table = Table(show_header=False, box=None)
    table.add_row("bundle", f"{bundle.name} ({bundle.source})")
    table.add_row("folder", str(folder))
    table.add_row("hash", bundle.hash)
    table.add_row("albedo", "yes" if bundle.albedo_mean is not None else "none: renderings are grey")
    for name, array in bundle.arrays().items():
        table.add_row(name, f"{array.dtype} {array.shape}")
    console.print(table)
    return COMPLETE


def _resolve(path: Path | None, settings: list[str], **options: Any) -> ReconstructConfig:
    """Settings of the YAML file, then --set, then the command's own options; the later wins."""
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = yaml.safe_load(path.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: expected settings (key: value), found {type(values).__name__}")
    for setting in settings:
        key, found, value = setting.partition("=")
        if not found:
            raise ConfigError(f"--set {setting}: expected KEY=VALUE, as in --set ray.workers=4")
        _put(values, key.split("."), yaml.safe_load(value))
    workers = options.pop("workers", None)
    if workers is not None:
        _put(values, ["ray", "workers"], workers)
    values |= {name: value for name, value in options.items() if value is not None}
    try:
        return ReconstructConfig.model_validate(values)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors()]
        raise ConfigError("settings: " + "; ".join(lines)) from error


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {'.'.join(path)}: {key} is a value, not a group of settings")
        values = inner
    values[path[-1]] = value


def _run(config: ReconstructConfig, prefect: bool) -> int:
    if prefect or os.environ.get("PREFECT_API_URL"):
        from pipelines import flows  # three seconds of imports that a run without Prefect does not pay

        summary = cast(ReconstructSummary, flows.reconstruct(config))
    else:
        with TerminalProgress("reconstruct") as progress:
            summary = reconstruct(config, progress)
    _print_summary(summary)
    return COMPLETE if summary.outcome == "complete" else PARTIAL


def _print_summary(summary: ReconstructSummary) -> None:
    quarantined = ", ".join(f"{count} at {stage}" for stage, count in summary.quarantined.items()) or "none"
    table = Table(show_header=False, box=None)
    table.add_row("outcome", summary.outcome)
    table.add_row("pictures", str(summary.images))
    table.add_row("faces", f"{summary.faces} ({summary.faces_run} by this run, {summary.faces_per_second} faces/s)")
    table.add_row(
        "units", f"{summary.units_run} run, {summary.units_skipped} done before, {summary.pending_units} pending"
    )
    table.add_row("quarantined", quarantined)
    table.add_row("checkpoint", summary.checkpoint)
    table.add_row("contact sheet", summary.contact_sheet or "none: no face")
    table.add_row("summary", Store(summary.dest).join(SUMMARY))
    console.print(table, soft_wrap=True)
    if summary.quarantined:
        console.print(f"Look at them with: deca status {summary.dest}", markup=False, soft_wrap=True)
