"""The commands under fault injection, their sources, and what each must produce however often it was killed.

ingest        a small archive with one damaged image: annotations/, faces/ in shards, quarantine, card
extend        the same DEST once more after the archive has grown and an image has changed: rows are removed from
              committed parts, a round is planned, version 2 of faces/ replaces version 1
reconstruct   `deca fit`, with maps as files beside the parts
train         three stages with a checkpoint a step, and the model
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray
from PIL import Image

from deca_core.checkpoint import WEIGHTS_FILE
from schemas.annotate import AnnotateConfig
from schemas.train import STAGES
from tasks.annotate.annotators import load_annotator
from tasks.people.versions import open_faces, verify_faces
from tasks.store.scratch import SCRATCH_PREFIX
from tasks.store.storage import Store, open_uri
from tasks.training.checkpoints import read_state
from tasks.training.records import TrainStateError, list_checkpoints
from tasks.training.report import read_metrics
from tasks.units.commits import committed_parts, standing_quarantine
from tasks.units.verify import status, verify

SUBJECTS = ("ann", "bob", "cyd", "dan")
IMAGES = 3  # of each
UPRIGHT = 6  # number of the first image that is not rotated
BROKEN = "ann/broken.jpg"
SMALL = {"units.items_per_unit": 3, "annotate.provider": "sidecar", "inputs.exclude": '["*_mask.png"]'}
SHARDS = {"shards.faces_per_shard": 5, "shards.val_fraction": 0.2}


def _settings(**values: Any) -> tuple[str, ...]:
    return tuple(part for name, value in values.items() for part in ("--set", f"{name}={value}"))


PATTERN = ("--pattern", "{identity}/{image}")
COMMANDS: dict[str, tuple[str, ...]] = {
    "ingest": ("ingest", "{photos}", "{dest}", *PATTERN, *_settings(**SMALL, **SHARDS)),
    "extend": ("ingest", "{grown}", "{dest}", *PATTERN, *_settings(**SMALL, **SHARDS)),
    "reconstruct": ("fit", "{photos}", "{dest}", *_settings(**SMALL, layout="files")),
    "train": ("train", "{base}", "{dest}", "--config", "{train}"),
}
JOBS = tuple(COMMANDS)
STEP = {"subjects": 1, "images": 2}
TRAIN = {
    "data": {"threads": 1, "prefetch": 1},
    "backbone": "mobilenet_v3_small",
    "pretrain": {"steps": 1, "subjects": 2, "images": 1},
    "coarse": {"steps": 2, **STEP},
    "detail": {"steps": 1, **STEP},
    "networks": {"identity": "random", "perceptual": "random"},
    "weights": {"coarse": {"identity": 0.0}},
    "precision": "fp32",
    "checkpoint_every": 1,
    "validation_batches": 0,
    "log_every": 1,
    "mrf_size": 32,
    "ema": None,
    "keep_last": 1,
    "keep_best": 0,
}


@dataclass(frozen=True)
class Sources:
    """The inputs of the commands, in one folder."""

    folder: Path

    @property
    def places(self) -> dict[str, str]:
        """Values of the names in braces of COMMANDS, but for {dest}."""
        return {name: str(self.folder / name) for name in ("photos", "grown", "base")} | {
            "train": str(self.folder / "train.yaml")
        }

    def write(self) -> None:
        """Write images with label files (landmarks, skin mask), and the config of train.

        `grown` equals `photos` until `grow` is called.
        """
        (self.folder / "train.yaml").write_text(yaml.safe_dump(TRAIN))
        for source in ("photos", "grown"):
            for number, name in enumerate(subject for subject in SUBJECTS for _ in range(IMAGES)):
                self._image(source, f"{name}/{number}", number)
            (self.folder / source / BROKEN).write_bytes(jpeg(0)[:2000])

    def grow(self) -> None:
        """Add a subject and an image, replace another image, and repair the damaged one."""
        for number, name in ((20, "eve/20"), (21, "eve/21"), (22, "bob/22"), (23, "cyd/6")):
            self._image("grown", name, number)
        self._image("grown", BROKEN.removesuffix(".jpg"), 24)

    def _image(self, source: str, name: str, number: int) -> None:
        path = self.folder / source / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
        points, mask = _labels(number)
        np.save(path.with_suffix(".npy"), points)
        mask.save(path.with_name(f"{path.stem}_mask.png"))

    def upload(self, uri: str) -> None:
        """Upload the photographs and their labels into a bucket."""
        for path in sorted((self.folder / "photos").rglob("*.*")):
            Store(uri).write(path.relative_to(self.folder / "photos").as_posix(), path.read_bytes())


def _angle(number: int) -> int:
    return number % 13 - UPRIGHT


@cache
def _head() -> Image.Image:
    """The astronaut's head, 220 x 220 pixels."""
    from skimage import data

    return Image.fromarray(data.astronaut()).crop((110, 0, 330, 220))


def jpeg(number: int) -> bytes:
    """The head, rotated a little."""
    buffer = io.BytesIO()
    _head().rotate(_angle(number)).save(buffer, "JPEG", quality=92 - number % 7)
    return buffer.getvalue()


