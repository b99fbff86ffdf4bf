"""`deca report`: which datasets it draws, and its message for the others."""

from __future__ import annotations

import pytest

from schemas.engine import UnitsConfig
from tasks.units.rounds import open_or_build


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        ("evaluate", "every run draws"),
        ("synth", "Give reconstructions or faces"),
    ],
)
def test_other_datasets_are_named(deca, flow, message, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"no image")
    out = str(tmp_path / "out")
    open_or_build(out, str(tmp_path / "photos"), config={"flow": flow}, units=UnitsConfig())
    code, printed = deca("report", out)
    assert code == 1
    assert message in printed
    assert flow in printed
