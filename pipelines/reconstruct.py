"""The reconstruct flow: images in, codes and displacement maps out. `deca fit` is the same without a network."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import Any

from deca_core.inference import Deviation
from pipelines.places import find_faces
from pipelines.summaries import hours_words
from pipelines.unit_flow import Inputs, Lines, UnitFlow, effective_config, fill_in, rate
from schemas.consensus import ConsensusRecord
from schemas.reconstruct import FREEZE_FROM, ReconstructConfig, ReconstructSummary
from schemas.tracks import TRACKS_FOLDER, TracksRecord
from tasks.annotate.annotators import load_annotator
from tasks.heads.consensus import make_consensus
from tasks.heads.precision import DeviceSettings, worker_settings
from tasks.heads.reconstruct import ReconstructWorker
from tasks.heads.tracks import has_frames, make_tracks
from tasks.models.loading import bundle_at, bundle_for, is_trained, load_model, weights_hash
from tasks.people.face_rows import face_items
from tasks.people.versions import Faces, open_faces
from tasks.reports.contact_sheet import CONTACT_SHEET, contact_sheet
from tasks.sources.walk import is_file, parse_glob
from tasks.store.storage import Store, normalise
from tasks.units.engine import RunSummary
from tasks.units.estimate import Use
from tasks.units.plan import PLAN, Plan, PlanError, load_plan
from tasks.units.shared_paths import prove_paths
from tasks.units.verify import Status

UNTRAINED_WARNING = (
    "UNTRAINED NETWORK: the weights are random, so codes and displacement maps mean nothing. "
    "Give trained ones with --checkpoint"
)

PRECISION = "_report/precision.json"  # what the micro-benchmark of a new plan found

logger = logging.getLogger("deca")


def prepare(config: ReconstructConfig) -> ReconstructConfig:
    """Return the effective config with the checkpoint's bundle; open settings as in the plan, or as measured here."""
    from deca_core.roll import UPRIGHT_FROM

    config = effective_config(config, config.dest)
    if config.codes == "network":  # plans without a network do not have the setting
        config = fill_in(config, config.dest, "upright_from", UPRIGHT_FROM)
    prove_paths(config)
    config = config.model_copy(update={"bundle": bundle_for(config.bundle, config.checkpoint)})
    if config.codes == "landmarks" and config.precision == "auto":  # no network, nothing to choose
        config = config.model_copy(update={"precision": "fp32"})
    if config.precision != "auto" and config.batch_size is not None:
        return config
    store = Store(config.dest)
    if config.existing != "new" and store.exists(PLAN):  # another choice would be another plan
        planned = load_plan(config.dest).record.config
        found = {"precision": planned.get("precision", "fp32"), "batch_size": planned.get("batch_size", 8)}
        return _filled(config, found)
    store.check_writable()  # before seconds of measuring
    chosen = worker_settings(config)
    logger.info("workers compute on: %s, %d faces at once", chosen.device, chosen.batch_size)
    if chosen.choice is None:
        return _filled(config, {"batch_size": chosen.batch_size})
    _note(store, chosen)
    return _filled(config, {"precision": chosen.choice.precision, "batch_size": chosen.batch_size})


def _filled(config: ReconstructConfig, found: dict[str, Any]) -> ReconstructConfig:
    """Return the config with values for the settings that it leaves open."""
    left = {name: value for name, value in found.items() if getattr(config, name) in (None, "auto")}
    return config.model_copy(update=left)


def _note(store: Store, chosen: DeviceSettings) -> None:
    """Log what was measured, and write it beside the data."""
    choice = chosen.choice
    assert choice is not None
    tried = "; ".join(
        f"{name} {milliseconds} ms a face"
        + (f", off by {_words(choice.deviations[name])}" if name in choice.deviations else "")
        for name, milliseconds in choice.milliseconds.items()
    )
    logger.info("precision %s (%s%s)", choice.precision, "measured there before: " if chosen.remembered else "", tried)
    store.write(PRECISION, json.dumps(asdict(choice), indent=2).encode())


def _words(off: Deviation) -> str:
    return f"{off.codes:.2%} of the codes, {off.vertices_mm:.3f} mm, {off.displacement_um:.2f} um"


def check_models(config: ReconstructConfig) -> dict[str, str]:
    """Load every model once before any work; return hashes by name."""
    bundle = bundle_at(config.bundle)
    weights = {"bundle": bundle.hash, "checkpoint": weights_hash(config)}
    if faces_at(config.source) is None:  # where it is, faces are found already
        weights |= load_annotator(config.annotate).versions
    load_model(config)
    if not is_trained(config):
        logger.warning(UNTRAINED_WARNING)
    return weights


