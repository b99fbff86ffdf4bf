"""A kind of hostile input: the files it puts into a source, the command that reads them, the expected outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from tests.pipelines.conftest import astronaut, encoded

Group = Literal["image", "name", "archive", "table", "label", "list", "settings", "record", "model"]
# rows: faces come out. quarantined: a row names stage and reason. left out: not an input, nothing is reported.
# refused: the command ends with one line of error before any work, exit code 1.
Outcome = Literal["rows", "quarantined", "left out", "refused"]

GOOD = "good.jpg"  # beside everything that is quarantined or left out; must still give its one face
Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Ending:
    """The expected outcome of a kind."""

    outcome: Outcome
    stage: str = ""  # of the quarantined row
    says: str = ""  # words of the reason
    faces: int = 0  # rows of the image


@dataclass(frozen=True)
class Kind:
    """One kind of hostile input."""

    name: str
    group: Group
    ending: Ending
    write: Callable[[Path], None]  # puts the files into the source folder
    place: str  # of its image, below the source; empty where nothing is planned
    arguments: tuple[str, ...]  # of `deca`, with {source} and {dest} to fill in
    limit_mib: int  # memory that the command may take above what it has once its models are loaded


def rows(faces: int = 1) -> Ending:
    return Ending("rows", faces=faces)


def quarantined(stage: str, says: str) -> Ending:
    return Ending("quarantined", stage, says)


def left_out() -> Ending:
    return Ending("left out")


def refused(says: str) -> Ending:
    return Ending("refused", says=says)


# The face is found without enlarging the image, which saves most of a run's time.
INGEST = ("ingest", "{source}", "{dest}", "--workers", "0", "--set", "annotate.dlib.max_upsample=1")
INGEST += ("--set", "identity.method=none")
LIMIT_MIB = 256
KINDS: dict[str, Kind] = {}


def kind(
    group: Group,
    name: str,
    ending: Ending,
    *,
    place: str | None = None,
    arguments: tuple[str, ...] = INGEST,
    limit_mib: int = LIMIT_MIB,
) -> Callable[[Callable[[], Files]], Callable[[], Files]]:
    """Register a function that returns files by name below the source; the first is the image of the kind.

    The function may itself be a writer: one that takes the source folder, where names or types of files matter.
    """

    def add(make: Callable[[], Files]) -> Callable[[], Files]:
        def write(folder: Path) -> None:
            (folder / GOOD).write_bytes(jpeg())
            for file, data in make().items():
                path = folder / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)

        about = place if place is not None else _first_name(make, ending)
        add_writer(group, name, ending, write, about, arguments, limit_mib)
        return make

    return add


def _first_name(make: Callable[[], Files], ending: Ending) -> str:
    return "" if ending.outcome in ("left out", "refused") else next(iter(make()))


def add_writer(
    group: Group,
    name: str,
    ending: Ending,
    write: Callable[[Path], None],
    place: str = "",
    arguments: tuple[str, ...] = INGEST,
    limit_mib: int = LIMIT_MIB,
) -> None:
    full = f"{group}: {name}"
    assert full not in KINDS, full
    KINDS[full] = Kind(full, group, ending, write, place, arguments, limit_mib)


face = cache(astronaut)


@cache
def jpeg() -> bytes:
    return encoded(face(), "JPEG", quality=92)
