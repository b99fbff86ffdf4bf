"""The commands erase, audit, migrate and doctor: what they print, and their exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.tasks import erasable
from tests.tasks.trust.test_migrate import STORED


def test_audit_erase_and_audit_again(deca, tmp_path: Path) -> None:
    names = erasable.make(tmp_path)
    code, printed = deca("audit", "--identity", "ada", *names)
    assert code == 2
    assert "exports/part-" in printed  # which has no column of identities
    assert "heads/consensus/identities-" in printed
    code, printed = deca("erase", "--identity", "ada", *names)
    assert code == 0
    assert "people/annotations: 20 rows and 0 files of 20 faces; record" in printed
    assert "exports: 17 rows and 34 files of 20 faces" in printed
    code, printed = deca("audit", "--identity", "ada", *names)
    assert (code, "0 files contain the requested ids" in printed) == (0, True)
    code, printed = deca("audit", *names)
    assert (code, "1 erasures recorded, 0 problems" in printed) == (0, True)
    code, printed = deca("erase", *names)
    assert (code, printed.count("nothing to erase that was not erased before")) == (0, 4)
    path = next((tmp_path / "heads/_erased").glob("tombstone-*"))
    path.write_text(path.read_text().replace('"number": 1', '"number":  1'))
    code, printed = deca("audit", *names)
    assert (code, "tombstone-000001.json: changed or deleted" in printed) == (1, True)


def test_errors_are_one_line_also_in_json(deca, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, printed = deca("erase", "--face", "x-00", tmp_path)
    assert (code, printed.count("\n"), "holds no dataset" in printed) == (1, 1, True)
    monkeypatch.setenv("DECA_LOG", "json")
    code, printed = deca("erase", "--face", "x-00", tmp_path)
    assert code == 1
    [line] = printed.splitlines()
    assert json.loads(line)["level"] == "error"
    assert "holds no dataset" in json.loads(line)["event"]


def test_migrate(deca, tmp_path: Path) -> None:
    shutil.copytree(STORED, tmp_path / "tiny")
    code, printed = deca("status", tmp_path / "tiny")
    assert (code, "Run: deca migrate" in printed) == (1, True)
    code, printed = deca("migrate", tmp_path / "tiny")
    assert (code, "schema 1 -> 3, 6 records, 0 into snapshots" in printed) == (0, True)
    assert deca("status", tmp_path / "tiny")[0] == 2  # one row is quarantined
    assert deca("migrate", tmp_path / "tiny")[0] == 0


def test_doctor(deca, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert deca("doctor", tmp_path)[0] == 0
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    code, printed = deca("doctor")
    assert (code, "ray status --address 127.0.0.1:1" in printed) == (1, True)
