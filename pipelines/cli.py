"""The `deca` command. Exit code 0: complete, 2: partial (something quarantined or pending), 1: failed."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from deca_core.assets import BundleError, import_flame, load_bundle, procedural_head
from deca_core.checkpoint import CheckpointError
from pipelines import ingest as ingest_flow
from pipelines import reconstruct as reconstruct_flow
from pipelines.settings import ConfigError, resolve
from pipelines.stages import find_faces, planned_dataset, stored_config
from pipelines.summaries import StatusReport, megabytes, summary_lines, superseded
from pipelines.synth import synth
from schemas.annotate import Provider
from schemas.ingest import IngestConfig
from schemas.reconstruct import ReconstructConfig
from schemas.world import SynthConfig
from tasks.annotators import AnnotatorError
from tasks.card import README, is_up_to_date, write_card
from tasks.discover import SourceError
from tasks.engine import EngineError
from tasks.identities import IdentityError
from tasks.plan import Plan, PlanError, load_plan
from tasks.progress import TerminalProgress
from tasks.storage import StorageError, Store
from tasks.verify import Verification
from tasks.verify import verify as verify_dataset
from tasks.versions import FacesError, gc, verify_faces

COMPLETE, FAILED, PARTIAL = 0, 1, 2
KNOWN_ERRORS = (
    AnnotatorError,
    BundleError,
    CheckpointError,
    ConfigError,
    EngineError,
    FacesError,
    IdentityError,
    PlanError,
    SourceError,
    StorageError,
)
FLOWS: dict[str, tuple[Any, Any]] = {
    "ingest": (IngestConfig, ingest_flow.ingest),
    "reconstruct": (ReconstructConfig, reconstruct_flow.reconstruct),
    "synth": (SynthConfig, synth),
}

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
assets = typer.Typer(no_args_is_help=True, help="Head models: import FLAME, write the procedural head, show a bundle.")
app.add_typer(assets, name="assets")
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

Dest = Annotated[str, typer.Argument(metavar="DEST", help="Dataset folder or bucket prefix (any fsspec URI).")]
Source = Annotated[str, typer.Argument(metavar="SRC", help="Folder, pattern, archive, list or picture (any URI).")]
Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file with settings (docs/<command>.md lists them).")
]
Settings = Annotated[list[str], typer.Option("--set", "-s", metavar="KEY=VALUE", help="One setting: ray.workers=4.")]
Workers = Annotated[int | None, typer.Option(help="Worker processes; 0 runs in this process without Ray.")]
Checkpoint = Annotated[str | None, typer.Option(help="Checkpoint folder. Without one the network is untrained.")]
Bundle = Annotated[str | None, typer.Option(help="Head bundle folder; default: the procedural head.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the plan in DEST as it is.")]
New = Annotated[bool, typer.Option("--new", help="Drop the plan in DEST with its results.")]
Extend = Annotated[bool, typer.Option("--extend", help="Add what is new or changed in SRC to the dataset.")]
Prefect = Annotated[bool, typer.Option("--prefect", help="Run as a Prefect flow (also when PREFECT_API_URL is set).")]


class _Lines(logging.Handler):
    """Log lines on what stderr is at that moment: while a progress bar is shown, it puts them above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def main() -> None:
    """Entry point of the console script: every failure ends as one line on stderr and an exit code."""
    log = logging.getLogger("deca")
    log.handlers, log.propagate = [_Lines()], False
    log.setLevel(logging.INFO)
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as error:
        errors.print(f"[bold red]error:[/] {_plain(error)} Try: deca --help", soft_wrap=True)
        code = FAILED
    except KNOWN_ERRORS as error:
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
    resume: Resume = False,
    extend: Extend = False,
    new: New = False,
    prefect: Prefect = False,
) -> int:
    """Photos in, codes and displacement maps out. Running it again goes on where it stopped.

    Examples:

      deca reconstruct photos/ out/ --checkpoint ckpt/

      deca reconstruct s3://bucket/archive.tar s3://bucket/heads --set ray.workers=8

      deca reconstruct photo.jpg out/ --workers 0

      deca reconstruct 's3://bucket/**/*.jpg' s3://bucket/heads --extend
    """
    options = {
        "source": source,
        "dest": dest,
        "checkpoint": checkpoint,
        "bundle": bundle,
        "ray.workers": workers,
        "existing": _existing(resume, new, extend),
    }
    return _run("reconstruct", resolve(ReconstructConfig, config, settings, options), prefect)


