"""Small archives with real faces, and every kind of trouble beside them."""

from __future__ import annotations

import io
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def deca(monkeypatch, capsys):
    """`deca("status", out)` in this process: (exit code, everything printed)."""
    from pipelines import cli

    monkeypatch.delenv("PREFECT_API_URL", raising=False)

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["deca", *map(str, arguments)])
        for console in (cli.console, cli.errors):
            monkeypatch.setattr(console, "_width", 400)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    return run


def astronaut() -> Image.Image:
    """The astronaut's head: a public-domain photograph, 220 x 220 pixels."""
    from skimage import data

    return Image.fromarray(data.astronaut()).crop((110, 0, 330, 220))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that declares a size and contains next to nothing."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    body = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = [len(part[4:]).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big") for part in (header, body)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


def write_photos(folder: Path) -> Path:
    """Write four images of one face each, a little different."""
    folder.mkdir()
    for index, angle in enumerate((0, 4, -4, 8)):
        (folder / f"{index}.jpg").write_bytes(encoded(astronaut().rotate(angle), "JPEG", quality=92))
    return folder


@pytest.fixture
def trouble(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A folder of hard and bad files; for each name how it must end: "faces N" or the quarantine's stage."""
    face = astronaut()
    jpeg = encoded(face, "JPEG", quality=92)
    sixteen = Image.fromarray(np.asarray(face.convert("L")).astype(np.uint16) * 257)
    palette = face.convert("P", palette=Image.Palette.ADAPTIVE)
    palette.info["transparency"] = 0
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    five = Image.new("RGB", (660, 440), "gray")
    for index in range(5):
        five.paste(face, (220 * (index % 3), 220 * (index // 3)))
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, data in (("good.jpg", jpeg), ("bad.jpg", jpeg[:2000]), ("../escape.jpg", jpeg)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    folder = tmp_path / "trouble"
    (folder / "a b" / "größe #1?").mkdir(parents=True)
    files = {
        "truncated.jpg": (jpeg[:3000], "decode"),
        "empty.jpg": (b"", "decode"),
        "text.jpg": (b"this is a letter, not an image", "decode"),
        "cmyk.jpg": (encoded(face.convert("CMYK"), "JPEG", quality=92), "faces 1"),
        "sixteen.png": (encoded(sixteen, "PNG"), "faces 1"),
        "palette.png": (encoded(palette, "PNG", transparency=0), "faces 1"),
        "animated.gif": (encoded(face, "GIF", save_all=True, append_images=[face.rotate(90)]), "faces 1"),
        "rotated.jpg": (encoded(face.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif), "faces 1"),
        "dot.png": (encoded(Image.new("RGB", (1, 1)), "PNG"), "detect"),
        "bomb.png": (png_header(20_000, 20_000), "decode"),
        "wall.jpg": (encoded(Image.new("RGB", (300, 300), "teal"), "JPEG"), "detect"),
        "five.jpg": (encoded(five, "JPEG", quality=92), "faces 5"),
        "a b/größe #1?/ü.jpg": (jpeg, "faces 1"),
        "some.tar": (tar.getvalue(), ""),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    outcome = {name: ending for name, (_, ending) in files.items() if ending}
    return folder, outcome | {"some.tar#good.jpg": "faces 1", "some.tar#bad.jpg": "decode"}
