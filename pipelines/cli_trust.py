"""Commands about trust: erase people, see where they still occur, migrate datasets, look after the machine."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.table import Table

from pipelines.options import COMPLETE, FAILED, PARTIAL, console, errors
from schemas.secrets import shown

trust = typer.Typer()

HOW = {"name": "the name of the file", "text": "in the text", "unreadable": "cannot be read"}
NOTES = {
    "plan": "the frozen plan or settings: where a picture was, nothing of it; gone with --new",
    "unreadable": "left over by a run that was killed? deca verify tells",
}
MARKS: dict[str, str] = {"good": "[green]ok[/]", "note": "[yellow]note[/]", "bad": "[bold red]bad[/]"}

Datasets = Annotated[
    list[str], typer.Argument(metavar="DATASET...", help="Folders or bucket prefixes (any fsspec URI).")
]
Faces = Annotated[list[str], typer.Option("--face", help="A face_id.")]
Images = Annotated[list[str], typer.Option("--image", help="An image_id, or a picture's place (source_uri).")]
Identities = Annotated[list[str], typer.Option("--identity", help="An identity_id.")]


@trust.command("erase")
def erase_command(
    datasets: Datasets,
    face: Faces = [],  # noqa: B006
    image: Images = [],  # noqa: B006
    identity: Identities = [],  # noqa: B006
) -> int:
    """Take faces, pictures or people out of datasets, for good: no later run over the same pictures brings them back.

    Look first with `deca audit`. Name all datasets at once: those that know who is who tell the others. Without ids an
    erasure that was interrupted is finished. A record is signed where DECA_ERASURE_KEY is set. The pictures themselves,
    and models trained on them, are not touched.

    Examples:

      deca erase --identity ada people/ heads/ exports/

      deca erase --image s3://bucket/photos/party.jpg --face 0f3a5c7b9d1e2f40-01 s3://bucket/people

      deca erase people/
    """
    from tasks.trust.erase import Asked, erase
    from tasks.trust.erasure_records import KEY, record_name

    outcomes = erase(datasets, Asked(frozenset(face), frozenset(image), frozenset(identity)))
    for outcome in outcomes:
        record, uri = outcome.record, outcome.place.uri
        if record is None:
            said = "nothing to erase that was not erased before"
        else:
            signed = "signed" if record.signature.method == "hmac-sha256" else f"not signed: {KEY} is not set"
            name = outcome.place.store.join(record_name(record.number))
            said = f"{record.rows} rows and {record.files} files of {record.faces} faces; record {name} ({signed})"
        _say(f"{uri}: {said}")
    return COMPLETE


@trust.command("audit")
def audit_command(
    datasets: Datasets,
    face: Faces = [],  # noqa: B006
    image: Images = [],  # noqa: B006
    identity: Identities = [],  # noqa: B006
) -> int:
    """Where ids still occur: in rows of any file, also of those that nobody reads any more, in names and in reports.

    Without ids: those that were erased, and whether the records of erasures are whole and their signatures fit. Exit
    code 0: nowhere, 2: somewhere, 1: a record was changed.

    Examples:

      deca audit --identity ada people/ heads/

      deca audit people/ heads/
    """
    from tasks.trust.audit import Occurrence, find_places, occurrences
    from tasks.trust.erase import Asked, resolve
    from tasks.trust.erasure_records import KEY, check_records, read_records
    from tasks.units.tombstones import Erased, read_erased

    found: list[Occurrence] = []
    problems: list[str] = []
    places = [place for dest in dict.fromkeys(datasets) for place in find_places(dest)]
    asked = Asked(frozenset(face), frozenset(image), frozenset(identity))
    meant = Erased.of(resolve(places, asked, strict=False)) if asked else None
    for place in places:
        found += occurrences(place, meant or read_erased(place.store))
        if not asked:
            wrong = check_records(place)
            problems += [f"{place.uri}: {problem}" for problem in wrong]
            records = read_records(place.store)
            signed = sum(record.signature.method == "hmac-sha256" for record in records)
            checked = "signatures checked" if os.environ.get(KEY) else f"signatures not checked: {KEY} is not set"
            _say(f"{place.uri}: {len(records)} erasures recorded, {signed} signed ({checked}), {len(wrong)} problems")
    for one in found:
        rows = f"{one.rows} rows" if one.rows else HOW[one.how]
        _say(f"{one.dataset}/{one.file}: {rows}{'' if one.counts else f' ({NOTES[one.how]})'}")
    for problem in problems:
        errors.print(shown(f"problem: {problem}"), markup=False, style="red", soft_wrap=True)
    traces = sum(one.counts for one in found)
    _say(f"{traces} files hold the ids that were looked for")
    return FAILED if problems else PARTIAL if traces else COMPLETE


def _say(text: str) -> None:
    console.print(shown(text), markup=False, soft_wrap=True)


@trust.command("migrate")
def migrate_command(datasets: Datasets) -> int:
    """Bring datasets that an earlier version wrote to the schema of this one. Rows and pictures are not touched.

    Interrupted, the same command goes on. Programs of the earlier version refuse the dataset from then on.

    Example: deca migrate s3://bucket/people s3://bucket/heads
    """
    from tasks.trust.migrate import migrate

    for dest in dict.fromkeys(datasets):
        for done in migrate(dest):
            if done.records or done.moved:
                said = f"schema {done.before} -> {done.after}, {done.records} records, {done.moved} into snapshots"
            else:
                said = f"schema {done.after} already"
            _say(f"{done.uri}: {said}")
    return COMPLETE


@trust.command("doctor")
def doctor_command(
    places: Annotated[
        list[str], typer.Argument(metavar="[PLACE]...", help="Sources or DESTs to look at as well.")
    ] = [],  # noqa: B006
) -> int:
    """Is this machine fit to run? Versions, processors, GPUs, weights, disks, credentials, servers; with what to do.

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
