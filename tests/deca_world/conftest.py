"""One world for all tests of the embedded world."""

from __future__ import annotations

import pytest

from deca_core.assets import procedural_head
from deca_world import World


@pytest.fixture(scope="session")
def world() -> World:
    return World(procedural_head())
