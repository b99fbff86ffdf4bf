"""Find the datasets of a DEST, and check the places in a config before torch is loaded and models are read.

The stage that uses a place checks it again, with the same message; here a misspelt path fails at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deca_core.assets.bundle import check_folder
from deca_core.checkpoint_meta import read_meta
from schemas.faces import ANNOTATIONS_FOLDER, CURRENT, FACES_FOLDER
from schemas.ingest import IngestConfig
from schemas.reconstruct import UNTRAINED_CHECKPOINT, ReconstructConfig
from tasks.sources.walk import check_source
from tasks.store.storage import Store, is_local, normalise
from tasks.units.plan import PLAN, load_plan

SUMMARY = "_report/summary.json"


def annotations_of(dest: str) -> str:
    """Return the annotations of an ingest."""
    return Store(dest).join(ANNOTATIONS_FOLDER)


def faces_of(dest: str) -> str:
    """Return the faces/ dataset of an ingest."""
    return Store(dest).join(FACES_FOLDER)


def planned_dataset(dest: str) -> str:
    """Resolve DEST to a dataset with a plan: itself, or the annotations of an ingest."""
    inside = annotations_of(dest)
    return inside if not Store(dest).exists(PLAN) and Store(inside).exists(PLAN) else Store(dest).uri


def find_faces(dest: str) -> str | None:
    """Resolve DEST to a faces/ dataset: itself, or the one below it; None where neither exists."""
    places = (Store(dest).uri, faces_of(dest))
    return next((place for place in places if Store(place).exists(CURRENT)), None)


def check_places(config: Any) -> None:
    """Raise what a flow with these settings would raise over its source, DEST, bundle and checkpoints.

    Buckets are left to the flow, except for DEST: each would be requested twice.
    """
    if isinstance(config, ReconstructConfig | IngestConfig):
        if config.existing in ("resume", "retry"):  # neither source nor models are those of the command
            load_plan(config.dest if isinstance(config, ReconstructConfig) else annotations_of(config.dest))
            return
        check_source(config.source)
    if (bundle := _local(getattr(config, "bundle", None))) is not None:
        check_folder(bundle)
    named = (getattr(config, "checkpoint", None), getattr(config, "start", None))
    for uri in (*named, *getattr(config, "compare", {}).values()):
        if uri != UNTRAINED_CHECKPOINT and (folder := _local(uri)) is not None:
            read_meta(folder)
    Store(config.dest).check_writable()


def _local(uri: str | None) -> Path | None:
    """Return the local folder of a setting, or None."""
    if uri is None or not is_local(place := normalise(uri)):
        return None
    return Path(place)
