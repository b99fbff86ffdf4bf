"""Screenshots of a report page by Chromium: `python -m tools.report_page PAGE docs/report/report.jpg`.

A second image beside it shows the charts at the end of the page. The page in docs/report.md shows the world's truth; it
is made by `python -m tests.tasks.reports.truth_heads archive` and `deca report archive/heads`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, TALL = 1280, 5000  # pixels of the window: taller than the page
TOP, BOTTOM = 1430, 1640  # pixels of the images: tiles, viewer and the first faces; charts, failures and cost
QUALITY = 82


def screenshot(page: Path) -> Image.Image:
    """Return a page as Chromium draws it, cut off below its last line."""
    program = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    if program is None:
        raise SystemExit("no Chromium here. Install it: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "page.png"
        drawing = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--hide-scrollbars")
        command = [program, "--headless=new", "--no-sandbox", f"--user-data-dir={folder}/profile", *drawing]
        command += [
            f"--window-size={WIDTH},{TALL}",
            "--virtual-time-budget=15000",
            f"--screenshot={shot}",
            page.resolve().as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        pixels = np.asarray(Image.open(shot).convert("RGB"))
    drawn = np.flatnonzero((pixels != pixels[-1, 0]).any(axis=(1, 2)))
    return Image.fromarray(pixels[: drawn[-1] + 25])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("page", type=Path, help="report page (HTML)")
    parser.add_argument("image", type=Path, help="JPEG to write")
    options = parser.parse_args()
    options.image.parent.mkdir(parents=True, exist_ok=True)
    whole = screenshot(options.page)
    for name, first, last in (("", 0, TOP), ("-charts", whole.height - BOTTOM, whole.height)):
        image = options.image.with_stem(options.image.stem + name)
        whole.crop((0, first, WIDTH, last)).save(image, quality=QUALITY, optimize=True)
        print(f"{image}  {image.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
