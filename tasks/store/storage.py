"""One dataset folder on any fsspec URI: atomic publish, reads, listing, and errors that say what to do.

Writes are atomic: a file is written locally, synced, hashed, and put once. Credentials come from the environment
(AWS_ACCESS_KEY_ID ...), never from a URI.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import lru_cache
from glob import has_magic
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from deca_core.errors import DecaError
from schemas.secrets import credential_in, redact, refusal
from tasks.store.scratch import SCRATCH_PREFIX, SCRATCH_SUFFIX, scratch_name, sweep

# The default mode gives up after few tries; 403 is not retried in either.
S3_RETRIES: dict[str, Any] = {"config_kwargs": {"retries": {"max_attempts": 10, "mode": "standard"}}}
ALLOWED_ROOTS = "DECA_ALLOWED_ROOTS"  # environment: folders or prefixes, with commas between; unset or empty: anywhere
S3, AZURE, GOOGLE = {"s3", "s3a"}, {"abfs", "abfss", "az"}, {"gs", "gcs"}
ALIASES = {"s3a": "s3", "gcs": "gs"}
OBJECT_STORES = {*S3, *AZURE, *GOOGLE, "memory"}  # no folders to make
DELETE_THREADS = 16
MODIFIED = ("LastModified", "last_modified", "updated", "mtime", "created")  # of S3, Azure, Google, local files, memory


class StorageError(DecaError):
    """Storage that cannot be read or written; says which, why, and what to check."""


def normalise(uri: str | os.PathLike[str]) -> str:
    """The URI as it is stored and shown: local paths absolute and without scheme, no slash at the end.

    Raises StorageError, which does not repeat it, for one with credentials.

    >>> normalise("s3://bucket/photos/")
    's3://bucket/photos'
    """
    text = os.fspath(uri)
    if found_in := credential_in(text):
        raise StorageError(refusal(text, found_in))
    if "\0" in text:
        raise StorageError(f"{text!r} is no place: it has a zero byte in it")
    protocol, found, rest = text.partition("://")
    if not found or protocol in ("file", "local"):
        return os.path.abspath(os.path.expanduser(rest if found else text))
    if protocol in S3 | GOOGLE and ":" in rest.partition("/")[0]:
        raise StorageError(refusal(text, "a colon in the bucket's name"))
    return f"{protocol}://{rest.rstrip('/')}"


def is_local(uri: str) -> bool:
    """Whether a normalised URI is a path of this machine."""
    return "://" not in uri


@lru_cache(maxsize=16)
def _filesystem(protocol: str, options: tuple[tuple[str, Any], ...]) -> fsspec.AbstractFileSystem:
    extra = S3_RETRIES if protocol in S3 else {}
    if protocol in S3 | AZURE | GOOGLE:
        extra = {**extra, "use_listings_cache": False}  # a cached listing would hide what other workers have committed
    return fsspec.filesystem(protocol, **dict(options), **extra)


def open_uri(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """(file system, path in it) of a URI. fsspec.url_to_fs is not used: it splits paths at `::`."""
    protocol = uri.partition("://")[0] if "://" in uri else "file"
    try:
        kind = fsspec.get_filesystem_class(protocol)
        options = kind._get_kwargs_from_urls(uri)
        return _filesystem(protocol, tuple(sorted(options.items()))), kind._strip_protocol(uri)
    except (ImportError, ValueError) as error:
        raise StorageError(f"no file system for {protocol}:// ({error}). Install the fsspec driver it names") from error
    except TypeError as error:  # drivers that cannot be opened by a URI alone
        raise StorageError(f"{protocol}:// needs more than a URI ({error}). Name the files where they lie") from error


def check_allowed(uri: str) -> None:
    """StorageError where a normalised URI to be written is in none of the folders of DECA_ALLOWED_ROOTS.

    Links are followed first. Empty or unset, everything may be written.
    """
    roots = _allowed_roots()
    if roots and not _lies_in(uri, roots):
        raise StorageError(
            f"{uri} may not be written: it lies in none of the folders that {ALLOWED_ROOTS} names "
            f"({', '.join(roots)}). Choose a place below one of them, or ask whoever runs this machine to add it"
        )


def check_reachable(uri: str, folder: str) -> None:
    """StorageError where a file in `folder` names a place out of it and of the folders of DECA_ALLOWED_ROOTS.

    Links are followed first. Empty or unset, it may name any, as a list does.
    """
    roots = _allowed_roots()
    if roots and not _lies_in(uri, [_real(folder), *roots]):
        raise StorageError(
            f"{uri} is not read: a file in {folder} names it, and it lies neither below there nor in the folders that "
            f"{ALLOWED_ROOTS} names. Whoever trusts it adds its folder"
        )


def _allowed_roots() -> list[str]:
    return [_real(normalise(root.strip())) for root in os.environ.get(ALLOWED_ROOTS, "").split(",") if root.strip()]


def _lies_in(uri: str, roots: list[str]) -> bool:
    place = _real(uri)
    return any(place == root or place.startswith(f"{root.rstrip('/')}/") for root in roots)


def _real(uri: str) -> str:
    """Return the real place of a normalised URI: links and protocol aliases resolved, `..` refused."""
    if is_local(uri):
        return os.path.realpath(uri)
    protocol, _, rest = uri.partition("://")
    if {".", ".."} & set(rest.split("/")):
        raise StorageError(f"{uri}: a place with . or .. in it is refused where {ALLOWED_ROOTS} is set")
    return f"{ALIASES.get(protocol, protocol)}://{rest}"


@contextlib.contextmanager
def storage_errors(action: str, uri: str) -> Iterator[None]:
    """Turn whatever a driver raises into a StorageError; an existing or missing file stays what it is."""
    try:
        yield
    except (StorageError, FileExistsError, FileNotFoundError):
        raise
    except Exception as error:  # drivers raise their own types: botocore, aiohttp, paramiko ...
        raise _explain(action, uri, error) from error


def _explain(action: str, uri: str, error: Exception) -> StorageError:
    number = getattr(error, "errno", None)
    cause = redact(f"{type(error).__name__}: {error}")
    if number in (errno.ENOSPC, errno.EDQUOT):
        cause = "the disk is full"
    elif isinstance(error, PermissionError):
        cause = f"permission denied ({error})"
    elif isinstance(error, FileNotFoundError):
        cause = f"the bucket or folder does not exist ({error})"
    return StorageError(f"cannot {action} {uri}: {cause}. Check with: {check_command(uri)}")


def check_command(uri: str) -> str:
    """Return the shell command with which a user can inspect `uri`."""
    if is_local(uri):
        existing = next(str(folder) for folder in (Path(uri), *Path(uri).parents) if os.path.exists(folder))
        return f"ls -ld '{existing}' && df -h '{existing}'"
    protocol, _, rest = uri.partition("://")
    if protocol in S3:
        bucket = rest.partition("/")[0]
        return f"aws s3 ls s3://{bucket}/ (with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL as here)"
    return f"python -c \"import fsspec; print(fsspec.url_to_fs('{uri}')[0].ls('{rest}'))\""


def hash_file(path: str | Path) -> tuple[int, str]:
    """(bytes, SHA-256 in hex) of a local file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


