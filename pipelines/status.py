"""Status of a DEST from its records alone: a dataset, an ingest, or a training run."""

from __future__ import annotations

from itertools import islice

from pipelines.places import find_faces, planned_dataset
from schemas.ledger import Quarantined
from schemas.train import STAGES, StageName, TrainPlan
from tasks.people.versions import current, list_versions, named_files, read_version, record_name
from tasks.sources.endings import left_out_words
from tasks.store.storage import Store
from tasks.training.records import MODEL, finished_stages, is_published, list_checkpoints, stored_plan
from tasks.units.commits import standing_rows
from tasks.units.plan import load_plan
from tasks.units.verify import status

Lines = list[tuple[str, str]]


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"


def left_out_lines(at: object) -> Lines:
    """Return the line about images of unreadable formats; `at`: a summary, a status or a plan's record."""
    counts = getattr(at, "images_left_out", None)
    return [("images left out", left_out_words(counts))] if counts else []


def validation_words(terms: dict[str, float]) -> str:
    """Return loss and landmark error of a validation in words."""
    words = {"total": "loss {:.4g}", "nme": "landmark error {:.2%} of the face"}
    said = [text.format(terms[name]) for name, text in words.items() if name in terms]
    return f"; validation: {', '.join(said)}" if said else ""


class TrainStatus:
    """Status of a training run."""

    quarantine = 0  # training logs what it leaves out, without a count

    def __init__(self, dest: str, plan: TrainPlan) -> None:
        self.store, self.plan = Store(dest), plan
        self.finished = finished_stages(self.store)
        self.planned: list[StageName] = [name for name in STAGES if plan.config[name]["steps"]]

    @property
    def complete(self) -> bool:
        """Whether every stage is finished and the model is published."""
        return set(self.planned) <= set(self.finished) and is_published(self.store, self.plan)

    def failures(self, count: int) -> list[Quarantined]:
        return []

    def lines(self) -> Lines:
        names = ("source", "backbone", "recipe")
        lines = [("dest", self.store.uri), *((name, str(self.plan.config[name])) for name in names)]
        lines += [("fingerprint", self.plan.fingerprint), *((name, value) for name, value in self.plan.inputs.items())]
        lines += [(name, self._stage(name)) for name in self.planned]
        return [*lines, ("model", self.store.join(MODEL) if self.complete else "not yet: run deca train again")]

    def _stage(self, name: StageName) -> str:
        records = list_checkpoints(self.store, name)
        steps = self.plan.config[name]["steps"]
        if not records:
            return f"step 0 of {steps}"
        kept = ", ".join(str(record.step) for record in records)
        done = "finished" if name in self.finished else f"step {records[-1].step} of {steps}"
        return f"{done}, checkpoints {kept}{validation_words(records[-1].validation)}"


def status_report(dest: str) -> StatusReport | TrainStatus:
    """Return the status of DEST: a training run, or a dataset."""
    plan = stored_plan(Store(dest))
    return StatusReport(dest) if plan is None else TrainStatus(dest, plan)


class StatusReport:
    """Status of a dataset; after ingest of annotations and faces together."""

    def __init__(self, dest: str) -> None:
        dataset, faces = planned_dataset(dest), find_faces(dest)
        self.now = status(dataset)
        self.quarantine = sum(self.now.quarantined.values())
        self.ingest = dataset != Store(dest).uri
        self.version = current(faces) if faces else None

    def failures(self, count: int) -> list[Quarantined]:
        """Return the first rows still in quarantine."""
        return [row for _, row in islice(standing_rows(load_plan(self.now.dest)), count)]

    @property
    def assigned(self) -> int:
        """Annotated faces in the version, kept or not."""
        return self.version.faces + sum(self.version.left_out.values()) if self.version else 0

    @property
    def behind(self) -> bool:
        """Whether annotated faces are not grouped yet."""
        never = self.version is None and not self.now.pending and self.now.rows > 0
        return self.ingest and (never or self.assigned != self.now.rows)

    @property
    def complete(self) -> bool:
        """Whether nothing is pending, quarantined or left out, and the faces are those of the annotations."""
        return self.now.complete and not self.behind

    def lines(self) -> Lines:
        names = ("source", "dest", "fingerprint", "code", "items", "units", "committed", "pending", "rows", "bytes")
        lines = [(name, str(getattr(self.now, name))) for name in names]
        lines += [(f"quarantined: {stage}", str(count)) for stage, count in self.now.quarantined.items()]
        lines += left_out_lines(self.now)
        if self.now.outdated:
            lines.append(("outdated", f"{self.now.outdated} units, recomputed by the same command with --upgrade"))
        if (version := self.version) is not None:
            lines.append(("faces", f"{version.faces} of {version.identities} identities, version {version.version}"))
            lines += [(f"left out: {reason}", str(count)) for reason, count in version.left_out.items()]
        if self.behind:
            lines.append(("behind", f"{self.now.rows} faces annotated, {self.assigned} grouped: run deca ingest again"))
        return lines


def superseded(faces: str) -> dict[str, int]:
    """Return what `gc` deletes from faces/: name and bytes of the files that only earlier versions name."""
    latest = current(faces)
    if latest is None:
        return {}
    sizes: dict[str, int] = {}
    for number in list_versions(faces):
        if number < latest.version:
            version = read_version(faces, number)
            sizes[record_name(number)] = 0
            files = [*version.shards, version.identities_file, version.assignments_file]
            sizes |= {file.file: file.bytes for file in files if file.file not in named_files(latest)}
    return sizes
