"""The suite runs, its table and comparison say what they should, and floors are counted right."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks import suite
from benchmarks.suite import Figure


def test_flops_are_those_of_the_paper():
    from torch import nn

    layer = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    assert suite.flops(lambda: layer(torch.rand(2, 3, 10, 10))) == 2 * 2 * 3 * 8 * 9 * 100


def test_shares_are_below_one_in_both_directions():
    assert Figure("a", "stage", 10, "ms", floor=4).share == 0.4
    assert Figure("a", "rate", 4, "1/s", floor=10, better="higher").share == 0.4
    assert Figure("a", "rate", 4, "1/s").share is None


def test_a_comparison_marks_what_got_worse():
    before = {("a", "rate"): 10.0, ("a", "time"): 10.0, ("a", "same"): 10.0}
    figures = [
        Figure("a", "rate", 8, "1/s", better="higher"),
        Figure("a", "time", 8, "ms"),
        Figure("a", "same", 10.2, "ms"),
        Figure("a", "fresh", 1, "ms"),
    ]
    heading, rate, time, same, fresh = suite.table(figures, before)
    assert heading.strip() == "a"
    assert "(-20.0% WORSE)" in rate
    assert "(-20.0% better)" in time
    assert same.endswith("(+2.0%)")
    assert fresh.endswith("new")


def test_a_quick_run_ends_in_a_table_and_json(tmp_path, monkeypatch, capsys):
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["suite", "--quick", "--json", str(tmp_path / "new.json")])
    try:
        suite.main()
    finally:
        torch.set_num_threads(threads)
    found = json.loads((tmp_path / "new.json").read_text())
    names = [row["name"] for row in found["figures"]]
    assert {"GEMM bf16", "memory copy", "decode", "crop", "Parquet", "small: E_c and E_d", "in process"} <= set(names)
    values = {row["name"]: row["value"] for row in found["figures"]}
    assert values["bytes a face, displacement"] < values["bytes a face, all"] < 200_000
    assert all(value > 0 for name, value in values.items() if "overhead" not in name)
    flow = next(row for row in found["figures"] if row["name"] == "a plain loop")
    assert flow["share"] == pytest.approx(flow["value"] / flow["floor"])
    assert "reached" in capsys.readouterr().out
