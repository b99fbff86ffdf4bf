"""The version of the code in a plan: what changes results changes it, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import tasks.units.draft
from tasks.units.draft import code_version

SOURCES = {
    "tasks/__init__.py": "",
    "tasks/units/draft.py": "",
    "tasks/worker.py": (
        '"""Works."""\nfrom tasks import helper\n\ndef work():\n    """Slowly."""\n    import schemas.table\n'
    ),
    "tasks/helper.py": "LIMIT = 3  # why\n",
    "tasks/other.py": "LIMIT = 4\n",
    "schemas/__init__.py": "",
    "schemas/table.py": "WIDTH = 1\n",
    "deca_core/__init__.py": "",
}


@pytest.fixture
def version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`version(**{"tasks/helper.py": "..."})`: the version of tasks.worker with these sources changed."""
    monkeypatch.setattr(tasks.units.draft, "__file__", str(tmp_path / "tasks" / "units" / "draft.py"))

    def measure(changes: dict[str, str] | None = None, module: str | None = "tasks.worker") -> str:
        for name, text in {**SOURCES, **(changes or {})}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        code_version.cache_clear()
        return code_version(module)

    yield measure
    code_version.cache_clear()


@pytest.mark.parametrize(
    "change",
    [
        {"tasks/helper.py": "LIMIT = 5\n"},
        {"schemas/table.py": "WIDTH = 2\n"},  # imported inside a function
        {"tasks/__init__.py": "import os\n"},
    ],
)
def test_what_the_worker_reaches_counts(version: Callable[..., str], change: dict[str, str]) -> None:
    assert version(change) != version()


@pytest.mark.parametrize(
    "change",
    [
        {"tasks/other.py": "LIMIT = 5\n"},
        {"tasks/helper.py": "# another comment\n\nLIMIT   =  3\n"},
        {"tasks/worker.py": SOURCES["tasks/worker.py"].replace("Slowly", "Fast").replace("Works", "Does")},
    ],
)
def test_other_modules_and_words_do_not(version: Callable[..., str], change: dict[str, str]) -> None:
    assert version(change) == version()


def test_without_a_module_everything_counts(version: Callable[..., str]) -> None:
    assert version({"tasks/other.py": "LIMIT = 5\n"}, None) != version(None, None)


def test_the_version_of_a_real_worker() -> None:
    name, _, digest = code_version("tasks.heads.reconstruct").partition("+")
    assert name
    assert len(digest) == 12
    assert code_version("tasks.heads.reconstruct") != code_version("tasks.annotate.annotate") != code_version()
