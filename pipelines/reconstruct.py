"""The reconstruct flow: photos in, codes and displacement maps out. `deca fit` is the same without a network."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from functools import partial
from typing import Any

from deca_core.inference import Deviation
from pipelines.stages import (
    SUMMARY,
    Stage,
    direct,
    fill_in,
    find_faces,
    settle,
    store_config,
    stored_plan,
)
from schemas.consensus import ConsensusRecord
from schemas.progress import OnUnitProgress
from schemas.reconstruct import FREEZE_FROM, ReconstructConfig, ReconstructSummary
from schemas.tracks import TracksRecord
from tasks.annotate.annotators import load_annotator
from tasks.heads.consensus import make_consensus
from tasks.heads.precision import DeviceSettings, worker_settings
from tasks.heads.reconstruct import ReconstructWorker
from tasks.heads.tracks import has_frames, make_tracks
from tasks.models.loading import bundle_at, bundle_for, is_trained, load_model, weights_hash
from tasks.people.face_rows import face_items
from tasks.people.versions import Faces, open_faces
from tasks.reports.contact_sheet import CONTACT_SHEET, contact_sheet
from tasks.sources.endings import left_out_words
from tasks.sources.walk import is_file, parse_glob
from tasks.store.storage import Store, normalise
from tasks.units.draft import code_version
from tasks.units.engine import Factory, RunSummary, run_units
from tasks.units.estimate import Use
from tasks.units.plan import PLAN, Plan, PlanError, load_plan
from tasks.units.ray_cluster import expected_workers
from tasks.units.reasons import check_rows
from tasks.units.rounds import Mode, open_or_build
from tasks.units.shared_paths import prove_paths
from tasks.units.verify import status

UNTRAINED_WARNING = (
    "UNTRAINED NETWORK: the weights are random, so codes and displacement maps mean nothing. "
    "Give trained ones with --checkpoint"
)

PRECISION = "_report/precision.json"  # what the micro-benchmark of a new plan found
MODES: dict[str, Mode] = {"new": "new", "extend": "extend"}

logger = logging.getLogger("deca")


def reconstruct(
    config: ReconstructConfig, on_progress: OnUnitProgress | None = None, stage: Stage = direct
) -> ReconstructSummary:
    """Photos in, codes and displacement maps out; calling it again goes on where it stopped.

    stage: wraps each stage, for an engine that watches them (Prefect).
    """
    config = stage(prepare)(config)
    weights = stage(check_models)(config)
    plan = stage(freeze_plan)(config, weights)
    run = stage(reconstruct_faces)(plan, config, on_progress)
    agreed = stage(agree_on_identities)(plan, config)
    tracks = stage(follow_people)(plan, config)
    sheet = stage(draw_contact_sheet)(plan, config, run)
    return stage(summarise)(plan, config, run, sheet, agreed, tracks)


def prepare(config: ReconstructConfig) -> ReconstructConfig:
    """The settings that hold, with the checkpoint's bundle, and what was left open as the plan has it or as chosen."""
    from deca_core.roll import UPRIGHT_FROM

    config = settle(config, config.dest)
    if config.codes == "network":  # a plan without a network does not hold how a face is turned for one
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
        return _settled(config, found)
    store.check_writable()  # before seconds of measuring
    chosen = worker_settings(config)
    logger.info("workers compute on: %s, %d faces at once", chosen.device, chosen.batch_size)
    if chosen.choice is None:
        return _settled(config, {"batch_size": chosen.batch_size})
    _note(store, chosen)
    return _settled(config, {"precision": chosen.choice.precision, "batch_size": chosen.batch_size})


def _settled(config: ReconstructConfig, found: dict[str, Any]) -> ReconstructConfig:
    """The config with what was found for settings that it leaves open."""
    left = {name: value for name, value in found.items() if getattr(config, name) in (None, "auto")}
    return config.model_copy(update=left)


def _note(store: Store, chosen: DeviceSettings) -> None:
    """Say what was measured, in the log and beside the data."""
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
    """Load everything that the workers will need once, before any work; the hashes of what takes part, by name."""
    bundle = bundle_at(config.bundle)
    weights = {"bundle": bundle.hash, "checkpoint": weights_hash(config)}
    if faces_at(config.source) is None:  # where it is, faces are found already
        weights |= load_annotator(config.annotate).versions
    load_model(config)
    if not is_trained(config):
        logger.warning(UNTRAINED_WARNING)
    return weights


