"""Units on Ray and in process: what survives when workers, drivers and storage die."""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from schemas.engine import RayConfig, UnitsConfig
from schemas.progress import UnitProgress
from tasks.store.storage import StorageError, Store
from tasks.units.commits import committed_parts, pending, standing_quarantine
from tasks.units.engine import RunInterrupted, WorkerStartError, run_units
from tasks.units.plan import Plan, load_plan
from tasks.units.progress import TerminalProgress
from tasks.units.ray_cluster import EngineError, connect
from tasks.units.rounds import open_or_build
from tasks.units.verify import status, verify
from tests.tasks.conftest import HashWorker, committed_bytes, fail_to_build, wait_for_file

HERE = RayConfig(workers=0)
ONE = RayConfig(workers=1)
TWO = RayConfig(workers=2, unit_timeout_s=60)
FOUR = UnitsConfig(items_per_unit=4)
ROOT = Path(__file__).resolve().parents[3]


def uninterrupted(source: Path, tmp_path: Path, calm: Path = Path("/nonexistent")) -> dict[str, bytes]:
    """Committed bytes of an uninterrupted run."""
    plan = open_or_build(tmp_path / "uninterrupted", str(source), units=FOUR)
    run_units(plan, partial(HashWorker, str(calm)), HERE)
    return committed_bytes(tmp_path / "uninterrupted")


def drive(script: str, **environment: str) -> subprocess.Popen[str]:
    """A driver in a process of its own, which may be killed."""
    prelude = (
        "import os, signal, sys\nfrom functools import partial\nfrom schemas.engine import RayConfig\n"
        "from tasks.store.storage import Store\n"
        "from tasks.units.engine import run_units\nfrom tasks.units.plan import load_plan\n"
        "from tests.tasks.conftest import HashWorker\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", prelude + script],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# --- no Ray ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_ray_that_does_not_answer_is_an_error_with_the_next_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    driver = drive("from tasks.units.engine import connect\nconnect(RayConfig())\n", RAY_ADDRESS="nowhere:port")
    assert re.search(
        r"EngineError: no Ray cluster at nowhere:port: ValueError.*ray status.*workers=0", driver.communicate()[0]
    )

    def late(**settings: object) -> None:  # what ray.init raises after 30 s where a machine is overloaded
        raise Exception("The current node timed out during startup.\nMore of it.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", late)
    with pytest.raises(EngineError, match=r"did not start on this machine: .*timed out during startup\. Look at load"):
        connect(RayConfig(workers=1))


# --- in process -------------------------------------------------------------------------------------------------------


def test_run_commits_every_unit_once(photos: Callable[..., Path], tmp_path: Path) -> None:
    plan = open_or_build(tmp_path / "out", str(photos(10, {3: b"bad"})), units=FOUR)
    seen: list[UnitProgress] = []
    summary = run_units(plan, HashWorker, HERE, seen.append)
    assert (summary.units_run, summary.units_skipped, summary.rows) == (3, 0, 9)
    assert (summary.quarantined, summary.units_failed) == ({"decode": 1}, 0)
    assert [progress.units_done for progress in seen] == [0, 1, 2, 3]
    assert (seen[-1].items_done, seen[-1].items_total, seen[-1].eta_seconds) == (10, 10, 0)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    again = run_units(plan, HashWorker, HERE)
    assert (again.units_run, again.units_skipped) == (0, 3)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}


def test_a_worker_error_gives_up_the_unit_and_no_other(photos: Callable[..., Path], tmp_path: Path) -> None:
    plan = open_or_build(tmp_path / "out", str(photos(12, {5: b"raise"})), units=FOUR)
    summary = run_units(plan, HashWorker, HERE)
    assert (summary.units_failed, summary.rows, summary.quarantined) == (1, 8, {"unit": 4})
    assert len(committed_parts(plan.dest)) == 2
    assert {row.error for row in standing_quarantine(plan.dest)} == {"ValueError"}
    assert verify(plan.dest).ok


