"""Strict settings."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from schemas.engine import RayConfig, SourceConfig, UnitsConfig


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (RayConfig, {"worker": 2}),
        (RayConfig, {"workers": -1}),
        (RayConfig, {"attempts": 0}),
        (SourceConfig, {"max_bytes": 0}),
        (UnitsConfig, {"items_per_unit": 0}),
    ],
)
def test_misspelt_or_senseless_settings_are_refused(kind: type, settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        kind(**settings)
