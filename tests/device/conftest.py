"""`--device`: where the suite runs. fake: an emulated CUDA device (`emulated.py`); cuda: a real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from deca_core import DECA
from deca_core.assets import procedural_head
from tests.device.emulated import emulated_cuda


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The CUDA device that a test runs on; the fake one lasts as long as the test."""
    if request.config.getoption("--device") == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("--device cuda, and torch sees no GPU here")
        yield torch.device("cuda")
        return
    with emulated_cuda() as fake:
        yield fake


@pytest.fixture(scope="session")
def model() -> DECA:
    """A model on the CPU with the smallest backbone; tests copy it before they move it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DECA(procedural_head(), backbone="mobilenet_v3_small")
