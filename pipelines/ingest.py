"""The ingest flow: any archive of photographs in, faces sorted by identity out."""

from __future__ import annotations

import glob
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial, wraps
from operator import attrgetter
from typing import Any

import pyarrow as pa

from pipelines.places import annotations_of, faces_of
from pipelines.unit_flow import SUMMARY, AsTask, Inputs, Lines, UnitFlow, direct, store_config, stored_config
from schemas.engine import RayConfig
from schemas.faces import FacesVersion
from schemas.ingest import IngestConfig, IngestSummary
from schemas.ledger import Item
from schemas.progress import OnUnitProgress
from tasks.annotate.annotate import AnnotateWorker
from tasks.annotate.annotators import load_annotator
from tasks.people.group import ERASED, SETTINGS, Grouping, GroupReport, Scores, group
from tasks.people.identities import IdentityError, path_labels, places_below, table_labels
from tasks.people.shard import publish
from tasks.people.versions import current, read_assignments
from tasks.reports.card import CARD, is_up_to_date
from tasks.reports.card import write_card as draw_card
from tasks.sources.walk import source_root
from tasks.store.storage import Store
from tasks.units.engine import RunSummary
from tasks.units.plan import Plan
from tasks.units.reasons import NoRowsError, by_number, counted, quarantine_reasons, where_to_look
from tasks.units.shared_paths import prove_paths
from tasks.units.verify import status

logger = logging.getLogger("deca")


class Ingest(UnitFlow[IngestConfig, IngestSummary]):
    """Images in, faces sorted by identity out; calling it again adds what is new and resumes.

    The unit flow makes the annotations; identities and shards follow.
    """

    def __call__(
        self, config: IngestConfig, on_progress: OnUnitProgress | None = None, as_task: AsTask[Any] = direct
    ) -> IngestSummary:
        """Run the stages. as_task: wraps each stage, for an engine that watches them (Prefect)."""
        seconds: dict[str, float] = {}
        stage = partial(_timed, seconds, as_task)
        config = stage(self.prepare)(config)
        stage(prove_paths)(config)
        weights = stage(self.weights)(config)
        plan = stage(self.freeze_plan)(config, weights)
        stage(check_identities)(plan, config)
        run = stage(self.annotate_faces)(plan, config, on_progress)
        grouping, base = stage(group_identities)(plan, config)
        version, new = stage(publish_faces)(plan, config, grouping, base)
        stage(write_card)(config)
        return as_task(self.summarise)(plan, config, run, version, new, seconds)

    def freeze_plan(self, config: IngestConfig, weights: dict[str, str]) -> Plan:
        """List the source and plan what is new or changed, or open the plan in DEST. Stores the config of this run."""
        # Regrouping is per run: a run that resumes with the stored config does not repeat it.
        identity = config.identity.model_copy(update={"regroup": False})
        stored = config.model_copy(update={"identity": identity})
        plan = super().freeze_plan(stored, weights)
        store_config(plan, stored)  # also on resume: filters, identities and shards are those of the last run
        return plan

    def annotate_faces(self, plan: Plan, config: IngestConfig, on_progress: OnUnitProgress | None) -> RunSummary:
        """Run the pending units on Ray."""
        return self.run_units(plan, config, on_progress)

    def summarise(self, plan: Plan, config: IngestConfig, run: RunSummary, *results: Any) -> IngestSummary:
        """Count annotations and faces, and write the summary into DEST."""
        version, new, seconds = results
        now, store = status(plan.dest), Store(config.dest)
        store.sweep()  # the stages sweep their own folders only
        annotating = seconds["annotate_faces"]
        own = {
            "dest": store.uri,
            "images": now.items,
            "annotated": now.rows,
            "faces": version.faces,
            "identities": version.identities,
            "left_out": version.left_out,
            "version": version.version,
            "new_version": new,
            "faces_run": run.rows,
            "seconds": seconds,
            "faces_per_second": round(run.rows / annotating, 2) if run.rows else 0.0,
        }
        summary = IngestSummary(**(self.counts(now, run) | own))
        store.write(SUMMARY, summary.model_dump_json(indent=2).encode())
        return summary