def freeze_plan(config: ReconstructConfig, weights: dict[str, str]) -> Plan:
    """List the source and cut it into units, or open the plan that is already there."""
    if config.existing in ("resume", "retry"):
        return stored_plan(config.dest, config.existing, weights, config.ray.upgrade)
    faces = faces_at(config.source)
    if faces is not None and config.existing == "extend":
        raise PlanError(
            f"{faces.dest} is a faces/ dataset: a plan pins one version of it. Reconstruct the current one into "
            "another folder, or start over with --new"
        )
    pinned = {} if faces is None else {"faces": {"version": faces.version.version, "is": faces.version.fingerprint}}
    plan = open_or_build(
        config.dest,
        config.source if faces is None else faces.dest,
        config=config.plan_config() | pinned,
        weights=weights,
        source_config=config.inputs,
        units=config.units,
        workers=expected_workers(config.ray),
        code=code_version(ReconstructWorker.__module__),
        items=None if faces is None else face_items(faces),
        mode=MODES.get(config.existing, "auto"),
        upgrade=config.ray.upgrade,
    )
    store_config(plan, config)
    logger.info("%d pictures in %d units, plan %s", plan.inputs.items, plan.units, plan.fingerprint[:8])
    if plan.record.images_left_out:
        logger.warning("images left out: %s", left_out_words(plan.record.images_left_out))
    return plan


def faces_at(source: str) -> Faces | None:
    """The version that holds of the faces/ dataset that a source is, or that `deca ingest` put below it; else None."""
    uri = normalise(source)
    if uri.startswith(("http://", "https://")) or parse_glob(uri) or is_file(uri):
        return None
    place = find_faces(uri)
    return None if place is None else open_faces(place)


def reconstruct_faces(plan: Plan, config: ReconstructConfig, on_progress: OnUnitProgress | None) -> RunSummary:
    """Work the pending units on Ray."""
    run = run_units(plan, workers_of(plan, config), config.ray, on_progress)
    check_rows(plan, run.rows, "faces" if "faces" in plan.record.config else "images")
    return run


def workers_of(plan: Plan, config: ReconstructConfig) -> Factory:
    """What builds the workers of a plan; whether they compile or freeze follows from it: all its runs decide alike."""
    return partial(ReconstructWorker, config, plan.inputs.items, plan.inputs.items >= FREEZE_FROM)


def agree_on_identities(plan: Plan, config: ReconstructConfig) -> ConsensusRecord | None:
    """The codes that all pictures of a person share, where that is asked for."""
    if config.consensus == "none":
        return None
    return make_consensus(plan.dest, bundle_at(config.bundle), config.consensus_detail)


def follow_people(plan: Plan, config: ReconstructConfig) -> TracksRecord | None:
    """People through the frames of videos, with smoothed codes; nothing where the rows are pictures."""
    if not config.video.tracks or "codes" not in config.outputs or not has_frames(plan.dest, config.video):
        return None
    return make_tracks(plan.dest, bundle_at(config.bundle), config.video)


def draw_contact_sheet(plan: Plan, config: ReconstructConfig, run: RunSummary) -> str | None:
    """The sheet of sampled faces; an earlier one is kept where nothing new was made."""
    if not {"codes", "displacement"} <= set(config.outputs) or config.layout == "files":
        return None  # its panels are drawn from these columns
    if not run.units_run and plan.store.exists(CONTACT_SHEET):
        return plan.store.join(CONTACT_SHEET)
    return contact_sheet(plan, config)


def summarise(
    plan: Plan,
    config: ReconstructConfig,
    run: RunSummary,
    sheet: str | None,
    agreed: ConsensusRecord | None,
    tracks: TracksRecord | None,
) -> ReconstructSummary:
    """Count what lies in DEST and write it beside the data."""
    now = status(plan.dest)
    used = Use.of(run)
    summary = ReconstructSummary(
        outcome="complete" if now.complete else "partial",
        source=now.source,
        dest=now.dest,
        images=now.items,
        faces=now.rows,
        quarantined=now.quarantined,
        images_left_out=now.images_left_out,
        pending_units=now.pending,
        units_run=run.units_run,
        units_skipped=run.units_skipped,
        faces_run=run.rows,
        seconds=round(run.seconds, 2),
        faces_per_second=round(run.rows / run.seconds, 2) if run.rows else 0.0,
        trained=is_trained(config),
        checkpoint=plan.record.weights["checkpoint"],
        bundle=plan.record.weights["bundle"],
        precision=config.precision,
        batch_size=config.batch_size,
        workers=f"{run.workers} of {run.cores:g} CPU and {run.gpus:g} GPU" if run.units_run else None,
        fingerprint=now.fingerprint,
        code=now.code,
        bytes=now.bytes,
        contact_sheet=sheet,
        core_seconds=round(used.core_seconds, 2),
        gpu_seconds=round(used.gpu_seconds, 2),
        price_per_hour=config.price_per_hour,
        price=used.price(config.price_per_hour),
        identities=agreed.identities if agreed else None,
        tracks=tracks.tracks if tracks else None,
    )
    plan.store.write(SUMMARY, summary.model_dump_json(indent=2).encode())
    return summary
