"""Listing of the files below a URI or matching a pattern, sorted by the code points of their full paths.

Memory holds one folder's names or one page of a listing, never the whole source.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from fsspec.utils import glob_translate

from deca_core.errors import DecaError
from tasks.sources.archives import printable
from tasks.store.ranges import S3, stamp
from tasks.store.storage import StorageError, check_command, is_local, normalise, open_uri, storage_errors

WILDCARD = re.compile(r"[*?[]")


class SourceError(DecaError):
    """A source that is missing, unreadable or without images; the message names a remedy."""


@dataclass(frozen=True, slots=True)
class File:
    """One listed file or object."""

    uri: str
    size: int = -1  # bytes, -1 unknown
    etag: str | None = None


@dataclass(frozen=True)
class Glob:
    """A pattern over full paths: `*`, `?` and `[ab]` stay within a folder's name, `**` crosses folders."""

    base: str  # URI of the folder before the first wildcard
    pattern: str

    @cached_property
    def expression(self) -> re.Pattern[str]:
        return re.compile(glob_translate(self.pattern))

    def matches(self, uri: str) -> bool:
        return self.expression.match(uri) is not None

    def may_hold(self, folder: str) -> bool:
        """Whether a folder below the base can hold a match: where not, it is not listed."""
        below = folder[len(self.base) :].strip("/").split("/")
        segments = self.pattern[len(self.base) :].strip("/").split("/")
        for name, segment in zip(below, segments[:-1], strict=False):
            if segment == "**":
                return True
            if not fnmatchcase(name, segment):
                return False
        return len(below) < len(segments) or "**" in segments


def parse_glob(uri: str) -> Glob | None:
    """Return the pattern of a normalised URI; None without wildcards, or where a file of exactly that name exists.

    Raises SourceError for a pattern without a folder, StorageError.
    """
    found = WILDCARD.search(uri)
    if not found or uri.startswith(("http://", "https://")):
        return None
    base = uri[: found.start()].rpartition("/")[0]
    if base.endswith(":/"):
        raise SourceError(f"{uri}: a pattern needs a bucket without wildcards in front, as in s3://bucket/**/*.jpg")
    if _exists(uri):
        return None
    try:
        glob_translate(uri)
    except ValueError as error:
        raise SourceError(f"{uri}: `**` matches folders and must be a whole part of the path: a/**/b.jpg") from error
    return Glob(base or "/", uri)


def _exists(uri: str) -> bool:
    if is_local(uri):
        return os.path.lexists(uri)
    try:
        with storage_errors("look up", uri):
            fs, path = open_uri(uri)
            fs.info(path)
    except FileNotFoundError:
        return False
    return True


def source_root(source: str) -> str:
    """Return the folder ids are relative to: the source, the folder of a single file, or the part before a wildcard."""
    uri = normalise(source)
    if glob := parse_glob(uri):
        return glob.base
    return uri.rpartition("/")[0] if is_file(uri) else uri


def is_file(uri: str) -> bool:
    """Return whether a normalised URI is one file; a prefix without a dot in its name costs no request."""
    if is_local(uri):
        return os.path.isfile(uri)
    if "." not in uri.rpartition("/")[2]:
        return False
    fs, path = open_uri(uri)
    return bool(fs.isfile(path))


def resolve(entry: str, base: str) -> str:
    """Return the normalised URI of `entry` in a list or table in the folder `base`.

    >>> resolve("../b/x.jpg", "s3://bucket/lists/a")
    's3://bucket/lists/b/x.jpg'
    """
    if "://" in entry or entry.startswith("/"):
        return normalise(entry)
    if is_local(base):
        return normalise(f"{base}/{entry}")
    bucket, *folders = base.partition("://")[2].split("/")
    for part in PurePosixPath(entry).parts:
        if part != "..":
            folders.append(part)
        elif folders:
            folders.pop()
        else:
            raise ValueError(f"{entry!r} leads out of the bucket")
    return normalise(f"{base.partition('://')[0]}://{'/'.join([bucket, *folders])}")


