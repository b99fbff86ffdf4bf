"""Table of the hostile corpus: `python -m tests.hostile --markdown docs/hostile-corpus.md`.

Each kind runs against the real command in a process of its own (trial.py). Memory is the peak above that of the loaded
program and models, time is CPU time; every kind of `deca ingest` includes one valid image that is annotated.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.hostile.corpus import KINDS
from tests.hostile.trial import Result, Trials, clear, escapes

REASON = 90  # characters that are shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", default="", help="only those whose name contains this")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    options = parser.parse_args()
    trials, results, wrong = Trials(), list[Result](), 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="deca-hostile-") as folder:
        for number, kind in enumerate(KINDS.values()):
            if options.kinds in kind.name:
                place = Path(folder) / str(number)
                result = trials.run(kind, place)
                problems = result.problems() + [f"left {path}" for path in escapes(place)]
                wrong += bool(problems)
                results.append(result)
                figures = f"{result.peak_mib:>6.0f} MiB {result.seconds:>6.2f} s"
                print(f"{result.kind:<60} {ended(result):<22} {figures}", flush=True)
                print("".join(f"    {problem}\n" for problem in problems), end="", flush=True)
                clear(place)
    outcomes = Counter(result.outcome for result in results)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    total = f"{len(results)} kinds: {counts}; {wrong} not as expected; {time.monotonic() - started:.0f} s"
    print(total)
    if options.markdown:
        options.markdown.write_text(markdown(results, total, folder))
    sys.exit(1 if wrong else 0)


def ended(result: Result) -> str:
    return f"{result.outcome} at {result.stage}" if result.stage else result.outcome


def markdown(results: list[Result], total: str, folder: str) -> str:
    """Return the documentation page with the table."""
    lines = [
        "# Hostile corpus",
        "",
        f"Made by `python -m tests.hostile --markdown docs/hostile-corpus.md`. {total}.",
        "[About the corpus](hostile.md).",
        "",
        "| Kind | Ends as | Peak, MiB | Reason |",
        "| --- | --- | ---: | --- |",
    ]
    for result in results:
        reason = " ".join(result.reason.removeprefix("error: ").replace(f"{folder}/", "").split())
        short = reason if len(reason) <= REASON else f"{reason[:REASON]}…"
        cells = (result.kind, ended(result), f"{result.peak_mib:.0f}", f"`{short}`" if short else "")
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
