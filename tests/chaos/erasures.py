"""Erasures killed before every change of storage, then completed: nothing is left, and the bytes are the same.

    python -m tests.chaos.erasures              every step (some minutes)
    python -m tests.chaos.erasures --kinds      one step of each kind

A subject of 20 images is erased from four datasets (annotations, faces, heads with a file a row and a consensus,
exports with two files a face). Process n is killed with SIGKILL right before its n-th change of storage, which
covers every moment between "bytes written" and "commit visible". The same command then completes; the datasets must
equal those of an undisturbed erasure byte for byte, the audit must be empty, every dataset must verify, and running the
flows of annotations and faces again must bring no erased face back.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.erase import Request
from tasks.people.versions import verify_faces
from tasks.store.storage import Store
from tasks.trust.audit import Place, find_places, occurrences
from tasks.trust.erase import Asked, erase, resolve
from tasks.units.tombstones import Erased
from tasks.units.verify import verify
from tests.tasks import erasable

CHANGES = ("publish", "create", "delete", "delete_folder")  # methods of Store that change storage
LIMIT = 120  # seconds of one process on a busy machine
SUBJECT = Asked(identities=frozenset({erasable.PERSON}))


@dataclass(frozen=True)
class Step:
    """One change of storage."""

    number: int  # from 0
    what: str  # method and place, without numbers and hashes
    place: str


@dataclass(frozen=True)
class Trial:
    """The outcome of one killed and completed erasure."""

    step: Step
    seconds: float  # to complete it
    problems: list[str]


class Harness:
    """The datasets, copied for each trial to the place that their plans name."""

    def __init__(self, folder: Path) -> None:
        self.base, self.work, self.log = folder / "base", folder / "work", folder / "steps"
        _in_child(lambda: erasable.make(self.work) and None)
        self.names = [str(self.work / name) for name in ("people", "heads", "exports")]
        shutil.copytree(self.work, self.base)
        requests = _in_child(lambda: [request.model_dump() for request in resolve(self.places(), SUBJECT)])[1]
        self.erased = Erased.of(Request.model_validate(request) for request in requests)
        _in_child(lambda: self._erase(-1))
        self.undisturbed = erasable.contents(self.work)
        lines = self.log.read_text().splitlines()
        self.steps = [Step(number, *line.split("\t")) for number, line in enumerate(lines)]

    def places(self) -> list[Place]:
        return [place for name in self.names for place in find_places(name)]

    def of_each_kind(self) -> list[Step]:
        """Return the first step of each kind, and the last step."""
        first: dict[str, Step] = {}
        for step in self.steps:
            first.setdefault(step.what, step)
        return sorted({*first.values(), self.steps[-1]}, key=lambda step: step.number)

    def trial(self, step: Step) -> Trial:
        """Kill an erasure before `step`, complete it, check."""
        shutil.rmtree(self.work)
        shutil.copytree(self.base, self.work)
        problems = [] if _in_child(lambda: self._erase(step.number))[0] == -signal.SIGKILL else ["was not killed"]
        started = time.monotonic()
        code, _ = _in_child(lambda: erase(self.names, SUBJECT) and None)
        seconds = time.monotonic() - started
        problems += [] if code == 0 else [f"the second erasure ended with {code}"]
        problems += _in_child(self.check)[1] or []
        if erasable.contents(self.work) != self.undisturbed:
            problems.append("bytes differ from those of an undisturbed erasure")
        return Trial(step, seconds, problems)

    def check(self) -> list[str]:
        """Return the problems of the datasets as they are."""
        problems = []
        for place in self.places():
            found = occurrences(place, self.erased)
            problems += [f"{one.file} of {place.uri} still has the erased ({one.how})" for one in found if one.counts]
            problems += (verify(place.uri) if place.kind == "units" else verify_faces(place.uri)).problems
        return problems

    def run_again(self) -> list[str]:
        """Return the problems after the flows ran again over the same images, all of them touched."""

        def flows() -> list[str]:
            erasable.annotate(self.work)
            erasable.group(self.work)
            return self.check()

        for path in (self.work / "photos").rglob("*.jpg"):
            path.write_bytes(path.read_bytes())  # a new modification time, so that it is planned again
        code, problems = _in_child(flows)
        return [f"the flows ended with {code}"] if code else list(problems)

    def _erase(self, at: int) -> None:
        """Erase and log every change of storage; the process is killed right before change number `at`."""
        count = 0

        def watched(name: str) -> Callable[..., Any]:
            original = getattr(Store, name)

            def change(store: Store, *args: Any) -> Any:
                nonlocal count
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                with self.log.open("a") as file:
                    place = f"{Path(store.uri).name}/{args[-1] if name != 'create' else args[0]}"
                    file.write(f"{name} {_kind(place)}\t{place}\n")
                return original(store, *args)

            return change

        self.log.write_text("")
        for name in CHANGES:
            setattr(Store, name, watched(name))
        erase(self.names, SUBJECT)


def _kind(place: str) -> str:
    """Return a place without the numbers and hashes that differ between files of one kind."""
    return re.sub(r"[0-9a-f]{16}-\d\d|[0-9a-f]{8}|(?<=/)[0-9a-f]{2}(?=/)|\d+", "*", place)


def _in_child(work: Callable[[], Any]) -> tuple[int, Any]:
    """Run a function in a forked process; return its exit code (negative: signal) and its result.

    This process has no threads, so that forking is safe.
    """
    with tempfile.TemporaryFile("w+") as answer:
        child = os.fork()
        if child == 0:
            code = 1
            signal.alarm(LIMIT)
            try:
                json.dump(work(), answer)
                answer.flush()
                code = 0
            except BaseException as error:  # the parent gets the code, the log the message
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        answer.seek(0)
        text = answer.read()
        return code, json.loads(text) if code == 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", action="store_true", help="one step of each kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="deca-erasures-") as name:
        harness = Harness(Path(name))
        steps = harness.of_each_kind() if options.kinds else harness.steps
        print(f"an undisturbed erasure changes storage {len(harness.steps)} times; {len(steps)} are killed")
        trials = [harness.trial(step) for step in steps]
        table: dict[str, list[Trial]] = {}
        for trial in trials:
            table.setdefault(trial.step.what, []).append(trial)
        print("| killed right before | kills | seconds to finish, at most | problems |\n| --- | --- | --- | --- |")
        for what, some in table.items():
            problems = "; ".join(problem for one in some for problem in one.problems) or "none"
            print(f"| `{what}` | {len(some)} | {max(one.seconds for one in some):.1f} | {problems} |")
        again = harness.run_again()
        print(f"run again over the same images: {'; '.join(again) or 'no erased face is back'}")
    sys.exit(1 if again or any(trial.problems for trial in trials) else 0)


if __name__ == "__main__":
    main()