def check_source(source: str) -> None:
    """SourceError where a source of this machine, or the folder before a pattern's wildcard, does not exist."""
    uri = normalise(source)
    glob = parse_glob(uri)
    place = uri if glob is None else glob.base
    if is_local(place) and not os.path.lexists(place):
        raise _missing(place)


def _missing(place: str) -> SourceError:
    return SourceError(f"{place} does not exist. Check with: {check_command(place)}")


def walk(uri: str, skip: str | None = None) -> Iterator[File]:
    """Yield the file, those below the folder or prefix, or those matching the pattern `uri`, without hidden folders.

    skip: a folder to leave out. Raises SourceError where the source is missing or cannot be listed.
    """
    try:
        with storage_errors("list", uri):
            glob = parse_glob(uri)
            files = _files(uri, glob, skip)
            yield from files if glob is None else (file for file in files if glob.matches(file.uri))
    except FileNotFoundError as error:
        place = uri if glob is None else glob.base
        raise _missing(place) from error
    except StorageError as error:
        raise SourceError(str(error)) from error


def _files(uri: str, glob: Glob | None, skip: str | None) -> Iterator[File]:
    place = uri if glob is None else glob.base
    if is_local(place):
        os.stat(place)
        yield from _local_files(place, glob, skip, frozenset())
    elif glob is None and is_file(uri):
        fs, path = open_uri(uri)
        yield _remote_file(uri, fs.info(path))
    elif place.startswith(S3):
        yield from _bucket_files(place, glob, skip)
    else:
        yield from _remote_files(place, glob, skip)


def _local_files(path: str, glob: Glob | None, skip: str | None, parents: frozenset[str]) -> Iterator[File]:
    """Depth first; `a/` sorts like its files do, so that the order is that of the full paths."""
    if not os.path.isdir(path):
        yield local_file(path)
        return
    real = os.path.realpath(path)
    if real in parents or path == skip:  # a link to a folder above would never end
        return
    with os.scandir(path) as entries:
        names = sorted(
            entry.name + "/" if entry.is_dir() else entry.name
            for entry in entries
            if entry.is_dir() or entry.is_file() or entry.is_symlink()  # a pipe or device would block its reader
        )
    for name in names:
        if name.startswith("."):
            continue
        child = os.path.join(path, name.rstrip("/"))
        if not name.endswith("/"):
            yield local_file(child)
        elif glob is None or glob.may_hold(child):
            yield from _local_files(child, glob, skip, parents | {real})


def local_file(path: str) -> File:
    """Return a local file; without size and etag where stat fails: it then fails when it is read."""
    try:
        stat = os.stat(path)
    except OSError:
        return File(printable(path))
    return File(printable(path), stat.st_size, stamp(stat))


def _bucket_files(uri: str, glob: Glob | None, skip: str | None) -> Iterator[File]:
    """Pages of list_objects_v2, which come sorted by key."""
    fs, path = open_uri(uri)
    protocol, (bucket, _, prefix) = uri.partition("://")[0], path.partition("/")
    prefix = f"{prefix}/" if prefix else ""
    if glob is not None:  # the part of a name before the wildcard narrows the listing as well
        prefix += WILDCARD.split(glob.pattern[len(uri) + 1 :], maxsplit=1)[0]
    request = {"Bucket": bucket, "Prefix": prefix}
    while True:
        page = fs.call_s3("list_objects_v2", **request)
        for entry in page.get("Contents", ()):
            file = File(f"{protocol}://{bucket}/{entry['Key']}", entry["Size"], entry["ETag"].strip('"'))
            if not file.uri.endswith("/") and not (skip and file.uri.startswith(skip + "/")):
                yield file
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def _remote_files(uri: str, glob: Glob | None, skip: str | None) -> Iterator[File]:
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
        if not name.endswith("/"):
            yield _remote_file(child, entries[name])
        elif glob is None or glob.may_hold(child):
            yield from _remote_files(child, glob, skip)


def _remote_file(uri: str, info: dict[str, Any]) -> File:
    size = info.get("size")
    mark = next((info[key] for key in ("ETag", "etag", "md5Hash", "mtime", "created") if info.get(key)), None)
    return File(uri, -1 if size is None else size, None if mark is None else str(mark).strip('"'))
