"""Hostile archives: names that climb out, links, bombs, overlaps, doubles, cut and forged structures."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial

from tests.hostile.images import zeros
from tests.hostile.kinds import LIMIT_MIB, Ending, jpeg, kind, left_out, quarantined, rows

archive = partial(kind, "archive")
DAMAGED = quarantined("read", "damaged archive")


def one(
    name: str,
    ending: Ending,
    file: str,
    make: Callable[[], bytes],
    member: str | None = None,
    limit_mib: int = LIMIT_MIB,
) -> None:
    """A kind of a single archive, about one of its members or about the whole of it."""
    place = file if member is None else f"{file}#{member}"
    about = "" if ending.outcome == "left out" else place
    archive(name, ending, place=about, limit_mib=limit_mib)(lambda: {file: make()})


def entry(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar(entries: Iterable[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as file:  # type: ignore[call-overload]
        for info, data in entries:
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tar_of(*names: str, mode: str = "w") -> bytes:
    return tar((entry(name, jpeg()) for name in names), mode)


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in members:
            file.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def forged_zip(
    members: Iterable[tuple[str, bytes, int]],
    *,
    method: int = 8,
    flags: int = 0,
    copies: int = 1,
    crc: int | None = None,
) -> bytes:
    """A zip written by hand: (name, packed bytes, declared size); `copies` directory entries for each place."""
    body, directory = b"", b""
    count = 0
    for name, packed, size in members:
        label = name.encode()
        check = zlib.crc32(b"") if crc is None else crc
        sizes = struct.pack("<III", check, len(packed), size)
        start = len(body)
        body += struct.pack("<4sHHHHH", b"PK\x03\x04", 20, flags, method, 0, 0) + sizes
        body += struct.pack("<HH", len(label), 0) + label + packed
        for copy in range(copies):
            title = label if copies == 1 else f"{copy}-{name}".encode()
            directory += struct.pack("<4sHHHHHH", b"PK\x01\x02", 20, 20, flags, method, 0, 0) + sizes
            directory += struct.pack("<HHHHHII", len(title), 0, 0, 0, 0, 0, start) + title
            count += 1
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(body), 0)
    return body + directory + end


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def header(name: str, size: int, kind: bytes = b"0") -> bytes:
    """A tar header that declares any size, in base 256 where octal digits do not suffice."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def packed_tar(*parts: bytes | int) -> bytes:
    """A .tar.gz of byte strings and of runs of zero bytes (a number); the runs never exist unpacked."""
    out = b""
    for part in parts:
        out += gzip.compress(part) if isinstance(part, bytes) else _gzip_zeros(part)
    return out


