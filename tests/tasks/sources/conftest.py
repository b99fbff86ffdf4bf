"""Sources in a local folder and in a bucket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.store.storage import Store


@pytest.fixture(params=["local", "s3"])
def placed(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Path], str]:
    """Return the URI of a folder: its path, or that of its copy in a bucket."""

    def place(folder: Path) -> str:
        if request.param == "local":
            return str(folder)
        store = Store(request.getfixturevalue("s3").uri(f"placed/{tmp_path.name}"))
        for path in folder.rglob("*.*"):
            store.write(str(path.relative_to(folder)), path.read_bytes())
        return store.uri

    return place