def _timed(seconds: dict[str, float], as_task: AsTask[Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the stage, wrapped, which also notes its duration under its name."""
    wrapped = as_task(function)

    @wraps(function)
    def timed(*args: Any) -> Any:
        started = time.monotonic()
        try:
            return wrapped(*args)
        finally:
            seconds[function.__name__] = round(time.monotonic() - started, 2)

    return timed


def prepare(config: IngestConfig) -> IngestConfig:
    """Return the effective config: on resume and retry the stored settings of the annotations win.

    Filters, identities and shards are recomputed in every run, so their settings are per-run. A DEST inside
    the source is excluded from it.
    """
    if config.existing in ("resume", "retry"):
        stored = stored_config(annotations_of(config.dest), IngestConfig)
        made = {name: getattr(stored, name) for name in ("source", "inputs", "annotate", "units")}
        return config.model_copy(update=made)
    folder, own = f"{source_root(config.source)}/", faces_of(config.dest)
    if not own.startswith(folder):
        return config
    exclude = (*config.inputs.exclude, f"{glob.escape(own.removeprefix(folder))}/*")
    return config.model_copy(update={"inputs": config.inputs.model_copy(update={"exclude": exclude})})


def check_annotators(config: IngestConfig) -> dict[str, str]:
    """Load every model once before any work; return hashes by name."""
    return load_annotator(config.annotate).versions


def check_identities(plan: Plan, config: IngestConfig) -> None:
    """Raise IdentityError where pattern or table match no image of the source, before hours of detection."""
    identity = config.identity
    if identity.method in ("sidecar", "none") or identity.pattern is identity.table is None:
        return
    by_table = identity.table is not None and (identity.method == "table" or identity.pattern is None)

    def look_up(items: Iterable[Item]) -> None:
        uris = pa.array([item.source_uri for item in items], pa.string())
        places = places_below(uris, plan.record.root)
        if by_table:
            table_labels(uris, places, identity.table or "")
        else:
            path_labels(places, identity.pattern or "")

    filled = (unit.items for unit in plan.iter_units() if unit.items)
    try:
        look_up(next(filled, []))  # the first images suffice in most sources
    except IdentityError:
        look_up(item for unit in plan.iter_units() for item in unit.items)


def ray_of(config: IngestConfig) -> RayConfig:
    """Return the Ray settings of the annotators: dlib needs no GPU."""
    return config.ray if config.annotate.on_gpu else config.ray.without_gpus()


def group_identities(plan: Plan, config: IngestConfig) -> tuple[Grouping, int]:
    """Assign an identity to every annotated face; return the assignment and the current version's number (0: none)."""
    faces = faces_of(config.dest)
    version = current(faces)
    regroup = config.identity.regroup or config.existing == "new"
    # Faces of another plan may have embeddings of another model, which cannot be compared.
    known = version is not None and version.annotations == plan.fingerprint and not regroup
    logger.info("grouping the faces of %s", plan.dest)
    grouping = group(plan.dest, config, read_assignments(faces) if known else None)
    report = grouping.report
    left_out = ", ".join(f"{count} by {reason}" for reason, count in report.left_out.items()) or "none"
    logger.info(
        "identities by %s: %d of %d faces kept, %d identities; left out: %s",
        report.method,
        report.kept,
        report.faces,
        report.identities,
        left_out,
    )
    if report.scores is not None:
        logger.info("clusters against the labels: %s", _agreement(report.scores))
    _check_kept(plan, config, report)
    return grouping, version.version if version else 0


def _check_kept(plan: Plan, config: IngestConfig, report: GroupReport) -> None:
    """Raise NoRowsError where every face is left out, unless all were erased: an earlier version stays current."""
    left_out = {reason: count for reason, count in report.left_out.items() if reason != ERASED}
    if report.kept or not left_out:
        return
    lost = [(count, _in_words(reason, config)) for reason, count in left_out.items()]
    lost += [(reason.rows, str(reason)) for reason in quarantine_reasons(plan)]
    raise NoRowsError(
        f"no face of {counted(plan, 'images')} was kept: {by_number(lost)}; no version was published. "
        f"{where_to_look(Store(config.dest).uri)}"
    )


def _in_words(reason: str, config: IngestConfig) -> str:
    """Return a reason, with the setting that decides."""
    setting = SETTINGS.get(reason)
    return reason if setting is None else f"{reason} ({setting}={attrgetter(setting)(config)})"


def _agreement(scores: Scores) -> str:
    return f"pairwise precision {scores.precision:.3f}, recall {scores.recall:.3f}, purity {scores.purity:.3f}"


def publish_faces(plan: Plan, config: IngestConfig, grouping: Grouping, base: int) -> tuple[FacesVersion, bool]:
    """Write the shards that changed and make them the current version; return it, and whether it is new."""
    version, new = publish(faces_of(config.dest), plan.dest, grouping.assignments, config, base=base)
    logger.info(
        "version %d %s: %d faces of %d identities in %d shards",
        version.version,
        "published" if new else "is current already",
        version.faces,
        version.identities,
        len(version.shards),
    )
    return version, new


def write_card(config: IngestConfig) -> str:
    """Write the card beside the faces unless it is up to date; return its URI."""
    faces = faces_of(config.dest)
    return Store(faces).join(CARD) if is_up_to_date(faces) else draw_card(faces)


def lines(summary: IngestSummary) -> Lines:
    """Return the summary's own lines."""
    left_out = ", ".join(f"{count} by {reason}" for reason, count in summary.left_out.items()) or "none"
    faces, made = faces_of(summary.dest), f"{summary.faces_run} by this run, {summary.faces_per_second} faces/s"
    return [
        ("images", str(summary.images)),
        ("annotated", f"{summary.annotated} faces ({made})"),
        ("faces", f"{summary.faces} of {summary.identities} identities in {faces}"),
        ("left out", left_out),
        ("version", f"{summary.version}, {'new' if summary.new_version else 'as before'}"),
        ("card", Store(faces).join(CARD)),
    ]


ingest = Ingest(
    name="ingest",
    worker=AnnotateWorker,
    weights=check_annotators,
    inputs=lambda config: Inputs(config.source),
    summary=IngestSummary,
    figures=dict,
    lines=lines,
    prepare=prepare,
    dest=lambda config: annotations_of(config.dest),
    ray=ray_of,
)
