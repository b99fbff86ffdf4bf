"""A reconstructions/ dataset of seven faces of three people, made by the real flow with the package's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.reconstruct import reconstruct
from schemas.reconstruct import ReconstructConfig
from tests.tasks.stored_faces import publish

PEOPLE = [2, 3, 2]


def make_heads(folder: Path, **changes: Any) -> str:
    """`folder`/heads with units of three rows; its faces lie in `folder`/faces."""
    if not (folder / "faces").exists():
        publish(str(folder / "faces"), PEOPLE, shards=2)
    values = {
        "source": str(folder),
        "dest": str(folder / "heads"),
        "precision": "fp32",
        "contact_sheet_rows": 0,
        "units": {"items_per_unit": 3},
        "ray": {"workers": 0},
        **changes,
    }
    summary = reconstruct(ReconstructConfig.model_validate(values))
    assert (summary.outcome, summary.faces) == ("complete", sum(PEOPLE))
    return summary.dest
