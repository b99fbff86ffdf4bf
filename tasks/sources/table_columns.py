"""Image columns of a table: bytes, or Hugging Face's `struct<bytes, path>`, nested or in lists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tasks.sources.walk import SourceError

LIST = ""  # as a step: an index into a list
DEPTH = 8  # structs and lists that are looked through


@dataclass(frozen=True)
class ImageColumn:
    """The column, field and lists that hold the images of a table."""

    steps: tuple[str, ...]  # the column, then fields of structs, LIST for the index into a list
    struct: bool  # struct<bytes, path>, not plain bytes

    @property
    def name(self) -> str:
        """What `inputs.image_column` calls it: `image`, `sample.image`."""
        return ".".join(step for step in self.steps if step != LIST)

    @property
    def top(self) -> str:
        return self.steps[0]

    @property
    def lists(self) -> int:
        """Depth of nested lists."""
        return self.steps.count(LIST)

    @property
    def nested(self) -> bool:
        return len(self.steps) > 1


def image_columns(schema: pa.Schema) -> list[ImageColumn]:
    """Return every column or field that can hold images, top level first."""
    found = [column for field in schema for column in columns_below((field.name,), field.type)]
    return sorted(found, key=lambda column: column.nested)


def columns_below(steps: tuple[str, ...], kind: pa.DataType) -> Iterator[ImageColumn]:
    """The places below a column or field that can hold images."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if _is_bytes(kind):
        yield ImageColumn(steps, struct=False)
    elif pa.types.is_struct(kind) and _is_image(kind):
        yield ImageColumn(steps, struct=True)
    elif len(steps) > DEPTH:
        return
    elif pa.types.is_struct(kind):
        for child in kind:
            yield from columns_below((*steps, child.name), child.type)
    elif _is_list(kind):
        yield from columns_below((*steps, LIST), kind.value_type)


def _is_bytes(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column holds strings, in any encoding."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    of = pa.types
    return of.is_list(kind) or of.is_large_list(kind) or of.is_fixed_size_list(kind) or of.is_list_view(kind)


def _is_image(kind: pa.StructType) -> bool:
    """`struct<bytes, path>`; a column of bytes that are all missing may have lost its type."""
    fields = {child.name: child.type for child in kind}
    if "bytes" not in fields:
        return False
    missing = pa.types.is_null(fields["bytes"]) and "path" in fields and is_text(fields["path"])
    return missing or _is_bytes(fields["bytes"])


def image_column(schema: pa.Schema, wanted: str | None, uri: str) -> ImageColumn | None:
    """Return the column of images: the configured one, or the only candidate; None without a candidate.

    Hugging Face's own note of its Image columns comes first, then `struct<bytes, ...>`, then plain bytes; then structs
    that lie below structs and in lists. Plain bytes there are taken only where they are wanted.
    Raises SourceError, listing the columns, where the wanted one cannot be it or several can.
    """
    columns = image_columns(schema)
    if wanted is not None:
        found = next((column for column in columns if column.name == wanted), None)
        if found is None:
            cause = "is no column of bytes or struct<bytes, path>" if wanted in schema.names else "does not exist"
            raise SourceError(
                f"{uri}: the column {wanted!r} (inputs.image_column) {cause}. The columns are {describe(schema)}; "
                "leave other files out with --set inputs.exclude=[...]"
            )
        return found
    candidates = _candidates(columns, _noted_images(schema))
    if len(candidates) > 1:
        candidates = [column for column in candidates if column.name == "image"] or candidates
    names = [column.name for column in candidates]
    if len(names) > 1:
        raise SourceError(
            f"{uri}: images may be in {' or '.join(names)}. Say which: --set inputs.image_column="
            f"{names[0]}. The columns are {describe(schema)}"
        )
    return candidates[0] if candidates else None


def _candidates(columns: list[ImageColumn], noted: set[str]) -> list[ImageColumn]:
    def pick(nested: bool) -> list[ImageColumn]:
        structs = [column for column in columns if column.nested == nested and column.struct]
        return [column for column in structs if column.name in noted] or structs

    return pick(nested=False) or [column for column in columns if not column.nested] or pick(nested=True)


def _noted_images(schema: pa.Schema) -> set[str]:
    """Columns that Hugging Face's note calls images; a note of any other form says nothing."""
    try:
        note = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return {name for key, feature in note["info"]["features"].items() for name in _images_of(key, feature)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # untrusted metadata of any form
        return set()


def _images_of(name: str, feature: Any) -> Iterator[str]:
    """Names of the images in one feature: a kind, a list of one feature, or a struct of features."""
    if isinstance(feature, list):
        yield from _images_of(name, feature[0])
    elif not isinstance(feature.get("_type"), str):
        for key, inner in feature.items():
            yield from _images_of(f"{name}.{key}", inner)
    elif feature["_type"] == "Image":
        yield name
    elif "feature" in feature:
        yield from _images_of(name, feature["feature"])


def describe(schema: pa.Schema) -> str:
    """Columns with their types, in words."""
    return ", ".join(f"{field.name} ({str(field.type)[:60]})" for field in schema)
