"""Every picture of a source, streamed in one fixed order.

A source is a folder, a bucket prefix, one picture, or an archive; archives in folders are opened as well. Memory holds
one folder's names or one page of a listing, never the whole source. Order is that of the full path by code point, so a
folder and its copy in a bucket give the same plan; members keep the order of their archive.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import IO, Any, cast

from schemas.engine import SourceConfig
from schemas.ledger import Item
from tasks.storage import StorageError, check_command, is_local, normalise, open_uri, storage_errors

TAR_SUFFIXES, GZIP_TAR_SUFFIXES, ZIP_SUFFIXES = (".tar",), (".tar.gz", ".tgz"), (".zip",)
ARCHIVE_SUFFIXES = TAR_SUFFIXES + GZIP_TAR_SUFFIXES + ZIP_SUFFIXES
# What the standard library raises on archives that are cut off, overwritten or no archives at all.
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, ValueError, UnicodeError)
# Bytes fetched at once while hopping from header to header of a remote archive.
HOP = 2**20


class SourceError(Exception):
    """A source that is missing, unreadable or without pictures; says what to try."""


@dataclass(frozen=True, slots=True)
class _File:
    """One listed file or object."""

    uri: str
    size: int
    etag: str | None


def source_root(source: str) -> str:
    """The folder that ids are relative to: the source itself, or the folder of a single file."""
    uri = normalise(source)
    single = os.path.isfile(uri) if is_local(uri) else _is_file(uri)
    return uri.rpartition("/")[0] if single else uri


def discover(source: str, config: SourceConfig | None = None, skip: str | None = None) -> Iterator[Item]:
    """Items of `source` in order, numbered from 0. A damaged archive adds itself as one item, which fails when read.

    skip: a folder inside the source to leave out (the output, when it lies there).
    Raises SourceError where the source is missing, cannot be listed, or holds no picture.
    """
    config = config or SourceConfig()
    uri = normalise(source)
    root = source_root(uri)
    inside = normalise(skip) if skip else None
    index = -1
    for file in _files(uri, None if inside == uri else inside):
        place = file.uri[len(root) :].lstrip("/")
        for item in _expand(file, place, config):
            index += 1
            yield replace(item, index=index, root=root)
    if index < 0:
        kinds = " ".join(config.extensions)
        raise SourceError(
            f"no pictures in {uri} (looked for {kinds}, also inside tar and zip; hidden files are skipped"
            f"{', include and exclude patterns apply' if config.include or config.exclude else ''}). "
            f"Check with: {check_command(uri)}"
        )


def _expand(file: _File, place: str, config: SourceConfig) -> Iterator[Item]:
    """The items one file stands for: itself, its members, or none."""
    if any(part.startswith(".") for part in place.split("/")):
        return
    whole = Item(0, file.uri, size=file.size, etag=file.etag)
    if not is_archive(file.uri):
        if _wanted(place, config):
            yield whole
        return
    if any(fnmatchcase(place, pattern) for pattern in config.exclude):
        return
    try:
        for member, offset, size in archive_members(file.uri):
            hidden = member.rpartition("/")[2].startswith(".")  # macOS `._*` too
            if not hidden and _wanted(f"{place}#{member}", config):
                yield replace(whole, member=member, offset=offset, size=size)
    except (*DAMAGE, FileNotFoundError, PermissionError):
        yield whole
    except (OSError, StorageError) as error:  # a failing disk or network must not shorten the plan
        raise SourceError(
            f"cannot read the archive {file.uri}: {error}. Check with: {check_command(file.uri)}"
        ) from error


def _wanted(place: str, config: SourceConfig) -> bool:
    if not place.lower().endswith(tuple(f".{extension.lower()}" for extension in config.extensions)):
        return False
    if config.include and not any(fnmatchcase(place, pattern) for pattern in config.include):
        return False
    return not any(fnmatchcase(place, pattern) for pattern in config.exclude)


def is_archive(uri: str) -> bool:
    return uri.lower().endswith(ARCHIVE_SUFFIXES)


# --- archives ---------------------------------------------------------------------------------------------------------


def archive_members(uri: str) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of every regular file of an archive, in its own order; raises one of DAMAGE when broken.

    offset: where the data starts in the unpacked tar, or where the local header starts in a zip. Links, devices and
    folders are left out; names are only labels, nothing is ever extracted to a path.
    """
    fs, path = open_uri(uri)
    lowered = uri.lower()
    with contextlib.ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(fs.open(path, "rb", **({} if is_local(uri) else {"block_size": HOP})))
        if lowered.endswith(ZIP_SUFFIXES):
            with zipfile.ZipFile(file) as archive:
                for entry in archive.infolist():
                    if not entry.is_dir():
                        yield entry.filename, entry.header_offset, entry.file_size
            return
        if lowered.endswith(GZIP_TAR_SUFFIXES):
            file = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=file)))
        tar = stack.enter_context(tarfile.open(fileobj=file, mode="r:", tarinfo=_StrictHeader))
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # the list would grow with the archive
            if member.isreg() and not member.issparse():
                yield _printable(member.name), member.offset_data, member.size