@app.command("ingest")
def ingest_command(
    source: Source,
    dest: Dest,
    pattern: Annotated[
        str | None, typer.Option(help="Where a path below SRC names the person: '{identity}/{image}'.")
    ] = None,
    provider: Annotated[Provider | None, typer.Option(help="Who finds and marks faces. Default dlib.")] = None,
    min_images: Annotated[int | None, typer.Option(help="Faces that an identity needs. Default 1.")] = None,
    regroup: Annotated[bool, typer.Option("--regroup", help="Forget who is who and cluster everything anew.")] = False,
    config: Config = None,
    settings: Settings = [],  # noqa: B006
    workers: Workers = None,
    resume: Resume = False,
    extend: Extend = False,
    new: New = False,
    prefect: Prefect = False,
) -> int:
    """Any archive of photographs in, faces sorted by identity out. Running it again adds what is new in SRC.

    Examples:

      deca ingest photos/ out/

      deca ingest s3://bucket/people s3://bucket/faces --pattern '{identity}/{image}' --min-images 2

      deca ingest list.csv out/ --provider facexlib --set annotate.weights_uri=s3://models/faces

      deca ingest photos/ out/ --set filters.min_eye_distance=40
    """
    options = {
        "source": source,
        "dest": dest,
        "identity.pattern": pattern,
        "identity.regroup": regroup or None,
        "annotate.provider": provider,
        "shards.min_images": min_images,
        "ray.workers": workers,
        "existing": _existing(resume, new, extend),
    }
    return _run("ingest", resolve(IngestConfig, config, settings, options), prefect)


@app.command("synth")
def synth_command(
    dest: Dest,
    identities: Annotated[int | None, typer.Option(help="People. Default 100.")] = None,
    images_per_identity: Annotated[int | None, typer.Option(help="Pictures of each. Default 5.")] = None,
    size: Annotated[int | None, typer.Option(help="Pixels on a side. Default 384.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same bytes. Default 0.")] = None,
    flat: Annotated[bool, typer.Option("--flat", help="One folder, names that do not tell who it is.")] = False,
    tar: Annotated[bool, typer.Option("--tar", help="Tar files instead of folders.")] = False,
    config: Config = None,
    settings: Settings = [],  # noqa: B006
    workers: Workers = None,
    resume: Resume = False,
    new: New = False,
    prefect: Prefect = False,
) -> int:
    """Photographs of procedural people as an archive, with the truth in truth.parquet/. Goes on where it stopped.

    Examples:

      deca synth world/ --identities 200 --images-per-identity 5

      deca synth s3://bucket/world --identities 200000 --tar --set ray.workers=64
    """
    if flat and tar:
        raise typer.BadParameter("--flat and --tar exclude one another")
    options = {
        "dest": dest,
        "identities": identities,
        "images_per_identity": images_per_identity,
        "size": size,
        "seed": seed,
        "layout": "flat" if flat else "tar" if tar else None,
        "ray.workers": workers,
        "existing": _existing(resume, new),
    }
    return _run("synth", resolve(SynthConfig, config, settings, options), prefect)


@app.command()
def retry(dest: Dest, workers: Workers = None, prefect: Prefect = False) -> int:
    """Try the quarantined rows of a dataset once more, with the settings it was made with.

    Example: deca retry out/
    """
    dataset = planned_dataset(dest)
    flow = load_plan(dataset).record.config.get("flow", "")
    if flow not in FLOWS:
        raise PlanError(f"{dataset}: made by the flow {flow!r}; this version has {', '.join(FLOWS)}")
    stored = stored_config(dataset, FLOWS[flow][0])
    ray = stored.ray if workers is None else stored.ray.model_copy(update={"workers": workers})
    return _run(flow, stored.model_copy(update={"existing": "retry", "ray": ray}), prefect)


@app.command()
def plan(
    source: Source,
    dest: Dest,
    flow: Annotated[Literal["reconstruct", "ingest"], typer.Option(help="The command to plan for.")] = "reconstruct",
    checkpoint: Checkpoint = None,
    bundle: Bundle = None,
    config: Config = None,
    settings: Settings = [],  # noqa: B006
) -> int:
    """List SRC and freeze the plan in DEST without doing the work; the flow with the same settings goes on.

    Examples:

      deca plan photos/ out/ --checkpoint ckpt/

      deca plan photos/ out/ --flow ingest
    """
    options = {"source": source, "dest": dest, "checkpoint": checkpoint, "bundle": bundle}
    frozen: Plan
    if flow == "ingest":
        ingesting = ingest_flow.settle(resolve(IngestConfig, config, settings, options))
        frozen = ingest_flow.freeze_plan(ingesting, ingest_flow.check_annotators(ingesting))
    else:
        rebuilding = resolve(ReconstructConfig, config, settings, options)
        frozen = reconstruct_flow.freeze_plan(rebuilding, reconstruct_flow.check_models(rebuilding))
    console.print(
        f"{frozen.inputs.items} pictures in {frozen.units} units, plan {frozen.fingerprint[:8]}, {frozen.dest}"
    )
    return COMPLETE


