"""Runs one kind of hostile input against the real command, in a watched process of its own.

The process is forked from one that has the program and the models loaded, so that its peak is what the input costs.
Watched are its memory, its time, every file it opens for writing, every process it starts and every address it connects
to (Python's audit events), and all files around DEST before and after.
"""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.hostile.corpus import KINDS, Kind
from tests.hostile.kinds import GOOD

CPU_SECONDS = 60  # for a kind: a bomb that never ends is killed
TIMEOUT = 900.0  # by the clock, for a process that sleeps; a busy machine may need minutes for one
HEADROOM = 3 * 2**30  # bytes of address space beyond what is taken at the start: a bomb must not take the machine down


@dataclass
class Result:
    """The outcome of one kind."""

    kind: str
    outcome: str = ""  # rows, quarantined, left out or refused; or crash, killed
    stage: str = ""
    reason: str = ""
    faces: int = 0  # of the kind's own image
    good: int = -1  # of the image beside it; -1 where the command ended before any work
    seconds: float = 0.0  # of a core
    peak_mib: float = 0.0
    touched: list[str] = field(default_factory=list)  # outside DEST: files, processes, addresses
    printed: str = ""

    def problems(self) -> list[str]:
        """Return the differences from the expected outcome; empty if there are none."""
        kind = KINDS[self.kind]
        expected, found = kind.ending, [f"outside DEST: {what}" for what in self.touched]
        if self.outcome != expected.outcome:
            found.append(f"{self.outcome} instead of {expected.outcome}: {self.reason}")
        elif self.outcome == "quarantined" and self.stage != expected.stage:
            found.append(f"quarantined at {self.stage} instead of {expected.stage}: {self.reason}")
        elif expected.says not in self.reason:
            found.append(f"the reason does not say {expected.says!r}: {self.reason}")
        if self.faces != expected.faces:
            found.append(f"{self.faces} faces instead of {expected.faces}")
        if expected.outcome in ("quarantined", "left out") and self.good != 1 and kind.arguments[0] == "ingest":
            found.append(f"the image beside it gave {self.good} faces")
        if expected.outcome != "rows" and not self.reason and expected.outcome != "left out":
            found.append("no reason")
        if self.peak_mib > kind.limit_mib:
            found.append(f"{self.peak_mib:.0f} MiB, more than {kind.limit_mib}")
        return found


class Trials:
    """Runs kinds in forks of one process that has the models loaded."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["tests.hostile.warm"])

    def run(self, kind: Kind, folder: Path) -> Result:
        """Run one kind in a process of its own; the new `folder` gets source, DEST, home and tmp."""
        (result,) = self._run([kind.name], folder)
        return result

    def run_together(self, kinds: Sequence[Kind], folder: Path) -> list[Result]:
        """Run kinds of one command over one source, a folder each; time and memory are those of all."""
        assert {kind.arguments for kind in kinds} <= {kinds[0].arguments}
        return self._run([kind.name for kind in kinds], folder)

    def _run(self, names: list[str], folder: Path) -> list[Result]:
        for name in ("source", "home", "tmp"):
            (folder / name).mkdir(parents=True)
        for name in names:
            source = _source(folder, name, names)
            source.mkdir(exist_ok=True)
            KINDS[name].write(source)
            if name != names[0]:  # one good image is enough
                (source / GOOD).unlink()
        before = _tree(folder)
        reader, sender = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_child, args=(names, str(folder), sender))
        process.start()
        sender.close()
        results = [Result(name, "killed", reason=f"no end within {TIMEOUT:.0f} s") for name in names]
        try:
            if reader.poll(TIMEOUT):
                results = reader.recv()
            else:
                process.kill()
        except EOFError:
            process.join()
            for result in results:
                result.reason = f"the process died (exit code {process.exitcode})"
        process.join()
        after = _tree(folder)
        changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
        for result in results:
            result.touched += [f"changed {name}" for name in changed]
        return results


def _source(folder: Path, name: str, names: list[str]) -> Path:
    """Return the folder of a kind's files: the whole source where it is alone."""
    return folder / "source" if len(names) == 1 else folder / "source" / f"{names.index(name):03d}"


