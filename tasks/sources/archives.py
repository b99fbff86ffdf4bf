"""Archives as sources: members are listed and read in place, never extracted to disk.

Member names are only labels here. The offset of a member is where its data starts in the (unpacked) tar, or where its
local header starts in a zip.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, cast

from schemas.engine import CP437
from schemas.ledger import Item
from tasks.store.ranges import ReadError, open_checked, read_bytes

TAR_SUFFIXES, GZIP_TAR_SUFFIXES, ZIP_SUFFIXES = (".tar",), (".tar.gz", ".tgz"), (".zip",)
# What reading an archive raises where it is cut off, overwritten or no archive at all.
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, struct.error, EOFError, ValueError)
HOP = 2**20  # bytes fetched at once while hopping from header to header of a remote archive
DOUBLE = -1  # as an offset: a member whose name an earlier member has

# Headers of one member: names, times, access lists. Real ones are some kilobytes; a forged one may claim gigabytes.
HEADER_LIMIT = 4 * 2**20
# Images hardly shrink in a packed tar. What unpacks to more than this many times its size is a bomb, once it is so
# large that it takes time; deflate's own limit is 1032.
BOMB_RATIO, BOMB_BYTES = 200, 64 * 2**20

# Records of a zip, PKWARE APPNOTE 4.3.7, 4.3.12, 4.3.14 and 4.3.16; `x` skips what is not needed.
ZIP_LOCAL = struct.Struct("<4s2xHH4xI8xHH")
ZIP_CENTRAL = struct.Struct("<4s4xH10xLLHHH8xL")
ZIP_END, ZIP64_END = struct.Struct("<4s8xLL2x"), struct.Struct("<4s36xQQ")
ZIP64_LOCATOR = 20  # bytes, between the two end records
ZIP_TAIL = ZIP_END.size + 2**16 + ZIP64_LOCATOR + ZIP64_END.size  # the end records and the longest comment
ZIP_UTF8 = 0x800
ZIP_SLACK = 1024  # bytes read beyond header, name and data, for the extra field and incompressible data


def is_archive(uri: str) -> bool:
    return uri.lower().endswith(TAR_SUFFIXES + GZIP_TAR_SUFFIXES + ZIP_SUFFIXES)


def archive_members(uri: str, zip_encoding: str = CP437) -> Iterator[tuple[str, int, int]]:
    """Yield (name, offset, size) of every regular file of an archive, in its own order; raises one of DAMAGE.

    zip_encoding: of names in a zip without its flag for UTF-8. Links, devices and folders are left out. Memory does not
    grow with the archive.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_checked(uri, None, HOP))
        if uri.lower().endswith(ZIP_SUFFIXES):
            yield from _zip_members(file, zip_encoding)
            return
        stream, packed = file, None
        if uri.lower().endswith(GZIP_TAR_SUFFIXES):
            stream, packed = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=file))), file
        bounded = _Bounded(stream, packed)
        tar = stack.enter_context(tarfile.open(fileobj=cast(IO[bytes], bounded), mode="r:", tarinfo=_StrictHeader))
        while (member := tar.next()) is not None:
            bounded.headers = 0
            if member.size < 0:  # skipping it would lead back to its own header
                raise tarfile.ReadError(f"a member of {member.size} bytes")
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every header
            if member.isreg() and not member.issparse():
                yield printable(member.name), member.offset_data, member.size
        if packed is not None:
            bounded.drain()


def read_member(item: Item, max_bytes: int) -> bytes:
    """Return the bytes of a planned member; raises ReadError, one of DAMAGE, or what the storage driver raises."""
    if item.offset is None:
        raise ReadError(f"member {item.member!r} was planned without an offset; plan again with --new")
    if item.offset == DOUBLE:
        raise ReadError(f"the archive holds {item.member!r} more than once; its first image of that name counts")
    if item.uri.lower().endswith(ZIP_SUFFIXES):
        return _read_zip(item, item.offset)
    if item.uri.lower().endswith(GZIP_TAR_SUFFIXES):
        return _packed_tar.read(item, item.offset)
    return read_bytes(item.uri, item.offset, item.size, etag=item.etag)


class _Bounded:
    """A tar as tarfile reads it, with an end to its headers and to what it unpacks to; tarfile itself has none.

    headers: bytes read since the last member; what is between members is skipped by `seek`.
    """

    def __init__(self, stream: IO[bytes], packed: IO[bytes] | None) -> None:
        self.stream, self.packed = stream, packed
        self.headers = 0
        self.tell = stream.tell

    def read(self, size: int) -> bytes:
        self.headers += size
        if self.headers > HEADER_LIMIT:
            raise tarfile.ReadError(f"the headers of one member take more than {HEADER_LIMIT} bytes")
        return self.stream.read(size)

    def drain(self) -> None:
        """Read to the end of the packed stream, where its checksum is."""
        before = -1
        while (at := self.stream.tell()) > before:
            before = at
            self.seek(at + BOMB_BYTES)

    def seek(self, target: int) -> int:
        if self.packed is None:
            return self.stream.seek(target)
        while (at := self.stream.tell()) < target:
            before, at = at, self.stream.seek(min(target, at + BOMB_BYTES))
            if at > BOMB_BYTES and at > BOMB_RATIO * self.packed.tell():
                raise tarfile.ReadError(f"unpacks to more than {BOMB_RATIO} times its size: a bomb, not images")
            if at == before:
                break  # the end, before the target: tarfile says so
        return self.stream.seek(target)


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


