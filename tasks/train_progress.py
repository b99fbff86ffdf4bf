"""What a training stage reports while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from schemas.train import StageName


@dataclass
class Timing:
    """Where a rank's time went, of this process."""

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
    """Where a stage stands; what `on_progress` gets."""

    stage: StageName
    step: int
    steps: int
    losses: dict[str, float]
    timing: Timing


OnProgress = Callable[[TrainProgress], None]
