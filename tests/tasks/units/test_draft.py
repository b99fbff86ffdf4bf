"""The code version in records: it changes with any source that makes results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import tasks.units.draft
from tasks.units.draft import PACKAGES, code_version


@pytest.fixture
def version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`version("tasks/a.py", "text")`: the code version of a tree after this file is written."""
    monkeypatch.setattr(tasks.units.draft, "__file__", str(tmp_path / "tasks" / "units" / "draft.py"))

    def measure(name: str, text: str) -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        code_version.cache_clear()
        return code_version()

    yield measure
    code_version.cache_clear()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_that_makes_results_counts(version: Callable[..., str], package: str) -> None:
    first = version(f"{package}/inside/module.py", "LIMIT = 3\n")
    assert version(f"{package}/inside/module.py", "LIMIT = 4\n") != first
    assert version(f"{package}/inside/module.py", "LIMIT = 3\n") == first


def test_other_files_do_not_count(version: Callable[..., str]) -> None:
    first = version("tasks/module.py", "LIMIT = 3\n")
    assert version("pipelines/flow.py", "LIMIT = 3\n") == first == version("tasks/page.html.j2", "text")


def test_the_version_of_this_tree() -> None:
    name, _, digest = code_version().partition("+")
    assert name
    assert len(digest) == 12
