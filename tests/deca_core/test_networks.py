"""Encoder and displacement decoder against the reference's outputs under weights filled by name."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import nn

from deca_core.detail import DetailDecoder
from deca_core.encoder import Encoder
from tests.deca_core.conftest import assert_close


def fill_by_name(module: nn.Module) -> None:
    """The rule of the golden file: standard normals seeded by the parameter's name, scaled by its kind."""
    for name, value in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("running_mean"):
            value.zero_()
        elif name.endswith("running_var"):
            value.fill_(1)
        else:
            noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(value.shape))
            if value.ndim >= 2:
                noise *= np.sqrt(2 / (noise.size / noise.shape[0]))
            else:
                noise = (1 if name.endswith("weight") else 0) + 0.1 * noise
            value.copy_(torch.from_numpy(noise))


@torch.no_grad()
def test_golden_encoder(golden):
    answer = golden("networks.npz")
    encoder = Encoder(236).eval()
    assert sorted(encoder.state_dict()) == sorted(answer["encoder_keys"].tolist())
    fill_by_name(encoder)
    torch.manual_seed(3)
    assert_close(encoder(torch.rand(2, 3, 224, 224)), answer["encoder_output"])


@torch.no_grad()
def test_golden_displacement(golden):
    answer = golden("networks.npz")
    decoder = DetailDecoder().eval()
    assert sorted(decoder.state_dict()) == sorted(answer["generator_keys"].tolist())
    fill_by_name(decoder)
    assert_close(decoder(torch.from_numpy(answer["detail_input"])), answer["displacement"])
