"""The flows over units: their configs by name, and what their items and rows are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from schemas.animate import AnimateConfig
from schemas.evaluate import EvaluateConfig
from schemas.export import ExportConfig
from schemas.ingest import IngestConfig
from schemas.reconstruct import ReconstructConfig
from schemas.world import SynthConfig


@dataclass(frozen=True)
class FlowKind:
    """A flow's config class, and the nouns for its items and rows."""

    config: Any
    items: str = "images"
    rows: str = "faces"


UNIT_FLOWS = {
    "animate": FlowKind(AnimateConfig, "pairs", "frames"),
    "evaluate": FlowKind(EvaluateConfig, rows="rows"),
    "export": FlowKind(ExportConfig, "heads", "exports"),
    "ingest": FlowKind(IngestConfig),
    "reconstruct": FlowKind(ReconstructConfig),
    "synth": FlowKind(SynthConfig, rows="images"),
}