class _StrictHeader(tarfile.TarInfo):
    """tarfile takes a damaged header or a cut-off file for the end of the archive; here only the end marker is."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Any:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged or cut off at byte {tar.offset}: {error}") from error


def _printable(name: str) -> str:
    """A name that is valid Unicode; bytes that are not become `\\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


# --- listings ---------------------------------------------------------------------------------------------------------


def _files(uri: str, skip: str | None) -> Iterator[_File]:
    try:
        with storage_errors("list", uri):
            if is_local(uri):
                os.stat(uri)
                yield from _local_files(uri, skip, frozenset())
            elif _is_file(uri):
                fs, path = open_uri(uri)
                yield _remote_file(uri, fs.info(path))
            elif uri.startswith(("s3://", "s3a://")):
                yield from _bucket_files(uri, skip)
            else:
                yield from _remote_files(uri, skip)
    except FileNotFoundError as error:
        raise SourceError(f"{uri} does not exist. Check with: {check_command(uri)}") from error
    except StorageError as error:
        raise SourceError(str(error)) from error


def _local_files(path: str, skip: str | None, parents: frozenset[str]) -> Iterator[_File]:
    """Depth first; `a/` sorts like its files do, so that the order is that of the full paths."""
    if not os.path.isdir(path):
        yield _local_file(path)
        return
    real = os.path.realpath(path)
    if real in parents or path == skip:  # a link to a folder above would never end
        return
    with os.scandir(path) as entries:
        names = sorted(entry.name + "/" if entry.is_dir() else entry.name for entry in entries)
    for name in names:
        if name.startswith("."):
            continue
        child = os.path.join(path, name.rstrip("/"))
        if name.endswith("/"):
            yield from _local_files(child, skip, parents | {real})
        else:
            yield _local_file(child)


def _local_file(path: str) -> _File:
    try:
        stat = os.stat(path)
    except OSError as error:
        # A broken link is planned too: it fails when read and so shows up in quarantine.
        return _File(_printable(path), -1, f"{type(error).__name__}")
    return _File(_printable(path), stat.st_size, f"{stat.st_mtime_ns}-{stat.st_size}")


def _bucket_files(uri: str, skip: str | None) -> Iterator[_File]:
    """Pages of list_objects_v2, which come sorted by key."""
    fs, path = open_uri(uri)
    bucket, _, prefix = path.partition("/")
    request = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else ""}
    while True:
        page = fs.call_s3("list_objects_v2", **request)
        for entry in page.get("Contents", ()):
            file = _File(f"s3://{bucket}/{entry['Key']}", entry["Size"], entry["ETag"].strip('"'))
            if not file.uri.endswith("/") and not (skip and file.uri.startswith(skip + "/")):
                yield file
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def _remote_files(uri: str, skip: str | None) -> Iterator[_File]:
    """Folder by folder through any other fsspec driver."""
    fs, path = open_uri(uri)
    protocol = uri.partition("://")[0]
    entries = {
        entry["name"].rstrip("/") + ("/" if entry["type"] == "directory" else ""): entry
        for entry in fs.ls(path, detail=True)
    }
    for name in sorted(entries):
        child = f"{protocol}://{name.rstrip('/').lstrip('/')}"
        if child == skip or name.rstrip("/").rpartition("/")[2].startswith("."):
            continue
        if name.endswith("/"):
            yield from _remote_files(child, skip)
        else:
            yield _remote_file(child, entries[name])


def _remote_file(uri: str, info: dict[str, Any]) -> _File:
    size = info.get("size")
    stamp = next((info[key] for key in ("ETag", "etag", "md5Hash", "mtime", "created") if info.get(key)), None)
    return _File(uri, -1 if size is None else size, None if stamp is None else str(stamp).strip('"'))


def _is_file(uri: str) -> bool:
    """Whether a remote URI is one object; a prefix costs no request unless its name looks like a picture or archive."""
    name = uri.rpartition("/")[2].lower()
    if "." not in name:
        return False
    fs, path = open_uri(uri)
    return bool(fs.isfile(path))