def test_a_factory_that_fails_stops_the_run_at_once(photos: Callable[..., Path], tmp_path: Path) -> None:
    plan = open_or_build(tmp_path / "out", str(photos(8)), units=FOUR)
    with pytest.raises(WorkerStartError, match=r"RuntimeError: weights.safetensors is missing"):
        run_units(plan, fail_to_build, HERE)
    assert pending(plan) == [0, 1]


def test_crash_between_put_and_commit_leaves_no_data(photos: Callable[..., Path], tmp_path: Path) -> None:
    source = photos(8)
    plan = open_or_build(tmp_path / "out", str(source), units=FOUR)
    driver = drive(
        "real = Store.publish\n"
        "def publish(self, path, name):\n"
        "    if name.startswith('_commits/00001'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(self, path, name)\n"
        "Store.publish = publish\n"
        f"run_units(load_plan({plan.dest!r}), HashWorker, RayConfig(workers=0))\n"
    )
    assert driver.wait(60) == -signal.SIGKILL
    assert (tmp_path / "out" / plan.part_name(1)).exists()
    assert committed_parts(plan.dest) == [f"{plan.dest}/{plan.part_name(0)}"]
    assert verify(plan.dest).leftovers == [plan.part_name(1)]
    assert [path.name for path in (tmp_path / "out").rglob(".deca-*.tmp")]
    assert run_units(plan, HashWorker, HERE).units_skipped == 1
    assert committed_bytes(tmp_path / "out") == uninterrupted(source, tmp_path)
    assert list((tmp_path / "out").rglob("*.tmp")) == []


def test_storage_error_stops_the_run_and_it_resumes(
    photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    plan = open_or_build(f"memory://{tmp_path.name}", str(photos(8)), units=FOUR)

    def refuses(self: MemoryFileSystem, source: str, target: str, **options: object) -> None:
        if "part-00001" in target:
            raise PermissionError(13, "AccessDenied")
        real(self, source, target, **options)

    real = MemoryFileSystem.put_file
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", refuses)
        with pytest.raises(StorageError, match=r"cannot write memory://.*part-00001.*permission denied"):
            run_units(plan, HashWorker, HERE)
    assert pending(plan) == [1]
    assert run_units(plan, HashWorker, HERE).units_run == 1
    assert verify(plan.dest).ok


def test_sigterm_stops_and_resumes(photos: Callable[..., Path], tmp_path: Path) -> None:
    source = photos(12, {6: b"sleep"})
    plan = open_or_build(tmp_path / "out", str(source), units=FOUR)
    worker = partial(HashWorker, pids=str(tmp_path))
    timer = threading.Thread(
        target=lambda: (wait_for_file(tmp_path / "6"), os.kill(os.getpid(), signal.SIGTERM)), daemon=True
    )
    timer.start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunInterrupted, match=r"stopped with 1 of 3 units .* committed; they are kept. .*--resume"):
        run_units(plan, worker, HERE)
    assert signal.getsignal(signal.SIGTERM) == before
    (tmp_path / "calm").touch()
    assert run_units(plan, partial(HashWorker, str(tmp_path / "calm")), HERE).units_run == 2


