"""What benchmarks/gpu.py does on a CPU: it runs, folding changes nothing, the crop is the one that was asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from benchmarks import gpu
from deca_core.encoder import Bottleneck

ROOT = Path(__file__).resolve().parents[2]

BARE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"scipy", "numba", "PIL", "safetensors", "pyarrow", "pydantic", "torchvision", "ray"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Refuse())
sys.argv = ["gpu", "--device", "cpu", "--quick", "--json", sys.argv[1]]
from benchmarks.gpu import main
main()
"""


def test_folded_batch_norms_change_no_answer():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), Bottleneck(8, 4, 2), nn.BatchNorm2d(16))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    images = torch.rand(2, 3, 16, 16)
    network.eval().requires_grad_(False)
    expected = network(images)
    gpu.fold(network)
    assert (
        sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == 1
    )  # the last follows no convolution
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)


def test_a_crop_without_turning_is_the_middle_of_the_picture():
    images = torch.randint(0, 256, (1, 3, 448, 448), dtype=torch.uint8)
    middle = torch.tensor([[[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]])
    expected = images[:, :, 112:336, 112:336].float() / 255
    torch.testing.assert_close(gpu.crop(images, middle), expected, rtol=0, atol=1e-3)  # places are float32


def test_it_runs_with_torch_and_numpy_alone(tmp_path):
    command = [sys.executable, "-c", BARE, str(tmp_path / "gpu.json")]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert "no torchvision" in found["begins_with"]
    assert [row["part"] for row in found["rows"]] == ["encode", "F_d", "encode + F_d", "decode", "crop", "whole path"]
    assert 17 < found["gflop_a_picture"] < 19.5  # two ResNet50 and F_d: 18.2
