"""What benchmarks/gpu.py does on a CPU: it runs, and the crop is the one that was asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import gpu

ROOT = Path(__file__).resolve().parents[2]

BARE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"scipy", "numba", "PIL", "safetensors", "pyarrow", "pydantic", "torchvision", "ray"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Refuse())
sys.argv = ["gpu", "--device", "cpu", "--quick", *sys.argv[1:]]
from benchmarks.gpu import main
main()
"""


def test_a_crop_without_turning_is_the_middle_of_the_picture():
    images = torch.randint(0, 256, (1, 3, 448, 448), dtype=torch.uint8)
    middle = torch.tensor([[[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]])
    expected = images[:, :, 112:336, 112:336].float() / 255
    torch.testing.assert_close(gpu.crop(images, middle), expected, rtol=0, atol=1e-3)  # places are float32


def test_it_runs_with_torch_and_numpy_alone(tmp_path):
    command = [sys.executable, "-c", BARE, "--json", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert "no torchvision" in found["begins_with"]
    assert found["precision"] == "fp32"  # bf16 is for GPUs: many a CPU makes it up, ten times as slowly
    assert [row["part"] for row in found["rows"]] == ["encode", "F_d", "encode + F_d", "decode", "crop", "whole path"]
    assert 17 < found["gflop_a_picture"] < 19.5  # two ResNet50 and F_d: 18.2