def _gzip_zeros(count: int) -> bytes:
    """A gzip member of so many zero bytes, out of repeated members of 16 MiB."""
    block = 2**24
    packed, check = zeros(block)[2:-4], zlib.crc32(bytes(block))
    whole = b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + packed + struct.pack("<II", check, block)
    return whole * (count // block) + gzip.compress(bytes(count % block))


# --- names and types of members ---------------------------------------------------------------------------------------

one("tar whose member climbs out", rows(), "a.tar", lambda: tar_of("../../escaped.jpg"), "../../escaped.jpg")
one("tar whose member is absolute", rows(), "a.tar", lambda: tar_of("/tmp/escaped.jpg"), "/tmp/escaped.jpg")
one(
    "packed tar whose member climbs out",
    rows(),
    "a.tgz",
    lambda: tar_of("../escaped.jpg", mode="w:gz"),
    "../escaped.jpg",
)
one("zip whose member climbs out", rows(), "a.zip", lambda: zipped(("../../escaped.jpg", jpeg())), "../../escaped.jpg")
one(
    "zip whose member has backslashes",
    rows(),
    "a.zip",
    lambda: zipped(("x\\..\\..\\escaped.jpg", jpeg())),
    "x\\..\\..\\escaped.jpg",
)
one(
    "member called with markup", rows(), "a.zip", lambda: zipped(("<img onerror=x>.jpg", jpeg())), "<img onerror=x>.jpg"
)
one(
    "member with a name of 60,000 letters",
    rows(),
    "a.zip",
    lambda: zipped(("n" * 60_000 + ".jpg", jpeg())),
    "n" * 60_000 + ".jpg",
)

LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
one("tar with a symbolic link", left_out(), "a.tar", lambda: tar([entry("x.jpg", **LINK)]))
one("tar with a hard link", left_out(), "a.tar", lambda: tar([entry("x.jpg", **{**LINK, "type": tarfile.LNKTYPE})]))
one(
    "tar with a device and a pipe",
    left_out(),
    "a.tar",
    lambda: tar([entry("x.jpg", type=tarfile.CHRTYPE), entry("y.jpg", type=tarfile.FIFOTYPE)]),
)
one(
    "tar that writes through its own link",
    rows(),
    "a.tar",
    lambda: tar([entry("way", type=tarfile.SYMTYPE, linkname="/tmp"), entry("way/escaped.jpg", jpeg())]),
    "way/escaped.jpg",
)
one("zip with a symbolic link", quarantined("decode", "found text"), "a.zip", lambda: zip_link(), "x.jpg")
one("archive inside an archive", left_out(), "a.tar", lambda: tar([entry("inner.zip", zipped(("y.jpg", jpeg())))]))
one(
    "archive under an image's name inside an archive",
    quarantined("decode", "zip archive"),
    "a.tar",
    lambda: tar([entry("x.jpg", zipped(("y.jpg", jpeg())))]),
    "x.jpg",
)


def zip_link() -> bytes:
    """As Info-ZIP stores links: the target is the content, the type is in the attributes."""
    buffer = io.BytesIO()
    info = zipfile.ZipInfo("x.jpg")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(info, "/etc/passwd")
    return buffer.getvalue()


TWICE = Ending("quarantined", "read", "more than once", faces=1)  # the first counts


@archive("tar that holds a name twice", TWICE, place="a.tar#x.jpg")
def doubled_tar() -> dict[str, bytes]:
    return {"a.tar": tar_of("x.jpg", "x.jpg")}


@archive("zip that holds a name twice", TWICE, place="a.zip#x.jpg")
def doubled_zip() -> dict[str, bytes]:
    return {"a.zip": forged_zip([("x.jpg", jpeg(), len(jpeg()))] * 2, method=0, crc=zlib.crc32(jpeg()))}


# --- bombs ------------------------------------------------------------------------------------------------------------

BOMB = 2**29  # bytes that a bomb becomes

one(
    "zip bomb that says so",
    quarantined("read", "more than the limit"),
    "a.zip",
    lambda: forged_zip([("x.jpg", zeros(BOMB)[2:-4], BOMB)]),
    "x.jpg",
)
one(
    "zip bomb that lies about its size",
    quarantined("read", ""),
    "a.zip",
    lambda: forged_zip([("x.jpg", zeros(BOMB)[2:-4], 5000)]),
    "x.jpg",
)
one(
    "zip bomb below the limit",
    quarantined("read", "checksum"),
    "a.zip",
    lambda: forged_zip([("x.jpg", zeros(2**27)[2:-4], 2**27)]),
    "x.jpg",
    512,
)
one(
    "zip of sixteen images near the limit",
    quarantined("read", "checksum"),
    "a.zip",
    lambda: forged_zip([(f"{number}.jpg", zeros(200 * 2**20)[2:-4], 200 * 2**20) for number in range(16)]),
    "0.jpg",
    1024,
)
one(
    "zip whose members share their bytes",
    quarantined("read", "overlap"),
    "a.zip",
    lambda: forged_zip([("x.jpg", zeros(2**27)[2:-4], 2**27)], copies=5000),
    limit_mib=700,
)
one(
    "zip whose image packs nothing else",
    rows(),
    "a.zip",
    lambda: forged_zip([("x.jpg", raw_deflate(jpeg()), len(jpeg()))], crc=zlib.crc32(jpeg())),
    "x.jpg",
)
one(
    "zip inside itself (quine)",
    quarantined("read", ""),
    "a.zip",
    lambda: forged_zip([("x.jpg", b"\0\0\0\xff\xff" * 9, 999)]),
    "x.jpg",
)
one(
    "packed tar of eight gigabytes of nothing",
    quarantined("read", "unpacks to"),
    "a.tar.gz",
    lambda: packed_tar(header("x.bin", 2**33), 2**33),
)
one(
    "packed tar with a name of a gigabyte",
    quarantined("read", "damaged archive"),
    "a.tar.gz",
    lambda: packed_tar(header("././@LongLink", 2**30, b"L"), 2**30),
)
one(
    "packed tar with a pax header of a gigabyte",
    quarantined("read", "damaged archive"),
    "a.tar.gz",
    lambda: packed_tar(header("x", 2**30, b"x"), 2**30),
)
one("tar with a sparse terabyte", left_out(), "a.tar", lambda: sparse())
one(
    "tar of five thousand empty files",
    left_out(),
    "a.tar",
    lambda: tar(entry(f"{number}.txt") for number in range(5000)),
)


def sparse() -> bytes:
    """A GNU sparse member that unpacks to a terabyte of holes."""
    info = tarfile.TarInfo("x.jpg")
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.name": "x.jpg",
        "GNU.sparse.size": str(2**40),
        "GNU.sparse.map": "0,1",
    }
    return tar([(info, b"")])


