"""What libraries say while they decode goes to the log with the image's name, and to nobody else."""

from __future__ import annotations

import ctypes
import io
import logging
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, _imaging

from tasks.sources.image_messages import KEPT, Heard, heard
from tasks.sources.images import ImageError, decode_image


def tiff(**options: object) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "TIFF", **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def broken() -> bytes:
    """A TIFF of which libtiff says `ZIPDecode: Decoding error` while it decodes."""
    data = tiff(compression="tiff_adobe_deflate")
    return data[:300] + bytes(200) + data[500:]


def linked_to_libtiff() -> bool:
    try:
        return bool(ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler)
    except (AttributeError, OSError):
        return False


needs_libtiff = pytest.mark.skipif(not linked_to_libtiff(), reason="Pillow hides its libtiff here")


@pytest.fixture(autouse=True)
def _log_reaches_the_test(monkeypatch):
    """The command line keeps the log to its own handler, in a process where it ran before."""
    monkeypatch.setattr(logging.getLogger("deca"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("deca"), "handlers", [])


@needs_libtiff
def test_libtiff_prints_nothing_and_its_words_explain_the_error(broken, capfd):
    with pytest.raises(ImageError, match=r"damaged: .*\(ZIPDecode: Decoding error at scanline 0"):
        decode_image(broken)
    assert capfd.readouterr().err == ""


def test_a_decoded_image_with_complaints_is_one_line_with_its_name(caplog, capfd):
    pages = tiff(save_all=True, append_images=[Image.new("RGB", (8, 8))])
    with caplog.at_level(logging.WARNING, "deca"):
        decode_image(pages, name="album.zip#scan.tif")
        decode_image(tiff(), name="quiet.tif")
    assert caplog.messages == [
        "album.zip#scan.tif was decoded, but: it holds several images, of which the first is taken"
    ]
    assert capfd.readouterr().err == ""


def test_pillow_warnings_carry_the_name_of_every_image(caplog, capfd):
    """The same warning twice: Python itself would show it once in a process, without a name."""
    data = bytearray(tiff(tiffinfo={270: "x" * 40}))
    at = next(at for at in range(10, 200, 12) if data[at : at + 2] == b"\x0e\x01")  # tag 270 in the first directory
    data[at + 4 : at + 8] = (10**9).to_bytes(4, "little")  # more letters than the file has bytes
    with caplog.at_level(logging.WARNING, "deca"):
        for name in ("a.tif", "b.tif"):
            assert decode_image(bytes(data), name=name).shape == (64, 64, 3)
    assert [message.partition(" ")[0] for message in caplog.messages] == ["a.tif", "b.tif"]
    assert capfd.readouterr().err == ""


@needs_libtiff
def test_threads_hear_their_own_images(broken):
    """Eight threads decode good and bad images at once; each failure names libtiff's reason, no good one does."""
    good, begin = tiff(compression="tiff_lzw"), threading.Barrier(8)

    def decode(number: int) -> str:
        begin.wait()
        texts = []
        for turn in range(10):
            with heard() as said:
                try:
                    decode_image(broken if (number + turn) % 2 else good)
                    texts.append("")
                except ImageError as error:
                    texts.append(str(error))
            assert not said.count  # decode_image listens for itself
        return "|".join("bad" if "ZIPDecode" in text else text for text in texts)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(decode, range(8)))
    assert answers == ["|".join("bad" if (number + turn) % 2 else "" for turn in range(10)) for number in range(8)]


def test_warnings_of_others_go_where_they_went():
    with heard() as said:
        pass
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("not about an image", UserWarning, stacklevel=1)
    assert [str(one.message) for one in caught] == ["not about an image"]
    assert not said.count


def test_many_messages_are_counted_and_few_are_kept():
    said = Heard()
    for number in range(100):
        said.add(f"line {number} " + "x" * 1000)
    assert len(said.messages) == KEPT
    assert str(said).endswith("(and 97 more)")
    assert len(str(said)) < 1000
