"""The model of a run: bundle and checkpoint by URI, with the hashes for plan, rows and report."""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from deca_core import DECA, Codes
from deca_core import checkpoint as checkpoints
from deca_core.assets import AssetBundle, load_bundle, procedural_head
from deca_core.assets import bundle as bundles
from deca_core.checkpoint_meta import head_of
from schemas.reconstruct import FIT_CHECKPOINT, UNTRAINED_CHECKPOINT, ReconstructConfig
from tasks.store.node_cache import copied_file, copied_folder
from tasks.store.storage import Store, is_local, normalise

logger = logging.getLogger("deca")


class GeometryModel(DECA):
    """A model for codes without networks (fits, truth): its encoders are never used, its displacement z is 0."""

    def __init__(self, bundle: AssetBundle) -> None:
        super().__init__(bundle, backbone="mobilenet_v3_small")  # the smallest to build

    def detail(self, codes: Codes) -> Tensor:
        """No displacement, (B,1,256,256)."""
        return codes.detail.new_zeros(len(codes), 1, 256, 256)


def bundle_at(uri: str | None) -> AssetBundle:
    """The bundle of a folder, or the procedural head. Raises BundleError or StorageError."""
    if uri is None:
        return _embedded_head()
    return load_bundle(_bundle_folder(uri))


def bundle_for(bundle: str | None, checkpoint: str | None) -> str | None:
    """The bundle of a run: the named one, else that of its checkpoint; None: the embedded head.

    Raises CheckpointError or StorageError where there is no checkpoint.
    """
    if checkpoint in (None, UNTRAINED_CHECKPOINT):
        return bundle
    assert checkpoint is not None
    head = head_of(checkpoint_folder(checkpoint))
    if bundle is None:
        return checkpoint if Store(checkpoint).exists(bundles.META_FILE) else None
    if head["hash"] is None:
        logger.warning(
            "%s is bound to no bundle: whether its weights were trained on %s is unknown. %s",
            checkpoint,
            bundle,
            checkpoints.BIND,
        )
    return bundle


@cache
def _embedded_head() -> AssetBundle:
    """The embedded head, one object a process, so that values derived from it are cached."""
    return procedural_head()


def weights_hash(config: ReconstructConfig) -> str:
    """Value of the `checkpoint` column: the checkpoint's hash, "untrained-<seed>" or "landmark-fit".

    Raises CheckpointError.
    """
    if config.codes == "landmarks":
        return FIT_CHECKPOINT
    folder = _weights_folder(config)
    return f"untrained-{config.seed}" if folder is None else checkpoints.checkpoint_hash(folder)


def is_trained(config: ReconstructConfig) -> bool:
    """Whether the weights come from training, by their checkpoint's metadata; true where no weights are used."""
    if config.codes == "landmarks":
        return True
    folder = _weights_folder(config)
    if folder is None:
        return False
    meta = json.loads((folder / checkpoints.META_FILE).read_text())
    return meta["info"].get("trained") != "no"


def load_model(config: ReconstructConfig) -> DECA:
    """The model in eval mode. Raises CheckpointError when the checkpoint is damaged or made for another bundle."""
    bundle = bundle_at(config.bundle)
    if config.codes == "landmarks":
        return GeometryModel(bundle)
    folder = _weights_folder(config)
    if folder is not None:
        return checkpoints.load_checkpoint(folder, bundle=bundle)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return DECA(bundle)


def _weights_folder(config: ReconstructConfig) -> Path | None:
    """The folder of a run's checkpoint; None: untrained."""
    if config.checkpoint is not None:
        return None if config.checkpoint == UNTRAINED_CHECKPOINT else checkpoint_folder(config.checkpoint)
    return checkpoints.SHIPPED if config.bundle is None else None


@cache
def checkpoint_folder(uri: str) -> Path:
    """A checkpoint's folder on this machine. Raises CheckpointError or StorageError."""
    place = normalise(uri)
    if is_local(place):
        return Path(place)
    return copied_folder(place, checkpoints.META_FILE, checkpoints.WEIGHTS_FILE, checkpoints.checkpoint_hash)


@cache
def _bundle_folder(uri: str) -> Path:
    place = normalise(uri)
    return Path(place) if is_local(place) else copied_folder(place, bundles.META_FILE, bundles.ARRAYS_FILE, load_bundle)


@cache
def local_file(uri: str) -> Path:
    """A single file on this machine, under its own name. Raises StorageError."""
    place = normalise(uri)
    return Path(place) if is_local(place) else copied_file(place)