def list_images(config: ReconstructConfig) -> Inputs:
    """Return the source: images, or the faces of one version of a faces/ dataset, which the plan pins."""
    faces = faces_at(config.source)
    if faces is None:
        return Inputs(config.source)
    if config.existing == "extend":
        raise PlanError(
            f"{faces.dest} is a faces/ dataset: a plan pins one version of it. Reconstruct the current one into "
            "another folder, or start over with --new"
        )
    pinned = {"faces": {"version": faces.version.version, "is": faces.version.fingerprint}}
    return Inputs(faces.dest, face_items(faces), pinned)


def faces_at(source: str) -> Faces | None:
    """Resolve a source to its current faces/ version (its own, or below it after `deca ingest`), or None."""
    uri = normalise(source)
    if uri.startswith(("http://", "https://")) or parse_glob(uri) or is_file(uri):
        return None
    place = find_faces(uri)
    return None if place is None else open_faces(place)


def worker_arguments(plan: Plan, config: ReconstructConfig) -> tuple[Any, ...]:
    """Return what a worker is built from; the plan's size decides on compiling or freezing, alike in all its runs."""
    return config, plan.inputs.items, plan.inputs.items >= FREEZE_FROM


def agree_on_identities(plan: Plan, config: ReconstructConfig, run: RunSummary) -> ConsensusRecord | None:
    """Write the codes that all images of an identity share, where the config asks for them."""
    if config.consensus == "none":
        return None
    return make_consensus(plan.dest, bundle_at(config.bundle), config.consensus_detail)


def track_subjects(plan: Plan, config: ReconstructConfig, run: RunSummary) -> TracksRecord | None:
    """Track subjects through the frames of videos, with smoothed codes; None where the rows are images."""
    if not config.video.tracks or "codes" not in config.outputs or not has_frames(plan.dest, config.video):
        return None
    return make_tracks(plan.dest, bundle_at(config.bundle), config.video)


def draw_contact_sheet(plan: Plan, config: ReconstructConfig, run: RunSummary) -> str | None:
    """Draw the sheet of sampled faces, unless no unit was run since the last one; return its URI."""
    if not {"codes", "displacement"} <= set(config.outputs) or config.layout == "files":
        return None  # its panels are drawn from these columns
    if not run.units_run and plan.store.exists(CONTACT_SHEET):
        return plan.store.join(CONTACT_SHEET)
    return contact_sheet(plan, config)


def figures(
    plan: Plan,
    config: ReconstructConfig,
    run: RunSummary,
    now: Status,
    agreed: ConsensusRecord | None,
    tracks: TracksRecord | None,
    sheet: str | None,
) -> dict[str, Any]:
    """Return the summary's own fields."""
    used = Use.of(run)
    return {
        "images": now.items,
        "faces": now.rows,
        "faces_run": run.rows,
        "faces_per_second": rate(run),
        "trained": is_trained(config),
        "checkpoint": plan.record.weights["checkpoint"],
        "bundle": plan.record.weights["bundle"],
        "precision": config.precision,
        "batch_size": config.batch_size,
        "workers": f"{run.workers} of {run.cores:g} CPU and {run.gpus:g} GPU" if run.units_run else None,
        "contact_sheet": sheet,
        "core_seconds": round(used.core_seconds, 2),
        "gpu_seconds": round(used.gpu_seconds, 2),
        "price_per_hour": config.price_per_hour,
        "price": used.price(config.price_per_hour),
        "identities": agreed.identities if agreed else None,
        "tracks": tracks.tracks if tracks else None,
    }


def lines(summary: ReconstructSummary) -> Lines:
    """Return the summary's own lines."""
    found: Lines = [
        ("images", str(summary.images)),
        ("faces", f"{summary.faces} ({summary.faces_run} by this run, {summary.faces_per_second} faces/s)"),
    ]
    if summary.identities is not None:
        found.append(("consensus", f"one skull each for {summary.identities} identities"))
    if summary.tracks is not None:
        found.append(("tracks", f"{summary.tracks} in {Store(summary.dest).join(TRACKS_FOLDER)}"))
    found += [
        ("took", hours_words(Use(summary.core_seconds, summary.gpu_seconds), summary.price_per_hour)),
        ("checkpoint", summary.checkpoint),
        ("precision", f"{summary.precision}, {summary.batch_size} faces at once"),
    ]
    if summary.workers:
        found.append(("workers", summary.workers))
    return [
        *found,
        ("contact sheet", summary.contact_sheet or "none: no face, or no columns of codes and displacement"),
    ]


reconstruct = UnitFlow(
    name="reconstruct",
    worker=ReconstructWorker,
    weights=check_models,
    inputs=list_images,
    summary=ReconstructSummary,
    figures=figures,
    lines=lines,
    prepare=prepare,
    arguments=worker_arguments,
    after=(agree_on_identities, track_subjects, draw_contact_sheet),
)