def _tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file in the folder outside DEST."""
    found = {}
    for path in folder.rglob("*"):
        place = path.relative_to(folder).as_posix()
        if place != "dest" and not place.startswith("dest/") and not path.is_dir():
            stat = path.lstat()
            found[place] = stat.st_size, stat.st_mtime_ns
    return found


# --- in the process ---------------------------------------------------------------------------------------------------


def _child(names: list[str], folder_name: str, sender: Any) -> None:
    folder, first = Path(folder_name), KINDS[names[0]]
    places = {part: str(folder / part) for part in ("source", "dest")}
    os.chdir(folder / "home")
    os.environ |= {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "PREFECT_API_URL": ""}
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "tmp")  # torch makes it; a parent may name another
    tempfile.tempdir = str(folder / "tmp")
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + HEADROOM, resource.RLIM_INFINITY))
    limit = int(time.process_time()) + CPU_SECONDS * (1 if len(names) == 1 else 5)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    run = Result(first.name)
    arguments = [_filled(argument, places) for argument in first.arguments]
    own = arguments[2:3] if first.arguments[0] in ("ingest", "reconstruct") else []  # DEST, wherever it is
    with _peak(run), _watched([*own, *(str(folder / name) for name in ("dest", "tmp"))], run.touched):
        started = time.process_time()
        code, run.printed = _command(arguments)
        run.seconds = time.process_time() - started
    results = []
    for name in names:
        result = replace(run, kind=name)
        try:
            _inspect(KINDS[name], folder / "dest", _source(folder, name, names), code, result)
        except Exception as error:  # an unreadable dataset is a finding, not the end of the run
            result.outcome, result.reason = "crash", f"afterwards: {type(error).__name__}: {error}"
        if name != names[0]:
            result.good = results[0].good
        results.append(result)
    sender.send(results)


def _filled(argument: str, places: dict[str, str]) -> str:
    for name, place in places.items():
        argument = argument.replace(f"{{{name}}}", place)
    return argument


def _command(arguments: list[str]) -> tuple[int | None, str]:
    """Return the exit code (None after a crash) and everything printed."""
    from pipelines import cli

    printed = io.StringIO()
    sys.argv = ["deca", *arguments]
    for console in (cli.console, cli.errors):
        console.file, console._width = printed, 100_000
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            cli.main()
        except SystemExit as ended:
            return int(ended.code or 0), printed.getvalue()
        except BaseException as error:
            logging.getLogger("tests").debug("crash", exc_info=True)
            return None, f"{printed.getvalue()}\n{type(error).__name__}: {str(error)[:500]}"
    return 0, printed.getvalue()


def _inspect(kind: Kind, dest: Path, source: Path, code: int | None, result: Result) -> None:
    """Set outcome, stage and reason from the exit code, the message and the rows in DEST."""
    from pipelines.places import planned_dataset

    last = result.printed.strip().splitlines()[-1] if result.printed.strip() else ""
    if code is None:
        result.outcome, result.reason = "crash", last
        return
    if code == 1 or kind.arguments[0] != "ingest":
        result.outcome = "refused" if code == 1 else "accepted"
        errors = [line for line in result.printed.splitlines() if line.startswith("error:")]
        problems = [line for line in result.printed.splitlines() if kind.arguments[0] == "verify"]
        result.reason = " ".join(errors or problems)
        return
    import pyarrow.parquet as pq

    from tasks.units.commits import committed_parts, standing_quarantine

    dataset = planned_dataset(str(dest))
    uris = pq.read_table(committed_parts(dataset), columns=["source_uri"])["source_uri"].to_pylist()
    about = _uri(source, kind.place)
    result.good, result.faces = uris.count(str(source / GOOD)), uris.count(about)
    rows = [row for row in standing_quarantine(dataset) if row.uri == about]
    if rows:
        result.outcome, result.stage = "quarantined", rows[0].stage
        result.reason = f"{rows[0].error}: {rows[0].message}"
    else:
        others = {uri for uri in uris if uri.startswith(f"{source}/")} - {str(source / GOOD)}
        result.outcome = "rows" if result.faces or others else "left out"


def _uri(source: Path, place: str) -> str:
    return place if place.startswith("/") or "://" in place else f"{source}/{place}"


@contextlib.contextmanager
def _peak(result: Result) -> Iterator[None]:
    """Set the peak of memory above that at the start."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    yield
    result.peak_mib = max(0.0, (_status("VmHWM") - before) / 1024)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.chmod")
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.spawn")


@contextlib.contextmanager
def _watched(places: Sequence[str], touched: list[str]) -> Iterator[None]:
    """Record files written outside these places, processes started and connections."""
    allowed = tuple(os.path.realpath(place) for place in places)
    watching = True

    def inside(path: Any, folder_handle: int = -1) -> bool:
        if isinstance(path, int) or path is None:
            return True
        base = "" if folder_handle < 0 else os.readlink(f"/proc/self/fd/{folder_handle}")
        real = os.path.realpath(os.path.join(base, os.fsdecode(path)))
        return real == "/dev/null" or real.startswith(tuple(f"{place}/" for place in allowed)) or real in allowed

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal watching
        if not watching:
            return
        watching = False  # the checks may raise events of their own
        try:
            if event == "open" and arguments[2] and arguments[2] & WRITING and not inside(arguments[0]):
                touched.append(f"opened for writing: {arguments[0]}")
            elif event in CHANGES:
                paths = [path for path in arguments[:2] if isinstance(path, str | bytes)]
                handles = [handle for handle in arguments[len(paths) :] if isinstance(handle, int)] or [-1]
                places = zip(paths, handles[-len(paths) :] * len(paths), strict=False)
                touched.extend(f"{event}: {path!r}" for path, handle in places if not inside(path, handle))
            elif event in STARTS:
                touched.append(f"started: {event} {arguments!r:.100}")
            elif event == "socket.connect" and not isinstance(arguments[1], str | bytes):
                touched.append(f"connected to {arguments[1]!r}")
        finally:
            watching = True

    sys.addaudithook(hook)
    try:
        yield
    finally:
        watching = False


def escapes(folder: Path) -> list[str]:
    """Return the files that some kinds leave if they are unpacked or executed."""
    places = [
        Path("/tmp/escaped.jpg"),
        folder / "escaped.jpg",
        folder.parent / "escaped.jpg",
        *folder.rglob("escaped*"),
    ]
    return [str(path) for path in places if path.exists()]


def clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
