"""The benchmarks that `make bench` and GPU machines rely on run, and their figures are consistent.

They run as users run them, as commands: nothing of tests/ imports benchmarks/.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

BARE = """
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"scipy", "numba", "PIL", "safetensors", "pyarrow", "pydantic", "torchvision", "ray"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Refuse())
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def run(folder: Path, *words: object, python: tuple[str, ...] = ("-m",)) -> tuple[Any, str]:
    """The figures and the output of a benchmark."""
    figures = folder / "figures.json"
    command = [sys.executable, *python, *map(str, words), "--json", str(figures)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(figures.read_text()), done.stdout


def test_the_gpu_benchmark_runs_with_torch_and_numpy_alone(tmp_path):
    found, _ = run(tmp_path, "benchmarks.gpu", "--device", "cpu", "--quick", python=("-c", BARE))
    assert "no torchvision" in found["begins_with"]
    assert found["precision"] == "fp32"  # bf16 is for GPUs: many CPUs emulate it, ten times as slowly
    assert [row["part"] for row in found["rows"]] == ["encode", "F_d", "encode + F_d", "decode", "crop", "whole path"]
    assert 17 < found["gflop_an_image"] < 19.5  # two ResNet50 and F_d: 18.2


def test_the_suite_ends_in_a_table_that_marks_what_changed(tmp_path):
    before = {("stages", "decode"): 1e9, ("machine, one thread", "memory copy"): 1e9, ("stages", "crop"): 1e-9}
    old = {"figures": [{"section": part, "name": name, "value": value} for (part, name), value in before.items()]}
    (tmp_path / "old.json").write_text(json.dumps(old))
    found, printed = run(tmp_path, "benchmarks.suite", "--quick", "--compare", tmp_path / "old.json")
    figures = {row["name"]: row for row in found["figures"]}
    assert {"GEMM bf16", "memory copy", "decode", "crop", "Parquet", "small: E_c and E_d", "in process"} <= set(figures)
    assert figures["bytes a face, displacement"]["value"] < figures["bytes a face, all"]["value"] < 200_000
    assert all(row["value"] > 0 for name, row in figures.items() if "overhead" not in name)
    for row in (row for row in found["figures"] if row["floor"] is not None):
        share = row["floor"] / row["value"] if row["better"] == "lower" else row["value"] / row["floor"]
        assert row["share"] == pytest.approx(share), row
    table = {line.split("  ")[1]: line for line in printed[printed.index("reached") :].splitlines() if line[:2] == "  "}
    assert table["decode"].endswith("better)")  # less time
    assert table["memory copy"].endswith("WORSE)")  # fewer bytes
    assert table["crop"].endswith("WORSE)")  # more time
    assert table["Parquet"].endswith("new")


def test_ceilings_are_of_a_plausible_order(tmp_path):
    found, _ = run(tmp_path, "benchmarks.ceilings", "--seconds", 0.1, "--threads", 1)
    assert found["threads"] == 1
    assert 0.5 < found["gemm_fp32_gflops"] < 5000
    assert 0.5 < found["copy_gb_per_second"] < 1000
    assert 10 < found["jpeg_512_per_second"] < 5000


def test_bulk_measures_both_sources_against_the_ceiling(tmp_path):
    settings = ("--backbone", "mobilenet_v3_small", "--precision", "fp32", "--faces", 6, "--workers", 0, "--unit", 3)
    found, _ = run(tmp_path, "benchmarks.bulk", *settings, "--batch", 2, "--bare", "--memory", "--seconds", 0.1)
    # Two MobileNets of 0.11 G and F_d: 9 taps, two operations each, of its six convolutions.
    sizes = [(128, 128, 16), (128, 64, 32), (64, 64, 64), (64, 32, 128), (32, 16, 256), (16, 1, 256)]
    decoder = sum(2 * 9 * inputs * outputs * side * side for inputs, outputs, side in sizes) / 1e9
    assert decoder < found["gflop_a_face"] < decoder + 0.3
    allowed = found["allowed_faces_per_second"]
    for source in ("faces", "raw"):
        assert found[source]["faces"] == 6
        assert found[source]["share_of_ceiling"] == pytest.approx(found[source]["faces_per_second"] / allowed, abs=0.01)
        assert found[source]["bytes_a_face"] > 1000
    assert found["networks_alone"]["faces_per_second"] > 0


def test_the_loader_is_timed_over_a_dataset_of_its_own(tmp_path):
    found, _ = run(tmp_path, "benchmarks.samples", "--faces", 64, "--threads", 1, "--rounds", 1)
    assert found["faces_per_second"]["loader, 1 threads"] > 0
    assert found["share_of_decoding"] + found["share_of_augmentation"] == pytest.approx(1, abs=0.011)