@app.command()
def status(
    dest: Dest,
    quarantine: Annotated[int, typer.Option(help="How many quarantined rows to list.")] = 10,
) -> int:
    """Where a dataset stands: units, rows, what is in quarantine and why; after ingest also the version of the faces.

    Example: deca status out/ --quarantine 100
    """
    report = StatusReport(dest)
    table = Table(show_header=False, box=None)
    for name, value in report.lines():
        table.add_row(name, value)
    console.print(table)
    rows = report.quarantine
    for row in rows[:quarantine]:
        face = "" if row.face_index is None else f" face {row.face_index}"
        console.print(f"  {row.uri}{face}  [{row.stage}] {row.error}: {row.message}", markup=False, soft_wrap=True)
    if len(rows) > quarantine:
        console.print(f"  and {len(rows) - quarantine} more; list them with --quarantine {len(rows)}")
    if rows:
        console.print(f"Try them once more with: deca retry {Store(dest).uri}", markup=False, soft_wrap=True)
    return COMPLETE if report.complete else PARTIAL


@app.command()
def verify(dest: Dest) -> int:
    """Hash every committed file again; exit code 1 when one is missing, changed or doubled.

    After ingest DEST holds annotations/ and faces/, and both are checked.

    Example: deca verify s3://bucket/heads
    """
    found: dict[str, Verification] = {}
    dataset, faces = planned_dataset(dest), find_faces(dest)
    if dataset != faces:
        found[dataset] = verify_dataset(dataset)
    if faces is not None:
        found[faces] = verify_faces(faces)
    for place, checked in found.items():
        for problem in checked.problems:
            errors.print(f"[bold red]problem:[/] {problem}")
        for leftover in checked.leftovers:
            console.print(f"left over, never read: {leftover}", markup=False)
        counts = f"{checked.files} files hashed, {checked.rows} rows, {len(checked.problems)} problems"
        console.print(f"{place}: {counts}", markup=False, soft_wrap=True)
    return COMPLETE if all(checked.ok for checked in found.values()) else FAILED


@app.command("gc")
def gc_command(
    dest: Dest,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> int:
    """Delete what only earlier versions of the faces need. Readers that opened one of those lose it.

    Example: deca gc out/ --dry-run
    """
    faces = _faces(dest)
    sizes = superseded(faces)
    if not dry_run and not is_up_to_date(faces):
        write_card(faces)  # its README names the files that `load_dataset` reads, and those must not go
    names = list(sizes) if dry_run else gc(faces)
    for name in sorted(names):
        console.print(f"  {name}", markup=False, soft_wrap=True)
    freed = megabytes(sum(sizes.get(name, 0) for name in names))
    console.print(f"{'would delete' if dry_run else 'deleted'} {len(names)} files, {freed}, of {faces}", soft_wrap=True)
    return COMPLETE


@app.command()
def report(dest: Dest) -> int:
    """Draw the card of the faces: a page with charts and a sample, and the README.md that `load_dataset` reads.

    Example: deca report out/faces
    """
    faces = _faces(dest)
    console.print(f"page    {write_card(faces)}\nREADME  {Store(faces).join(README)}", markup=False, soft_wrap=True)
    return COMPLETE


def _faces(dest: str) -> str:
    faces = find_faces(dest)
    if faces is None:
        raise FacesError(f"{dest} holds no faces. Make them with: deca ingest SRC {dest}")
    return faces


@app.command()
def demo(
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="Folder for pictures and results.")] = Path(
        "demo-output"
    ),
) -> int:
    """Make a small archive (a public-domain photograph and procedural people) and reconstruct it.

    Example: deca demo demo-output
    """
    from pipelines.demo import write_photos

    photos = write_photos(dest / "photos")
    resolved = ReconstructConfig(source=str(photos), dest=str(dest / "reconstructions"), existing="new")
    code = _run("reconstruct", resolved, prefect=False)
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


def _existing(resume: bool, new: bool, extend: bool = False) -> str | None:
    if resume + new + extend > 1:
        raise typer.BadParameter("--resume, --extend and --new exclude one another")
    return "resume" if resume else "extend" if extend else "new" if new else None


def _run(flow: str, config: Any, prefect: bool) -> int:
    if prefect or os.environ.get("PREFECT_API_URL"):
        from pipelines import flows  # three seconds of imports that a run without Prefect does not pay

        summary = getattr(flows, flow)(config)
    else:
        with TerminalProgress(flow) as progress:
            summary = FLOWS[flow][1](config, progress)
    table = Table(show_header=False, box=None)
    for name, value in summary_lines(summary):
        table.add_row(name, value)
    console.print(table, soft_wrap=True)
    return COMPLETE if summary.outcome == "complete" else PARTIAL
