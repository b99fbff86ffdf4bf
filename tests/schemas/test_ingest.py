"""Settings of ingest that cannot work are refused before anything is read."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from schemas.ingest import IdentityConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "path"}, r"--pattern '\{identity\}/\{image\}'"),
        ({"method": "path", "table": "people.csv"}, "--pattern"),
        ({"method": "table"}, r"--set identity\.table="),
        ({"method": "table", "pattern": "{identity}/{image}"}, r"identity\.table="),
        ({"pattern": "people/{image}"}, r"must contain \{identity\}"),
    ],
)
def test_a_method_needs_what_it_reads(settings, message):
    with pytest.raises(ValidationError, match=message):
        IdentityConfig.model_validate(settings)


def test_methods_with_what_they_read():
    IdentityConfig(method="path", pattern="{identity}/{image}")
    IdentityConfig(method="table", table="people.csv")
    IdentityConfig(method="cluster", pattern="{identity}/{image}", table="people.csv")
