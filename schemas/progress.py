"""Progress records: what a run of units and a stage of training report to `on_progress`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from schemas.train import StageName


@dataclass(frozen=True)
class UnitProgress:
    """Progress of a run of units. Counts are over the whole plan, rates over this run."""

    units_done: int
    units_total: int
    items_done: int
    items_total: int
    rows: int  # of this run
    quarantined: int  # of this run
    seconds: float
    rows_per_second: float
    eta_seconds: float | None  # None before the first unit
    busy_share: float = 0.0  # of the workers' time since the first was up, what they spent on units


@dataclass
class Timing:
    """Time of a rank in this process: seconds of training, and of them seconds waited for data."""

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def data_wait_share(self) -> float:
        return self.waited / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class TrainProgress:
    """Progress of a stage."""

    stage: StageName
    step: int
    steps: int
    losses: dict[str, float]
    timing: Timing


OnUnitProgress = Callable[[UnitProgress], None]
OnTrainProgress = Callable[[TrainProgress], None]
