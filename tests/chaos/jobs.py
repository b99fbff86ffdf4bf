"""The commands that faults strike, what they read, and what must come out of each of them however often it died.

ingest        a small archive with one damaged picture: annotations/, faces/ in shards, quarantine, card
extend        the same DEST once more after the archive has grown and a picture has changed: rows are taken out of
              committed parts, a round is planned, version 2 of faces/ takes the place of version 1
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

PEOPLE = ("ann", "bob", "cyd", "dan")
PICTURES = 3  # of each
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
    """What the commands read, in one folder."""

    folder: Path

    @property
    def places(self) -> dict[str, str]:
        """Values of the names in braces of COMMANDS, but for {dest}."""
        return {name: str(self.folder / name) for name in ("photos", "grown", "base")} | {
            "train": str(self.folder / "train.yaml")
        }

    def write(self) -> None:
        """Pictures with their labels (landmarks, skin mask) beside them, and the settings of train.

        `grown` holds what `photos` does until `grow` is called.
        """
        (self.folder / "train.yaml").write_text(yaml.safe_dump(TRAIN))
        for source in ("photos", "grown"):
            for number, name in enumerate(person for person in PEOPLE for _ in range(PICTURES)):
                self._picture(source, f"{name}/{number}", number)
            (self.folder / source / BROKEN).write_bytes(_jpeg(0)[:2000])

    def grow(self) -> None:
        """One more person and one more picture; another picture is replaced, and the damaged one mended."""
        for number, name in ((20, "eve/20"), (21, "eve/21"), (22, "bob/22"), (23, "cyd/6")):
            self._picture("grown", name, number)
        self._picture("grown", BROKEN.removesuffix(".jpg"), 24)

    def _picture(self, source: str, name: str, number: int) -> None:
        path = self.folder / source / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_jpeg(number))
        points, mask = _labels(number)
        np.save(path.with_suffix(".npy"), points)
        mask.save(path.with_name(f"{path.stem}_mask.png"))

    def upload(self, uri: str) -> None:
        """The photographs and their labels into a bucket."""
        for path in sorted((self.folder / "photos").rglob("*.*")):
            Store(uri).write(path.relative_to(self.folder / "photos").as_posix(), path.read_bytes())


def _angle(number: int) -> int:
    return number % 13 - 6


@cache
def _head() -> Image.Image:
    """The astronaut's head, 220 x 220 pixels."""
    from skimage import data

    return Image.fromarray(data.astronaut()).crop((110, 0, 330, 220))


def _jpeg(number: int) -> bytes:
    """The head, a little turned."""
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
    """Landmarks and skin mask of a picture, turned as it is."""
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


# --- what came out ----------------------------------------------------------------------------------------------------

OF_A_RUN = ("_report/summary.json", "tensorboard/")  # times, and event files, which hold times
CONFIG = re.compile(r"(^|/)_config\.json")
COMMIT = re.compile(r"(^|/)_commits/[^/]+\.json")


def contents(dest: str) -> dict[str, str]:
    """SHA-256 of every file of a dataset by name: everything that is compared byte for byte.

    Left out is what belongs to a run and not to its result: OF_A_RUN; of a commit record the seconds; of the stored
    settings DEST and what ran them.
    """
    found = {}
    for name, data in _files(dest):
        if not name.startswith(OF_A_RUN):
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
    """Temp files among names: a run that goes on sweeps those of the dead."""
    return [name for name in names if name.rpartition("/")[2].startswith(SCRATCH_PREFIX) or name.endswith(".tmp")]


def rows(job: str, dest: str) -> Counter[str]:
    """How often every row occurs that the dataset shall hold once: faces, quarantined rows; steps and validations."""
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
    """What `deca verify` finds, and units that are not done."""
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
    """Checkpoints whose files are not what their records say; a model that is missing."""
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
    """Files that a local run has published so far."""
    return sum(not name.endswith(".tmp") for _, _, names in os.walk(dest) for name in names)
