"""Read a file or object, whole or a range, and refuse content that changed since it was planned.

The check needs no request: S3 returns the etag with a GET, a local file is checked through its open handle. Other
stores are only checked by size.
"""

from __future__ import annotations

import asyncio
import os
import stat
from typing import IO, Any

import fsspec
from fsspec.asyn import sync

from deca_core.errors import DecaError
from tasks.store.storage import is_local, open_uri

S3 = ("s3://", "s3a://")
ATTEMPTS = 5  # at a body that breaks off; the request itself is repeated by the driver
PAUSE = 0.2  # seconds before the second attempt, doubled before each other one


class ReadError(DecaError):
    """An image that cannot be read as planned."""


def read_bytes(
    uri: str, start: int = 0, length: int | None = None, *, etag: str | None = None, max_bytes: int | None = None
) -> bytes:
    """Return `length` bytes from `start`, fewer at the end of the object.

    etag: from the plan ("<mtime_ns>-<size>" of a local file), None: no check.
    Raises ReadError if the object has changed or is larger than max_bytes.
    """
    if length is not None and length <= 0:
        return b""
    if is_local(uri):
        with open(uri, "rb", opener=_open_at_once) as file:
            check_regular(file, uri)
            check_stamp(file, uri, etag)
            _check_size(os.fstat(file.fileno()).st_size if length is None else None, max_bytes)
            file.seek(start)
            limit = -1 if max_bytes is None else max_bytes + 1  # a file may still grow
            data = file.read(limit if length is None else length)
            check_stamp(file, uri, etag)
    elif uri.startswith(S3):
        data = _read_s3(uri, start, length, etag, max_bytes)
    else:
        fs, path = open_uri(uri)
        data = fs.cat_file(path, start=start or None, end=None if length is None else start + length)
    _check_size(len(data), max_bytes)
    return data


def open_checked(uri: str, etag: str | None, block: int) -> IO[bytes]:
    """Open a file for reading in blocks of `block` bytes; ReadError if it has changed since the plan."""
    fs, path = open_uri(uri)
    file: Any = fs.open(path, "rb", **({} if is_local(uri) else {"block_size": block}))
    try:
        if is_local(uri):
            check_regular(file, uri)
            check_stamp(file, uri, etag)
        elif uri.startswith(S3):
            _check_etag(file.details.get("ETag"), uri, etag)  # the driver sends If-Match with every later range
    except BaseException:
        file.close()
        raise
    return file


def _open_at_once(path: str, flags: int) -> int:
    """Open without blocking: a named pipe in place of an image would block forever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def check_regular(file: IO[bytes], uri: str) -> None:
    """ReadError for a pipe, a socket or a device: a link to /dev/zero would never end."""
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise ReadError(f"{uri} is no regular file")


def stamp(found: os.stat_result) -> str:
    """Return the etag of a local file: "<mtime_ns>-<size>"."""
    return f"{found.st_mtime_ns}-{found.st_size}"


def check_stamp(file: IO[bytes], uri: str, etag: str | None) -> None:
    """ReadError if the open local file is no longer the planned one."""
    if etag is not None:
        _check_etag(stamp(os.fstat(file.fileno())), uri, etag)


def _check_etag(found: str | None, uri: str, etag: str | None) -> None:
    found = found and found.removeprefix("W/").strip('"')  # proxies that pack the answer weaken the etag
    if etag is not None and found is not None and found != etag:
        raise ReadError(f"changed since the plan: {uri} was {etag}, is {found}. New content needs a new plan (--new)")


def _check_size(size: int | None, max_bytes: int | None) -> None:
    if size is not None and max_bytes is not None and size > max_bytes:
        raise ReadError(f"{size} bytes, more than the limit of {max_bytes} bytes (inputs.max_bytes)")


def _read_s3(uri: str, start: int, length: int | None, etag: str | None, max_bytes: int | None) -> bytes:
    """One GET; s3fs's own cat_file asks for the size first and hides the etag."""
    from s3fs.core import S3_RETRYABLE_ERRORS

    fs, path = open_uri(uri)
    bucket, key, _ = fs.split_path(path)
    request = {"Bucket": bucket, "Key": key}
    if start or length is not None:
        request["Range"] = f"bytes={start}-{'' if length is None else start + length - 1}"

    async def get(fs: fsspec.AbstractFileSystem) -> bytes:
        response = await fs._call_s3("get_object", **request)
        body = response["Body"]
        try:
            _check_etag(response.get("ETag"), uri, etag)
            _check_size(response.get("ContentLength"), max_bytes)
            return await body.read()
        finally:
            body.close()

    async def get_with_retries() -> bytes:
        for attempt in range(ATTEMPTS - 1):
            try:
                return await get(fs)
            except S3_RETRYABLE_ERRORS:
                await asyncio.sleep(PAUSE * 2**attempt)
        return await get(fs)

    return sync(fs.loop, get_with_retries)
