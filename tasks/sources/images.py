"""Decoding of untrusted images to RGB arrays, and encoding of masks and maps as PNG.

One decoder (Pillow) for every format, so that an image means the same pixels wherever it is read.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFile

from deca_core.errors import DecaError
from tasks.sources.image_messages import Heard, heard

# Photographs come in these. Anything else Pillow could open (EPS starts Ghostscript, for one) is refused. HEIF is that
# of the package pillow-heif, where it is installed.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "JPEG2000", "AVIF", "PPM", "HEIF")
# Endings of these formats whose files the decoder refuses: floats, of which nothing says which one is white.
REFUSED_ENDINGS = {".pfm"}

MAX_PIXELS = 100_000_000

# EXIF tag 0x0112 to the operation that turns the stored image upright.
ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# First bytes (after an offset), what such data is, and whether that is an image: for messages about what is not read.
OTHER_DATA = (
    (0, b"%PDF", "a PDF document", False),
    (0, b"PK\x03\x04", "a zip archive", False),
    (0, b"Rar!", "a RAR archive", False),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", False),
    (0, b"\x1f\x8b", "gzip data", False),
    (0, b"BZh", "bzip2 data", False),
    (0, b"8BPS", "a Photoshop document", True),
    (0, b"%!PS", "a PostScript document", False),
    (0, b"FUJIFILMCCD-RAW", "a camera raw (RAF)", True),
    (0, b"IIU\x00", "a camera raw (RW2)", True),
    (0, b"IIRO", "a camera raw (ORF)", True),
    (4, b"ftypcrx ", "a camera raw (CR3)", True),
    (0, b"v/1\x01", "an OpenEXR image", True),
    (0, b"\xff\x0a", "a JPEG XL image", True),
    (4, b"JXL \r\n", "a JPEG XL image", True),
    (0, b"DDS ", "a DDS texture", True),
    (0, b"qoif", "a QOI image", True),
    *((4, b"ftyp" + brand, "a HEIC image", True) for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")),
    (4, b"ftypmif1", "a HEIF image", True),
    (4, b"ftypmsf1", "a HEIF image", True),
    (4, b"ftypavi", "an AVIF image", True),
    (4, b"ftyp", "a video or another ISO media file", False),
)

# TIFF's tag 259 to the names of what Pillow, or this build of it, may not read.
TIFF_COMPRESSIONS = {
    32766: "NeXT",
    32809: "ThunderScan",
    32867: "Kodak DCS",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34661: "JBIG",
    34712: "JPEG 2000",
    34713: "Nikon NEF",
    34887: "LERC",
    34892: "JPEG of camera raws",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
COMPRESSION_TAG, SUBFILE_TAG, DNG_TAG = 259, 254, 50706
# What the plugins say of data that is whole and of a kind that they do not read.
UNSUPPORTED = ("unsupported", "not supported", "not configured", "unknown pixel mode", "unknown data organization")

logger = logging.getLogger("deca")


class ImageError(DecaError):
    """An image that cannot be used.

    `kind` is one of: empty, not-an-image, unsupported (an image, but not one of FORMATS or without a defined white),
    truncated, damaged, too-large.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)  # both, so that the error survives pickling between processes
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return self.message


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS, name: str = "") -> NDArray[np.uint8]:
    """Decode the image in `data` as (H, W, 3) uint8 RGB, upright.

    The size is read from the header and checked before any pixel is decoded. EXIF orientation is applied, transparency
    is laid over white, 16-bit grey is scaled to 8 bits, CMYK (inverted by Adobe or not), palettes and 1-bit images
    become RGB, animations and files of several pages give their first image. Colour profiles are not applied. Float,
    32-bit integer and Lab images are refused: nothing in them says which value is white; so are camera raws, whose
    first image is a thumbnail.

    name: for the log, where the library has something to say about an image that it has decoded. Raises ImageError.
    """
    return _decoded(data, max_pixels, name, _to_rgb)


