"""Curves and validation sheets of a training run for docs/: `python -m tools.training_sheets trained/ docs/train`.

deca synth world/ --identities 100 --images-per-identity 8
deca ingest world/photos people/ --pattern '{identity}/{image}' --set shards.val_fraction=0.1
deca train people/ trained/ --preset small
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image

from tasks.store.storage import Store
from tasks.training.report import REPORT

QUALITY = 88


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="DEST of deca train, any fsspec URI")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    store = Store(options.run)
    for name in store.list(REPORT):
        if name.endswith(".png"):
            image = Image.open(io.BytesIO(store.read(name))).convert("RGB")
            image.save(options.folder / f"{Path(name).stem}.jpg", quality=QUALITY)


if __name__ == "__main__":
    main()
