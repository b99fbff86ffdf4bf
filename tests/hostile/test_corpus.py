"""Every kind of hostile input ends as it must, one bad row never costs its neighbours, nothing outside DEST changes.

`python -m tests.hostile` runs each kind in a process of its own and measures its memory; here the kinds of one command
share a run.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.corpus import KINDS
from tests.hostile.kinds import INGEST
from tests.hostile.tables import LABELLED
from tests.hostile.trial import Trials, escapes

# Kinds that one run can hold, each in a folder of its own; the others have files where the command names them.
TOGETHER = {
    "images": [kind for kind in KINDS.values() if kind.arguments == INGEST],
    "labels": [kind for kind in KINDS.values() if kind.arguments == LABELLED],
}
ALONE = [kind for kind in KINDS.values() if kind.arguments not in (INGEST, LABELLED)]

PEAK_MIB = 2300  # of all together: images are decoded ahead, and one has 100 million pixels


@pytest.fixture(scope="module")
def trials() -> Trials:
    return Trials()


def test_the_corpus_is_as_large_as_it_says() -> None:
    groups = {kind.group for kind in KINDS.values()}
    assert len(KINDS) >= 200
    assert groups == {"image", "name", "archive", "table", "label", "list", "settings", "record", "model"}


@pytest.mark.slow
@pytest.mark.parametrize("run", TOGETHER)
def test_what_lies_in_a_source(trials: Trials, tmp_path: Path, run: str) -> None:
    results = trials.run_together(TOGETHER[run], tmp_path / "run")
    assert results[0].peak_mib < PEAK_MIB
    for result in results:
        result.peak_mib = 0.0  # of all together
    wrong = {result.kind: result.problems() for result in results if result.problems()}
    assert not wrong
    assert not escapes(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("group", ["list", "settings", "record", "model"])
def test_what_commands_are_given(trials: Trials, tmp_path: Path, group: str) -> None:
    kinds = [kind for kind in ALONE if kind.group == group]
    results = [trials.run(kind, tmp_path / str(number)) for number, kind in enumerate(kinds)]
    wrong = {result.kind: result.problems() for result in results if result.problems()}
    assert not wrong
    assert not escapes(tmp_path)
    assert not any("Traceback" in result.printed or "\x1b" in result.printed for result in results)