def printable(name: str) -> str:
    """Return a name as valid Unicode; other bytes become `\\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _zip_members(file: IO[bytes], encoding: str) -> Iterator[tuple[str, int, int]]:
    """The central directory, record by record; zipfile would hold all of it, some 600 bytes a member.

    Members that share their bytes let a small file unpack to any size; together they are larger than the file.
    """
    length_of_file = file.seek(0, io.SEEK_END)
    tail_at, taken = max(0, length_of_file - ZIP_TAIL), 0
    file.seek(tail_at)
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0:
        raise zipfile.BadZipFile("no end of directory: cut off, or no zip")
    _, size, offset = ZIP_END.unpack_from(tail, end)
    if tail[max(0, end - ZIP64_LOCATOR) : end].startswith(b"PK\x06\x07"):
        end -= ZIP64_LOCATOR + ZIP64_END.size
        _, size, offset = ZIP64_END.unpack_from(tail, end)
    at = tail_at + end - size  # right before the end records; what is more than `offset` precedes the zip
    prefix = at - offset
    if at < 0 or prefix < 0:
        raise zipfile.BadZipFile(f"a directory of {size} bytes at byte {offset} does not fit into the file")
    while at < tail_at + end:
        file.seek(at)
        head = file.read(ZIP_CENTRAL.size)
        mark, flags, packed, length, name, extra, comment, offset = ZIP_CENTRAL.unpack(head)
        if mark != b"PK\x01\x02":
            raise zipfile.BadZipFile(f"damaged directory at byte {at}")
        label = file.read(name).decode("utf-8" if flags & ZIP_UTF8 else encoding, "backslashreplace")
        if 0xFFFFFFFF in (length, packed, offset):
            length, packed, offset = _zip64_fields(file.read(extra), length, packed, offset)
        taken += packed
        if taken > length_of_file:
            raise zipfile.BadZipFile("its members overlap: together they are larger than the file")
        if not label.endswith("/"):
            yield label, prefix + offset, length
        at += ZIP_CENTRAL.size + name + extra + comment


def _zip64_fields(extra: bytes, length: int, packed: int, offset: int) -> tuple[int, int, int]:
    """(length, packed length, offset), those that overflowed taken from the extra field 1, in this order."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            large = iter(struct.unpack_from(f"<{size // 8}Q", extra, at + 4))
            length, packed, offset = (
                next(large) if value == 0xFFFFFFFF else value for value in (length, packed, offset)
            )
        at += 4 + size
    return length, packed, offset


def listed_name(item: Item) -> str:
    """The name under which `archive_members` lists a planned member where no encoding is set, whatever it was planned
    under: labels beside it are looked for there.
    """
    name = item.member or ""
    if name.isascii() or item.offset is None or not item.uri.lower().endswith(ZIP_SUFFIXES):
        return name
    head = read_bytes(item.uri, item.offset, ZIP_LOCAL.size + 4 * len(name), etag=item.etag)
    if len(head) < ZIP_LOCAL.size or not head.startswith(b"PK\x03\x04"):
        raise ReadError(f"no zip header at byte {item.offset}: the archive has changed since it was planned")
    _, flags, _, _, length, _ = ZIP_LOCAL.unpack_from(head)
    raw = head[ZIP_LOCAL.size : ZIP_LOCAL.size + length]
    return raw.decode("utf-8" if flags & ZIP_UTF8 else CP437, "backslashreplace")


def _read_zip(item: Item, offset: int) -> bytes:
    """One range read, no directory: the local header says how the data is packed, the plan how long it is."""
    head = ZIP_LOCAL.size + len((item.member or "").encode()) + ZIP_SLACK
    data = read_bytes(item.uri, offset, head + item.size, etag=item.etag)
    if len(data) < ZIP_LOCAL.size or not data.startswith(b"PK\x03\x04"):
        raise ReadError(f"no zip header at byte {offset}: the archive has changed since it was planned")
    _, flags, method, crc, name_length, extra_length = ZIP_LOCAL.unpack_from(data)
    start = ZIP_LOCAL.size + name_length + extra_length
    if flags & 1:
        raise ReadError("the zip member is encrypted")
    if method == zipfile.ZIP_STORED:
        payload = data[start : start + item.size]
        if len(payload) < item.size:  # an extra field longer than the slack
            payload = read_bytes(item.uri, offset + start, item.size, etag=item.etag)
    elif method == zipfile.ZIP_DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        payload = inflater.decompress(data[start:], item.size + 1)  # not more than its directory declares
        if len(payload) > item.size:
            raise ReadError(f"unpacks to more than the {item.size} bytes that the zip declares")
    else:
        raise ReadError(f"zip compression method {method} is not supported; pack the archive with deflate or stored")
    # With flag bit 3 the checksum follows the data and the header has 0.
    if not flags & 8 and zlib.crc32(payload) != crc:
        raise ReadError("the zip member fails its checksum")
    return payload


class _PackedTar:
    """The last compressed tar, kept open: units come in order, so each process unpacks it about once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.key: tuple[str, str | None] | None = None
        self.stream: IO[bytes] = io.BytesIO()

    def read(self, item: Item, offset: int) -> bytes:
        with self.lock:
            if self.key != (item.uri, item.etag):
                self.stream.close()
                file = open_checked(item.uri, item.etag, 8 * HOP)
                self.stream = cast(IO[bytes], gzip.GzipFile(fileobj=file))
                self.key = (item.uri, item.etag)
            try:
                self.stream.seek(offset)
                return self.stream.read(item.size)
            except BaseException:
                self.key = None  # a stream that failed is not read on
                raise


_packed_tar = _PackedTar()
