"""A worker that needs no model, pictures that make it misbehave, and folders of such pictures."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from schemas.ledger import Item, Quarantined
from tasks.sources.read import read_items
from tasks.units.engine import UnitOutput

SCHEMA = pa.schema(
    [("face_id", pa.string()), ("source_uri", pa.string()), ("size", pa.int64()), ("sha256", pa.string())],
    metadata={"schema_version": "1"},
)


@dataclass
class HashWorker:
    """One row a picture: size and hash. What a picture's bytes begin with decides how it fails, until `calm` exists."""

    calm: str = "/nonexistent"  # path of a file whose presence ends all misbehaviour
    pids: str = ""  # folder where a `sleep` picture leaves the worker's process id

    def process(self, items: Sequence[Item]) -> UnitOutput:
        rows: list[dict[str, object]] = []
        quarantine = []
        for item, data in read_items(items, threads=2):
            if isinstance(data, Exception):
                quarantine.append(Quarantined.of(item, "read", data))
                continue
            if not os.path.exists(self.calm):
                if data.startswith(b"bad"):
                    quarantine.append(Quarantined.of(item, "decode", "ImageError", "not a picture"))
                    continue
                self.misbehave(data, item)
            sha256 = hashlib.sha256(data).hexdigest()
            face = "" if item.face_index is None else f"-{item.face_index}"
            rows.append(
                {"face_id": item.image_id + face, "source_uri": item.source_uri, "size": len(data), "sha256": sha256}
            )
        return UnitOutput(pa.Table.from_pylist(rows, schema=SCHEMA), quarantine)

    def misbehave(self, data: bytes, item: Item) -> None:
        if data.startswith(b"kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif data.startswith(b"raise"):
            raise ValueError("a fault of the worker")
        elif data.startswith(b"sleep"):
            Path(self.pids, f"{item.index}.tmp").write_text(str(os.getpid()))
            os.replace(Path(self.pids, f"{item.index}.tmp"), Path(self.pids, str(item.index)))
            time.sleep(60)


@dataclass
class VersionWorker(HashWorker):
    """As HashWorker, with the version that a test gives its rows; `half` loses the last of an image's faces."""

    version: int = 1
    faces: int = 0  # of an image, each a row; 0: the image is one

    def process(self, items: Sequence[Item]) -> UnitOutput:
        output = super().process(items)
        rows, quarantine = [], list(output.quarantine)
        for row, item in ((row, item) for row in output.table.to_pylist() for item in items if _is_of(row, item)):
            wanted = range(self.faces) if item.face_index is None else [item.face_index]
            for face in wanted if self.faces else [None]:
                if face == 1 and not os.path.exists(self.calm) and Path(item.uri).read_bytes().startswith(b"half"):
                    quarantine.append(Quarantined.of(item, "crop", "CropError", "no face", face_index=face))
                    continue
                name = {} if face is None else {"face_id": f"{item.image_id}-{face:02d}"}
                rows.append({**row, **name, "version": self.version})
        schema = SCHEMA.append(pa.field("version", pa.int64()))
        return UnitOutput(pa.Table.from_pylist(rows, schema=schema), quarantine)


def _is_of(row: dict[str, object], item: Item) -> bool:
    return row["source_uri"] == item.source_uri


def fail_to_build() -> HashWorker:
    raise RuntimeError("weights.safetensors is missing")


def wait_for_file(path: Path, seconds: float = 60) -> str:
    """The content of a file that another process is about to publish."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear in {seconds} s"
        time.sleep(0.02)
    return path.read_text()


def committed_bytes(dest: Path) -> dict[str, bytes]:
    """Every published part and quarantine file by name."""
    files = [*dest.glob("part-*.parquet"), *dest.glob("_quarantine/*.parquet")]
    return {str(path.relative_to(dest)): path.read_bytes() for path in files}


@pytest.fixture(scope="session")
def stored_heads(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reconstructions/ dataset of seven faces in units of three; tests only read it."""
    from tests.tasks.stored_heads import make_heads

    return make_heads(tmp_path_factory.mktemp("heads"))


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., Path]:
    """`photos(10, {3: b"kill"})`: a folder of ten small files, some of them special; every call makes the same."""

    def make(count: int, special: dict[int, bytes] | None = None, name: str = "photos") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for number in range(count):
            path = folder / f"{number:03d}.jpg"
            path.write_bytes((special or {}).get(number, b"") + b"picture %d" % number)
            os.utime(path, ns=(10**18, 10**18))
        return folder

    return make
