"""What a person wants to know about a run or a dataset, as lines of name and value."""

from __future__ import annotations

from pipelines.stages import SUMMARY, faces_of, find_faces, planned_dataset
from schemas.ingest import IngestSummary
from schemas.reconstruct import ReconstructSummary
from schemas.world import SynthSummary
from tasks.card import CARD
from tasks.plan import standing_quarantine
from tasks.storage import Store
from tasks.verify import status
from tasks.versions import current, list_versions, named_files, read_version, record_name

Lines = list[tuple[str, str]]


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def summary_lines(summary: ReconstructSummary | IngestSummary | SynthSummary) -> Lines:
    """The outcome of a run, and where to look next."""
    dest = summary.truth if isinstance(summary, SynthSummary) else summary.dest
    quarantined = ", ".join(f"{count} at {stage}" for stage, count in summary.quarantined.items()) or "none"
    units = f"{summary.units_run} run, {summary.units_skipped} done before, {summary.pending_units} pending"
    return [
        ("outcome", summary.outcome),
        *_own_lines(summary),
        ("units", units),
        ("quarantined", quarantined),
        ("summary", Store(dest).join(SUMMARY)),
        *([("look closer", f"deca status {dest}")] if summary.quarantined else []),
    ]


def _own_lines(summary: ReconstructSummary | IngestSummary | SynthSummary) -> Lines:
    if isinstance(summary, SynthSummary):
        return [
            ("photographs", f"{summary.images} of {summary.identities} people ({summary.images_per_second} a second)"),
            ("folder", summary.photos),
            ("truth", summary.truth),
        ]
    rate = f"{summary.faces_run} by this run, {summary.faces_per_second} faces/s"
    if isinstance(summary, ReconstructSummary):
        return [
            ("pictures", str(summary.images)),
            ("faces", f"{summary.faces} ({rate})"),
            ("checkpoint", summary.checkpoint),
            ("contact sheet", summary.contact_sheet or "none: no face"),
        ]
    left_out = ", ".join(f"{count} by {reason}" for reason, count in summary.left_out.items()) or "none"
    faces = faces_of(summary.dest)
    return [
        ("pictures", str(summary.images)),
        ("annotated", f"{summary.annotated} faces ({rate})"),
        ("faces", f"{summary.faces} of {summary.identities} identities in {faces}"),
        ("left out", left_out),
        ("version", f"{summary.version}, {'new' if summary.new_version else 'as before'}"),
        ("card", Store(faces).join(CARD)),
    ]


class StatusReport:
    """Where a dataset stands; after ingest the annotations together with the faces."""

    def __init__(self, dest: str) -> None:
        dataset, faces = planned_dataset(dest), find_faces(dest)
        self.now = status(dataset)
        self.quarantine = standing_quarantine(dataset)
        self.ingest = dataset != Store(dest).uri
        self.version = current(faces) if faces else None

    @property
    def assigned(self) -> int:
        """Annotated faces that the version knows, kept or not."""
        return self.version.faces + sum(self.version.left_out.values()) if self.version else 0

    @property
    def behind(self) -> bool:
        """Whether annotated faces wait to be grouped."""
        never = self.version is None and not self.now.pending
        return self.ingest and (never or self.assigned != self.now.rows)

    @property
    def complete(self) -> bool:
        """Nothing pending, nothing in quarantine, and the faces are those of the annotations."""
        return self.now.complete and not self.behind

    def lines(self) -> Lines:
        names = ("source", "dest", "fingerprint", "code", "items", "units", "committed", "pending", "rows", "bytes")
        lines = [(name, str(getattr(self.now, name))) for name in names]
        lines += [(f"quarantined: {stage}", str(count)) for stage, count in self.now.quarantined.items()]
        if (version := self.version) is not None:
            lines.append(("faces", f"{version.faces} of {version.identities} identities, version {version.version}"))
            lines += [(f"left out: {reason}", str(count)) for reason, count in version.left_out.items()]
        if self.behind:
            lines.append(("behind", f"{self.now.rows} faces annotated, {self.assigned} grouped: run deca ingest again"))
        return lines


def superseded(faces: str) -> dict[str, int]:
    """What `gc` takes from faces/: name and bytes of the files that only earlier versions name."""
    holds = current(faces)
    if holds is None:
        return {}
    sizes: dict[str, int] = {}
    for number in list_versions(faces):
        if number < holds.version:
            version = read_version(faces, number)
            sizes[record_name(number)] = 0
            files = [*version.shards, version.identities_file, version.assignments_file]
            sizes |= {file.file: file.bytes for file in files if file.file not in named_files(holds)}
    return sizes
