"""Session fixtures (Ray, Prefect, S3 and Azure endpoints start once) and the groups of pytest-xdist."""

from __future__ import annotations

import base64
import os
import re
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.golden import load as load_golden

ROOT = Path(__file__).resolve().parent
AZURITE = ROOT / "node_modules" / ".bin" / "azurite-blob"

# Before Ray or Prefect are imported anywhere.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=["fake", "cuda"],
        default="fake",
        help="where tests/device runs: an emulated CUDA device or a real one",
    )


# Modules that use Ray's or Prefect's fixture, or that are marked as starting one of them.
ENGINES = re.compile(r"(?<!\.)\b(ray_cluster|prefect_harness)\b|pytest\.mark\.engines\b")


@cache
def group_of(module: str) -> str:
    """Return the group of a module (a path below the repository): those with one group share a pytest-xdist worker.

    Ray and Prefect thus start once. Groups are not marks: the xdist_group marks of pytest-xdist 3.8 do nothing under
    pytest 9.2, whose node ids it cannot extend.
    """
    path = ROOT.parent / module
    return "engines" if path.parent == ROOT / "pipelines" or ENGINES.search(path.read_text()) else module


SLOW = {ROOT / name for name in ("benchmarks", "chaos", "device")}  # every test below is marked slow


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow folders and put the largest group first: it takes about half of the time."""
    for item in items:
        if not SLOW.isdisjoint(item.path.parents):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: group_of(item.nodeid.partition("::")[0]) != "engines")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class Groups(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid.partition("::")[0])

    return Groups(config, log)


@pytest.fixture(scope="session")
def golden():
    """Return `tests.golden.load`: the reference's answers on small inputs."""
    return load_golden


@dataclass(frozen=True)
class S3Endpoint:
    """A real S3 protocol endpoint on loopback with one bucket."""

    endpoint: str
    bucket: str

    def uri(self, path: str) -> str:
        return f"s3://{self.bucket}/{path}"


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Endpoint]:
    """moto's S3 server; credentials and endpoint are in the environment, as for a user."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    environment = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="photos")
    yield S3Endpoint(endpoint, "photos")
    server.stop()
    for name, value in before.items():
        os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of an empty container of Azurite, Azure's blob protocol; the connection string is in the environment."""
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


@pytest.fixture(scope="session")
def ray_cluster(s3: S3Endpoint) -> Iterator[None]:
    """One local Ray of two CPUs for the session; it inherits the S3 endpoint's environment."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=256 * 2**20, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def prefect_harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One ephemeral Prefect server with its own database for the session."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield
