"""Heads with strong shapes, expressions, poses and detail, so that what an export loses would show."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional

from deca_core import DECA, Codes, Reconstruction


@pytest.fixture(scope="session")
def model(bundle) -> DECA:
    torch.manual_seed(0)
    return DECA(bundle, backbone="mobilenet_v3_small")


@pytest.fixture(scope="session")
def codes() -> Codes:
    return some_codes(3)


def some_codes(count: int) -> Codes:
    """Random faces in the middle of their crops, evenly lit."""
    torch.manual_seed(7)
    pose = torch.cat([torch.randn(count, 3) * 0.2, torch.randn(count, 3) * 0.05], dim=1)
    pose[:, 3] = pose[:, 3].abs() + 0.075
    light = torch.zeros(count, 9, 3)
    light[:, 0] = 3.0
    return Codes.zeros(count).replace(
        shape=torch.randn(count, 100),
        tex=torch.randn(count, 50) * 0.3,
        exp=torch.randn(count, 50) * 0.5,
        pose=pose,
        cam=torch.tensor([[7.5, 0.0, 0.0]]).repeat(count, 1),
        light=light,
    )


@pytest.fixture(scope="session")
def heads(model: DECA, codes: Codes) -> Reconstruction:
    """The faces with wrinkles of up to a millimetre."""
    with torch.inference_mode():
        out = model.decode(codes)
    torch.manual_seed(3)
    waves = functional.interpolate(torch.randn(len(codes), 1, 24, 24), (256, 256), mode="bicubic") * 4e-4
    return dataclasses.replace(out, z=waves, displacement=waves + model.fixed_displacement)
