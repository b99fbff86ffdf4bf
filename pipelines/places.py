"""The places that a command names, looked at before torch is loaded, models are read and precision is measured.

Each is looked at again by the stage that uses it, with the same words; here a misspelt path costs no seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deca_core.assets.bundle import check_folder
from deca_core.checkpoint_meta import read_meta
from pipelines.stages import annotations_of
from schemas.ingest import IngestConfig
from schemas.reconstruct import UNTRAINED_CHECKPOINT, ReconstructConfig
from tasks.sources.walk import check_source
from tasks.store.storage import Store, is_local, normalise
from tasks.units.plan import load_plan


def check_places(config: Any) -> None:
    """Raise what a flow with these settings would raise over its source, DEST, bundle and checkpoints.

    What lies in a bucket is left to the flow, but for DEST: a request for each would be made twice.
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
    """The folder of this machine that a setting names, if it names one."""
    if uri is None or not is_local(place := normalise(uri)):
        return None
    return Path(place)
