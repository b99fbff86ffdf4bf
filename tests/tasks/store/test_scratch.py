"""Whose temp files are: the dead's go, the living's stay, though hostnames and process ids are shared or used again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.store import scratch
from tasks.store.scratch import STALE_SECONDS, is_abandoned, scratch_name, sweep, temp_folder

pytestmark = pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="needs Linux' /proc to tell the dead")
NAME = "from tasks.store.scratch import scratch_name; print(scratch_name('part.parquet'), flush=True)"


@pytest.fixture
def forgetful() -> Iterator[None]:
    """Clear the cached process id before and after the test."""
    for known in (scratch._owner, scratch._here):
        known.cache_clear()
    yield
    for known in (scratch._owner, scratch._here):
        known.cache_clear()


def changed(name: str, field: int, value: str) -> str:
    """A scratch name with another boot (0), container (1), process (2) or start (3)."""
    parts = name.removeprefix(".deca-").split("+", 4)
    parts[field] = value
    return ".deca-" + "+".join(parts)


def dead_name() -> str:
    """A name that a process of this container made, which is gone."""
    return subprocess.run([sys.executable, "-c", NAME], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def aged(path: Path) -> Path:
    now = path.stat().st_mtime
    os.utime(path, (now - STALE_SECONDS - 60,) * 2)
    return path


def test_names_tell_the_dead_from_the_living(tmp_path: Path) -> None:
    mine, dead = scratch_name("part.parquet"), dead_name()
    gone = {
        dead: True,
        mine: False,
        changed(mine, 3, "1"): True,  # our process id, of a process before us
        changed(dead, 0, "0123456789ab"): False,  # the same host restarted, or another host
        changed(dead, 1, "4026599999"): False,  # another container with the same hostname on one volume
        ".deca-host-1-0a1b2c3d-part.parquet.tmp": False,  # as earlier versions named them
        "notes.tmp": False,
    }
    for name in gone:
        (tmp_path / name).write_bytes(b"")
    assert sweep([tmp_path]) == 2
    assert {name: not (tmp_path / name).exists() for name in gone} == gone


def test_what_cannot_be_proved_goes_after_a_day(tmp_path: Path) -> None:
    mine = scratch_name("part.parquet")
    for name in (mine, changed(dead_name(), 0, "0123456789ab"), ".deca-host-1-0a1b2c3d-part.parquet.tmp"):
        (tmp_path / name).write_bytes(b"")
        aged(tmp_path / name)
    assert sweep([tmp_path]) == 2
    assert [path.name for path in tmp_path.iterdir()] == [mine]  # however old: its process lives


def test_a_zombie_process_is_dead(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", NAME], stdout=subprocess.PIPE, text=True) as zombie:
        assert zombie.stdout is not None
        path = tmp_path / zombie.stdout.readline().strip()
        path.write_bytes(b"")
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays in the table
        assert Path(f"/proc/{zombie.pid}/stat").exists()
        assert is_abandoned(path)


def test_folders_go_with_all_that_is_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temp_folder("clip") as folder:
        (folder / "clip.mp4").write_bytes(b"")
        assert folder.parent == tmp_path
        assert sweep([tmp_path]) == 0
    assert not list(tmp_path.iterdir())
    dead, elsewhere = tmp_path / dead_name(), tmp_path / changed(dead_name(), 1, "4026599999")
    for each in (dead, elsewhere):
        (each / "inside").mkdir(parents=True)
        (each / "inside" / "file").write_bytes(b"")
        aged(each)
    assert sweep([tmp_path]) == 1
    assert list(tmp_path.iterdir()) == [elsewhere]  # the file in it was just written


def test_processes_that_are_hidden_are_taken_to_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / changed(scratch_name("x"), 3, "1")
    path.write_bytes(b"")
    monkeypatch.setattr(scratch, "_stat", lambda pid: None)  # as with hidepid
    assert not is_abandoned(path)


@pytest.mark.parametrize("proc", ["missing", "of another namespace"])
def test_without_proc_only_age_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgetful: None, proc: str
) -> None:
    dead = tmp_path / dead_name()
    dead.write_bytes(b"")

    def readlink(path: str) -> str:
        if proc == "missing":
            raise FileNotFoundError(path)  # macOS
        return "1"

    monkeypatch.setattr("os.readlink", readlink)
    mine = tmp_path / scratch_name("x")
    mine.write_bytes(b"")
    assert mine.name.startswith(f".deca-000000000000+0+{os.getpid()}+")
    assert sweep([tmp_path]) == 0
    aged(mine)
    aged(dead)
    assert sweep([tmp_path]) == 2
