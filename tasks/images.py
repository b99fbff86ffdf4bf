"""Foreign pictures in, RGB arrays out; and PNG bytes for masks and maps.

One decoder (Pillow) for every format, so that a picture means the same pixels wherever it is read.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFile

from deca_core.errors import DecaError

# Photographs come in these. Anything else Pillow could open (EPS starts Ghostscript, for one) is refused.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "JPEG2000", "AVIF", "PPM")

MAX_PIXELS = 100_000_000

# EXIF tag 0x0112 to the operation that turns the stored picture upright.
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

# First bytes (after an offset) to what such data is, for messages about things that are not pictures.
OTHER_DATA = (
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x1f\x8b", "gzip data"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"%!PS", "a PostScript document"),
    (4, b"ftypheic", "a HEIC picture"),
    (4, b"ftypheix", "a HEIC picture"),
    (4, b"ftypmif1", "a HEIF picture"),
    (4, b"ftyp", "a video or another ISO media file"),
)


class ImageError(DecaError):
    """A picture that cannot be used.

    `kind` is one of: empty, not-an-image, unsupported (a picture, but not one of FORMATS or without a defined white),
    truncated, damaged, too-large.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)  # both, so that the error survives pickling between processes
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return self.message


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """The picture in `data` as (H, W, 3) uint8 RGB, upright.

    The size is read from the header and checked before any pixel is decoded. EXIF orientation is applied, transparency
    is laid over white, 16-bit grey is scaled to 8 bits, CMYK (inverted by Adobe or not), palettes and 1-bit pictures
    become RGB, animations give their first frame. Colour profiles are not applied. Float, 32-bit integer and Lab
    pictures are refused: nothing in them says which value is white.

    Raises ImageError.
    """
    image = _load(data, max_pixels)
    return np.array(_upright(_to_rgb(image), image))


def decode_values(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
    """The values of a mask or label map as they are stored, (H, W), upright; bool, uint8, uint16, int32 or float32.

    One channel counts as it is, three equal ones as one. A palette whose used colours are grey counts by its greys,
    any other by its indices. Raises ImageError, also where a pixel has no one value: colours, transparency.
    """
    image = _load(data, max_pixels)
    return np.array(_upright(_one_channel(image), image))


def encode_png(mask: NDArray[np.uint8]) -> bytes:
    """(H, W) uint8 as a one-channel PNG."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def _load(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """A decoded image of a size within the limit."""
    if not data:
        raise ImageError("empty", "no data: the file has 0 bytes")
    image = _open(data)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError("too-large", f"{width} x {height} pixels declared, the limit is {max_pixels:,} pixels")
    try:
        image.load()
    except Exception as error:  # as in _open
        raise _decoding_error(image, error) from error
    return image


def _open(data: bytes) -> ImageFile.ImageFile:
    """The header of a picture; pixels are not decoded yet.

    Pillow's `Image.open` is not used because its size check is process-wide and only warns: the plugins are asked
    directly and the caller checks.
    """
    Image.init()
    problem = None
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))  # a build of Pillow may lack a codec
        if factory is None or (accept and accept(data[:16]) is not True):
            continue
        try:
            return factory(io.BytesIO(data), "")
        except (Image.DecompressionBombError, MemoryError) as error:
            raise ImageError("too-large", f"{name} header: {error}") from error
        except Exception as error:  # foreign bytes: the parsers raise whatever they stumble over
            if "too large" in str(error) or "Too much memory" in str(error):
                raise ImageError("too-large", f"{name} with oversized text or profile chunks: {error}") from error
            problem = f"starts like {name}, but the header is cut short or damaged ({len(data)} bytes): {error}"
    if problem is not None:
        raise ImageError("truncated", problem)
    found = _describe(data)
    kind = "unsupported" if "picture" in found or "Photoshop" in found else "not-an-image"
    raise ImageError(kind, f"found {found}; supported are {', '.join(FORMATS)}")


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF orientation of a loaded picture: 1 to 8, 1 where nothing sensible is said."""
    if image.format == "TIFF":  # Pillow turned it upright while loading
        return 1
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # a damaged EXIF block is no reason to lose the picture
        return 1


def _upright(pixels: Image.Image, image: ImageFile.ImageFile) -> Image.Image:
    """Pixels made of a loaded image, turned as its EXIF says."""
    operation = UPRIGHT.get(_orientation(image))
    return pixels if operation is None else pixels.transpose(operation)


def _describe(data: bytes) -> str:
    for offset, magic, name in OTHER_DATA:
        if data.startswith(magic, offset):
            return name
    start = data[:40]
    try:
        text = start.decode("utf-8", errors="strict" if len(data) <= 40 else "ignore")
    except UnicodeDecodeError:
        text = ""
    # What it says is not repeated: a link under a picture's name may lead to a letter, or to a key.
    if text and all(char.isprintable() or char.isspace() for char in text):
        kind = "HTML or XML" if text.lstrip().startswith("<") else "text"
        return f"{kind} of {len(data)} bytes (saved from a server's answer?)"
    return f"unknown data of {len(data)} bytes, starting 0x{data[:4].hex()}"


def _decoding_error(image: ImageFile.ImageFile, error: Exception) -> ImageError:
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return ImageError("too-large", f"{image.format} of {image.width} x {image.height} pixels: {error}")
    cut = isinstance(error, EOFError) or any(word in str(error).lower() for word in ("truncated", "buffer overrun"))
    kind = "truncated" if cut else "damaged"
    return ImageError(kind, f"{image.format} of {image.width} x {image.height} pixels is {kind}: {error}")


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
    if red.tobytes() == green.tobytes() == blue.tobytes():
        return red
    if image.mode == "P":
        return Image.fromarray(np.asarray(image))
    raise ImageError("unsupported", "coloured pixels have no one value: save it in grey, or with a palette")
