"""The options that all commands over units share, declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.launch import run_flow
from pipelines.options import Config, Extend, New, Prefect, Resume, Settings, Workers
from pipelines.settings import resolve
from schemas.flows import UNIT_FLOWS

Upgrade = Annotated[
    bool, typer.Option("--upgrade", help="Recompute rows of an earlier result version in place (docs/operate.md).")
]
UpgradeLimit = Annotated[
    int | None,
    typer.Option("--upgrade-limit", min=0, help="Units that --upgrade recomputes; default: all."),
]


@dataclass(frozen=True)
class UnitRun:
    """The shared options of one call of a command, by their names."""

    flow: str
    config: Path | None
    settings: list[str]
    workers: int | None
    resume: bool
    new: bool
    upgrade: bool
    upgrade_limit: int | None
    prefect: bool
    extend: bool = False

    def options(self, own: dict[str, Any]) -> dict[str, Any]:
        """Return settings by dotted name: the command's own, and the shared ones. A limit implies an upgrade."""
        return {
            **own,
            "ray.workers": self.workers,
            "existing": existing(self.resume, self.new, self.extend),
            "ray.upgrade": self.upgrade or self.upgrade_limit is not None or None,
            "ray.upgrade_limit": self.upgrade_limit,
        }

    def __call__(self, own: dict[str, Any]) -> int:
        """Run the flow with the command's own options; return the exit code."""
        config = resolve(UNIT_FLOWS[self.flow].config, self.config, self.settings, self.options(own))
        return run_flow(self.flow, config, self.prefect)


SHARED: dict[str, tuple[Any, Any]] = {
    "config": (Config, None),
    "settings": (Settings, []),
    "workers": (Workers, None),
    "resume": (Resume, False),
    "extend": (Extend, False),
    "new": (New, False),
    "upgrade": (Upgrade, False),
    "upgrade_limit": (UpgradeLimit, None),
    "prefect": (Prefect, False),
}


def unit_command(
    app: typer.Typer, name: str, flow: str | None = None, extend: bool = False
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Register a command over units. Its function takes a `UnitRun`, then its own parameters.

    flow: where it is not the command's name. extend: whether there is an option --extend.
    """

    def register(function: Callable[..., int]) -> Callable[..., int]:
        names = [option for option in SHARED if extend or option != "extend"]
        _, *own = inspect.signature(function, eval_str=True).parameters.values()
        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        shared = []
        for option in names:
            annotation, default = SHARED[option]
            shared.append(
                inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            )

        def command(**given: Any) -> int:
            run = UnitRun(flow or name, **{option: given.pop(option) for option in names})
            return function(run, **given)

        command.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *shared)}
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        app.command(name)(command)
        return function

    return register


def existing(resume: bool, new: bool, extend: bool = False) -> str | None:
    """Return what to do with an earlier run in DEST; None where no option says."""
    if resume + new + extend > 1:
        raise typer.BadParameter("--resume, --extend and --new exclude one another")
    return "resume" if resume else "extend" if extend else "new" if new else None
