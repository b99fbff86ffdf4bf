"""Every picture of a source, streamed in one fixed order.

A source is a folder, a bucket prefix, one picture, or an archive; archives in folders are opened as well. Memory holds
one folder's names or one page of a listing, never the whole source. Order is that of the full path by code point, so a
folder and its copy in a bucket give the same plan; members keep the order of their archive.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from schemas.engine import SourceConfig
from schemas.ledger import Item
from tasks.archives import DAMAGE, archive_members, is_archive, printable
from tasks.storage import StorageError, check_command, is_local, normalise, open_uri, storage_errors


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
        return _File(printable(path), -1, f"{type(error).__name__}")
    return _File(printable(path), stat.st_size, f"{stat.st_mtime_ns}-{stat.st_size}")


def _bucket_files(uri: str, skip: str | None) -> Iterator[_File]:
    """Pages of list_objects_v2, which come sorted by key."""
    fs, path = open_uri(uri)
    protocol, (bucket, _, prefix) = uri.partition("://")[0], path.partition("/")
    request = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else ""}
    while True:
        page = fs.call_s3("list_objects_v2", **request)
        for entry in page.get("Contents", ()):
            file = _File(f"{protocol}://{bucket}/{entry['Key']}", entry["Size"], entry["ETag"].strip('"'))
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
