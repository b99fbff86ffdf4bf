"""The bytes of planned pictures: whole objects, or ranges of archives, read ahead in threads."""

from __future__ import annotations

import gzip
import io
import itertools
import struct
import threading
import zipfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, cast

from schemas.engine import SourceConfig
from schemas.ledger import Item
from tasks.discover import DAMAGE, GZIP_TAR_SUFFIXES, HOP, TAR_SUFFIXES, ZIP_SUFFIXES, archive_members, is_archive
from tasks.storage import is_local, open_uri

MAX_BYTES: int = SourceConfig().max_bytes

ZIP_HEADER = struct.Struct("<4sHHHHHIIIHH")  # local file header, PKWARE APPNOTE 4.3.7
ZIP_SLACK = 1024  # bytes read beyond header, name and data, for the extra field and incompressible data


class ReadError(Exception):
    """A picture that cannot be read as it was planned."""


def read_items(
    items: Iterable[Item], *, threads: int = 8, max_bytes: int = MAX_BYTES
) -> Iterator[tuple[Item, bytes | Exception]]:
    """(item, bytes or the error that reading it raised) in the order of the items, at most 2*threads read ahead."""
    source = iter(items)
    # A packed tar can only be read forwards: its members go one after the other through a thread of their own.
    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as line:

        def submit(item: Item) -> tuple[Item, Future[bytes | Exception]]:
            packed = item.member is not None and item.uri.lower().endswith(GZIP_TAR_SUFFIXES)
            return item, (line if packed else pool).submit(_try_read, item, max_bytes)

        ahead = deque(map(submit, itertools.islice(source, 2 * threads)))
        try:
            while ahead:
                item, future = ahead.popleft()
                result = future.result()
                ahead.extend(map(submit, itertools.islice(source, 1)))
                yield item, result
        finally:
            for _, future in ahead:
                future.cancel()


def _try_read(item: Item, max_bytes: int) -> bytes | Exception:
    try:
        return read_item(item, max_bytes)
    except Exception as error:  # any driver's error belongs to this one row
        return error


def read_item(item: Item, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of one picture; raises ReadError, or what the storage driver raises."""
    if item.member is None and is_archive(item.uri):
        raise _archive_damage(item.uri)
    if item.size > max_bytes:
        raise ReadError(f"{item.size} bytes, more than the limit of {max_bytes} (source.max_bytes)")
    if item.member is None:
        data = _whole(item.uri, max_bytes)
    elif item.offset is None:
        raise ReadError(f"member {item.member!r} was planned without an offset; plan again with --new")
    elif item.uri.lower().endswith(TAR_SUFFIXES):
        data = _range(item.uri, item.offset, item.size)
    elif item.uri.lower().endswith(ZIP_SUFFIXES):
        data = _zip_member(item, max_bytes)
    else:
        data = _packed_range(item)
    if 0 <= item.size != len(data):
        raise ReadError(f"{len(data)} bytes where {item.size} were planned: cut off, or changed since")
    return data


def _archive_damage(uri: str) -> Exception:
    """Why an archive is in the plan as itself."""
    try:
        for _ in archive_members(uri):
            pass
    except (*DAMAGE, OSError) as error:
        return ReadError(f"damaged archive: {type(error).__name__}: {error}")
    return ReadError("the archive was damaged when it was planned and reads well now; plan again with --new")


def _whole(uri: str, max_bytes: int) -> bytes:
    if is_local(uri):
        with open(uri, "rb") as file:
            data = file.read(max_bytes + 1)
    else:
        fs, path = open_uri(uri)
        # s3fs asks for the size first unless told that one request at a time will do.
        options = {"max_concurrency": 1} if uri.startswith(("s3://", "s3a://")) else {}
        data = fs.cat_file(path, **options)
    if len(data) > max_bytes:
        raise ReadError(f"more than the limit of {max_bytes} bytes (source.max_bytes)")
    return data


def _range(uri: str, start: int, length: int) -> bytes:
    if length <= 0:
        return b""
    if is_local(uri):
        with open(uri, "rb") as file:
            file.seek(start)
            return file.read(length)
    fs, path = open_uri(uri)
    return fs.cat_file(path, start=start, end=start + length)


def _zip_member(item: Item, max_bytes: int) -> bytes:
    """One range read, no directory: the local header says how the data is packed, the plan how long it is."""
    assert item.offset is not None
    assert item.member is not None
    head = ZIP_HEADER.size + len(item.member.encode()) + ZIP_SLACK
    data = _range(item.uri, item.offset, head + item.size)
    if len(data) < ZIP_HEADER.size or not data.startswith(b"PK\x03\x04"):
        raise ReadError(f"no zip header at byte {item.offset}: the archive has changed since it was planned")
    _, _, flags, method, _, _, crc, _, _, name_length, extra_length = ZIP_HEADER.unpack_from(data)
    start = ZIP_HEADER.size + name_length + extra_length
    if flags & 1:
        raise ReadError("the zip member is encrypted")
    if method == zipfile.ZIP_STORED:
        payload = data[start : start + item.size]
        if len(payload) < item.size:  # an extra field longer than the slack
            payload = _range(item.uri, item.offset + start, item.size)
    elif method == zipfile.ZIP_DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        payload = inflater.decompress(data[start:], max_bytes + 1)
        if len(payload) > max_bytes:
            raise ReadError(f"unpacks to more than the limit of {max_bytes} bytes (source.max_bytes)")
    else:
        raise ReadError(f"zip compression method {method} is not supported; pack the archive with deflate or stored")
    # With flag bit 3 the checksum follows the data and the header has 0.
    if not flags & 8 and zlib.crc32(payload) != crc:
        raise ReadError("the zip member fails its checksum")
    return payload


class _PackedTar:
    """The last packed tar that was read, kept open: units come in order, so each process unpacks it about once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.key: tuple[str, str | None] | None = None
        self.stream: IO[bytes] = io.BytesIO()

    def read(self, item: Item) -> bytes:
        assert item.offset is not None
        with self.lock:
            if self.key != (item.uri, item.etag):
                self.stream.close()
                fs, path = open_uri(item.uri)
                options = {} if is_local(item.uri) else {"block_size": 8 * HOP}
                self.stream = cast(IO[bytes], gzip.GzipFile(fileobj=fs.open(path, "rb", **options)))
                self.key = (item.uri, item.etag)
            try:
                self.stream.seek(item.offset)
                return self.stream.read(item.size)
            except BaseException:
                self.key = None  # a stream that failed is not read on
                raise


_packed_tar = _PackedTar()


def _packed_range(item: Item) -> bytes:
    return _packed_tar.read(item)