# --- encrypted, cut, forged -------------------------------------------------------------------------------------------

one(
    "encrypted zip",
    quarantined("read", "encrypted"),
    "a.zip",
    lambda: forged_zip([("x.jpg", jpeg(), len(jpeg()))], method=0, flags=1),
    "x.jpg",
)
one(
    "zip encrypted with AES",
    quarantined("read", "encrypted"),
    "a.zip",
    lambda: forged_zip([("x.jpg", jpeg(), len(jpeg()))], method=99, flags=1),
    "x.jpg",
)
one(
    "zip packed with LZMA",
    quarantined("read", "method 14"),
    "a.zip",
    lambda: zipped(("x.jpg", jpeg()), method=zipfile.ZIP_LZMA),
    "x.jpg",
)
one(
    "zip with a false checksum",
    quarantined("read", "checksum"),
    "a.zip",
    lambda: forged_zip([("x.jpg", jpeg(), len(jpeg()))], method=0, crc=7),
    "x.jpg",
)
one("zip whose entry points outside", quarantined("read", ""), "a.zip", lambda: pointing(2**31), "x.jpg")
one(
    "zip whose entry points into the directory",
    quarantined("read", "no zip header"),
    "a.zip",
    lambda: pointing(len(jpeg())),
    "x.jpg",
)
one("zip without its directory", DAMAGED, "a.zip", lambda: zipped(("x.jpg", jpeg()))[:-40])
one(
    "zip whose directory is forged",
    DAMAGED,
    "a.zip",
    lambda: zipped(("x.jpg", jpeg())).replace(b"PK\x01\x02", b"PK\x01\x07"),
)
one("zip with a directory of four gigabytes", DAMAGED, "a.zip", lambda: huge_directory())
one("empty zip", left_out(), "a.zip", lambda: zipped())
one("tar cut inside an image", DAMAGED, "a.tar", lambda: tar_of("x.jpg", "y.jpg")[: len(jpeg()) + 900])
one(
    "tar with a damaged header",
    DAMAGED,
    "a.tar",
    lambda: (lambda data: data[:100] + b"\xff" * 60 + data[160:])(tar_of("x.jpg")),
)
one("tar with a member of negative size", DAMAGED, "a.tar", lambda: negative())
one("packed tar cut short", DAMAGED, "a.tar.gz", lambda: tar_of("x.jpg", mode="w:gz")[:4000])
one(
    "packed tar with a flipped byte",
    DAMAGED,
    "a.tar.gz",
    lambda: (lambda data: data[:2000] + bytes([data[2000] ^ 255]) + data[2001:])(tar_of("x.jpg", mode="w:gz")),
)
one("noise called tar", DAMAGED, "a.tar", lambda: b"\x07" * 5000)
one("zip called tar", DAMAGED, "a.tar", lambda: zipped(("x.jpg", jpeg())))


def pointing(offset: int) -> bytes:
    data = bytearray(zipped(("x.jpg", jpeg())))
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 42, offset)
    return bytes(data)


def huge_directory() -> bytes:
    data = bytearray(zipped(("x.jpg", jpeg())))
    struct.pack_into("<I", data, data.index(b"PK\x05\x06") + 12, 2**32 - 2)
    return bytes(data)


def negative() -> bytes:
    """A member of -1024 bytes: a reader that skips it finds its header again, for ever."""
    block = bytearray(header("x.jpg", 0))
    block[124:136] = b"\xff" * 10 + b"\xfc\x00"
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block) + bytes(1024)
