"""Every kind of hostile input ends as it must, one bad row never costs its neighbours, nothing outside DEST changes.

`python -m benchmarks.hostile` runs each kind in a process of its own and tells its memory; here those of one command
share a run.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.corpus import KINDS
from tests.hostile.kinds import INGEST, LIMIT_MIB
from tests.hostile.trial import Trials, escapes

TOGETHER = [kind for kind in KINDS.values() if kind.arguments == INGEST]
# What takes seconds alone: the table has it, and its neighbours in kind are here.
ALONE = [kind for kind in KINDS.values() if kind.arguments != INGEST]


@pytest.fixture(scope="module")
def trials() -> Trials:
    return Trials()


def test_the_corpus_is_as_large_as_it_says() -> None:
    groups = {kind.group for kind in KINDS.values()}
    assert len(KINDS) >= 200
    assert groups == {"picture", "name", "archive", "table", "label", "list", "settings", "record", "model"}


def test_pictures_names_archives_and_tables(trials: Trials, tmp_path: Path) -> None:
    results = trials.run_together(TOGETHER, tmp_path / "run")
    limit = max(kind.limit_mib for kind in TOGETHER) + LIMIT_MIB
    assert results[0].peak_mib < limit
    for result in results:
        result.peak_mib = 0.0  # of all together
    wrong = {result.kind: result.problems() for result in results if result.problems()}
    assert not wrong
    assert not escapes(tmp_path)


@pytest.mark.parametrize("group", ["label", "list", "settings", "record", "model"])
def test_what_commands_are_given(trials: Trials, tmp_path: Path, group: str) -> None:
    kinds = [kind for kind in ALONE if kind.group == group]
    results = [trials.run(kind, tmp_path / str(number)) for number, kind in enumerate(kinds)]
    wrong = {result.kind: result.problems() for result in results if result.problems()}
    assert not wrong
    assert not escapes(tmp_path)
    assert not any("Traceback" in result.printed or "\x1b" in result.printed for result in results)
