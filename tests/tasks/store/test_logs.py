"""Log lines for machines, and figures for Prometheus, of a real run."""

from __future__ import annotations

import json
import logging
import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from schemas.engine import RayConfig, UnitsConfig
from schemas.progress import Timing, TrainProgress
from tasks.store.logs import EVENTS, JsonFormatter, set_up
from tasks.units.engine import run_units
from tasks.units.metrics_server import VARIABLE, exporter, watched
from tasks.units.progress import TerminalProgress
from tasks.units.rounds import open_or_build
from tests.tasks.conftest import HashWorker

HERE, FOUR = RayConfig(workers=0), UnitsConfig(items_per_unit=4)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The loggers and the exporter as they were."""
    log = logging.getLogger("deca")
    before = (log.handlers, log.propagate, log.level, logging.getLogger(EVENTS).level)
    exporter.cache_clear()
    yield
    log.handlers, log.propagate, log.level, logging.getLogger(EVENTS).level = before
    if (served := exporter()) is not None:
        served.server.shutdown()
        served.server.server_close()
    exporter.cache_clear()


def test_a_run_says_every_unit_in_json(
    photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DECA_LOG", "json")
    set_up()
    plan = open_or_build(tmp_path / "out", str(photos(10, {3: b"bad", 5: b"raise"})), units=FOUR)
    with TerminalProgress("reconstruct") as progress:
        run_units(plan, HashWorker, HERE, progress)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert all({"time", "level", "event"} <= line.keys() for line in lines)
    committed = {line["unit"]: line for line in lines if line["event"] == "unit committed"}
    assert [committed[unit]["rows"] for unit in range(3)] == [3, 0, 2]
    assert committed[0]["stages"] == {"decode": 1}
    assert (committed[0]["plan"], committed[0]["dataset"]) == (plan.fingerprint[:8], plan.dest)
    failures = [line for line in lines if line["event"].startswith("unit failed")]
    assert [(line["unit"], line["attempt"], line["error"]) for line in failures] == [
        (1, attempt, "ValueError") for attempt in (1, 2, 3)
    ]
    assert [line["done"] for line in lines if line["event"] == "reconstruct"] == [0, 10]


def test_plain_logs_omit_unit_events(
    photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DECA_LOG", raising=False)
    set_up()
    run_units(open_or_build(tmp_path / "out", str(photos(4)), units=FOUR), HashWorker, HERE)
    logging.getLogger("deca").info("%d images", 4)
    assert capsys.readouterr().err == "4 images\n"


def test_a_line_stays_one_line_and_names_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        record = logging.LogRecord("deca", 40, "", 0, "it %s", ("failed\n",), (ValueError, error, error.__traceback__))
    text = JsonFormatter().format(record)
    line = json.loads(text)
    assert "\n" not in text
    assert (line["rank"], line["level"], line["event"]) == (3, "error", "it failed\n")
    assert "ValueError: two" in line["error"]


def figures(port: int) -> dict[str, float]:
    """What Prometheus would read, without the datasets' names."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("deca_"))
    return {name.replace(" ", ""): float(value) for name, value in pairs}


def test_prometheus_reads_the_counts_of_a_run(
    photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "0")  # any free port
    monkeypatch.setenv("DECA_METRICS_HOST", "127.0.0.1")
    plan = open_or_build(tmp_path / "out", str(photos(10, {3: b"bad", 8: b"bad"})), units=FOUR)
    run_units(plan, HashWorker, HERE, only=[0, 2])
    served = exporter()
    assert served is not None
    found = figures(served.port)
    dataset = f'dataset="{plan.dest}"'
    assert found[f"deca_faces_total{{{dataset}}}"] == 4
    assert found[f'deca_quarantined_total{{{dataset},stage="decode"}}'] == 2
    assert found[f"deca_units_pending{{{dataset}}}"] == 1
    assert found[f"deca_faces_per_second{{{dataset}}}"] > 0
    assert 0 < found[f"deca_workers_busy_share{{{dataset}}}"] <= 1
    seen: list[TrainProgress] = []
    timing = Timing(steps=10, images=80, seconds=2.0, waited=0.5)
    report = watched(seen.append)
    assert report is not None
    report(TrainProgress("coarse", 10, 100, {"total": 1.0}, timing))
    assert figures(served.port)['deca_train_data_wait_share{stage="coarse"}'] == 0.25
    assert [progress.step for progress in seen] == [10]


def test_a_taken_port_costs_the_figures_and_not_the_run(
    photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv(VARIABLE, str(taken.getsockname()[1]))
        monkeypatch.setenv("DECA_METRICS_HOST", "127.0.0.1")
        plan = open_or_build(tmp_path / "out", str(photos(4)), units=FOUR)
        logging.getLogger("deca").propagate = True
        assert run_units(plan, HashWorker, HERE).rows == 4
        assert "no metrics" in caplog.text
