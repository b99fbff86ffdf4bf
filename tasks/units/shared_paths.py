"""Check that local paths lead to the same files on every node of a cluster.

A folder that only the driver's machine has would be missing on the others or, worse, be another one: rows would be made
with other weights, and parts written to the wrong disk. The driver notes a few files of every path with size and
hash (in DEST a file with a random word, which it writes); a node looks for them.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from schemas.engine import RayConfig
from schemas.places import places
from schemas.reconstruct import UNTRAINED_CHECKPOINT
from tasks.sources.walk import parse_glob
from tasks.store.storage import Store, is_local, normalise
from tasks.units.plan import Plan
from tasks.units.ray_cluster import EngineError, connect, is_joined, move_to, on_nodes, this_node, working_nodes

DEST = "dest"  # the setting that is written to
WORDS = ("world", UNTRAINED_CHECKPOINT)  # that settings take instead of a place
SAMPLE = 16  # files noted of a folder
VISITED = 1000  # folders looked into for them
EDGE = 2**16  # bytes hashed at a file's start and end


class SharedPathError(EngineError):
    """A local path that a node of the cluster does not see, or sees as another one; names both."""


@dataclass(frozen=True)
class _Seen:
    """A path as the driver sees it."""

    setting: str
    given: str  # as in the settings: relative to the driver's working directory, or a pattern
    absolute: str  # where that leads
    place: str  # the same; of a pattern, the folder before its first wildcard
    files: tuple[tuple[str, int, str], ...]  # below it, or "" for itself: name, bytes, hash of both ends


@dataclass(frozen=True)
class SharedPaths:
    """What the driver saw; small and picklable. Nothing where a run stays on this machine."""

    folder: str  # the driver's working directory
    seen: tuple[_Seen, ...] = ()

    def check_here(self) -> None:
        """Move to the driver's working directory; raise SharedPathError unless this node sees the same."""
        move_to(self.folder)
        for one in self.seen:
            if reason := self._difference(one):
                raise SharedPathError(
                    f"{one.setting} = {one.given}: {this_node()} does not see what the driver sees there: {reason}. On "
                    "a cluster of several nodes give the URI of a bucket (s3://...), or a share that is mounted at the "
                    "same path on every node. To work on this machine alone: unset RAY_ADDRESS and ray.address"
                )

    def renewed(self) -> SharedPaths:
        """The same paths as they are now: what is read may change while a run lasts, and DEST be swept after a day."""
        for one in self.seen:
            if one.setting == DEST:
                _mark(Path(one.place, one.files[0][0]))
        now = (one if one.setting == DEST else _look(one.setting, one.given) for one in self.seen)
        return SharedPaths(self.folder, tuple(one for one in now if one is not None))

    @staticmethod
    def _difference(one: _Seen) -> str | None:
        """In what this node sees a path otherwise than the driver; None where it sees the same."""
        if (here := normalise(one.given)) != one.absolute:
            return f"it leads to {here}, not to {one.absolute}"
        if not os.path.exists(one.place):
            return f"there is no {one.place}"
        for name, size, digest in one.files:
            path = Path(one.place, name)
            try:
                found = _identity(path)
            except FileNotFoundError:
                return f"there is no {path}"
            except OSError as error:
                return f"{path} cannot be read ({error})"
            if found != (size, digest):
                return f"{path} is another file"
        return None


def prove_paths(config: Any) -> None:
    """Ask every node of the cluster that a flow's settings name for the paths in them, before any work.

    Nothing where the run stays on this machine, as on a cluster of one node. Raises SharedPathError, EngineError.
    """
    if config.ray.workers == 0 or not is_joined(config.ray.address):
        return
    connect(RayConfig(address=config.ray.address))
    nodes, here = working_nodes(), this_node()
    if all(node.id == here.id for node in nodes):
        return
    with _noted(places(config).items()) as shared:
        if not shared.seen:
            return
        for node, answer in zip(nodes, on_nodes(nodes, shared.check_here), strict=True):
            if isinstance(answer, SharedPathError):
                raise answer
            if answer is not None and node in working_nodes():  # one that was lost meanwhile does no harm
                raise EngineError(
                    f"{node} could not be asked for the paths of this run ({type(answer).__name__}: {answer}). Look at "
                    "`ray status` and at that node's load, then run the same command again"
                )