@cache
def _found() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """What dlib finds on the upright head: landmarks (68,2), skin mask (220,220)."""
    annotator = load_annotator(AnnotateConfig())
    image = np.asarray(_head())
    (face,) = annotator.detect(image)
    points = annotator.landmarks(image, face)
    return points, annotator.segment(image, points)


def _labels(number: int) -> tuple[NDArray[np.float32], Image.Image]:
    """Landmarks and skin mask of an image, rotated with it."""
    points, mask = _found()
    cosine, sine = np.cos(np.radians(_angle(number))), np.sin(np.radians(_angle(number)))
    middle = np.array(_head().size, np.float32) / 2
    turned = (points - middle) @ np.array([[cosine, -sine], [sine, cosine]]) + middle
    return turned.astype(np.float32), Image.fromarray(mask).rotate(_angle(number))


def command(job: str, dest: str, places: dict[str, str], workers: int = 0) -> list[str]:
    """Arguments of `deca`."""
    words = [*COMMANDS[job], "--workers", str(workers)]
    for name, value in {**places, "dest": dest}.items():
        words = [word.replace(f"{{{name}}}", value) for word in words]
    return words


# --- the results ----------------------------------------------------------------------------------------------------

PER_RUN = ("_report/summary.json", "tensorboard/")  # times, and event files, which hold times
CONFIG = re.compile(r"(^|/)_config\.json")
COMMIT = re.compile(r"(^|/)_commits/[^/]+\.json")


def contents(dest: str) -> dict[str, str]:
    """Return the SHA-256 of every file of a dataset by name, which must equal the undisturbed run's.

    Per-run data is left out: PER_RUN; the seconds of commit records; DEST and the engine of the stored config.
    """
    found = {}
    for name, data in _files(dest):
        if not name.startswith(PER_RUN):
            if COMMIT.search(name):
                data = _without(data, "seconds")
            elif CONFIG.search(name):
                data = _without(data, "dest", "ray")
            found[name] = hashlib.sha256(data).hexdigest()
    return found


def _files(dest: str) -> Iterator[tuple[str, bytes]]:
    fs, root = open_uri(Store(dest).uri)
    for path in sorted(fs.find(root)):
        yield str(path).removeprefix(root).lstrip("/"), fs.cat_file(path)


def _without(data: bytes, *names: str) -> bytes:
    record = json.loads(data)
    for name in names:
        record.pop(name, None)
    return json.dumps(record, sort_keys=True).encode()


def leftovers(names: list[str]) -> list[str]:
    """Return the temp files among names: a resumed run sweeps those of killed ones."""
    return [name for name in names if name.rpartition("/")[2].startswith(SCRATCH_PREFIX) or name.endswith(".tmp")]


def rows(job: str, dest: str) -> Counter[str]:
    """Count every row, which must occur once: faces, quarantined rows; training steps and validations."""
    if job == "train":
        return Counter(_steps(dest))
    if job == "reconstruct":
        return Counter(_planned(dest))
    faces = open_faces(f"{dest}/faces")
    shards = [*faces.uris("train"), *faces.uris("val")]
    return Counter([*_planned(f"{dest}/annotations"), *_column("faces", shards)])


def _planned(dest: str) -> Iterator[str]:
    yield from _column("row", committed_parts(dest))
    yield from (f"quarantined {Path(row.uri).name} {row.face_index}" for row in standing_quarantine(dest))


def _column(kind: str, uris: list[str]) -> Iterator[str]:
    for uri in uris:
        store, _, name = uri.rpartition("/")
        table = pq.read_table(pa.BufferReader(Store(store).read(name)), columns=["face_id"])
        yield from (f"{kind} {value}" for value in table["face_id"].to_pylist())


def _steps(dest: str) -> Iterator[str]:
    for stage in STAGES:
        steps, validations = read_metrics(Store(dest), stage)
        yield from (f"{stage} step {row['step']:.0f}" for row in steps)
        yield from (f"{stage} validation {row['step']:.0f}" for row in validations)


def problems(job: str, dest: str) -> list[str]:
    """Return the problems that `deca verify` finds, and pending units."""
    if job == "train":
        return _unreadable(dest)
    planned = dest if job == "reconstruct" else f"{dest}/annotations"
    waiting = status(planned).pending
    found = [*verify(planned).problems, *([f"{waiting} units pending"] if waiting else [])]
    found += [f"leftover {name}" for name in verify(planned).leftovers]
    if job != "reconstruct":
        checked = verify_faces(f"{dest}/faces")
        found += [*checked.problems, *(f"leftover {name}" for name in checked.leftovers)]
    return found


def _unreadable(dest: str) -> list[str]:
    """Return checkpoints whose files differ from their records, and a missing model."""
    store = Store(dest)
    found = [] if store.exists(f"model/{WEIGHTS_FILE}") else ["no model"]
    for stage in STAGES:
        records = list_checkpoints(store, stage)
        found += [] if records else [f"{stage}: no checkpoint"]
        for record in records:
            try:
                read_state(store, record)
            except TrainStateError as error:
                found.append(str(error))
    return found


def count_files(dest: str) -> int:
    """Return the number of files that a local run has published so far."""
    return sum(not name.endswith(".tmp") for _, _, names in os.walk(dest) for name in names)
