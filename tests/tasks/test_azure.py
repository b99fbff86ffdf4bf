"""The unit protocol over Azure's blob protocol, spoken by Azurite (installed by `make node`)."""

from __future__ import annotations

import base64
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from schemas.engine import RayConfig, UnitsConfig
from tasks.engine import run_units
from tasks.plan import committed_parts, open_or_build
from tasks.storage import Store
from tasks.verify import verify
from tests.tasks.conftest import HashWorker

AZURITE = Path(__file__).resolve().parents[1] / "node_modules" / ".bin" / "azurite-blob"


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of an empty container; the connection string stands in the environment, as for a user."""
    if not AZURITE.exists():
        pytest.skip(f"{AZURITE} is not installed. Run: make node (needs npm)")
    from azure.storage.blob import BlobServiceClient

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key = base64.b64encode(secrets.token_bytes(64)).decode()
    command = [str(AZURITE), "--silent", "--inMemoryPersistence", "--skipApiVersionCheck", "--blobPort", str(port)]
    folder = tmp_path_factory.mktemp("azurite")
    server = subprocess.Popen(command, cwd=folder, env={**os.environ, "AZURITE_ACCOUNTS": f"photos:{key}"})
    connection = (
        f"DefaultEndpointsProtocol=http;AccountName=photos;AccountKey={key};"
        f"BlobEndpoint=http://127.0.0.1:{port}/photos;"
    )
    patch = pytest.MonkeyPatch()
    patch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
    try:
        _wait_for(port)
        BlobServiceClient.from_connection_string(connection).create_container("archive")
        yield "az://archive"
    finally:
        patch.undo()
        server.terminate()
        server.wait()


def _wait_for(port: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"Azurite does not listen on port {port}")


def test_units_run_from_and_to_azure(azure: str, photos: Callable[..., Path]) -> None:
    source = Store(f"{azure}/photos")
    for path in photos(10).iterdir():
        source.write(path.name, path.read_bytes())
    plan = open_or_build(f"{azure}/out", f"{azure}/photos", units=UnitsConfig(items_per_unit=4))
    first = run_units(plan, partial(HashWorker), RayConfig(workers=0))
    again = run_units(plan, partial(HashWorker), RayConfig(workers=0))
    assert (first.rows, again.units_run) == (10, 0)
    assert len(committed_parts(f"{azure}/out")) == 3
    found = verify(f"{azure}/out")
    assert found.ok
    assert not found.leftovers


def test_a_new_object_shows_at_once(azure: str) -> None:
    store = Store(f"{azure}/listing")
    store.write("a.json", b"1")
    assert store.list() == ["a.json"]
    Store(f"{azure}/listing/").create("b.json", b"2")
    assert store.list() == ["a.json", "b.json"]
    with pytest.raises(FileExistsError):
        store.create("b.json", b"3")
