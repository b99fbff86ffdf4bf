"""Seeded faults over ingest, train and reconstruct: `python -m tests.chaos --markdown docs/chaos-table.md`.

After every fault the same command runs again, and the dataset is compared with an undisturbed run's. Exit code 1 where
a row is lost or doubled, a file differs, or `verify` finds a problem.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.chaos.jobs import JOBS
from tests.chaos.kinds import KINDS, Kind
from tests.chaos.suite import Fault, Result, Suite

EVERY_STEP = "end at a step of writing"
TRAIN_STRIDE = 5  # of the steps of train, whose runs are slow


def seeded(count: int, seed: int, kinds: Sequence[Kind]) -> list[Fault]:
    """Return `count` faults by the kinds' shares, the jobs in turn; a larger count only appends to each kind."""
    shares = {kind.name: kind.share for kind in kinds if kind.share}
    given = dict.fromkeys(shares, 0)
    for _ in range(count if shares else 0):
        given[max(shares, key=lambda name: shares[name] / (given[name] + 1))] += 1
    faults = []
    for kind in kinds:
        draw = random.Random(f"{seed} {kind.name}")
        first = draw.randrange(len(kind.jobs))
        for index in range(given.get(kind.name, 0)):
            faults.append(Fault(kind.name, kind.jobs[(first + index) % len(kind.jobs)], draw.randrange(10**6)))
    return faults


def at_steps(suite: Suite, jobs: Sequence[str], seed: int) -> Iterator[Fault]:
    """Yield an end before every step of the jobs over units, and before every TRAIN_STRIDE-th step of train.

    fsync is left out: it makes no difference to a killed process, only to a power cut.
    """
    for job in jobs:
        steps = [n for n, step in enumerate(suite.baseline(job, False).steps) if not step.startswith("os.fsync")]
        first = random.Random(seed).randrange(TRAIN_STRIDE)
        for number in steps[first::TRAIN_STRIDE] if job == "train" else steps:
            yield Fault(EVERY_STEP, job, number, number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=120, help="number of seeded faults, besides an end at every step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="", help="only kinds whose names contain one of these, separated by commas")
    parser.add_argument("--jobs", default=",".join(JOBS), help="only some of them")
    parser.add_argument("--no-steps", action="store_true", help="leave out the end at every step")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    options = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that services stop and the table is written
    kinds = [kind for kind in KINDS.values() if any(word.strip() in kind.name for word in options.kinds.split(","))]
    jobs = [job for job in JOBS if job in options.jobs.split(",")]
    started, results, planned = time.monotonic(), list[Result](), 0
    try:
        with tempfile.TemporaryDirectory(prefix="deca-chaos-") as name, Suite(Path(name), jobs) as suite:
            faults = [fault for fault in seeded(options.faults, options.seed, kinds) if fault.job in jobs]
            if KINDS[EVERY_STEP] in kinds and not options.no_steps:
                faults += at_steps(suite, jobs, options.seed)
            planned = len(faults)
            for number, fault in enumerate(faults, 1):
                result = suite.run(fault, KINDS[fault.kind].strike)
                results.append(result)
                print(f"{number:>4}/{planned} {line(result)}", flush=True)
                print("".join(f"       {what}\n" for what in result.wrong), end="", flush=True)
    except KeyboardInterrupt:
        print("stopped", flush=True)
    except Exception:  # a service of the suite does not start: the earlier results still make a table
        traceback.print_exc()
    total = summary(results, planned) + f"; {time.monotonic() - started:.0f} s on {os.cpu_count()} cores"
    total += f", seed {options.seed}"
    print(total)
    if options.markdown and results:
        options.markdown.write_text(markdown(results, total))
    sys.exit(0 if len(results) == planned and planned and all(result.skipped or result.ok for result in results) else 1)


def summary(results: Sequence[Result], planned: int) -> str:
    """Return the summary in a sentence."""
    tried = [result for result in results if not result.skipped]
    lost, doubled, hit = (sum(getattr(result, name) for result in tried) for name in ("lost", "doubled", "hit"))
    return (
        f"{len(tried)} faults of {len({result.fault.kind for result in tried})} kinds"
        f"{f' (stopped: {planned} were planned)' if len(results) < planned else ''}, {hit} of which hit a run at work: "
        f"{lost} rows lost, {doubled} doubled, {sum(result.ok for result in tried)} datasets whole"
    )


def line(result: Result) -> str:
    fault = result.fault
    if result.skipped:
        return f"{fault.kind:<32} {fault.job:<12} skipped: {result.skipped}"
    state = "whole" if result.ok else f"NOT WHOLE: {result.lost} lost, {result.doubled} doubled"
    how = "survived" if result.survived else "resumed"
    return (
        f"{fault.kind:<32} {fault.job:<12} seed {fault.seed:<6} {'hit' if result.hit else 'missed':<7}{how:<9}"
        f"{result.seconds:>6.1f} s  {state:<6}  {result.detail}"
    )


def markdown(results: Sequence[Result], total: str) -> str:
    """Return the page docs/chaos-table.md."""
    lines = [
        "# Faults",
        "",
        f"Made by `python -m tests.chaos --markdown docs/chaos-table.md`. {total}.",
        "[What it is](chaos.md).",
        "",
        "| Kind | Faults | Hit | Survived | Rows lost | Doubled | Byte-equal | Median, s | Worst, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind in KINDS:
        if found := [result for result in results if result.fault.kind == kind and not result.skipped]:
            lines.append(f"| {kind} | {' | '.join(figures(found))} |")
    skipped = {result.fault.kind: result.skipped for result in results if result.skipped}
    lines += [f"| {kind} | not tried: {reason} | | | | | | | |" for kind, reason in skipped.items()]
    lines.append(f"| **all** | {' | '.join(figures([result for result in results if not result.skipped]))} |")
    return "\n".join([*lines, ""])


def figures(found: Sequence[Result]) -> list[str]:
    """Return the cells of a row."""
    seconds = [result.seconds for result in found if result.hit] or [0.0]
    counts = (
        len(found),
        sum(result.hit for result in found),
        sum(result.hit and result.survived for result in found),
        sum(result.lost for result in found),
        sum(result.doubled for result in found),
    )
    equal = sum(result.equal for result in found)
    return [*map(str, counts), f"{equal} of {len(found)}", f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}"]


if __name__ == "__main__":
    main()
