"""The `deca` command. Exit code 0: complete, 2: partial (something quarantined, pending or left out), 1: failed.

Only options and settings are imported here; a command imports the rest when it runs. So help, errors in arguments and
`deca status` cost no torch, Ray or Prefect.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer

from deca_core.errors import DecaError
from pipelines.cli_datasets import assets, datasets
from pipelines.cli_heads import heads
from pipelines.cli_reconstruct import reconstructing
from pipelines.cli_trust import trust
from pipelines.launch import run_flow
from pipelines.options import (
    COMPLETE,
    FAILED,
    Bundle,
    Checkpoint,
    Config,
    Dest,
    Prefect,
    Settings,
    Source,
    Workers,
    console,
    errors,
)
from pipelines.settings import resolve
from pipelines.unit_command import UnitRun, existing, unit_command
from schemas.ablate import AblateConfig
from schemas.annotate import Provider
from schemas.flows import UNIT_FLOWS
from schemas.parquet import arrow_without_pandas
from schemas.reconstruct import ReconstructConfig
from schemas.secrets import shown
from schemas.train import PresetName, TrainConfig
from tasks.store.logs import as_json, set_up

DEBUG = "--debug"
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
app.add_typer(reconstructing)
app.add_typer(heads)
app.add_typer(datasets)
app.add_typer(trust)
app.add_typer(assets, name="assets")


@app.callback()
def options_of_all(
    debug: Annotated[
        bool, typer.Option("--debug", help="Log the traceback of an error. Valid anywhere in a command.")
    ] = False,
) -> None:
    """DECA as a pipeline: images in, animatable detailed 3D heads out."""


def main() -> None:
    """Entry point of the console script: every failure ends as one line on stderr and an exit code."""
    set_up()
    arrow_without_pandas()
    arguments = [argument for argument in sys.argv[1:] if argument != DEBUG]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        code = app(arguments, standalone_mode=False)
    except typer.TyperException as error:
        code = _failed("error", f"{error} Try: deca --help")
    except (KeyboardInterrupt, typer.Abort):
        code = _failed("stopped", "What is committed stays; the same command resumes.")
    except Exception as error:
        if debug:
            logging.getLogger("deca").error("%s", type(error).__name__, exc_info=error)
        code = _failed("error", str(error) if isinstance(error, DecaError) else _unexpected(error))
    sys.exit(code or COMPLETE)


def _unexpected(error: Exception) -> str:
    """Describe an unexpected error in one line. Its traceback goes to a file, so that no run is repeated for it."""
    said = " ".join(str(error).split()) or "no message"
    try:
        descriptor, name = tempfile.mkstemp(prefix="deca-traceback-", suffix=".txt")
        with open(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.write(shown("".join(traceback.format_exception(error))))
    except OSError as full:
        name = f"not written ({full}); run the command again with {DEBUG}"
    return f"unexpected {type(error).__name__}: {said}. What is committed stays. Traceback, for a report: {name}"


def _failed(how: str, text: str) -> int:
    """Print why a command failed, in one line; return the exit code."""
    text = shown(text)
    if as_json():
        logging.getLogger("deca").error(text, extra={"fields": {"outcome": how}})
    else:
        mark, plain = (f"{how}:" if how == "error" else f"{how}."), text.replace("[", r"\[")
        errors.print(f"[bold red]{mark}[/] {plain}", soft_wrap=True)
    return FAILED


@unit_command(app, "ingest", extend=True)
def ingest_command(
    run: UnitRun,
    source: Source,
    dest: Dest,
    pattern: Annotated[
        str | None, typer.Option(help="Where a path below SRC names the identity: '{identity}/{image}'.")
    ] = None,
    provider: Annotated[Provider | None, typer.Option(help="Annotator of faces. Default dlib.")] = None,
    min_images: Annotated[int | None, typer.Option(help="Faces that an identity needs. Default 1.")] = None,
    regroup: Annotated[bool, typer.Option("--regroup", help="Drop all identities and cluster again.")] = False,
) -> int:
    """Any archive of images in, faces sorted by identity out. Running it again adds what is new in SRC.

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
    }
    return run(options)


@app.command("train")
def train_command(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="What ingest made, a faces/ dataset in it, or the word: world.")
    ],
    dest: Annotated[str, typer.Argument(metavar="DEST", help="Folder or bucket prefix for checkpoints and the model.")],
    preset: Annotated[
        PresetName | None, typer.Option(help="Defaults of all other settings: the paper's (default), or a laptop's.")
    ] = None,
    recipe: Annotated[
        Literal["paper", "release", "small"] | None,
        typer.Option(help="Losses as in the paper (default) or the released code; small means --preset small."),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="resnet50, dlib or mobilenet_v3_small.")] = None,
    start: Annotated[str | None, typer.Option(help="Checkpoint folder with the first weights.")] = None,
    bundle: Bundle = None,
    config: Config = None,
    settings: Settings = [],  # noqa: B006
    workers: Annotated[
        int | None, typer.Option(help="Ranks; 0 trains in this process. Default: one per GPU, 0 where there is none.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume with the stored settings of DEST.")] = False,
    new: Annotated[bool, typer.Option("--new", help="Drop the run in DEST and start over.")] = False,
    prefect: Prefect = False,
) -> int:
    """Faces in, a trained model out: pretrain, coarse, detail. The same command resumes.

    Examples:

      deca train people/ trained/ --preset small

      deca train s3://bucket/people s3://bucket/trained --workers 8 --recipe release

      deca train world trained/ --preset small --set coarse.steps=2000

      deca train people/ tuned/ --start trained/model --set pretrain.steps=0
    """
    if recipe == "small":
        preset, recipe = "small", None
    options = {
        "source": source,
        "dest": dest,
        "preset": preset,
        "recipe": recipe,
        "backbone": backbone,
        "start": start,
        "bundle": bundle,
        "ray.workers": workers,
        "existing": existing(resume, new),
    }
    return run_flow("train", resolve(TrainConfig, config, settings, options), prefect)


