"""The commands erase, audit, migrate and doctor: what they print, and their exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines import cli
from tests.tasks import erasable
from tests.tasks.trust.test_migrate import STORED


def deca(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["deca", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_look_erase_look_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    names = erasable.make(tmp_path)
    assert deca("audit", "--identity", "ada", *names, monkeypatch=monkeypatch) == 2
    out = capsys.readouterr().out
    assert "exports/part-" in out  # which has no column of identities
    assert "heads/consensus/identities-" in out
    assert deca("erase", "--identity", "ada", *names, monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    assert "people/annotations: 20 rows and 0 files of 20 faces; record" in out
    assert "exports: 17 rows and 34 files of 20 faces" in out
    assert deca("audit", "--identity", "ada", *names, monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    assert "0 files contain the requested ids" in out
    assert deca("audit", *names, monkeypatch=monkeypatch) == 0
    assert "1 erasures recorded, 0 problems" in capsys.readouterr().out
    assert deca("erase", *names, monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out.count("nothing to erase that was not erased before") == 4
    path = next((tmp_path / "heads/_erased").glob("tombstone-*"))
    path.write_text(path.read_text().replace('"number": 1', '"number":  1'))
    assert deca("audit", *names, monkeypatch=monkeypatch) == 1
    assert "tombstone-000001.json: changed or deleted" in capsys.readouterr().err


def test_errors_are_one_line_also_in_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert deca("erase", "--face", "x-00", tmp_path, monkeypatch=monkeypatch) == 1
    assert "holds no dataset" in capsys.readouterr().err
    monkeypatch.setenv("DECA_LOG", "json")
    assert deca("erase", "--face", "x-00", tmp_path, monkeypatch=monkeypatch) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["level"] == "error"
    assert "holds no dataset" in json.loads(line)["event"]


def test_migrate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    shutil.copytree(STORED, tmp_path / "tiny")
    assert deca("status", tmp_path / "tiny", monkeypatch=monkeypatch) == 1
    assert "Run: deca migrate" in capsys.readouterr().err
    assert deca("migrate", tmp_path / "tiny", monkeypatch=monkeypatch) == 0
    assert "schema 1 -> 3, 6 records, 0 into snapshots" in capsys.readouterr().out
    assert deca("status", tmp_path / "tiny", monkeypatch=monkeypatch) == 2  # one row is quarantined
    assert deca("migrate", tmp_path / "tiny", monkeypatch=monkeypatch) == 0


def test_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert deca("doctor", tmp_path, monkeypatch=monkeypatch) == 0
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert deca("doctor", monkeypatch=monkeypatch) == 1
    assert "ray status --address 127.0.0.1:1" in capsys.readouterr().out
