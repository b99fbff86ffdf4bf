"""Temp files and folders named after their process: those of dead processes are swept, those in use never are.

A name contains the kernel's boot id, the PID namespace, the process id and its start time, since hostnames and process
ids are shared by containers on one volume and reused after a restart. Where these are unknown (macOS), and for files of
another boot or container on a shared volume, files unmodified for a day are taken for abandoned.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

SCRATCH_PREFIX, SCRATCH_SUFFIX = ".deca-", ".tmp"
STALE_SECONDS = 24 * 3600
OWNED = re.compile(r"\.deca-([0-9a-f]{12})\+(\d+)\+(\d+)\+(\d+)\+[0-9a-f]{8}-")
UNKNOWN = ("0" * 12, "0")  # boot and container where the system does not tell


def scratch_name(name: str) -> str:
    """A name for a temp file or folder of this process for `name`."""
    return f"{SCRATCH_PREFIX}{_owner(os.getpid())}+{secrets.token_hex(4)}-{name}{SCRATCH_SUFFIX}"


@contextlib.contextmanager
def temp_folder(purpose: str) -> Iterator[Path]:
    """An empty folder where temp files belong on this machine; gone afterwards, or swept if this process is killed."""
    folder = Path(tempfile.gettempdir()) / scratch_name(purpose)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folders: Iterable[str | Path]) -> int:
    """Delete the temp files and folders right in `folders` that dead processes left; returns how many."""
    swept = 0
    for folder in folders:
        for path in Path(folder).glob(f"{SCRATCH_PREFIX}*{SCRATCH_SUFFIX}"):
            if is_abandoned(path):
                with contextlib.suppress(OSError):  # another run's sweep, another user's file
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                    swept += 1
    return swept


def is_abandoned(path: Path) -> bool:
    """Whether the owner of a temp file or folder is certainly dead, or unknown and it is unmodified for a day."""
    owned, here = OWNED.match(path.name), _here(os.getpid())
    if owned and here != UNKNOWN and owned.groups()[:2] == here:
        return not _lives(int(owned[3]), owned[4])
    try:
        return time.time() - _touched(path) > STALE_SECONDS
    except OSError:  # just gone, or another user's
        return False


@lru_cache(maxsize=1)
def _owner(pid: int) -> str:
    """Return the globally unique id of this process: boot+container+pid+start."""
    fields = _stat(pid) if _here(pid) != UNKNOWN else None
    return "+".join((*_here(pid), str(pid), fields[19] if fields else "0"))


@lru_cache(maxsize=1)
def _here(pid: int) -> tuple[str, str]:
    """(boot, namespace of process ids) of this process; UNKNOWN where /proc is missing or another namespace's."""
    try:
        if os.readlink("/proc/self") != str(pid):
            return UNKNOWN
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", "")[:12]
        return boot, str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return UNKNOWN


def _lives(pid: int, start: str) -> bool:
    """Whether the process of this container that started at `start` (clock ticks since boot) still runs."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    fields = _stat(pid)
    if fields is None:  # hidden from us, or just gone: the next sweep will know
        return True
    return fields[19] == start and fields[0] not in ("Z", "X")


def _stat(pid: int) -> list[str] | None:
    """The kernel's line on a process from its state on; None where there is none to read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _touched(path: Path) -> float:
    """Return the latest modification time of a file or of anything in a folder, in seconds since 1970."""
    inside = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    return max(found.lstat().st_mtime for found in (path, *inside))
