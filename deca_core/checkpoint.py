"""Trained weights on disk: a folder with `model.safetensors` (the weights) and `checkpoint.json` (the record)."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deca_core.assets import bundle as bundles
from deca_core.assets.bundle import AssetBundle
from deca_core.assets.procedural import NAME as EMBEDDED_HEAD
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
from deca_core.codes import COARSE_LENGTHS, NUM_COARSE, NUM_DETAIL
from deca_core.detail import DetailDecoder
from deca_core.downloads import read_tensors
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

RELEASED_HEAD, RELEASED_FILE = "FLAME", "deca_model.tar"
# The files of a checkpoint folder; the last two are there where it carries its bundle.
FILES = (WEIGHTS_FILE, META_FILE, bundles.ARRAYS_FILE, bundles.META_FILE)
BIND = f"Put {RELEASED_FILE} into the folder of the FLAME files and run: deca assets import FOLDER CHECKPOINT"


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

    Weights that are bound to no bundle are loaded on any bundle of FLAME with a warning, but never FLAME's on the
    embedded head or vice versa. Raises CheckpointError when a file is missing or changed, the backbone is unknown, or
    `bundle` is another head.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    source = Path(folder)
    meta = read_meta(source)
    head = meta["bundle"]
    if head["hash"] is None and bundle.name != head["name"]:
        if EMBEDDED_HEAD in (bundle.name, head["name"]):
            raise CheckpointError(
                f"{source}: weights for the head {head['name']!r}, bound to no bundle, and the bundle is "
                f"{bundle.name!r}. {BIND}; or name the bundle that they belong to with --bundle"
            )
        warnings.warn(f"{source}: weights trained on {head['name']}, used on the head {bundle.name!r}", stacklevel=2)
    elif head["hash"] is not None and head["hash"] != bundle.hash:
        raise CheckpointError(
            f"{source}: trained on the head {head['name']!r} ({head['hash'][:12]}), but the bundle is {bundle.name!r} "
            f"({bundle.hash[:12]}). Give the bundle it was trained with (--bundle)"
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


def import_released(path: str | Path, folder: str | Path, bundle: AssetBundle | None = None) -> Path:
    """The released `deca_model.tar` (a `torch.save`d dictionary) as a checkpoint folder; returns the folder.

    bundle: the one made from the release's files. The checkpoint is bound to it by hash and carries it along, so that
    the folder is a checkpoint and a bundle. None: bound to no bundle, since the file does not say to which copy of
    FLAME it belongs.

    Read with torch's weights-only unpickler: a file that needs code to be executed is refused. Optimiser state is
    left out. Raises CheckpointError naming missing, unexpected or misshapen weights.
    """
    source = Path(path)
    if not source.is_file():
        raise CheckpointError(f"{source}: no such file. {RELEASED_FILE} comes with the DECA release")
    content = read_tensors(source, CheckpointError)
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {
            "E_flame": Encoder(NUM_COARSE, RESNET50),
            "E_detail": Encoder(NUM_DETAIL, RESNET50),
            "D_detail": DetailDecoder(),
        }
    missing = [name for name in parts if not (isinstance(content, dict) and isinstance(content.get(name), dict))]
    if missing:
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{source}: no {', '.join(missing)} (it has {found}); expected DECA's {RELEASED_FILE}")
    weights: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    for part, module in parts.items():
        expected |= {f"{part}.{name}": value for name, value in module.state_dict().items()}
        weights |= {f"{part}.{str(name).removeprefix('module.')}": value for name, value in content[part].items()}
    for name in expected:  # checkpoints older than PyTorch 0.4.1 have no such counter, and nothing reads it
        if name.endswith("num_batches_tracked"):
            weights.setdefault(name, torch.tensor(0))
    _check_weights(weights, expected, source, _other_codes(weights))
    head: dict[str, str | None] = {"name": RELEASED_HEAD, "hash": None}
    if bundle is not None:
        head = {"name": bundle.name, "hash": bundle.hash}
    info = {"trained": "yes", "recipe": "released", "source": source.name, "source_sha256": file_sha256(source)}
    return _write(Path(folder), weights, RESNET50, head, info, bundle)


def _other_codes(weights: dict[str, Any]) -> str:
    """Note for the error where the encoder was trained with other numbers of components, else an empty string."""
    codes = getattr(weights.get("E_flame.layers.2.weight"), "shape", (NUM_COARSE,))[0]
    if codes == NUM_COARSE:
        return ""
    lengths = ", ".join(f"{name} {length}" for name, length in COARSE_LENGTHS.items())
    return f". It was trained with other numbers of components: {codes} codes, a bundle takes {NUM_COARSE} ({lengths})"


def _write(
    folder: Path,
    weights: dict[str, Tensor],
    backbone: str,
    head: dict[str, str | None],
    info: dict[str, str],
    bundle: AssetBundle | None = None,
) -> Path:
    """bundle: to be carried along, in the same folder."""
    from safetensors.torch import save

    _check_free(folder, with_bundle=bundle is not None)
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        # Cloned: of tensors that share storage, as counters of a released file do, safetensors takes only one.
        tensors = {
            name: value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
            for name, value in weights.items()
        }
        (building / WEIGHTS_FILE).write_bytes(save(tensors))  # a full disk is an OSError here
        if bundle is not None:
            bundle.save(building)
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


def _check_free(folder: Path, with_bundle: bool) -> None:
    """Raise CheckpointError unless `folder` is free or a checkpoint; with_bundle: a bundle may be replaced too."""
    if not folder.exists() or (folder / META_FILE).is_file():
        return
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if held and not (with_bundle and held <= set(FILES)):
        raise CheckpointError(f"{folder}: exists and is not a checkpoint. Give another folder, or remove it")


def _swap(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; an earlier folder is removed only after the new one is in place."""
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


def _check_weights(weights: dict[str, Any], expected: dict[str, Tensor], where: Path, note: str = "") -> None:
    """Same names, same shapes, all tensors; otherwise an error that lists what differs, and ends in `note`."""
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
        raise CheckpointError(f"{where}: the weights do not fit the model; {'; '.join(problems)}{note}")


def _shortened(names: list[str], most: int = 10) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
