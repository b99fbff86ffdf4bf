"""Endings: what is read, what is counted as left out, and what is no image."""

from __future__ import annotations

import io
import sys
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from schemas.engine import FIRST_EXTENSIONS
from tasks.sources import images
from tasks.sources.discover import _endings, discover
from tasks.sources.endings import OTHER_IMAGES, left_out_words, unread_ending
from tasks.sources.images import decode_image, readable_endings
from tasks.sources.read import read_item


def test_every_ending_that_the_walk_takes_is_decoded(tmp_path: Path) -> None:
    """One list for both: a file of each ending, written by Pillow under that name, is planned and read."""
    for ending in readable_endings():
        mode = {".pbm": "1", ".pgm": "L"}.get(ending, "RGB")
        Image.new(mode, (24, 16)).save(tmp_path / f"image{ending}", **({"quality": 90} if ending == ".jpg" else {}))
    items = list(discover(str(tmp_path)))
    assert len(items) == len(readable_endings()) > len(FIRST_EXTENSIONS)
    assert {decode_image(read_item(item)).shape for item in items} == {(16, 24, 3)}


def test_the_lists_share_only_what_a_pillow_may_lack() -> None:
    assert {f".{ending}" for ending in FIRST_EXTENSIONS} <= readable_endings()
    assert {".jfif", ".jpe", ".avif", ".jp2", ".ppm", ".pgm"} <= readable_endings()
    codecs = {".avif", ".avifs", ".webp", ".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx"}
    assert readable_endings() & set(OTHER_IMAGES) <= codecs | {".heic", ".heif", ".hif", ".heics", ".heifs"}


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("a.HEIC", ".heic"),
        ("b/a.jpg.heic", ".heic"),
        ("a.CR2", ".cr2"),
        ("a.ppm.bz2", ".ppm.bz2"),
        ("a.jpg.gz", ".jpg.gz"),
        ("a.tar.xz", ".tar.xz"),
        ("a.rar", ".rar"),
        ("a.pfm", ".pfm"),
        ("a.txt", None),
        ("a.json", None),
        ("a.npy", None),
        ("a.csv.gz", None),
        ("a.jpg.part", None),
        ("a.mp4", None),
        ("a.zip", None),
        ("README", None),
        ("heic", None),
    ],
)
def test_what_looks_like_an_image(name: str, ending: str | None) -> None:
    assert unread_ending(name, readable_endings()) == ending


def test_words_name_the_help() -> None:
    words = left_out_words({".cr2": 1, ".heic": 3000, ".psd": 1, ".zip in an archive": 2})
    assert words == (
        "1 .cr2 (camera raw: develop to JPEG or TIFF), 3,000 .heic (pip install pillow-heif), "
        "1 .psd (convert to PNG or JPEG), 2 .zip in an archive (unpack)"
    )


@pytest.fixture
def heif_plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[bytes]:
    """A plugin with the interface of pillow-heif, for JPEGs behind the first bytes of a HEIC; those bytes."""
    Image.init()
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "EXTENSION", dict(Image.EXTENSION))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    head = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"

    def register_heif_opener(**options: object) -> None:
        Image.register_open(
            "HEIF",
            lambda file, name: JpegImageFile(io.BytesIO(file.read()[len(head) :])),
            lambda start: start.startswith(head[:12]),
        )
        Image.register_extensions("HEIF", [".heic", ".heif"])

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register_heif_opener))
    images.load_formats.cache_clear()
    _endings.cache_clear()
    yield head
    images.load_formats.cache_clear()
    _endings.cache_clear()


def test_the_plugin_for_heic_is_used_where_it_is_installed(tmp_path: Path, heif_plugin: bytes) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), "red").save(buffer, "JPEG")
    (tmp_path / "a.HEIC").write_bytes(heif_plugin + buffer.getvalue())
    left_out: Counter[str] = Counter()
    (item,) = discover(str(tmp_path), left_out=left_out)
    assert not left_out
    assert decode_image(read_item(item)).shape == (16, 24, 3)


def test_a_real_heic(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    turned = Image.new("RGB", (64, 32), "red")
    turned.paste("blue", (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    heif.from_pillow(turned).save(tmp_path / "a.heic", quality=95, exif=exif.tobytes())
    image = decode_image((tmp_path / "a.heic").read_bytes())
    assert image.shape == (64, 32, 3)  # turned once
    assert image[10, 16, 2] > 200
    assert image[50, 16, 0] > 200
