"""Download cache for weights and bundles, shared by all processes of a node and keyed by hash.

Stored in `cache_root()` (`$DECA_CACHE`). Entries appear atomically; while one process downloads, the others wait at a
lock that its death releases. Entries in use are locked; the least recently used of the others are deleted once the
cache exceeds `$DECA_CACHE_GB` (default 20).
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from deca_core.assets.procedural import cache_root
from deca_core.errors import DecaError
from tasks.store.scratch import scratch_name, sweep
from tasks.store.storage import StorageError, Store, check_command, open_uri, storage_errors

CACHE_GB = "DECA_CACHE_GB"  # environment
FETCHED = "fetched"  # one folder per entry, named by its hash; locks beside it: in use (.use), downloading (.lock)
DOWNLOADS = "weights"  # downloaded by libraries, one folder per library
DEFAULT_GB = 20.0
KEY = re.compile(r"[0-9a-f]{64}")
# What drivers know of an object's version, beside its size: S3, Azure, Google, the web, other machines, memory.
STAMPS = (
    *("ETag", "etag", "VersionId", "generation", "md5Hash", "content_md5", "Content-MD5", "Digest"),
    *("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "created"),
)

_in_use: list[IO[bytes]] = []  # shared locks of this process, held until it exits

logger = logging.getLogger("deca")


def copied_folder(uri: str, record: str, data: str, check: Callable[[Path], Any]) -> Path:
    """Return a local folder with two files of a remote one: `record`, and `data`, whose hash it contains.

    check: raises a DecaError where the copy is not what its record says; then nothing is kept.
    Raises StorageError where a file is missing or cannot be read.
    """
    store = Store(uri)
    try:
        content = store.read(record)
    except FileNotFoundError as error:
        raise _missing(store.join(record)) from error

    def write(folder: Path) -> None:
        (folder / record).write_bytes(content)
        _download(store.join(data), folder / data)
        try:
            check(folder)
        except DecaError as error:
            raise type(error)(str(error).replace(str(folder), store.uri)) from error

    return _entry(hashlib.sha256(content).hexdigest(), write)


def copied_file(uri: str) -> Path:
    """Return the local copy, under the same name, of a remote file that has no record of its hash.

    Its version is its size and the store's etag or modification time. Raises StorageError.
    """
    fs, path = open_uri(uri)
    try:
        with storage_errors("look up", uri):
            info = fs.info(path)
    except FileNotFoundError as error:
        raise _missing(uri) from error
    version = [uri, info.get("size"), *(str(info[stamp]) for stamp in STAMPS if info.get(stamp) is not None)]
    name = uri.rstrip("/").rpartition("/")[2]
    key = hashlib.sha256("\0".join(map(str, version)).encode()).hexdigest()
    return _entry(key, lambda folder: _download(uri, folder / name)) / name


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the exclusive lock file `path`; no lock where the file system has none."""
    with path.open("ab") as lock:
        _lock(lock, fcntl.LOCK_EX)
        yield


def sweep_node() -> int:
    """Delete temp files left by killed processes of this node, in the cache and the temp folder; return how many."""
    return sweep([tempfile.gettempdir(), *cache_root().glob("*/"), *(cache_root() / DOWNLOADS).glob("*/")])


def _entry(key: str, write: Callable[[Path], None]) -> Path:
    """Return the folder of an entry, written if missing, and marked in use until this process exits."""
    folder = cache_root() / FETCHED / key
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        use = folder.with_suffix(".use").open("ab")
    except OSError as error:
        if folder.is_dir():
            return folder
        logger.warning("%s cannot be written (%s): every process fetches for itself. Set DECA_CACHE", folder, error)
        return _own_copy(key, write)
    _in_use.append(use)
    _lock(use, fcntl.LOCK_SH)
    if not folder.is_dir():
        with locked(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _publish(folder, write)
                _make_room(folder.parent)
    with contextlib.suppress(OSError):
        os.utime(folder)
    return folder


def _publish(folder: Path, write: Callable[[Path], None]) -> None:
    """Write an entry to a temp folder and rename it."""
    sweep_node()
    building = folder.with_name(scratch_name("entry"))
    building.mkdir()
    try:
        write(building)
        for path in (*building.iterdir(), building):
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
        building.rename(folder)
    except OSError:
        if not folder.is_dir():  # without locks another process may have been faster
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _make_room(cache: Path) -> None:
    """Delete entries that no process uses, the least recently used first, until the others fit."""
    limit = float(os.environ.get(CACHE_GB) or DEFAULT_GB) * 1e9
    with contextlib.suppress(OSError):  # another process makes room at the same moment
        entries = sorted(
            (path for path in cache.iterdir() if KEY.fullmatch(path.name)), key=lambda e: e.stat().st_mtime
        )
        sizes = {entry: sum(path.stat().st_size for path in entry.iterdir()) for entry in entries}
        for entry in entries:
            if sum(sizes.values()) > limit and _delete_unused(entry):
                del sizes[entry]


def _delete_unused(entry: Path) -> bool:
    with entry.with_suffix(".use").open("ab") as use:
        try:
            fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # in use, or no locks
            return False
        shutil.rmtree(entry)
        return True


def _own_copy(key: str, write: Callable[[Path], None]) -> Path:
    """Return a copy for this process alone, deleted at exit."""
    folder = Path(tempfile.gettempdir()) / scratch_name(key[:12])
    folder.mkdir(mode=0o700)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write(folder)
    return folder


def _lock(file: IO[bytes], how: int) -> None:
    with contextlib.suppress(OSError):  # a file system without locks: entries still appear whole
        fcntl.flock(file, how)


def _download(uri: str, path: Path) -> None:
    fs, place = open_uri(uri)
    try:
        with storage_errors("read", uri):
            fs.get_file(place, str(path))
            size = fs.info(place).get("size")
    except FileNotFoundError as error:
        raise _missing(uri) from error
    if size is not None and path.stat().st_size != size:
        raise StorageError(f"{uri}: {path.stat().st_size} of {size} bytes came. Run the same command again")


def _missing(uri: str) -> StorageError:
    return StorageError(f"{uri} does not exist. Check with: {check_command(uri)}")
