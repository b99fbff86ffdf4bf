"""Read a flow's settings from a YAML file, `--set key=value` and a command's own options."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from deca_core.errors import DecaError

Kind = TypeVar("Kind", bound=BaseModel)


class ConfigError(DecaError):
    """Settings that cannot be read, or that no flow has."""


def resolve(kind: type[Kind], path: Path | None, settings: list[str], options: dict[str, Any]) -> Kind:
    """Return the settings of the YAML file, then --set, then the command's own options; the later wins.

    options: by dotted name, None where not given. Raises ConfigError naming the setting.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = _read_yaml(path.read_text(), str(path)) or {}
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: expected settings (key: value), found {type(values).__name__}")
    for setting in settings:
        key, found, value = setting.partition("=")
        if not found:
            raise ConfigError(f"--set {setting}: expected KEY=VALUE, as in --set ray.workers=4")
        _put(values, key.split("."), _read_yaml(value, f"--set {key}"))
    for name, value in options.items():
        if value is not None:
            _put(values, name.split("."), value)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors()]
        raise ConfigError("settings: " + "; ".join(lines)) from error


def _read_yaml(text: str, where: str) -> Any:
    """Return plain values: no tag constructs an object. Raises ConfigError."""
    try:
        return yaml.safe_load(text)
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply for settings") from error
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: an invalid number or date
        raise ConfigError(f"{where}: {error}") from error


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {'.'.join(path)}: {key} is a value, not a group of settings")
        values = inner
    values[path[-1]] = value
