"""Every error class of the packages is a DecaError, or is on a short list."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import deca_core
import pipelines
import schemas
import tasks
from deca_core.errors import DecaError

# Signals between a worker and the engine, which turns them into a result or into another error.
INTERNAL = {"tasks.units.commit.WorkerFault", "tasks.units.commit.Withdrawn"}


def error_classes() -> set[type[Exception]]:
    """Exception classes that the four packages define."""
    found = set()
    for package in (deca_core, schemas, tasks, pipelines):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == module.name:
                    found.add(value)
    return found


def test_every_error_is_one_that_the_command_line_knows():
    classes = error_classes()
    assert len(classes) > 50
    others = {f"{kind.__module__}.{kind.__name__}" for kind in classes if not issubclass(kind, DecaError)}
    assert others == INTERNAL


@pytest.mark.parametrize("name", ["animation.MotionError", "encoder.BackboneError", "fitting.FitError"])
def test_errors_that_were_value_errors_still_are(name):
    module, kind = name.split(".")
    assert issubclass(getattr(importlib.import_module(f"deca_core.{module}"), kind), ValueError)
