"""Erasures killed at every step that changes storage, then finished: what is left, and whether the bytes are the same.

    python -m tests.chaos.erasures              every step (some minutes)
    python -m tests.chaos.erasures --kinds      one step of each kind

A person of 20 pictures is erased from four datasets (annotations, faces, heads with a file a row and a consensus,
exports with two files a face). Process n is killed with SIGKILL right before its n-th change of storage: every moment
between "bytes written" and "commit visible" is one of these. The same command then runs to the end; the datasets must
be byte for byte those of an undisturbed erasure, the audit empty, every dataset whole, and a run of the flows that made
the annotations and the faces must bring nobody back.
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

CHANGES = ("publish", "create", "delete", "delete_folder")  # what `Store` does to storage
LIMIT = 120  # seconds for a process, on a busy machine too
PERSON = Asked(identities=frozenset({erasable.PERSON}))


@dataclass(frozen=True)
class Step:
    """One change of storage."""

    number: int  # from 0
    what: str  # method and place, numbers and hashes left out
    place: str


@dataclass(frozen=True)
class Trial:
    """What one killed and finished erasure came to."""

    step: Step
    seconds: float  # to finish it
    problems: list[str]


class Harness:
    """The datasets, copied anew for each trial to the one place that their plans know."""

    def __init__(self, folder: Path) -> None:
        self.base, self.work, self.log = folder / "base", folder / "work", folder / "steps"
        _in_child(lambda: erasable.make(self.work) and None)
        self.names = [str(self.work / name) for name in ("people", "heads", "exports")]
        shutil.copytree(self.work, self.base)
        requests = _in_child(lambda: [request.model_dump() for request in resolve(self.places(), PERSON)])[1]
        self.erased = Erased.of(Request.model_validate(request) for request in requests)
        _in_child(lambda: self._erase(-1))
        self.undisturbed = erasable.contents(self.work)
        lines = self.log.read_text().splitlines()
        self.steps = [Step(number, *line.split("\t")) for number, line in enumerate(lines)]

    def places(self) -> list[Place]:
        return [place for name in self.names for place in find_places(name)]

    def of_each_kind(self) -> list[Step]:
        """The first step of each kind and the last step of all."""
        first: dict[str, Step] = {}
        for step in self.steps:
            first.setdefault(step.what, step)
        return sorted({*first.values(), self.steps[-1]}, key=lambda step: step.number)

    def trial(self, step: Step) -> Trial:
        """Kill an erasure before `step`, finish it, look."""
        shutil.rmtree(self.work)
        shutil.copytree(self.base, self.work)
        problems = [] if _in_child(lambda: self._erase(step.number))[0] == -signal.SIGKILL else ["was not killed"]
        started = time.monotonic()
        code, _ = _in_child(lambda: erase(self.names, PERSON) and None)
        seconds = time.monotonic() - started
        problems += [] if code == 0 else [f"the second erasure ended with {code}"]
        problems += _in_child(self.look)[1] or []
        if erasable.contents(self.work) != self.undisturbed:
            problems.append("other bytes than an undisturbed erasure leaves")
        return Trial(step, seconds, problems)

    def look(self) -> list[str]:
        """What is wrong with the datasets as they lie there."""
        problems = []
        for place in self.places():
            found = occurrences(place, self.erased)
            problems += [f"{one.file} of {place.uri} still has the erased ({one.how})" for one in found if one.counts]
            problems += (verify(place.uri) if place.kind == "units" else verify_faces(place.uri)).problems
        return problems

    def run_again(self) -> list[str]:
        """What is wrong after the flows ran once more over the same pictures, every one of them touched."""

        def flows() -> list[str]:
            erasable.annotate(self.work)
            erasable.group(self.work)
            return self.look()

        for path in (self.work / "photos").rglob("*.jpg"):
            path.write_bytes(path.read_bytes())  # a new time of change: planned anew
        code, problems = _in_child(flows)
        return [f"the flows ended with {code}"] if code else list(problems)

    def _erase(self, at: int) -> None:
        """Erase and note every change of storage; killed right before change number `at`."""
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
        erase(self.names, PERSON)


def _kind(place: str) -> str:
    """A place without what differs between files of one kind."""
    return re.sub(r"[0-9a-f]{16}-\d\d|[0-9a-f]{8}|(?<=/)[0-9a-f]{2}(?=/)|\d+", "*", place)


def _in_child(work: Callable[[], Any]) -> tuple[int, Any]:
    """Do something in a process of its own: (exit code, or minus the signal that ended it; what it returned).

    This process stays without threads of its own, so that its children can be forks.
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
            except BaseException as error:  # the parent sees the code, a person the words
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
        print(f"run again over the same pictures: {'; '.join(again) or 'nobody is back'}")
    sys.exit(1 if again or any(trial.problems for trial in trials) else 0)


if __name__ == "__main__":
    main()
