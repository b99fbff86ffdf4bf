"""Find the URIs among a flow's settings by their type, so that a new setting cannot be forgotten."""

from __future__ import annotations

from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel

from schemas.secrets import DRIVERS, Uri

_MARK = get_args(Uri)[1]


def places(settings: BaseModel) -> dict[str, str]:
    """Return every URI that settings give to workers, by the dotted name of its setting (`annotate.weights_uri`)."""
    found: dict[str, str] = {}
    for name, field in type(settings).model_fields.items():
        kind = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        found |= _places(name, getattr(settings, name), kind)
    return found


def _places(name: str, value: Any, kind: Any) -> dict[str, str]:
    """Return the URIs in one value, whose declared type says which strings are URIs."""
    if isinstance(value, BaseModel):
        return {f"{name}.{inner}": place for inner, place in places(value).items()}
    origin, inside = get_origin(kind), get_args(kind)
    if isinstance(value, str):
        is_place = origin is Annotated and _MARK in inside and DRIVERS not in inside
        return {name: value} if is_place or any(_places(name, value, part) for part in inside) else {}
    if isinstance(value, dict | tuple | list):
        numbered = value.items() if isinstance(value, dict) else enumerate(value)
        return {
            key: place
            for at, one in numbered
            for part in inside
            for key, place in _places(f"{name}.{at}", one, part).items()
        }
    return {}
