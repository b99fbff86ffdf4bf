"""Hostile and odd images, made byte by byte or by an encoder, and images under hostile names."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from tests.hostile.kinds import (
    GOOD,
    Ending,
    Files,
    add_writer,
    encoded,
    face,
    jpeg,
    kind,
    left_out,
    quarantined,
    rows,
)

image = partial(kind, "image")


def one(name: str, ending: Ending, file: str, make: Callable[[], bytes], limit_mib: int = 256) -> None:
    """A kind of a single file."""
    kind("image", name, ending, place=file, limit_mib=limit_mib)(lambda: {file: make()})


def chunk(name: bytes, body: bytes, crc: int | None = None) -> bytes:
    """A chunk of a PNG."""
    check = zlib.crc32(name + body) if crc is None else crc
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)


def png(width: int, height: int, packed: bytes, *, depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    """A PNG with these (deflated) rows, whatever size it declares."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def with_chunk(extra: bytes) -> bytes:
    """The face as a PNG with more chunks behind its header."""
    data = encoded(face(), "PNG")
    return data[:33] + extra + data[33:]


def zeros(count: int) -> bytes:
    """A zlib stream of `count` zero bytes, made of one deflated mebibyte that repeats."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    piece = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)  # nothing in it refers to what was before
    rest = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    end = rest.compress(bytes(count % 2**20)) + rest.flush()
    return b"\x78\xda" + piece * (count >> 20) + end + struct.pack(">HH", count % 65521, 1)


def declared(format: str, marker: bytes, offset: int, layout: str, *values: int) -> bytes:
    """The face with other numbers in its header, `offset` bytes behind a marker."""
    data = bytearray(encoded(face(), format))
    struct.pack_into(layout, data, data.index(marker) + offset, *values)
    return bytes(data)


def tiff(entries: list[tuple[int, int, int, int]], following: int = 0, body: bytes = b"") -> bytes:
    """A little-endian TIFF directory: (tag, type, count, value); `following` is the offset of the next directory."""
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + directory + struct.pack("<I", following) + body


def grey_tiff(side: int, following: int = 0, count: int = 1) -> bytes:
    """A grey TIFF of one strip of 16 bytes, whatever size it declares."""
    shape = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    strip = [(273, 4, count, 8), (277, 3, 1, 1), (278, 4, 1, side), (279, 4, count, 16)]
    return tiff(shape + strip, following, bytes(16))


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# --- cut, damaged, nothing at all -------------------------------------------------------------------------------------

one("empty file", quarantined("decode", "0 bytes"), "x.jpg", lambda: b"")
one("truncated JPEG", quarantined("decode", "truncated"), "x.jpg", lambda: jpeg()[:3000])
one("JPEG of its first two bytes", quarantined("decode", "2 bytes"), "x.jpg", lambda: jpeg()[:2])
one("truncated PNG", quarantined("decode", "truncated"), "x.png", lambda: encoded(face(), "PNG")[:9000])
one("truncated WebP", quarantined("decode", "cut short"), "x.webp", lambda: encoded(face(), "WEBP")[:2000])
one("truncated GIF", quarantined("decode", "truncated"), "x.gif", lambda: encoded(face(), "GIF")[:9000])
one("PNG whose pixels fail to inflate", quarantined("decode", "damaged"), "x.png", lambda: png(64, 64, b"\x78\x9c" * 9))
one(
    "PNG with a false checksum",
    quarantined("decode", "checksum"),
    "x.png",
    lambda: (lambda data: data[:29] + b"\0\0\0\0" + data[33:])(encoded(face(), "PNG")),
)
one("PNG of zero width", quarantined("decode", ""), "x.png", lambda: png(0, 64, zlib.compress(bytes(64))))
one("GIF of zero size, with a frame of its own", rows(), "x.gif", lambda: declared("GIF", b"GIF8", 6, "<HH", 0, 0))
one("BMP of negative width", quarantined("decode", ""), "x.bmp", lambda: declared("BMP", b"BM", 18, "<ii", -5, 5))
one("TIFF whose directory is its own successor", quarantined("detect", "no face"), "x.tif", lambda: grey_tiff(4, 8))
one("TIFF with four billion strips", quarantined("decode", ""), "x.tif", lambda: grey_tiff(4, 0, 0xFFFFFFFF))
one("noise", quarantined("decode", "unknown data"), "x.jpg", lambda: b"\x07" + np.random.default_rng(0).bytes(5000))

# --- bombs ------------------------------------------------------------------------------------------------------------

TOO_LARGE = quarantined("decode", "the limit is")
one("PNG bomb by header", TOO_LARGE, "x.png", lambda: png(50_000, 50_000, zlib.compress(bytes(100))))
one("PNG bomb with all its pixels", TOO_LARGE, "x.png", lambda: png(12_000, 12_000, zeros(12_001 * 12_000), colour=0))
one("PNG at the pixel limit", quarantined("detect", "no face"), "x.png", lambda: wide_png(), 1400)
one("PNG that inflates beyond its size", quarantined("detect", "no face"), "x.png", lambda: png(4, 4, zeros(2**29)))
one("JPEG bomb by header", TOO_LARGE, "x.jpg", lambda: declared("JPEG", b"\xff\xc0", 5, ">HH", 60_000, 60_000))
one("GIF bomb by header", TOO_LARGE, "x.gif", lambda: declared("GIF", b"GIF8", 6, "<HH", 65_535, 65_535))
one(
    "WebP bomb by header",
    quarantined("decode", "exceeds limit"),
    "x.webp",
    lambda: declared("WEBP", b"RIFF", 26, "<HH", 16_383, 16_383),
)
one("BMP bomb by header", TOO_LARGE, "x.bmp", lambda: declared("BMP", b"BM", 18, "<ii", 60_000, 60_000))
one("TIFF bomb by header", TOO_LARGE, "x.tif", lambda: grey_tiff(60_000))
one("PPM bomb under a JPEG's name", TOO_LARGE, "x.jpg", lambda: b"P6 60000 60000 255\n" + bytes(300))
one(
    "JPEG 2000 bomb by header",
    TOO_LARGE,
    "x.jpg",
    lambda: declared("JPEG2000", b"ihdr", 4, ">II", 60_000, 60_000),
)


def wide_png() -> bytes:
    """9,999 x 9,999 pixels in grey: just allowed."""
    return png(9_999, 9_999, zeros(10_000 * 9_999), colour=0)


def text_bomb(name: bytes, head: bytes) -> bytes:
    return with_chunk(chunk(name, head + zeros(2**28)))


one("huge compressed text (zTXt)", quarantined("decode", "oversized"), "x.png", lambda: text_bomb(b"zTXt", b"k\0\0"))
one("huge colour profile (iCCP)", quarantined("decode", "oversized"), "x.png", lambda: text_bomb(b"iCCP", b"p\0\0"))
one(
    "a hundred megabytes of text chunks",
    quarantined("decode", "oversized"),
    "x.png",
    lambda: with_chunk(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**20 - 9), 9)) * 100),
)
one("huge EXIF block", rows(), "x.png", lambda: with_chunk(chunk(b"eXIf", b"II*\0" + bytes(2**24))))
one(
    "JPEG with four thousand comment segments",
    rows(),
    "x.jpg",
    lambda: jpeg()[:2] + (b"\xff\xfe\xff\xff" + bytes(65_533)) * 400 + jpeg()[2:],
)
one("SVG that expands without end", quarantined("decode", "HTML or XML"), "x.png", lambda: laughs())


def laughs() -> bytes:
    """A billion laughs: entities of entities."""
    lines = [f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12)]
    return f'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY a0 "ha">{"".join(lines)}]><svg>&a11;</svg>'.encode()


# --- honest, but rare -------------------------------------------------------------------------------------------------

one("CMYK JPEG", rows(), "x.jpg", lambda: encoded(face().convert("CMYK"), "JPEG", quality=92))
one("16-bit grey PNG", rows(), "x.png", lambda: encoded(Image.fromarray(grey() * np.uint16(257)), "PNG"))
one("16-bit colour PNG", rows(), "x.png", lambda: sixteen_bits())
one("float TIFF", quarantined("decode", "floating point"), "x.tif", lambda: encoded(face().convert("F"), "TIFF"))
one("32-bit TIFF", quarantined("decode", "32-bit integer"), "x.tif", lambda: encoded(face().convert("I"), "TIFF"))
one("Lab TIFF", quarantined("decode", "Lab"), "x.tif", lambda: encoded(Image.new("LAB", (64, 64)), "TIFF"))
one("palette with transparency", rows(), "x.png", lambda: encoded(face().quantize(255), "PNG", transparency=0))
one("alpha", rows(), "x.png", lambda: encoded(transparent(), "PNG"))
one("progressive JPEG", rows(), "x.jpg", lambda: encoded(face(), "JPEG", quality=92, progressive=True))
one("interlaced 1-bit PNG", quarantined("detect", "no face"), "x.png", lambda: encoded(Image.new("1", (64, 64)), "PNG"))
one("MPO (two views)", rows(), "x.jpg", lambda: encoded(face(), "MPO", save_all=True, append_images=[face()]))
one("HEIC", quarantined("decode", "HEIC"), "x.jpg", lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
one("animated GIF", rows(), "x.gif", lambda: encoded(face(), "GIF", save_all=True, append_images=[face()] * 3))
one("animated PNG", rows(), "x.png", lambda: encoded(face(), "PNG", save_all=True, append_images=[face()] * 3))
one("AVIF under a JPEG's name", rows(), "x.jpg", lambda: encoded(face(), "AVIF", quality=80))
one("broken colour profile", rows(), "x.jpg", lambda: encoded(face(), "JPEG", quality=92, icc_profile=b"junk" * 99))
one("colour profile of another space", rows(), "x.jpg", lambda: encoded(face(), "JPEG", icc_profile=profile()))
one(
    "EXIF block that points outside",
    rows(),
    "x.jpg",
    lambda: encoded(face(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
)
one("EXIF block that points at itself", rows(), "x.jpg", lambda: encoded(face(), "JPEG", exif=exif_loop()))
one("image of one pixel", quarantined("detect", "no face"), "x.png", lambda: encoded(Image.new("RGB", (1, 1)), "PNG"))
one("one pixel wide, sixty thousand high", quarantined("detect", ""), "x.png", lambda: png(1, 60_000, zeros(240_000)))
one("sixty thousand wide, one pixel high", quarantined("detect", ""), "x.png", lambda: png(60_000, 1, zeros(180_001)))

# What a camera held in each of the eight ways stores, as the operation that the stored image has undergone.
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@image("EXIF orientations 1 to 8, and 77", rows(), place="1.jpg")
def orientations() -> Files:
    turned = {1: face(), 77: face(), **{number: face().transpose(how) for number, how in TURNED.items()}}
    return {f"{number}.jpg": encoded(one, "JPEG", exif=exif_of(number)) for number, one in turned.items()}


def grey() -> np.ndarray:
    return np.asarray(face().convert("L"))


def sixteen_bits() -> bytes:
    wide = (np.asarray(face()).astype(np.uint16) * 257).astype(">u2")
    return png(220, 220, zlib.compress(b"".join(b"\0" + row.tobytes() for row in wide)), depth=16)


def transparent() -> Image.Image:
    layer = face().convert("RGBA")
    layer.putalpha(250)
    return layer


def profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def exif_loop() -> bytes:
    """An EXIF directory whose sub-directory is itself."""
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x8769, 4, 1, 8) + b"\x08\0\0\0"


# --- another thing than its name says ---------------------------------------------------------------------------------

one("PNG under a JPEG's name", rows(), "x.jpg", lambda: encoded(face(), "PNG"))
one(
    "JPEG with a zip behind it", rows(), "x.jpg", lambda: jpeg() + b"PK\x03\x04" + bytes(50) + b"PK\x05\x06" + bytes(18)
)
one("JPEG with a script behind it", rows(), "x.jpg", lambda: jpeg() + b"<?php system($_GET['c']); ?>")
one("GIF that is a script as well", quarantined("decode", ""), "x.gif", lambda: b"GIF89a/*" + b"*/=1;alert(1)//" * 20)
one("PDF with a JPEG inside", quarantined("decode", "PDF"), "x.jpg", lambda: b"%PDF-1.7\n" + jpeg())
one("zip under a JPEG's name", quarantined("decode", "zip"), "x.jpg", lambda: b"PK\x03\x04" + bytes(200))
one("HTML under a JPEG's name", quarantined("decode", "HTML"), "x.jpg", lambda: b"<html><script>1</script></html>" * 9)
one(
    "PostScript under a JPEG's name", quarantined("decode", "PostScript"), "x.jpg", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n"
)
one("program under a JPEG's name", quarantined("decode", "unknown data"), "x.jpg", lambda: b"\x7fELF\2\1\1" + bytes(99))
one("Photoshop document", quarantined("decode", "Photoshop"), "x.jpg", lambda: b"8BPS\0\1" + bytes(99))
one("video under a JPEG's name", quarantined("decode", "video"), "x.jpg", lambda: b"\0\0\0\x18ftypisom" + bytes(99))
one("pickle under a JPEG's name", quarantined("decode", ""), "x.jpg", lambda: b"cos\nsystem\n(S'touch escaped'\ntR.")
one(
    "PNG with a script as its title",
    rows(),
    "x.png",
    lambda: encoded(face(), "PNG", pnginfo=titled("<script>alert(1)</script>")),
)


def titled(text: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", text)
    return info


# --- names ------------------------------------------------------------------------------------------------------------

NAMES = {
    "blanks, umlauts, # and ?": "a b/größe #1?.jpg",
    "quotes and a semicolon": "'; rm -rf $HOME; \".jpg",
    "line breaks": "two\nlines\r.jpg",
    "markup": "<script>alert(1)</script>.jpg".replace("/", "\u2215"),
    "percent signs and braces": "%s%n{0}{identity}$(id).jpg",
    "commands to a terminal": "x\x1b]0;title\x07\x1b[2J.jpg",
    "text that runs backwards": "x\u202egpj.exe.jpg",
    "255 bytes": "n" * 251 + ".jpg",
    "that of an option": "--new.jpg",
    "a URI's": "s3:x.jpg",
}
for _what, _name in NAMES.items():
    kind("name", _what, rows(), place=_name)(lambda name=_name: {name: jpeg()})


def beside(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """A writer that puts the valid image first."""

    def write(folder: Path) -> None:
        (folder / GOOD).write_bytes(jpeg())
        make(folder)

    return write


def not_text(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg")).write_bytes(jpeg())


add_writer("name", "bytes that are no text", quarantined("read", "caf"), beside(not_text), r"caf\xe9.jpg")
add_writer("name", "a folder called like an image", left_out(), beside(lambda folder: (folder / "x.jpg").mkdir()))
add_writer("name", "a pipe called like an image", left_out(), beside(lambda folder: os.mkfifo(folder / "x.jpg")))
add_writer(
    "name",
    "a link to a file outside",
    quarantined("decode", "found text"),
    beside(lambda folder: (folder / "x.jpg").symlink_to("/etc/passwd")),
    "x.jpg",
)
add_writer(
    "name",
    "a link to nothing",
    quarantined("read", "No such file"),
    beside(lambda folder: (folder / "x.jpg").symlink_to("nowhere")),
    "x.jpg",
)
add_writer(
    "name",
    "a link to the folder itself",
    left_out(),
    beside(lambda folder: (folder / "again").symlink_to(folder)),
)
add_writer(
    "name",
    "a link to an endless device",
    quarantined("read", "no regular file"),
    beside(lambda folder: (folder / "x.jpg").symlink_to("/dev/zero")),
    "x.jpg",
)
