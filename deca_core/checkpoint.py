"""Trained weights on disk: a folder with `model.safetensors` (the weights) and `checkpoint.json` (what they are)."""

from __future__ import annotations

import json
import pickle
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deca_core.assets.bundle import AssetBundle
from deca_core.checkpoint_meta import (
    META_FILE,
    SCHEMA_VERSION,
    SHIPPED,
    WEIGHTS_FILE,
    CheckpointError,
    checkpoint_hash,
    file_sha256,
    read_meta,
)
from deca_core.codes import NUM_COARSE, NUM_DETAIL
from deca_core.detail import DetailDecoder
from deca_core.encoder import RESNET50, BackboneError, Encoder
from deca_core.model import DECA

__all__ = [
    "META_FILE",
    "SHIPPED",
    "WEIGHTS_FILE",
    "CheckpointError",
    "checkpoint_hash",
    "import_released",
    "load_checkpoint",
    "save_checkpoint",
    "save_shipped",
]

RELEASED_HEAD = "FLAME"


def save_checkpoint(model: DECA, folder: str | Path) -> Path:
    """Write the weights and what they need to be used again; returns the folder.

    The folder appears complete or not at all; an earlier checkpoint there is replaced, other content is refused.
    """
    head: dict[str, str | None] = {"name": model.bundle.name, "hash": model.bundle.hash}
    return _write(Path(folder), model.state_dict(), model.backbone, head, model.info)


def save_shipped(source: str | Path, folder: str | Path, bundle: AssetBundle) -> Path:
    """A trained checkpoint as the package carries it: float16, half the bytes; returns the folder.

    The head is recorded by name only: it is made by arithmetic whose last bits differ between processors, and so does
    its hash. Raises CheckpointError like `load_checkpoint`.
    """
    model = load_checkpoint(source, bundle)
    weights = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    return _write(Path(folder), weights, model.backbone, {"name": bundle.name, "hash": None}, model.info)


def load_checkpoint(folder: str | Path, bundle: AssetBundle) -> DECA:
    """The model of a checkpoint folder on the head it was trained for, in eval mode on the CPU.

    Raises CheckpointError when a file is missing or changed, the backbone is unknown, or `bundle` is another head.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    source = Path(folder)
    meta = read_meta(source)
    head = meta["bundle"]
    if head["hash"] is None and bundle.name != head["name"]:
        warnings.warn(f"{source}: weights trained on {head['name']}, used on the head {bundle.name!r}", stacklevel=2)
    elif head["hash"] is not None and head["hash"] != bundle.hash:
        raise CheckpointError(
            f"{source}: trained on the head {head['name']!r} ({head['hash'][:12]}), but the bundle is {bundle.name!r} "
            f"({bundle.hash[:12]}). Give the bundle it was trained with"
        )
    checkpoint_hash(source)
    try:
        model = DECA(bundle, meta["backbone"])
    except BackboneError as error:
        raise CheckpointError(f"{source}: {error}") from error
    try:
        weights = load_file(source / WEIGHTS_FILE)
    except SafetensorError as error:
        raise CheckpointError(f"{source}: {WEIGHTS_FILE} is damaged ({error}). Copy the checkpoint again") from error
    _check_weights(weights, model.state_dict(), source / WEIGHTS_FILE)
    model.load_state_dict(weights)
    model.info = dict(meta["info"])
    return model.eval()


def import_released(path: str | Path, folder: str | Path) -> Path:
    """The released `deca_model.tar` (a `torch.save`d dictionary) as a checkpoint folder; returns the folder.

    Read with torch's weights-only unpickler: a file that needs code to be executed is refused. Optimiser state is
    left out. The weights belong to FLAME; the file does not say to which copy of it, so no bundle hash is recorded.
    Raises CheckpointError naming missing, unexpected or misshapen weights.
    """
    source = Path(path)
    if not source.is_file():
        raise CheckpointError(f"{source}: no such file. deca_model.tar comes with the DECA release")
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{source}: refused, it needs more than tensors to be read: {_first_line(error)}"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{source}: not a readable checkpoint ({_first_line(error)}). Download it again"
        ) from error
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {
            "E_flame": Encoder(NUM_COARSE, RESNET50),
            "E_detail": Encoder(NUM_DETAIL, RESNET50),
            "D_detail": DetailDecoder(),
        }
    missing = [name for name in parts if not (isinstance(content, dict) and isinstance(content.get(name), dict))]
    if missing:
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{source}: no {', '.join(missing)} (it has {found}); expected DECA's deca_model.tar")
    weights: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    for part, module in parts.items():
        expected |= {f"{part}.{name}": value for name, value in module.state_dict().items()}
        weights |= {f"{part}.{str(name).removeprefix('module.')}": value for name, value in content[part].items()}
    for name in expected:  # checkpoints older than PyTorch 0.4.1 have no such counter, and nothing reads it
        if name.endswith("num_batches_tracked"):
            weights.setdefault(name, torch.tensor(0))
    _check_weights(weights, expected, source)
    head: dict[str, str | None] = {"name": RELEASED_HEAD, "hash": None}
    info = {"trained": "yes", "recipe": "released", "source": source.name, "source_sha256": file_sha256(source)}
    return _write(Path(folder), weights, RESNET50, head, info)


def _write(
    folder: Path, weights: dict[str, Tensor], backbone: str, head: dict[str, str | None], info: dict[str, str]
) -> Path:
    from safetensors.torch import save

    if folder.exists() and not (folder / META_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists and is not a checkpoint. Give another folder, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        tensors = {name: value.detach().to("cpu").contiguous() for name, value in weights.items()}
        (building / WEIGHTS_FILE).write_bytes(save(tensors))  # a full disk is an OSError here
        meta = {
            "schema_version": SCHEMA_VERSION,
            "backbone": backbone,
            "bundle": head,
            "info": info,
            "weights_sha256": file_sha256(building / WEIGHTS_FILE),
        }
        (building / META_FILE).write_text(json.dumps(meta, indent=2) + "\n")
        building.chmod(0o755)  # mkdtemp's own is for one user only
        _swap(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def _swap(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; what was there goes only after the new one is in place."""
    old = new.with_suffix(".old")
    if folder.exists():  # a folder that is not empty cannot be replaced in one step
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _check_weights(weights: dict[str, Any], expected: dict[str, Tensor], where: Path) -> None:
    """Same names, same shapes, all tensors; otherwise an error that lists what differs."""
    wrong = {
        "missing": sorted(set(expected) - set(weights)),
        "unexpected": sorted(set(weights) - set(expected)),
        "misshapen": [
            f"{name} {tuple(getattr(weights[name], 'shape', ()))} instead of {tuple(value.shape)}"
            for name, value in expected.items()
            if name in weights and getattr(weights[name], "shape", None) != value.shape
        ],
    }
    problems = [f"{len(names)} {kind}: {_shortened(names)}" for kind, names in wrong.items() if names]
    if problems:
        raise CheckpointError(f"{where}: the weights do not fit the model; {'; '.join(problems)}")


def _shortened(names: list[str], most: int = 10) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
