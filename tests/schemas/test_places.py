"""Settings that name places, of every flow: found, and refused with credentials."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from schemas.ablate import AblateConfig
from schemas.animate import AnimateConfig
from schemas.evaluate import EvaluateConfig
from schemas.export import ExportConfig
from schemas.ingest import IngestConfig
from schemas.places import places
from schemas.reconstruct import ReconstructConfig
from schemas.train import TrainConfig
from schemas.world import SynthConfig

FLOWS = (
    AblateConfig,
    AnimateConfig,
    EvaluateConfig,
    ExportConfig,
    IngestConfig,
    ReconstructConfig,
    SynthConfig,
    TrainConfig,
)


def test_places_are_found_at_any_depth():
    config = EvaluateConfig.model_validate(
        {
            "source": "photos",
            "dest": "s3://b/out",
            "checkpoint": "/models/a",
            "compare": {"older": "/models/b"},
            "annotate": {"weights_uri": "/mirror"},
        }
    )
    assert places(config) == {
        "source": "photos",
        "dest": "s3://b/out",
        "checkpoint": "/models/a",
        "compare.older": "/models/b",
        "annotate.weights_uri": "/mirror",
    }


def test_what_only_the_driver_reads_is_left_out():
    values = {"dest": "/out", "identity": ["/me.jpg"], "expression": ["/clip.mp4"], "checkpoint": "/model"}
    assert places(AnimateConfig.model_validate(values)) == {"dest": "/out", "checkpoint": "/model"}


NAMED = re.compile(r"(^|_)(source|dest|checkpoint|bundle|start|uri|weights|table|faces)$")


@pytest.mark.parametrize("flow", FLOWS)
def test_every_setting_that_is_named_like_a_place_is_one(flow: type[BaseModel]):
    """A path setting of type str would be left out of the checks of paths, and could hold a credential."""
    models, seen = [flow], set[str]()
    for model in models:
        for name, field in model.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                models.append(kind)
            elif NAMED.search(name) and kind in (str, str | None):
                assert "without_credentials" in str(field.metadata), f"{model.__name__}.{name}"
                seen.add(name)
            elif NAMED.search(name) and "str" in str(kind) and "dict" not in str(kind):
                assert "without_credentials" in str(kind), f"{model.__name__}.{name}"
                seen.add(name)
    assert "dest" in seen


PLACES = {"source", "dest", "checkpoint", "bundle", "start", "faces"}
PLACES |= {"identity", "expression", "identities"}  # of an animation
SECRET = "s3://AKIA:letmein@bucket/photos"


@pytest.mark.parametrize("kind", FLOWS)
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
