"""Every setting that names a place refuses credentials, whichever flow it belongs to."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from schemas.ablate import AblateConfig
from schemas.animate import AnimateConfig
from schemas.evaluate import EvaluateConfig
from schemas.export import ExportConfig
from schemas.ingest import IngestConfig
from schemas.reconstruct import ReconstructConfig
from schemas.train import TrainConfig
from schemas.world import SynthConfig

PLACES = {"source", "dest", "checkpoint", "bundle", "start", "faces"}
PLACES |= {"identity", "expression", "identities"}  # of an animation
SECRET = "s3://AKIA:letmein@bucket/photos"


@pytest.mark.parametrize(
    "kind",
    [
        AblateConfig,
        AnimateConfig,
        EvaluateConfig,
        ExportConfig,
        IngestConfig,
        ReconstructConfig,
        SynthConfig,
        TrainConfig,
    ],
)
def test_places_refuse_credentials(kind: Any) -> None:
    for name in PLACES & kind.model_fields.keys():
        field = kind.model_fields[name]
        if field.annotation is int or hasattr(field.annotation, "model_fields"):  # a count, a group of settings
            continue
        adapter: TypeAdapter[Any] = TypeAdapter(field.rebuild_annotation())
        value: Any = (SECRET,) if "tuple" in str(field.annotation) else SECRET
        with pytest.raises(ValidationError, match="URI with credentials") as caught:
            adapter.validate_python(value)
        assert "letmein" not in caught.value.errors()[0]["msg"]