@unit_command(app, "evaluate")
def evaluate_command(
    run: UnitRun,
    source: Annotated[str, typer.Argument(metavar="SRC", help="Archive of `deca synth`, or the NoW dataset.")],
    dest: Dest,
    benchmark: Annotated[
        Literal["world", "now"] | None, typer.Option(help="world (default): the truth is known; now: scans.")
    ] = None,
    checkpoint: Checkpoint = None,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Train the recipe without each of its losses, and compare.")
    ] = False,
    faces: Annotated[
        str | None, typer.Option(help="What --ablations trains on: as SRC of `deca train`, or the word: world.")
    ] = None,
    bundle: Bundle = None,
) -> int:
    """Evaluate a checkpoint: rows of figures by image, and a report. The same command resumes.

    Examples:

      deca evaluate world/ figures/ --checkpoint trained/model

      deca evaluate NoW/ figures/ --benchmark now --checkpoint trained/model

      deca evaluate world/ figures/ --checkpoint trained/model --set compare.coarse=coarse/model

      deca evaluate world/ ablations/ --ablations --faces people/ --set seeds=[0,1,2]
    """
    options = {"source": source, "dest": dest, "bundle": bundle}
    if ablations:
        if checkpoint or benchmark == "now":
            raise typer.BadParameter("--ablations trains and evaluates its own models: no --checkpoint, no NoW")
        shared = run.options(options | {"faces": faces})
        shared["evaluate.ray.workers"] = shared.pop("ray.workers")
        return run_flow("ablate", resolve(AblateConfig, run.config, run.settings, shared), run.prefect)
    if faces:
        raise typer.BadParameter("--faces goes with --ablations")
    return run(options | {"benchmark": benchmark, "checkpoint": checkpoint})


@unit_command(app, "synth")
def synth_command(
    run: UnitRun,
    dest: Dest,
    identities: Annotated[int | None, typer.Option(help="Subjects. Default 100.")] = None,
    images_per_identity: Annotated[int | None, typer.Option(help="Images of each. Default 5.")] = None,
    size: Annotated[int | None, typer.Option(help="Pixels on a side. Default 384.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same bytes. Default 0.")] = None,
    flat: Annotated[bool, typer.Option("--flat", help="One folder, names without identities.")] = False,
    tar: Annotated[bool, typer.Option("--tar", help="Tar files instead of folders.")] = False,
) -> int:
    """Images of procedural subjects as an archive, with the truth in truth.parquet/. The same command resumes.

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
    }
    return run(options)


@app.command()
def retry(dest: Dest, workers: Workers = None, prefect: Prefect = False) -> int:
    """Retry the quarantined rows of a dataset with its stored settings.

    Example: deca retry out/
    """
    from pipelines.places import planned_dataset
    from pipelines.unit_flow import stored_config
    from tasks.units.plan import PlanError, load_plan

    dataset = planned_dataset(dest)
    flow = load_plan(dataset).record.config.get("flow", "")
    if flow not in UNIT_FLOWS:
        raise PlanError(f"{dataset}: made by the flow {flow!r}; this version has {', '.join(UNIT_FLOWS)}")
    stored = stored_config(dataset, UNIT_FLOWS[flow].config)
    ray = stored.ray if workers is None else stored.ray.model_copy(update={"workers": workers})
    return run_flow(flow, stored.model_copy(update={"existing": "retry", "ray": ray}), prefect)


@app.command()
def demo(
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="Folder for images and results.")] = Path("demo-output"),
) -> int:
    """Make a small archive (a public-domain photograph and procedural subjects) and reconstruct it.

    Example: deca demo demo-output
    """
    from pipelines.demo import write_photos
    from tasks.store.storage import check_allowed, normalise

    check_allowed(normalise(dest))
    photos = write_photos(dest / "photos")
    resolved = ReconstructConfig(source=str(photos), dest=str(dest / "reconstructions"), existing="new")
    code = run_flow("reconstruct", resolved, prefect=False)
    console.print(f"\n  images          {photos}")
    console.print(f"  contact sheet   {dest / 'reconstructions' / '_report' / 'contact_sheet.png'}")
    console.print(f"  Parquet parts   {dest / 'reconstructions'}/part-*.parquet")
    return code
