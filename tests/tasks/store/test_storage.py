"""Stores: atomic publish, exclusive creation, leftovers, and errors that name thing, cause and next step."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tasks.store.storage import StorageError, Store, normalise, open_uri


@pytest.fixture(params=["local", "s3", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """The same behaviour is asked of a folder, a bucket and fsspec's memory."""
    if request.param == "s3":
        return Store(request.getfixturevalue("s3").uri(f"store/{tmp_path.name}"))
    return Store(tmp_path / "out" if request.param == "local" else f"memory://{tmp_path.name}")


def test_write_read_list_delete(store: Store) -> None:
    assert store.list() == []
    assert not store.exists("a.json")
    for name in ("b.json", "a.json", "sub/c #1?.json"):
        assert store.write(name, name.encode()) == (len(name), hashlib.sha256(name.encode()).hexdigest())
    assert store.list() == ["a.json", "b.json"]
    assert store.list("sub") == ["sub/c #1?.json"]
    assert store.read("sub/c #1?.json") == b"sub/c #1?.json"
    assert store.exists("a.json")
    store.delete("a.json")
    store.delete("a.json")
    assert store.list() == ["b.json"]
    with pytest.raises(FileNotFoundError):
        store.read("a.json")


def test_only_one_of_many_creates(store: Store) -> None:
    def create(number: int) -> bool:
        try:
            store.create("lock.json", str(number).encode())
        except FileExistsError:
            return False
        return True

    # fsspec's memory is a dictionary of this process, where looking and writing are two steps
    threads = 1 if store.uri.startswith("memory") else 8
    with ThreadPoolExecutor(threads) as pool:
        winners = [number for number, won in enumerate(pool.map(create, range(8))) if won]
    assert len(winners) == 1
    assert store.read("lock.json") == str(winners[0]).encode()


def test_a_failed_write_leaves_the_old_object_and_no_scraps(store: Store) -> None:
    store.write("a.json", b"old")
    with pytest.raises(ZeroDivisionError), store.scratch("a.json") as path:  # noqa: PT012  # the fault is the test
        path.write_bytes(b"half of the n")
        raise ZeroDivisionError
    assert store.read("a.json") == b"old"
    assert not path.exists()


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = Store(tmp_path)
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(StorageError, match=rf"cannot write {tmp_path}/a.json: the disk is full. .*df -h '{tmp_path}'"):
        store.write("a.json", b"x")
    assert os.listdir(tmp_path) == []


def test_unwritable_places_are_found_before_any_work(tmp_path: Path, s3: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=rf"{tmp_path}/file/out.*Check with: ls -ld"):
        Store(tmp_path / "file" / "out").check_writable()
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/out.*does not exist.*aws s3 ls s3://no-such-bucket/"):
        Store("s3://no-such-bucket/out").check_writable()
    with pytest.raises(StorageError, match=r"no file system for nope://"):
        Store("nope://x").check_writable()
    good = Store(s3.uri("preflight"))
    good.check_writable()
    assert good.list() == []


def test_a_folder_that_another_write_test_removes_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two commands on one new DEST: `check_writable` of the other removes the folder before the first write into it."""
    real, store = Path.write_bytes, Store(tmp_path / "out")

    def late(path: Path, data: bytes) -> int:
        if path.parent.exists() and not store.exists("a"):
            monkeypatch.setattr(Path, "write_bytes", real)
            path.parent.rmdir()
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", late)
    store.write("a", b"1")
    assert store.read("a") == b"1"


def test_a_write_test_that_was_killed_is_gone_after_the_next(
    tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temp files on a bucket are never swept: the leftover of a killed write test would stay forever."""
    for store in (Store(tmp_path / "out"), Store(s3.uri("killed-preflight"))):
        with monkeypatch.context() as patch:
            patch.setattr(Store, "delete", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                store.check_writable()
        fs, path = open_uri(store.uri)
        assert len(fs.find(path)) == 1
        store.check_writable()
        assert fs.find(path) == []


def test_credentials_never_stay_in_a_uri() -> None:
    assert normalise("s3://bucket/a@b:c.jpg") == "s3://bucket/a@b:c.jpg"
    for uri in ("s3://AKIA:secret@bucket/photos/", "s3://AKIA:sec/ret@bucket/photos"):
        with pytest.raises(StorageError, match="credentials") as caught:
            normalise(uri)
        assert "AKIA" not in str(caught.value)
        assert "ret" not in str(caught.value)


def test_local_uris_are_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert normalise("out/") == normalise(f"file://{tmp_path}/out") == normalise(Path("out")) == f"{tmp_path}/out"


def test_sweep_takes_the_dead_and_leaves_the_living(tmp_path: Path) -> None:
    made = "from tasks.store.scratch import scratch_name; print(scratch_name('00001.json'))"
    dead = subprocess.run([sys.executable, "-c", made], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    store = Store(tmp_path)
    (tmp_path / "_commits" / dead).mkdir(parents=True)
    with store.scratch("part.parquet") as path:
        path.write_bytes(b"")
        assert store.sweep() >= 1
        assert path.exists()
    assert [found.name for found in tmp_path.rglob("*")] == ["_commits"]


def test_a_broken_connection_is_not_an_absent_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    def broken(self: MemoryFileSystem, path: str, **options: object) -> None:
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(MemoryFileSystem, "info", broken)
    with pytest.raises(StorageError, match=r"cannot look up memory://x/a: ConnectionError: reset by peer"):
        Store("memory://x").exists("a")
