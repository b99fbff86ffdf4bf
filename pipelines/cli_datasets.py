"""Commands status, verify, gc, report and assets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from pipelines.options import COMPLETE, FAILED, PARTIAL, Dest, console, errors
from schemas.secrets import shown

datasets = typer.Typer()
FACES = 8  # in the gallery of a report

assets = typer.Typer(no_args_is_help=True, help="Head models: import FLAME, write the procedural head, show a bundle.")


@datasets.command()
def status(
    dest: Dest,
    quarantine: Annotated[int, typer.Option(help="How many quarantined rows to list.")] = 10,
) -> int:
    """Progress of a dataset: units, rows, quarantine with reasons; after ingest also the version of the faces.

    Of a training run: stages, steps, checkpoints, validation.

    Example: deca status out/ --quarantine 100
    """
    from pipelines.status import status_report
    from tasks.store.storage import Store

    report = status_report(dest)
    table = Table(show_header=False, box=None)
    for name, value in report.lines():
        table.add_row(name, value)
    console.print(table)
    for row in report.failures(quarantine):
        face = "" if row.face_index is None else f" face {row.face_index}"
        line = shown(f"  {row.uri}{face}  [{row.stage}] {row.error}: {row.message}")
        console.print(line, markup=False, soft_wrap=True)
    if report.quarantine > quarantine:
        console.print(f"  and {report.quarantine - quarantine} more; list them with --quarantine {report.quarantine}")
    if report.quarantine:
        console.print(f"Try them once more with: deca retry {Store(dest).uri}", markup=False, soft_wrap=True)
    return COMPLETE if report.complete else PARTIAL


@datasets.command()
def verify(dest: Dest) -> int:
    """Hash every committed file again; exit code 1 when one is missing, changed or duplicated.

    After ingest both annotations/ and faces/ are checked.

    Example: deca verify s3://bucket/heads
    """
    from pipelines.places import find_faces, planned_dataset
    from schemas.consensus import CONSENSUS_FOLDER
    from schemas.tracks import TRACKS_FOLDER
    from tasks.heads.consensus import consensus_record, verify_consensus
    from tasks.heads.track_records import tracks_record, verify_tracks
    from tasks.people.versions import verify_faces
    from tasks.store.storage import Store
    from tasks.units.verify import Verification
    from tasks.units.verify import verify as verify_dataset

    found: dict[str, Verification] = {}
    dataset, faces = planned_dataset(dest), find_faces(dest)
    if dataset != faces:
        found[dataset] = verify_dataset(dataset)
    if faces is not None:
        found[faces] = verify_faces(faces)
    if consensus_record(dataset) is not None:
        found[Store(dataset).join(CONSENSUS_FOLDER)] = verify_consensus(dataset)
    if tracks_record(dataset) is not None:
        found[Store(dataset).join(TRACKS_FOLDER)] = verify_tracks(dataset)
    for place, checked in found.items():
        for problem in checked.problems:
            errors.print(f"[bold red]problem:[/] {problem}")
        for leftover in checked.leftovers:
            console.print(f"left over, never read: {leftover}", markup=False)
        counts = f"{checked.files} files hashed, {checked.rows} rows, {len(checked.problems)} problems"
        console.print(f"{place}: {counts}", markup=False, soft_wrap=True)
    return COMPLETE if all(checked.ok for checked in found.values()) else FAILED


@datasets.command("gc")
def gc_command(
    dest: Dest,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be deleted.")] = False,
) -> int:
    """Delete files that only earlier versions of the faces need. Readers of those versions lose them.

    Example: deca gc out/ --dry-run
    """
    from pipelines.status import megabytes, superseded
    from tasks.people.versions import gc
    from tasks.reports.card import is_up_to_date, write_card

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


@datasets.command()
def report(
    dest: Dest,
    samples: Annotated[
        int | None, typer.Option(min=1, max=64, help=f"Heads in the gallery of reconstructions. Default {FACES}.")
    ] = None,
) -> int:
    """Write a self-contained HTML page, and the README.md that `load_dataset` reads.

    Of reconstructions: a gallery, a head in 3D with sliders, distributions, failures, cost over time. Of faces: the
    card with charts and a sample.

    Examples:

      deca report heads/ --samples 16

      deca report people/faces
    """
    from pipelines.places import find_faces, planned_dataset
    from pipelines.unit_flow import stored_config
    from schemas.reconstruct import ReconstructConfig
    from tasks.store.storage import Store
    from tasks.units.plan import PlanError, load_plan

    faces = find_faces(dest)
    if faces is not None:
        from tasks.reports.card import README, write_card

        if samples is not None:
            raise typer.BadParameter("--samples is for reconstructions; the card of faces has its own number")
        console.print(f"page    {write_card(faces)}\nREADME  {Store(faces).join(README)}", markup=False, soft_wrap=True)
        return COMPLETE
    plan = load_plan(planned_dataset(dest))
    flow = plan.record.config.get("flow")
    if flow == "ingest":  # annotated, and not yet grouped
        _faces(dest)
    if flow != "reconstruct":
        own = "; its page is _report/report.html, which every run draws" if flow == "evaluate" else ""
        raise PlanError(f"{plan.dest} was written by the flow {flow!r}{own}. Give reconstructions or faces")
    from tasks.reports.heads_report import write_report

    written = write_report(plan, stored_config(plan.dest, ReconstructConfig), samples or FACES)
    for note in written.notes:
        console.print(f"note    {note}", markup=False, soft_wrap=True)
    console.print(f"page    {written.page}\nREADME  {written.readme}", markup=False, soft_wrap=True)
    return COMPLETE


def _faces(dest: str) -> str:
    from pipelines.places import find_faces
    from tasks.people.versions import FacesError

    faces = find_faces(dest)
    if faces is None:
        raise FacesError(f"{dest} holds no faces. Make them with: deca ingest SRC {dest}")
    return faces


@assets.command("import")
def assets_import(
    source: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder with the licensed files.")],
    dest: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write: bundle, and checkpoint.")],
) -> int:
    """Turn the licensed files into a bundle, and with deca_model.tar among them into a checkpoint that knows it.

    The folder contains generic_model.pkl, landmark_embedding.npy, head_template.obj, uv_face_mask.png,
    uv_face_eye_mask.png, fixed_displacement_256.npy and, if you have them, FLAME_albedo_from_BFM.npz and
    deca_model.tar. Nothing in them is executed. OUT is for --checkpoint and for --bundle.

    Example: deca assets import ~/licensed-files licensed/
    """
    from deca_core.licensed import import_licensed
    from tasks.store.storage import check_allowed, normalise

    check_allowed(normalise(dest))
    imported = import_licensed(source, dest)
    code = _show(imported.bundle, dest)
    for note in imported.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    return code


@assets.command("head")
def assets_head(dest: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder to write.")]) -> int:
    """Write the procedural head as a bundle.

    Example: deca assets head bundle/
    """
    from deca_core.assets import procedural_head
    from tasks.store.storage import check_allowed, normalise

    check_allowed(normalise(dest))
    bundle = procedural_head()
    bundle.save(dest)
    return _show(bundle, dest)


@assets.command("show")
def assets_show(bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder.")]) -> int:
    """Check a bundle and print its contents, and the checkpoint beside it.

    Example: deca assets show bundle/
    """
    from deca_core.assets import load_bundle

    return _show(load_bundle(bundle), bundle)


def _show(bundle: Any, folder: Path) -> int:
    from deca_core.checkpoint_meta import META_FILE, checkpoint_hash, head_of

    table = Table(show_header=False, box=None)
    table.add_row("bundle", f"{bundle.name} ({bundle.source})")
    table.add_row("folder", str(folder))
    table.add_row("hash", bundle.hash)
    if (folder / META_FILE).is_file():
        bound = "bound to this bundle" if head_of(folder)["hash"] == bundle.hash else "NOT bound to this bundle"
        table.add_row("checkpoint", f"{checkpoint_hash(folder)} ({bound})")
    table.add_row("albedo", "yes" if bundle.albedo_mean is not None else "none: renderings are grey")
    for name, array in bundle.arrays().items():
        table.add_row(name, f"{array.dtype} {array.shape}")
    console.print(table)
    return COMPLETE
