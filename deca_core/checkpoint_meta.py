"""The record of a checkpoint folder, read and checked against its weights file without torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from deca_core.downloads import check_download
from deca_core.errors import DecaError

SCHEMA_VERSION = 1
WEIGHTS_FILE, META_FILE = "model.safetensors", "checkpoint.json"

# The small weights that come with the package, for the procedural head; its README.md says what they are.
SHIPPED = Path(__file__).parent / "weights"


class CheckpointError(DecaError):
    """A checkpoint that is missing, damaged, of another schema, or made for another model or head."""


def checkpoint_hash(folder: str | Path) -> str:
    """SHA-256 of the weights file. Raises CheckpointError where it is not the one that was saved."""
    source = Path(folder)
    recorded = read_meta(source)["weights_sha256"]
    check_download(source / WEIGHTS_FILE, CheckpointError)
    found = file_sha256(source / WEIGHTS_FILE)
    if found != recorded:
        raise CheckpointError(
            f"{source}: {WEIGHTS_FILE} has SHA-256 {found[:12]}, {META_FILE} says {recorded[:12]}: "
            "the file was changed or damaged. Copy the checkpoint again"
        )
    return found


def head_of(folder: str | Path) -> dict[str, str | None]:
    """Name and hash of the head that a checkpoint was made for; hash None: it is bound to no bundle."""
    head: dict[str, str | None] = read_meta(Path(folder))["bundle"]
    return head


def read_meta(source: Path) -> dict[str, Any]:
    """The record of a checkpoint folder. Raises CheckpointError where it is none, damaged, or of another schema."""
    for name in (META_FILE, WEIGHTS_FILE):
        if not (source / name).is_file():
            raise CheckpointError(
                f"{source}: no {name}. A checkpoint is a folder with {META_FILE} and {WEIGHTS_FILE}, written by "
                "deca train, or by deca assets import (import_released) from the released deca_model.tar"
            )
    check_download(source / META_FILE, CheckpointError, text=True)
    try:
        meta = json.loads((source / META_FILE).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{source}: {META_FILE} is damaged ({error}). Copy the checkpoint again") from error
    version = meta.get("schema_version") if isinstance(meta, dict) else None
    if version != SCHEMA_VERSION:
        raise CheckpointError(f"{source}: checkpoint schema {version}, this version reads {SCHEMA_VERSION}")
    missing = {"backbone", "bundle", "info", "weights_sha256"} - set(meta)
    if missing:
        raise CheckpointError(f"{source}: {META_FILE} lacks {', '.join(sorted(missing))}. Copy the checkpoint again")
    return meta


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