@contextmanager
def paths_of_run(plan: Plan, worker: Callable[..., Any], config: RayConfig) -> Iterator[SharedPaths]:
    """What each worker of a run must find: the plan's dataset, its first and last images, and its settings' paths.

    So workers are asked, too, on nodes that join the cluster later.
    """
    if not is_joined(config.address):
        yield SharedPaths(os.getcwd())
        return
    asked = [(DEST, plan.dest)]
    for settings in getattr(worker, "args", ()):
        if isinstance(settings, BaseModel):
            asked += places(settings).items()
    for unit in plan.iter_units({0, plan.units - 1}):
        files = dict.fromkeys(item.uri for item in unit.items if os.path.isabs(item.uri))
        asked += [("source", file) for file in list(files)[:SAMPLE]]
    with _noted(asked) as shared:
        yield shared


@contextmanager
def paths_by_setting(asked: Mapping[str, str], address: str | None) -> Iterator[SharedPaths]:
    """As `paths_of_run`, for places by the name of their setting."""
    if not is_joined(address):
        yield SharedPaths(os.getcwd())
        return
    with _noted(asked.items()) as shared:
        yield shared


@contextmanager
def _noted(asked: Iterable[tuple[str, str]]) -> Iterator[SharedPaths]:
    """Look at the local ones of (setting, place); the file in DEST exists as long as the block lasts."""
    with ExitStack() as stack:
        seen = []
        for setting, given in dict.fromkeys(asked):
            place = normalise(given)
            if not is_local(place) or given in WORDS:
                continue
            if setting != DEST:
                seen.append(_look(setting, given))
                continue
            if not os.path.isdir(place):
                stack.callback(_remove_empty, place)
            path = stack.enter_context(Store(place).scratch("shared"))
            _mark(path)
            seen.append(_Seen(setting, given, place, place, ((path.name, *_identity(path)),)))
        yield SharedPaths(os.getcwd(), tuple(one for one in seen if one is not None))


def _mark(path: Path) -> None:
    """Write the file of which a node must know: its name is random, and its content is its name."""
    path.write_text(path.name)


def _look(setting: str, given: str) -> _Seen | None:
    """A path that is read, as it is now; None where nothing is there, which the flow itself tells."""
    place = absolute = normalise(given)
    if not os.path.exists(place) and (glob := parse_glob(place)):
        place = glob.base
    if not os.path.exists(place):
        return None
    files = []
    for file in _sample(Path(place)):
        with suppress(OSError):  # forbidden, or just gone
            files.append((_below(file, place), *_identity(file)))
    return _Seen(setting, given, absolute, place, tuple(files))


def _sample(place: Path) -> list[Path]:
    """A few regular files at or below a path, without the hidden ones; which ones may differ from call to call."""
    if place.is_file():
        return [place]
    found: list[Path] = []
    folders = [place]
    for folder in folders:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        folders.append(Path(entry.path))
                    elif entry.is_file():
                        found.append(Path(entry.path))
                    if len(found) == SAMPLE:
                        return found
        except OSError:
            continue
        if len(folders) > VISITED:
            break
    return found


def _identity(path: Path) -> tuple[int, str]:
    """(bytes, hash of both ends) of a regular file."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError("no regular file")
        digest = hashlib.sha256(file.read(EDGE))
        file.seek(max(0, found.st_size - EDGE))
        digest.update(file.read(EDGE))
        return found.st_size, digest.hexdigest()


def _below(file: Path, place: str) -> str:
    return "" if str(file) == place else os.path.relpath(file, place)


def _remove_empty(folder: str) -> None:
    """Remove a folder that was made for the check, unless it is no longer empty."""
    with suppress(OSError):
        os.rmdir(folder)
