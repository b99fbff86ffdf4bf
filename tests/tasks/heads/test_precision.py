"""The measured precision: remembered for what it was measured on, and for nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deca_core.inference import Choice, Deviation
from schemas.reconstruct import ReconstructConfig
from tasks.heads import precision
from tasks.heads.precision import VARIABLE, fastest_precision

FOUND = Choice("bf16", {"fp32": 40.0, "bf16": 12.5}, {"bf16": Deviation(0.002, 0.01, 1.5)})


def config(**changes: object) -> ReconstructConfig:
    return ReconstructConfig.model_validate({"source": "photos", "dest": "out", **changes})


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry a measurement, which is not done: it takes seconds, and what it finds depends on the machine."""
    devices: list[str] = []

    def measure(model: object, device: str) -> Choice:
        devices.append(device)
        return FOUND

    measure.__module__ = "deca_core.inference"
    monkeypatch.setattr(precision, "choose_precision", measure)
    monkeypatch.setattr(precision, "load_model", lambda config: None)
    monkeypatch.setattr(precision, "cache_root", lambda: tmp_path / "cache")
    monkeypatch.delenv(VARIABLE, raising=False)
    return devices


def test_it_is_measured_once(measured: list[str]) -> None:
    assert fastest_precision(config()) == (FOUND, False)
    assert fastest_precision(config(source="others")) == (FOUND, True)
    assert len(measured) == 1


@pytest.mark.parametrize(
    "changes", [{"ray": {"threads": 2}}, {"checkpoint": "untrained"}, {"checkpoint": "untrained", "seed": 7}]
)
def test_other_threads_and_weights_are_measured(measured: list[str], changes: dict[str, object]) -> None:
    fastest_precision(config())
    assert fastest_precision(config(**changes)) == (FOUND, False)


def test_another_machine_or_torch_is_measured(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fastest_precision(config())
    monkeypatch.setattr(precision.torch, "__version__", "9.9")
    assert fastest_precision(config())[1] is False
    monkeypatch.setattr(precision, "_machine", lambda device: "another")
    assert fastest_precision(config())[1] is False
    assert len(measured) == 3


def spoil(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def at(file: Path) -> None:
        stored = json.loads(file.read_text())
        change(stored)
        file.write_text(json.dumps(stored))

    return at


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:40]),
        lambda file: file.write_bytes(b"\xff\x00"),
        lambda file: file.write_text("[]"),
        spoil(lambda stored: stored.update(key={})),
        spoil(lambda stored: stored["found"].update(precision="fp8")),
        spoil(lambda stored: stored["found"].update(milliseconds={"fp32": "fast"})),
        spoil(lambda stored: stored["found"]["deviations"].update(bf16={"codes": 1})),
    ],
)
def test_a_damaged_file_counts_as_none(measured: list[str], tmp_path: Path, damage: Callable[[Path], None]) -> None:
    fastest_precision(config())
    (file,) = (tmp_path / "cache").rglob("*.json")
    damage(file)
    assert fastest_precision(config()) == (FOUND, False)
    assert fastest_precision(config()) == (FOUND, True)


def test_it_can_be_switched_off(measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    assert [fastest_precision(config())[1] for _ in range(2)] == [False, False]
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(measured: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the place of the folder")
    assert [fastest_precision(config()) for _ in range(2)] == [(FOUND, False)] * 2