def test_threads_are_set_for_the_run_and_restored(photos: Callable[..., Path], tmp_path: Path) -> None:
    import torch

    class Asks(HashWorker):
        def process(self, items: Any) -> Any:
            seen.append((torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]))
            return super().process(items)

    seen: list[tuple[int, str]] = []
    before = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    plan = open_or_build(tmp_path / "out", str(photos(4)), units=FOUR)
    run_units(plan, Asks, RayConfig(workers=0, threads=3))
    assert seen == [(3, "3")]
    assert (torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")) == before


def test_progress_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalProgress("annotate", sys.stderr) as progress:
        for units in range(4):
            progress(UnitProgress(units, 3, units * 4, 12, units * 5, 1, 2.0, 2.5, 3700.0 if units < 3 else 0.0))
    assert capsys.readouterr().err.splitlines() == [
        "annotate: 0/12 images, 0 faces, 2.5 faces/s, 1 in quarantine, 1:01:40 left",
        "annotate: 12/12 images, 15 faces, 2.5 faces/s, 1 in quarantine",
    ]


# --- Ray --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ray_cluster")
class TestRay:
    @pytest.mark.slow
    def test_bytes_are_those_of_a_run_in_process(self, photos: Callable[..., Path], tmp_path: Path) -> None:
        source = photos(30, {3: b"bad"})
        plan = open_or_build(tmp_path / "out", str(source), units=FOUR)
        summary = run_units(plan, HashWorker, TWO)
        assert (summary.units_run, summary.rows) == (8, 29)
        assert committed_bytes(tmp_path / "out") == uninterrupted(source, tmp_path)

    @pytest.mark.slow
    def test_from_bucket_to_bucket(self, photos: Callable[..., Path], tmp_path: Path, s3: Any) -> None:
        source = Store(s3.uri(f"engine/{tmp_path.name}"))
        for path in photos(10, {3: b"bad"}).iterdir():
            source.write(f"sub/{path.name}", path.read_bytes())
        plan = open_or_build(s3.uri(f"engine/{tmp_path.name}-out"), source.uri, units=FOUR)
        run_units(plan, HashWorker, ONE)
        state = status(plan.dest)
        assert (state.committed, state.pending, state.rows, state.quarantined) == (3, 0, 9, {"decode": 1})
        assert verify(plan.dest).ok

    def test_a_killed_worker_costs_nothing(self, photos: Callable[..., Path], tmp_path: Path) -> None:
        source = photos(12, {5: b"sleep"})
        plan = open_or_build(tmp_path / "out", str(source), units=FOUR)

        def kill() -> None:
            pid = int(wait_for_file(tmp_path / "5"))
            (tmp_path / "calm").touch()
            os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        worker = partial(HashWorker, str(tmp_path / "calm"), str(tmp_path))
        summary = run_units(plan, worker, TWO)
        killer.join()
        assert (summary.units_run, summary.units_failed, summary.rows) == (3, 0, 12)
        assert committed_bytes(tmp_path / "out") == uninterrupted(source, tmp_path, tmp_path / "calm")

    @pytest.mark.slow
    def test_idle_workers_end_by_themselves(self, photos: Callable[..., Path], tmp_path: Path) -> None:
        class Tidy(HashWorker):
            def __init__(self) -> None:
                super().__init__()
                (tmp_path / f"{os.getpid()}.pid").touch()
                atexit.register((tmp_path / f"{os.getpid()}.tidy").touch)

        plan = open_or_build(tmp_path / "out", str(photos(12)), units=FOUR)
        assert run_units(plan, Tidy, TWO).rows == 12
        pids = list(tmp_path.glob("*.pid"))
        assert pids
        for pid in pids:
            wait_for_file(pid.with_suffix(".tidy"))

    @pytest.mark.slow
    def test_a_unit_that_always_kills_is_given_up(self, photos: Callable[..., Path], tmp_path: Path) -> None:
        plan = open_or_build(tmp_path / "out", str(photos(12, {5: b"kill"})), units=FOUR)
        summary = run_units(plan, HashWorker, RayConfig(workers=1, attempts=2))
        assert (summary.units_failed, summary.rows, summary.quarantined) == (1, 8, {"unit": 4})
        rows = standing_quarantine(plan.dest)
        assert [row.index for row in rows] == [4, 5, 6, 7]
        assert {row.error for row in rows} == {"WorkerDied"}
        assert not pending(plan)

    @pytest.mark.slow
    def test_a_unit_over_its_time_is_given_up(self, photos: Callable[..., Path], tmp_path: Path) -> None:
        plan = open_or_build(tmp_path / "out", str(photos(8, {5: b"sleep"})), units=FOUR)
        worker = partial(HashWorker, pids=str(tmp_path))
        summary = run_units(plan, worker, RayConfig(workers=1, unit_timeout_s=4, attempts=1))
        assert (summary.units_failed, summary.rows) == (1, 4)
        assert standing_quarantine(plan.dest)[0].error == "UnitTimeout"

    @pytest.mark.slow
    def test_workers_that_only_die_end_the_run(self, photos: Callable[..., Path], tmp_path: Path) -> None:
        plan = open_or_build(tmp_path / "out", str(photos(12, dict.fromkeys(range(12), b"kill"))), units=FOUR)
        with pytest.raises(EngineError, match=r"2 workers died in a row, .*died unexpectedly.*dmesg.*--resume"):
            run_units(plan, HashWorker, RayConfig(workers=1, max_deaths_in_a_row=2))
        assert pending(plan) == [0, 1, 2]

    @pytest.mark.slow
    def test_start_and_storage_errors_come_through(
        self, photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan = open_or_build(tmp_path / "out", str(photos(8)), units=FOUR)
        with pytest.raises(WorkerStartError, match=r"RuntimeError: weights.safetensors is missing"):
            run_units(plan, fail_to_build, ONE)
        with pytest.raises(EngineError, match=r"no worker started in 2 s .*1 CPU and 5 GPU a worker"):
            run_units(plan, HashWorker, RayConfig(workers=1, gpus_per_worker=5, start_timeout_s=2))
        (tmp_path / "out" / "_commits").write_text("a file where a folder should be")
        monkeypatch.setattr("tasks.units.engine.pending", lambda plan: [0, 1])
        with pytest.raises(StorageError, match=r"cannot write .*_commits/0000\d"):
            run_units(plan, HashWorker, ONE)


def test_killed_driver_resumes_to_the_same_bytes(
    photos: Callable[..., Path], tmp_path: Path, ray_cluster: None
) -> None:
    """kill -9 of a driver in the middle of a unit, on the running cluster; then the same command again."""
    import ray

    source = photos(24, {13: b"sleep"})
    plan: Plan = open_or_build(tmp_path / "out", str(source), units=FOUR)
    address = ray.get_runtime_context().gcs_address
    driver = drive(
        f"worker = partial(HashWorker, {str(tmp_path / 'calm')!r}, {str(tmp_path)!r})\n"
        f"run_units(load_plan({plan.dest!r}), worker, RayConfig(workers=2))\n",
        RAY_ADDRESS=address,
    )
    wait_for_file(tmp_path / "13")
    driver.kill()
    driver.wait()
    state = status(plan.dest)
    assert 0 < state.committed < 6
    assert state.pending == 6 - state.committed
    (tmp_path / "calm").touch()
    worker = partial(HashWorker, str(tmp_path / "calm"))
    summary = run_units(load_plan(plan.dest), worker, TWO)
    assert summary.units_skipped >= state.committed
    assert committed_bytes(tmp_path / "out") == uninterrupted(source, tmp_path, tmp_path / "calm")
    assert verify(plan.dest).ok
    assert json.loads((tmp_path / "out" / plan.commit_name(3)).read_text())["rows"] == 4


@pytest.mark.slow
def test_a_dead_node_ends_the_run(photos: Callable[..., Path], tmp_path: Path) -> None:
    source = photos(6, {3: b"sleep"})
    plan = open_or_build(tmp_path / "out", str(source), units=UnitsConfig(items_per_unit=2))
    driver = drive(
        "import subprocess, threading\nfrom tests.tasks.conftest import wait_for_file\nfrom pathlib import Path\n"
        "def kill():\n"
        f"    wait_for_file(Path({str(tmp_path)!r}, '3'))\n"
        "    subprocess.run(['pkill', '-9', '-P', str(os.getpid()), '-f', 'raylet/raylet'])\n"
        "threading.Thread(target=kill, daemon=True).start()\n"
        f"worker = partial(HashWorker, '/nonexistent', {str(tmp_path)!r})\n"
        f"run_units(load_plan({plan.dest!r}), worker, RayConfig(workers=1))\n",
        RAY_ADDRESS="local",
    )
    output, _ = driver.communicate(timeout=240)
    assert driver.returncode == 1
    assert "EngineError: Ray's node died" in output
    assert status(plan.dest).committed == 1
