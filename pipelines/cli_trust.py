"""Commands erase, audit, migrate and doctor."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from pipelines.options import COMPLETE, FAILED, PARTIAL, console, errors
from schemas.secrets import shown

trust = typer.Typer()

HOW = {"name": "the name of the file", "text": "in the text", "unreadable": "cannot be read"}
NOTES = {
    "plan": "the frozen plan or config: only the URI of an image; removed with --new",
    "unreadable": "left over by a killed run? Run: deca verify",
}
MARKS: dict[str, str] = {"good": "[green]ok[/]", "note": "[yellow]note[/]", "bad": "[bold red]bad[/]"}

Datasets = Annotated[
    list[str], typer.Argument(metavar="DATASET...", help="Folders or bucket prefixes (any fsspec URI).")
]
Faces = Annotated[list[str], typer.Option("--face", help="A face_id.")]
Images = Annotated[list[str], typer.Option("--image", help="An image_id, or the source_uri of an image.")]
Identities = Annotated[list[str], typer.Option("--identity", help="An identity_id.")]


@trust.command("erase")
def erase_command(
    datasets: Datasets,
    face: Faces = [],  # noqa: B006
    image: Images = [],  # noqa: B006
    identity: Identities = [],  # noqa: B006
) -> int:
    """Erase faces, images or subjects from datasets for good: no later run over the same images restores them.

    Inspect first with `deca audit`. Name all datasets at once: identities are resolved from those that store them.
    Without ids, interrupted erasures are finished. The source images, and models trained on them, are not touched.

    Examples:

      deca erase --identity ada people/ heads/ exports/

      deca erase --image s3://bucket/photos/party.jpg --face 0f3a5c7b9d1e2f40-01 s3://bucket/people

      deca erase people/
    """
    from tasks.trust.erase import Asked, erase
    from tasks.trust.erasure_records import record_name

    outcomes = erase(datasets, Asked(frozenset(face), frozenset(image), frozenset(identity)))
    for outcome in outcomes:
        record, uri = outcome.record, outcome.place.uri
        if record is None:
            text = "nothing to erase that was not erased before"
        else:
            name = outcome.place.store.join(record_name(record.number))
            text = f"{record.rows} rows and {record.files} files of {record.faces} faces; record {name}"
        _say(f"{uri}: {text}")
    return COMPLETE


@trust.command("audit")
def audit_command(
    datasets: Datasets,
    face: Faces = [],  # noqa: B006
    image: Images = [],  # noqa: B006
    identity: Identities = [],  # noqa: B006
) -> int:
    """List where ids still occur: in rows of any file, current or left over, in file names and in reports.

    Without ids: those that were erased, and whether the erasures are finished and their tombstones unchanged. Exit
    code 0: nowhere, 2: somewhere, 1: a tombstone was changed, or an erasure is not finished.

    Examples:

      deca audit --identity ada people/ heads/

      deca audit people/ heads/
    """
    from tasks.trust.audit import Occurrence, find_places, occurrences
    from tasks.trust.erase import Asked, resolve
    from tasks.trust.erasure_records import check_records, read_records
    from tasks.units.tombstones import Erased, read_erased

    found: list[Occurrence] = []
    problems: list[str] = []
    places = [place for dest in dict.fromkeys(datasets) for place in find_places(dest)]
    asked = Asked(frozenset(face), frozenset(image), frozenset(identity))
    meant = Erased.of(resolve(places, asked, strict=False)) if asked else None
    for place in places:
        found += occurrences(place, meant or read_erased(place.store))
        if not asked:
            wrong = check_records(place.store)
            problems += [f"{place.uri}: {problem}" for problem in wrong]
            _say(f"{place.uri}: {len(read_records(place.store))} erasures recorded, {len(wrong)} problems")
    for one in found:
        rows = f"{one.rows} rows" if one.rows else HOW[one.how]
        _say(f"{one.dataset}/{one.file}: {rows}{'' if one.counts else f' ({NOTES[one.how]})'}")
    for problem in problems:
        errors.print(shown(f"problem: {problem}"), markup=False, style="red", soft_wrap=True)
    traces = sum(one.counts for one in found)
    _say(f"{traces} files contain the requested ids")
    return FAILED if problems else PARTIAL if traces else COMPLETE


def _say(text: str) -> None:
    console.print(shown(text), markup=False, soft_wrap=True)


@trust.command("migrate")
def migrate_command(datasets: Datasets) -> int:
    """Upgrade datasets of earlier schemas to the current one. Rows and images are not touched.

    If interrupted, run the same command again. Programs of the earlier version then refuse the dataset.

    Example: deca migrate s3://bucket/people s3://bucket/heads
    """
    from tasks.trust.migrate import migrate

    for dest in dict.fromkeys(datasets):
        for done in migrate(dest):
            if done.records or done.moved:
                text = f"schema {done.before} -> {done.after}, {done.records} records, {done.moved} into snapshots"
            else:
                text = f"schema {done.after} already"
            _say(f"{done.uri}: {text}")
    return COMPLETE


@trust.command("doctor")
def doctor_command(
    places: Annotated[list[str], typer.Argument(metavar="[PLACE]...", help="Sources or DESTs to check as well.")] = [],  # noqa: B006
) -> int:
    """Check this machine: versions, processors, GPUs, weights, disks, credentials, servers; with fixes.

    Exit code 1 where something will not work.

    Example: deca doctor s3://bucket/photos s3://bucket/heads
    """
    from tasks.trust.doctor import examine

    table = Table(show_header=False, box=None)
    findings = list(examine(places))
    for finding in findings:
        table.add_row(MARKS[finding.state], finding.what, finding.detail)
        if finding.fix:
            table.add_row("", "", f"-> {finding.fix}")
    console.print(table)
    return FAILED if any(finding.state == "bad" for finding in findings) else COMPLETE