class Entry(NamedTuple):
    """A file of a listing. modified: seconds since the epoch, None if unknown."""

    name: str
    bytes: int
    modified: float | None


def _modified(entry: Mapping[str, Any]) -> float | None:
    """When a listed file was written."""
    moment = next((entry[name] for name in MODIFIED if entry.get(name)), None)
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    if isinstance(moment, datetime):
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return None if moment is None else float(moment)


class Store:
    """A dataset folder. Names are relative to it, with `/`; small enough to be pickled to a worker."""

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        self.uri = normalise(uri)
        self.local = is_local(self.uri)

    def join(self, name: str) -> str:
        """URI of a name in the folder."""
        return f"{self.uri.rstrip('/')}/{name}" if name else self.uri

    def read(self, name: str) -> bytes:
        """The whole object. FileNotFoundError if there is none."""
        uri = self.join(name)
        with storage_errors("read", uri):
            if self.local:
                return Path(uri).read_bytes()
            fs, path = open_uri(uri)
            return fs.cat_file(path)

    def exists(self, name: str) -> bool:
        """Unlike fsspec's, this does not take a broken connection for an absent file."""
        uri = self.join(name)
        try:
            with storage_errors("look up", uri):
                fs, path = open_uri(uri)
                fs.info(path)
        except FileNotFoundError:
            return False
        return True

    def walk(self) -> list[str]:
        """Sorted names of all files at any depth, those still being written too; empty if there are none."""
        with storage_errors("list", self.uri):
            fs, path = open_uri(self.uri)
            try:
                found = fs.find(path)
            except FileNotFoundError:
                return []
        return sorted(name.removeprefix(path.rstrip("/")).lstrip("/") for name in found)

    def list(self, folder: str = "") -> list[str]:
        """Sorted names of the files right in `folder`, without those still being written; empty if there is none."""
        return [entry.name for entry in self.entries(folder)]

    def entries(self, folder: str = "") -> builtins.list[Entry]:
        """As `list`, with what the listing tells of each file."""
        uri = self.join(folder)
        with storage_errors("list", uri):
            fs, path = open_uri(uri)
            try:
                found = fs.ls(path, detail=True)
            except FileNotFoundError:
                return []
        prefix, entries = f"{folder}/" if folder else "", builtins.list[Entry]()
        for entry in found:
            name = entry["name"].rstrip("/").rpartition("/")[2]
            if entry["type"] == "file" and name and not name.endswith(".tmp"):
                entries.append(Entry(prefix + name, entry["size"] or 0, _modified(entry)))
        return sorted(entries, key=lambda entry: entry.name)

    def delete(self, name: str) -> None:
        """Remove a file; none there is fine."""
        uri = self.join(name)
        check_allowed(uri)
        with storage_errors("delete", uri), contextlib.suppress(FileNotFoundError):
            fs, path = open_uri(uri)
            fs.rm_file(path)

    def delete_many(self, names: Sequence[str]) -> None:
        """As `delete` for many files, a thousand a request where the store can do that."""
        for name in names:
            check_allowed(self.join(name))
        with storage_errors("delete", self.uri):
            fs, root = open_uri(self.uri)
            if names and self.uri.partition("://")[0] in S3 and not has_magic(root):  # which takes paths for patterns
                fs.rm([f"{root.rstrip('/')}/{name}" for name in names])
                return
        with ThreadPoolExecutor(DELETE_THREADS) as pool:
            for _ in pool.map(self.delete, names):
                pass

    def delete_folder(self, name: str) -> None:
        """Remove a folder with all that is in it; none there is fine."""
        uri = self.join(name)
        check_allowed(uri)
        with storage_errors("delete", uri), contextlib.suppress(FileNotFoundError):
            fs, path = open_uri(uri)
            fs.rm(path, recursive=True)

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Path of a local temp file to write `name` into before `publish`; gone afterwards if not published.

        On a local store it is beside its target, so that publishing is one rename.
        """
        uri = self.join(name)
        check_allowed(uri)
        folder = Path(uri).parent if self.local else Path(tempfile.gettempdir())
        path = folder / scratch_name(Path(name).name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield path
        except OSError as error:
            raise _explain("write", uri, error) from error
        finally:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()

    def publish(self, path: Path, name: str) -> tuple[int, str]:
        """Make a finished scratch file visible as `name`, replacing it whole; returns (bytes, SHA-256)."""
        uri = self.join(name)
        check_allowed(uri)
        with _write_errors(uri):
            _sync(path)
            result = hash_file(path)
            if self.local:
                os.replace(path, uri)
                _sync(Path(uri).parent)
            else:
                fs, target = self._target(uri)
                fs.put_file(str(path), target)
        return result

    def write(self, name: str, data: bytes) -> tuple[int, str]:
        """Publish bytes as `name`; returns (bytes, SHA-256)."""
        with self.scratch(name) as path:
            _write_scratch(path, data)
            return self.publish(path, name)

    def create(self, name: str, data: bytes) -> None:
        """Publish bytes as `name` only if nothing is there yet; FileExistsError otherwise."""
        uri = self.join(name)
        check_allowed(uri)
        if not self.local:
            with _write_errors(uri):
                fs, target = self._target(uri)
                fs.pipe_file(target, data, mode="create")
            return
        with self.scratch(name) as path:
            _write_scratch(path, data)
            _sync(path)
            created = _link(path, Path(uri))
        if not created:
            raise FileExistsError(uri)

    def check_writable(self) -> None:
        """Write and delete a small file, so that a missing right ends a run before its first minute of work.

        Its name is always the same: a run that dies in between leaves it to the next one, also on a bucket, where
        `sweep` does not look.
        """
        name, made = f"{SCRATCH_PREFIX}write-test{SCRATCH_SUFFIX}", self.local and not os.path.isdir(self.uri)
        self.write(name, b"")
        self.delete(name)
        if made:  # a command that is refused later leaves no empty folder
            with contextlib.suppress(OSError):
                os.rmdir(self.uri)

    def sweep(self) -> int:
        """Delete temp files that dead processes left, here and where temp files belong; returns how many."""
        folders = [tempfile.gettempdir()]
        if self.local:
            folders += [folder for folder, _, _ in os.walk(self.uri)]
        return sweep(folders)

    def _target(self, uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
        fs, path = open_uri(uri)
        if uri.partition("://")[0] not in OBJECT_STORES:
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        return fs, path


def _write_scratch(path: Path, data: bytes) -> None:
    """Write a scratch file, again where the `check_writable` of another process removed the folder, still empty."""
    try:
        path.write_bytes(data)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@contextlib.contextmanager
def _write_errors(uri: str) -> Iterator[None]:
    """As `storage_errors`, and what is missing on a write is the bucket or the folder."""
    with storage_errors("write", uri):
        try:
            yield
        except FileNotFoundError as error:
            raise _explain("write", uri, error) from error


def _sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _link(path: Path, target: Path) -> bool:
    """Give a finished file its name; False if that is taken."""
    try:
        os.link(path, target)  # fails on an existing name, unlike os.replace
    except FileExistsError:
        return False
    except OSError:  # mounted shares without hard links
        if target.exists():
            return False
        os.replace(path, target)
    _sync(target.parent)
    return True
