"""The bytes of planned pictures: whole objects, or ranges of archives, read ahead in threads."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from schemas.engine import SourceConfig
from schemas.ledger import Item
from tasks.archives import DAMAGE, GZIP_TAR_SUFFIXES, ReadError, archive_members, is_archive, read_member
from tasks.storage import is_local, open_uri

MAX_BYTES: int = SourceConfig().max_bytes


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
    data = _whole(item.uri, max_bytes) if item.member is None else read_member(item, max_bytes)
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
