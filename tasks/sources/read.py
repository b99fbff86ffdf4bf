"""The bytes of planned images: whole objects, ranges of archives, rows of tables or frames of videos, read ahead in
threads.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from schemas.engine import SourceConfig
from schemas.ledger import Item
from tasks.sources.archives import DAMAGE, GZIP_TAR_SUFFIXES, archive_members, is_archive, read_member
from tasks.sources.tables import check_lists, is_table, read_row
from tasks.sources.videos import is_video, read_frame, video_frames
from tasks.store.ranges import ReadError, read_bytes

MAX_BYTES: int = SourceConfig().max_bytes
AHEAD_BYTES = 2 * MAX_BYTES


def read_items(
    items: Iterable[Item], *, threads: int = 8, max_bytes: int = MAX_BYTES
) -> Iterator[tuple[Item, bytes | Exception]]:
    """Yield (item, bytes or the read error) in the order of the items.

    At most 2*threads are read ahead, and at most AHEAD_BYTES of them: a zip of some kilobytes may hold many images of
    the largest size.
    """
    source = iter(items)
    # Packed tars, tables and videos are read forwards: they go one after the other through a thread of their own.
    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as line:

        def submit(item: Item) -> tuple[Item, Future[bytes | Exception]]:
            return item, (line if _forwards(item) else pool).submit(_try_read, item, max_bytes)

        ahead: deque[tuple[Item, Future[bytes | Exception]]] = deque()
        following, held = next(source, None), 0
        try:
            while following is not None or ahead:
                while following is not None and len(ahead) < 2 * threads:
                    size = max(following.size, 0)
                    if ahead and held + size > AHEAD_BYTES:
                        break
                    ahead.append(submit(following))
                    following, held = next(source, None), held + size
                item, future = ahead.popleft()
                result = future.result()
                held -= max(item.size, 0)
                yield item, result
        finally:
            for _, future in ahead:
                future.cancel()


def _forwards(item: Item) -> bool:
    whole = is_table(item.uri) or is_video(item.uri) or item.uri.lower().endswith(GZIP_TAR_SUFFIXES)
    return item.member is not None and whole


def _try_read(item: Item, max_bytes: int) -> bytes | Exception:
    try:
        return read_item(item, max_bytes)
    except Exception as error:  # any driver's error belongs to this one row
        traceback.clear_frames(error.__traceback__)  # they hold what was read, until the error is collected
        return error


def read_item(item: Item, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the bytes of one image; raises ReadError (changed since the plan, too large), or the driver's error."""
    if item.member is None and (is_archive(item.uri) or is_table(item.uri) or is_video(item.uri)):
        raise _damage(item.uri)
    if item.size > max_bytes:
        raise ReadError(f"{item.size} bytes, more than the limit of {max_bytes} bytes (inputs.max_bytes)")
    if item.member is None:
        data = read_bytes(item.uri, etag=item.etag, max_bytes=max_bytes)
    elif is_table(item.uri):
        data = read_row(item, max_bytes)
    elif is_video(item.uri):
        data = read_frame(item, max_bytes)
    else:
        data = read_member(item, max_bytes)
    if 0 <= item.size != len(data):
        raise ReadError(f"{len(data)} bytes where {item.size} were planned: cut off, or changed since the plan")
    return data


def _damage(uri: str) -> Exception:
    """Return why an archive, a table or a video is an item of the plan itself."""
    try:
        if is_table(uri):
            check_lists(uri)
        elif is_video(uri):
            for _ in video_frames(uri):
                pass
        else:
            for _ in archive_members(uri):
                pass
    except (*DAMAGE, OSError) as error:
        return ReadError(f"damaged archive: {type(error).__name__}: {error}")
    return ReadError("the archive was damaged when it was planned and reads well now; plan again with --new")
