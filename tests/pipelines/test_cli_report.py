"""`deca report`: which datasets it draws, and what it says of the others."""

from __future__ import annotations

import sys

import pytest

from pipelines.cli import main
from schemas.engine import UnitsConfig
from tasks.units.rounds import open_or_build


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        ("evaluate", "every run draws"),
        ("synth", "Give reconstructions or faces"),
    ],
)
def test_other_datasets_are_named(flow, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"no picture")
    out = str(tmp_path / "out")
    open_or_build(out, str(tmp_path / "photos"), config={"flow": flow}, units=UnitsConfig())
    monkeypatch.setattr(sys, "argv", ["deca", "report", out])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert message in said
    assert flow in said


def test_nowhere(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["deca", "report", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "no plan at" in capsys.readouterr().err
