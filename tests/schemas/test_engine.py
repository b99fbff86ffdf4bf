"""Strict settings."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from schemas.engine import RayConfig, SourceConfig, UnitsConfig
from schemas.results import LATER_SETTINGS


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (RayConfig, {"worker": 2}),
        (RayConfig, {"workers": -1}),
        (RayConfig, {"attempts": 0}),
        (SourceConfig, {"max_bytes": 0}),
        (SourceConfig, {"zip_encoding": "shift-lock"}),
        (SourceConfig, {"zip_encoding": "rot13"}),
        (UnitsConfig, {"items_per_unit": 0}),
    ],
)
def test_misspelt_or_senseless_settings_are_refused(kind: type, settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        kind(**settings)


def test_the_identity_of_default_settings_is_that_of_the_first_version() -> None:
    """Plans are compared by these settings: what is new must not show where it is not used."""
    first = {
        "extensions": ["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif"],
        "include": [],
        "exclude": [],
        "max_bytes": 268435456,
        "image_column": None,
        "uri_column": None,
        "videos": False,
        "deduplicate": False,
    }
    assert SourceConfig().plan_settings() == first | {"zip_encoding": LATER_SETTINGS["source.zip_encoding"]}
    changed = SourceConfig(extensions=("jpg",), zip_encoding="cp932").plan_settings()
    assert changed == first | {"extensions": ["jpg"], "zip_encoding": "cp932"}
