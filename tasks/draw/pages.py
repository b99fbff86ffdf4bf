"""Jinja templates of report pages and cards."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def page_templates(folder: Path) -> Environment:
    """Return the templates of a folder: HTML is escaped, Markdown is not, and an unknown name is an error."""
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=lambda name: name is None or ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