def decode_values(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
    """Return the stored values of a mask or label map, (H, W), upright; bool, uint8, uint16, int32 or float32.

    One channel counts as it is, three equal ones as one. A palette of greys, or one of which only black and white are
    used, counts by its greys, any other by its indices. Raises ImageError, also where a pixel has no one value:
    colours, transparency.
    """
    return _decoded(data, max_pixels, "", _one_channel)


def encode_png(mask: NDArray[np.uint8]) -> bytes:
    """Encode (H, W) uint8 as a one-channel PNG."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def _decoded(
    data: bytes, max_pixels: int, name: str, convert: Callable[[ImageFile.ImageFile], Image.Image]
) -> NDArray[Any]:
    """The first image in `data`, converted and upright."""
    if not data:
        raise ImageError("empty", "no data: the file has 0 bytes")
    with heard() as said:
        image = _load(data, max_pixels, said)
        array = np.array(_upright(convert(image), image))
    if said.count:
        logger.warning("%s was decoded, but: %s", name or f"an image of {len(data)} bytes", said)
    return array


def _load(data: bytes, max_pixels: int, said: Heard) -> ImageFile.ImageFile:
    """A decoded image of a size within the limit."""
    image = _open(data)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError("too-large", f"{width} x {height} pixels declared, the limit is {max_pixels:,} pixels")
    if image.format == "TIFF":
        _check_tiff(image, data, said)
    try:
        image.load()
    except Exception as error:  # as in _open
        raise _decoding_error(image, error, said) from error
    return image


@cache
def load_formats() -> None:
    """Load Pillow's plugins, and pillow-heif's where it is installed."""
    Image.init()
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener(thumbnails=False)


def readable_endings() -> frozenset[str]:
    """Return the endings (".jpg") that are read: those that the installed Pillow has a codec for."""
    load_formats()
    known = Image.registered_extensions().items()
    return frozenset(ending for ending, name in known if name in FORMATS and name in Image.OPEN) - REFUSED_ENDINGS


def _open(data: bytes) -> ImageFile.ImageFile:
    """The header of an image; pixels are not decoded yet.

    Pillow's `Image.open` is not used because its size check is process-wide and only warns: the plugins are asked
    directly and the caller checks.
    """
    load_formats()
    problem = None
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))  # a build of Pillow may lack a codec
        if factory is None or (accept and accept(data[:16]) is not True):
            continue
        if name == "AVIF" and not _has_brand(data, b"avif", b"avis"):  # a HEIC may begin with the same major brand
            continue
        try:
            return factory(io.BytesIO(data), "")
        except (Image.DecompressionBombError, MemoryError) as error:
            raise ImageError("too-large", f"{name} header: {error}") from error
        except Exception as error:  # foreign bytes: the parsers raise whatever they stumble over
            if "too large" in str(error) or "Too much memory" in str(error):
                raise ImageError("too-large", f"{name} with oversized text or profile chunks: {error}") from error
            if (reason := _unsupported(name, error)) is not None:
                raise ImageError("unsupported", reason) from error
            problem = f"starts like {name}, but the header is cut short or damaged ({len(data)} bytes): {error}"
    if problem is not None:
        raise ImageError("truncated", problem)
    found, kind = _describe(data)
    if found.endswith(("HEIC image", "HEIF image")):
        raise ImageError(kind, f"found {found}, which is read where this is installed: pip install pillow-heif")
    raise ImageError(kind, f"found {found}; supported are {', '.join(name for name in FORMATS if name in Image.OPEN)}")


def _has_brand(data: bytes, *brands: bytes) -> bool:
    """Whether an ISO media file names one of the brands in its first box."""
    box = data[8 : int.from_bytes(data[:4], "big")]
    return any(brand in box for brand in brands)


def _unsupported(name: str, error: Exception) -> str | None:
    """Return the message for intact data of an unsupported format, or None where it is damaged."""
    code = error.__cause__.args[0] if isinstance(error.__cause__, KeyError) else None
    if name == "TIFF" and isinstance(code, int) and code >= 1000:  # missing in Pillow's table of compressions; no tag
        return _compressed(code)
    if any(word in str(error).lower() for word in UNSUPPORTED):
        return f"{name} of a kind that the installed Pillow does not read ({error}): save it as PNG"
    return None


def _compressed(code: int) -> str:
    name = TIFF_COMPRESSIONS.get(code, f"method {code}")
    return f"TIFF compressed with {name}, which the installed Pillow does not read: save it as PNG, or as TIFF with LZW"


def _check_tiff(image: ImageFile.ImageFile, data: bytes, said: Heard) -> None:
    """Refuse camera raws, TIFFs whose first image is a thumbnail or not yet an image; say so where pages are left."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    if DNG_TAG in tags or data[8:10] == b"CR" or (isinstance(sub := tags.get(SUBFILE_TAG), int) and sub & 1):
        raise ImageError(
            "unsupported", "TIFF whose first image is a preview (a camera raw: CR2, NEF, ARW, DNG): develop it to JPEG"
        )
    if tags.next:
        said.add("it holds several images, of which the first is taken")


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF orientation of a loaded image: 1 to 8, 1 where nothing sensible is said."""
    if image.format == "TIFF":  # Pillow turned it upright while loading
        return 1
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # a damaged EXIF block is no reason to lose the image
        return 1


def _upright(pixels: Image.Image, image: ImageFile.ImageFile) -> Image.Image:
    """Pixels made of a loaded image, turned as its EXIF says."""
    operation = UPRIGHT.get(_orientation(image))
    return pixels if operation is None else pixels.transpose(operation)


def _describe(data: bytes) -> tuple[str, str]:
    """(what such data is, kind of the ImageError)."""
    for offset, magic, name, is_image in OTHER_DATA:
        if data.startswith(magic, offset):
            return name, "unsupported" if is_image else "not-an-image"
    start = data[:40]
    try:
        text = start.decode("utf-8", errors="strict" if len(data) <= 40 else "ignore")
    except UnicodeDecodeError:
        text = ""
    # What it says is not repeated: a link under an image's name may lead to a letter, or to a key.
    if text and all(char.isprintable() or char.isspace() for char in text):
        kind = "HTML or XML" if text.lstrip().startswith("<") else "text"
        return f"{kind} of {len(data)} bytes (saved from a server's answer?)", "not-an-image"
    return f"unknown data of {len(data)} bytes, starting 0x{data[:4].hex()}", "not-an-image"


def _decoding_error(image: ImageFile.ImageFile, error: Exception, said: Heard) -> ImageError:
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return ImageError("too-large", f"{image.format} of {image.width} x {image.height} pixels: {error}")
    if image.format == "TIFF" and any("not configured" in message for message in said.messages):
        return ImageError("unsupported", _compressed(image.tag_v2.get(COMPRESSION_TAG, 0)))  # type: ignore[attr-defined]
    if (reason := _unsupported(str(image.format), error)) is not None:
        return ImageError("unsupported", reason)
    cut = isinstance(error, EOFError) or any(word in str(error).lower() for word in ("truncated", "buffer overrun"))
    kind = "truncated" if cut else "damaged"
    why = f"{error} ({said})" if said.count else str(error)
    return ImageError(kind, f"{image.format} of {image.width} x {image.height} pixels is {kind}: {why}")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB; see `decode_image` for what happens to each."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format == "PPM"):  # Pillow scales PPM to 16 bits itself
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if mode in ("I", "F", "LAB"):
        what = {"I": "32-bit integer", "F": "floating point", "LAB": "Lab"}[mode]
        raise ImageError("unsupported", f"{image.format} with {what} pixels: convert it to 8 or 16 bits RGB")
    if mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow assumes Adobe's inverted CMYK even where its marker is missing
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        flat = Image.new("RGB", image.size, "white")
        flat.paste(layer, mask=layer.getchannel("A"))
        return flat
    return image.convert("RGB")


def _one_channel(image: Image.Image) -> Image.Image:
    """See `decode_values`."""
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema() != (255, 255):
            raise ImageError("unsupported", "transparent pixels have no one value: save it without an alpha channel")
        image = image if image.mode == "P" else layer
    if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16"):
        return image
    red, green, blue = image.convert("RGB").split()
    grey = red.tobytes() == green.tobytes() == blue.tobytes()
    if image.mode == "P":
        palette = np.array(image.getpalette()).reshape(-1, 3)
        by_colour = grey and ((palette == palette[:, :1]).all() or np.isin(np.asarray(red), (0, 255)).all())
        return red if by_colour else Image.fromarray(np.asarray(image))
    if grey:
        return red
    raise ImageError("unsupported", "coloured pixels have no one value: save it in grey, or with a palette")
