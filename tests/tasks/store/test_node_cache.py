"""The cache of a node: fetched once however many processes ask, whole whatever kills them, and bounded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from deca_core.checkpoint import META_FILE, WEIGHTS_FILE, CheckpointError
from tasks.models.loading import bundle_at, checkpoint_folder
from tasks.store import node_cache
from tasks.store.node_cache import copied_file
from tasks.store.storage import StorageError

DATA = bytes(range(256)) * 4096
FETCH = "import sys; from tasks.store.node_cache import copied_file; print(copied_file(sys.argv[1]), flush=True)"


class Bucket(ThreadingHTTPServer):
    """A web server with one file. It counts who asks, and stops in the middle of a body while `stuck` is set."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: Counter[str] = Counter()
        self.stuck, self.half = threading.Event(), threading.Event()

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Bucket]:
        server = cls()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
            server.server_close()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights.pth"


class _Handler(BaseHTTPRequestHandler):
    server: Bucket

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()
        self.wfile.write(DATA[: len(DATA) // 2])
        self.wfile.flush()
        if self.server.stuck.is_set():
            self.server.half.set()
            self.rfile.read(1)  # until the client is gone
            return
        self.wfile.write(DATA[len(DATA) // 2 :])

    def answer(self) -> None:
        self.server.asked[self.command] += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with Bucket.running() as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DECA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / "cache"


def fetcher(bucket: Bucket) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", FETCH, bucket.uri], stdout=subprocess.PIPE, text=True)


def test_processes_at_once_fetch_once(bucket: Bucket, cache: Path) -> None:
    fetchers = [fetcher(bucket) for _ in range(3)]
    (path,) = {one.communicate()[0].strip() for one in fetchers}
    assert Path(path).read_bytes() == DATA
    assert Path(path).name == "weights.pth"
    assert bucket.asked["GET"] == 1


def test_a_process_that_is_killed_while_it_fetches_leaves_nothing(bucket: Bucket, cache: Path) -> None:
    bucket.stuck.set()
    first = fetcher(bucket)
    assert bucket.half.wait(60)
    second = fetcher(bucket)  # waits for the first
    first.send_signal(signal.SIGKILL)
    bucket.stuck.clear()
    first.wait()
    path = Path(second.communicate()[0].strip())
    assert path.read_bytes() == DATA
    assert bucket.asked["GET"] == 2
    assert [found for found in cache.rglob("*") if found.is_file() and found.stat().st_size] == [path]
    assert not list(cache.rglob(".deca-*"))


def test_another_version_is_another_entry(cache: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/versions/net.pth", b"old")
    first = copied_file("memory://versions/net.pth")
    assert copied_file("memory://versions/net.pth") == first
    fsspec.filesystem("memory").pipe_file("/versions/net.pth", b"new")
    assert (first.read_bytes(), copied_file("memory://versions/net.pth").read_bytes()) == (b"old", b"new")
    with pytest.raises(StorageError, match=r"memory://versions/other.pth does not exist. Check with"):
        copied_file("memory://versions/other.pth")


def test_the_least_used_go_and_those_in_use_stay(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c", "d"):
        fsspec.filesystem("memory").pipe_file(f"/room/{name}", name.encode() * 1000)
    monkeypatch.setattr(node_cache, "_in_use", [])
    a, b, c = (copied_file(f"memory://room/{name}") for name in "abc")
    for age, path in enumerate((c, a, b)):
        os.utime(path.parent, (10**9 + age,) * 2)
    for number in (0, 1):
        node_cache._in_use[number].close()  # as where their processes end: c stays in use
    monkeypatch.setenv("DECA_CACHE_GB", "3e-6")
    d = copied_file("memory://room/d")
    assert [path.exists() for path in (a, b, c, d)] == [False, True, True, True]


def test_a_cache_that_cannot_be_written(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.write_bytes(b"a file")
    fsspec.filesystem("memory").pipe_file("/sealed/net.pth", b"net")
    path = copied_file("memory://sealed/net.pth")
    assert path.read_bytes() == b"net"
    assert path.parent.parent == tmp_path
    assert "Set DECA_CACHE" in caplog.text


def test_a_damaged_checkpoint_is_not_kept(cache: Path) -> None:
    memory = fsspec.filesystem("memory")
    record = {
        "schema_version": 1,
        "backbone": "resnet50",
        "bundle": {"name": "x", "hash": None},
        "info": {},
        "weights_sha256": "0" * 64,
    }
    memory.pipe_file(f"/broken/{META_FILE}", json.dumps(record).encode())
    memory.pipe_file(f"/broken/{WEIGHTS_FILE}", bytes(8) + b"cut short")
    with pytest.raises(CheckpointError, match=r"^memory://broken: model.safetensors has SHA-256"):
        checkpoint_folder("memory://broken")
    assert not [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size]
    with pytest.raises(StorageError, match=r"memory://nowhere/bundle.json does not exist"):
        bundle_at("memory://nowhere")
