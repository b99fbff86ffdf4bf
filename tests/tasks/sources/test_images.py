"""Images of every kind that photo collections hold, good and hostile, made here byte by byte."""

from __future__ import annotations

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from tasks.sources.images import ImageError, decode_image, decode_values, encode_png


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def smooth(height: int, width: int) -> np.ndarray:
    """A smooth image without any symmetry."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    return (np.stack([x, y, (x + 2 * y) / 3], axis=-1) * 200 + 20).astype(np.uint8)


PIXELS = smooth(48, 40)
IMAGE = Image.fromarray(PIXELS)


def oriented(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def refused(data: bytes, **limits: int) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_image(data, **limits)
    return caught.value


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_lossless_formats_decode_exactly(format):
    decoded = decode_image(encode(IMAGE, format))
    assert decoded.dtype == np.uint8
    assert decoded.flags.writeable
    np.testing.assert_array_equal(decoded, PIXELS)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF"])
def test_lossy_formats_decode_closely(format):
    decoded = decode_image(encode(IMAGE, format, quality=95))
    assert np.abs(decoded.astype(int) - PIXELS).mean() < 2


def test_one_pixel():
    np.testing.assert_array_equal(decode_image(encode(Image.new("RGB", (1, 1), (7, 8, 9)), "PNG")), [[[7, 8, 9]]])


# What a camera that was held in each of the eight ways stores, as an operation on the upright array.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("format", "options"),
    [("JPEG", {}), ("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {})],
)
def test_exif_orientation(format, options, orientation):
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](PIXELS)))
    decoded = decode_image(encode(stored, format, exif=oriented(orientation), **options))
    assert decoded.shape == PIXELS.shape
    assert np.abs(decoded.astype(int) - PIXELS).mean() < 3


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16])
def test_values_of_one_channel_are_those_stored(dtype, orientation):
    """Upright as the photograph that they belong to."""
    values = (np.arange(12 * 10).reshape(12, 10) * (1 if dtype is np.uint8 else 500)).astype(dtype)
    values[5:] = 0
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](values[..., None])[..., 0]))
    decoded = decode_values(encode(stored, "PNG", exif=oriented(orientation)))
    assert decoded.dtype == dtype
    np.testing.assert_array_equal(decoded, values)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
def test_a_damaged_exif_block_does_not_cost_the_image(exif):
    assert decode_image(encode(IMAGE, "JPEG", exif=exif)).shape == PIXELS.shape


def test_an_orientation_out_of_range_is_ignored():
    assert decode_image(encode(IMAGE, "PNG", exif=oriented(77))).shape == PIXELS.shape


@pytest.mark.parametrize("inverted", [False, True])
def test_cmyk_jpeg(inverted):
    """Adobe's programs store CMYK inverted and say so in an APP14 segment, which Pillow writes by default."""
    plain = IMAGE.convert("CMYK")
    data = encode(plain, "JPEG", quality=95)
    if not inverted:  # without the APP14 segment the stored numbers mean what they say
        data = encode(Image.fromarray(255 - np.asarray(plain), "CMYK"), "JPEG", quality=95)
        start = data.index(b"\xff\xee")
        data = data[:start] + data[start + 2 + struct.unpack(">H", data[start + 2 : start + 4])[0] :]
    assert np.abs(decode_image(data).astype(int) - PIXELS).mean() < 3


def test_sixteen_bit_grey_is_scaled():
    levels = np.linspace(0, 65535, 256 * 4).round().astype(np.uint16).reshape(32, 32)
    for format in ("PNG", "TIFF"):
        decoded = decode_image(encode(Image.fromarray(levels), format))
        np.testing.assert_allclose(decoded[..., 0], levels / 257, atol=0.51)
        np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])


def test_sixteen_bit_colour_png_and_pgm_are_scaled():
    wide = np.array([[0, 1000, 65535], [30000, 257, 65000]], ">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide.reshape(2, 1, 3))
    np.testing.assert_allclose(decode_image(png(1, 2, 16, 2, rows))[:, 0], wide / 257, atol=1)
    pgm = b"P5 3 2 65535\n" + wide.tobytes()
    np.testing.assert_allclose(decode_image(pgm)[..., 0], wide / 257, atol=0.51)


def test_transparency_is_laid_over_white():
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[..., 0], rgba[:, 0, 3], rgba[:, 1, 3] = 200, 255, 128
    expected = [[200, 0, 0], [227, 127, 127], [255, 255, 255]]
    np.testing.assert_allclose(decode_image(encode(Image.fromarray(rgba), "PNG"))[0], expected, atol=1)
    grey = Image.fromarray(rgba).convert("LA")
    assert decode_image(encode(grey, "PNG"))[0, 2].tolist() == [255, 255, 255]


def test_palettes_with_and_without_transparency():
    indexed = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    indexed.putpalette([10, 20, 30, 200, 100, 50])
    np.testing.assert_array_equal(decode_image(encode(indexed, "PNG"))[0], [[10, 20, 30], [200, 100, 50]])
    transparent = encode(indexed, "PNG", transparency=1)
    np.testing.assert_array_equal(decode_image(transparent)[0], [[10, 20, 30], [255, 255, 255]])


def test_one_bit():
    bits = Image.fromarray(np.eye(9, dtype=bool))
    for format in ("PNG", "TIFF", "BMP"):
        np.testing.assert_array_equal(decode_image(encode(bits, format))[..., 1], np.eye(9) * 255)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_animations_give_their_first_frame(format):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], duration=50)
    with Image.open(io.BytesIO(data)) as animation:
        assert animation.n_frames == 3
    assert np.abs(decode_image(data).astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_images_without_a_defined_white_are_refused(mode):
    image = Image.new(mode, (4, 4)) if mode != "LAB" else Image.fromarray(PIXELS, "LAB")
    error = refused(encode(image, "TIFF"))
    assert error.kind == "unsupported"
    assert "TIFF" in str(error)


@pytest.mark.parametrize(
    ("data", "kind", "word"),
    [
        (b"", "empty", "0 bytes"),
        (b"404: no such photograph", "not-an-image", "text of 23 bytes"),
        (b"<html><body>Sign in to go on</body></html>" * 9, "not-an-image", "HTML"),
        (b"%PDF-1.7 ....", "not-an-image", "PDF"),
        (b"\0" * 64, "not-an-image", "0x00000000"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not-an-image", "PostScript"),
        ("фото".encode() * 30, "not-an-image", "text of 240 bytes"),
    ],
)
def test_what_is_not_an_image_is_named(data, kind, word):
    error = refused(data)
    assert error.kind == kind
    assert word in str(error)


def with_tag(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF with another value of a tag in its first directory."""
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, entry) == (tag,):
            kind = 4 if value > 65535 else 3
            return data[: entry + 2] + struct.pack("<HII", kind, 1, value) + data[entry + 12 :]
    raise AssertionError(f"no tag {tag}")


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (50001, "WebP"),
        (50002, "JPEG XL"),
        (34887, "LERC"),
        (34661, "JBIG"),
        (34712, "JPEG 2000"),
        (12345, "method 12345"),
    ],
)
def test_a_compression_that_pillow_lacks_is_no_damage(code, word, capfd):
    tiff = encode(IMAGE, "TIFF", compression="tiff_lzw")
    error = refused(with_tag(tiff, 259, code))
    assert error.kind == "unsupported"
    assert f"compressed with {word}, which the installed Pillow does not read: save it as PNG" in str(error)
    assert capfd.readouterr().err == ""


def test_other_kinds_that_pillow_lacks_are_no_damage():
    tiff = encode(IMAGE, "TIFF")
    for data in (with_tag(tiff, 262, 9999), with_tag(tiff, 277, 5)):
        assert refused(data).kind == "unsupported"
    bmp = bytearray(encode(IMAGE, "BMP"))
    struct.pack_into("<I", bmp, 30, 4)  # a JPEG in a BMP
    assert refused(bytes(bmp)).kind == "unsupported"


def test_camera_raws_are_not_their_thumbnails():
    thumbnail = Image.new("RGB", (16, 12))
    dng = encode(thumbnail, "TIFF", tiffinfo={50706: b"\1\4\0\0", 254: 1})
    nef = encode(thumbnail, "TIFF", tiffinfo={254: 1})
    tiff = encode(thumbnail, "TIFF")
    cr2 = tiff[:4] + struct.pack("<I", 16) + b"CR\2\0" + bytes(4) + tiff[8:]  # Pillow would look for tags at byte 16
    for data in (dng, nef):
        error = refused(data)
        assert error.kind == "unsupported"
        assert "camera raw" in str(error)
    assert refused(cr2).kind in ("unsupported", "truncated")
    assert refused(b"FUJIFILMCCD-RAW 0201" + bytes(99)).kind == "unsupported"
    assert decode_image(encode(thumbnail, "TIFF", tiffinfo={254: 0})).shape == (12, 16, 3)


def test_a_heic_under_another_name_says_what_to_install():
    if "HEIF" in Image.OPEN:
        pytest.skip("pillow-heif is installed")
    for brand in (b"heic", b"mif1", b"heix"):
        error = refused(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(40))
        assert error.kind == "unsupported"
        assert "pip install pillow-heif" in str(error)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF", "PPM", "GIF"])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
def test_truncation_is_an_error(format, kept):
    data = encode(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), format)
    assert refused(data[: int(len(data) * kept)]).kind == "truncated"


def test_a_damaged_stream_is_an_error():
    data = bytearray(encode(IMAGE, "PNG"))
    start = data.index(b"IDAT") + 4
    data[start : start + 20] = bytes(20)
    assert refused(bytes(data)).kind == "damaged"


def patched(format: str, offset: int, layout: str, *values: int) -> bytes:
    """A tiny image whose header declares another size."""
    data = bytearray(encode(IMAGE, format))
    struct.pack_into(layout, data, offset, *values)
    return bytes(data)


BOMBS = {
    "PNG": png(20_000, 20_000, 8, 2, bytes(1000)),
    "JPEG": patched("JPEG", encode(IMAGE, "JPEG").index(b"\xff\xc0") + 5, ">HH", 20_000, 20_000),
    "GIF": patched("GIF", 6, "<HH", 20_000, 20_000),
    "BMP": patched("BMP", 18, "<ii", 20_000, 20_000),
    "WEBP": patched("WEBP", 26, "<HH", 16_383, 16_383),
    "PPM": b"P6 20000 20000 255\n" + bytes(300),
}


@pytest.mark.parametrize("format", BOMBS)
@pytest.mark.filterwarnings("error")
def test_a_declared_bomb_is_refused_before_decoding(format, monkeypatch):
    def decoded(self: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    assert refused(BOMBS[format]).kind == "too-large"


@pytest.mark.filterwarnings("error")
def test_the_pixel_limit_is_exact_and_pillow_does_not_warn_below_it(monkeypatch):
    data = encode(Image.new("RGB", (100, 50)), "PNG")
    assert decode_image(data, max_pixels=5000).shape == (50, 100, 3)
    error = refused(data, max_pixels=4999)
    assert error.kind == "too-large"
    assert "100 x 50" in str(error)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's own limit is ignored
    assert decode_image(data).shape == (50, 100, 3)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_compressed_text_is_bounded(kind):
    bomb = zlib.compress(bytes(200 * 2**20), 9)
    body = {b"zTXt": b"key\0\0", b"iTXt": b"key\0\1\0\0\0", b"iCCP": b"profile\0\0"}[kind] + bomb
    data = png(2, 2, 8, 0, b"\0\0\0" * 2, extra=chunk(kind, body))
    try:
        assert decode_image(data).shape == (2, 2, 3)  # skipped by the decoder
    except ImageError as error:
        assert error.kind == "too-large"  # noqa: PT017 - either answer is bounded


def test_many_text_chunks_are_bounded():
    text = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(2**20), 9))
    assert refused(png(2, 2, 8, 0, b"\0\0\0" * 2, extra=text * 80)).kind == "too-large"


SEEDS = [
    encode(Image.fromarray(smooth(16, 16)), format) for format in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "JPEG2000")
]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=8))
@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_give_an_image_or_an_image_error(seed, flips):
    data = bytearray(seed)
    for position, value in flips:
        data[position % len(data)] = value
    try:
        decoded = decode_image(bytes(data), max_pixels=10**6)
    except ImageError:
        return
    assert decoded.dtype == np.uint8
    assert decoded.shape[2] == 3


def test_errors_survive_the_way_between_processes():
    error = pickle.loads(pickle.dumps(ImageError("empty", "no data")))  # noqa: S301 - our own bytes
    assert (error.kind, str(error)) == ("empty", "no data")


def test_encoded_masks_come_back():
    mask = (PIXELS[..., 0] > 100).astype(np.uint8) * 255
    with Image.open(io.BytesIO(encode_png(mask))) as stored:
        assert stored.mode == "L"
        np.testing.assert_array_equal(np.asarray(stored), mask)
