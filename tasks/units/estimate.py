"""Estimate bytes, hours and cost of a plan from a sample of its units.

The sampled units are processed and committed as usual, so the run that follows skips them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.engine import RayConfig
from tasks.units.commits import commit_table, pending
from tasks.units.engine import Factory, RunSummary, run_units
from tasks.units.plan import Plan

HOUR = 3600.0


@dataclass(frozen=True)
class Use:
    """Reserved resources: cores and GPUs, times seconds."""

    core_seconds: float
    gpu_seconds: float

    @classmethod
    def of(cls, run: RunSummary) -> Use:
        """Return what a run reserved from start to end, startup and idle time included."""
        return cls(run.workers * run.cores * run.seconds, run.workers * run.gpus * run.seconds)

    @property
    def hours(self) -> float:
        """GPU-hours if any GPU was reserved, else core-hours: what is billed."""
        return (self.gpu_seconds or self.core_seconds) / HOUR

    @property
    def unit(self) -> str:
        return "GPU-hours" if self.gpu_seconds else "core-hours"

    def price(self, per_hour: float | None) -> float | None:
        """Return the cost of the hours; None without a price per hour."""
        return None if per_hour is None else round(self.hours * per_hour, 4)


@dataclass(frozen=True)
class Sample:
    """Totals of the sampled units."""

    units: int
    images: int
    rows: int
    bytes: int  # of the parts
    use: Use  # of busy workers


@dataclass(frozen=True)
class Estimate:
    """Size of a plan and the estimate of what is left of it."""

    images: int
    units: int
    left: int  # images without a commit before this estimate
    bytes_in: int  # of the images of known size
    unsized: int  # images of unknown size
    sample: Sample | None  # None: nothing was run

    def _scaled(self, value: float, images: int) -> float:
        return value * images / self.sample.images if self.sample else 0.0

    @property
    def rows(self) -> float:
        """Rows of the whole dataset."""
        return self._scaled(self.sample.rows, self.images) if self.sample else 0.0

    @property
    def bytes_out(self) -> float:
        """Bytes of the whole dataset's parts."""
        return self._scaled(self.sample.bytes, self.images) if self.sample else 0.0

    @property
    def use(self) -> Use | None:
        """Resources for the images left, the sample included; without the startup of workers."""
        if self.sample is None:
            return None
        busy = self.sample.use
        return Use(self._scaled(busy.core_seconds, self.left), self._scaled(busy.gpu_seconds, self.left))


def estimate(plan: Plan, factory: Factory, ray: RayConfig, units: int) -> Estimate:
    """Run and commit `units` pending units, spread evenly over the plan, and extrapolate. 0: run none.

    ray: as in the run that follows, since the time per image depends on how many workers run at once.
    """
    waiting = pending(plan)
    left = plan.count_items(waiting)
    chosen = spread(waiting, units)
    sample = None
    if chosen:
        run = run_units(plan, factory, ray, only=set(chosen))
        ledger = commit_table(plan, ["items", "rows", "bytes"])
        ledger = ledger.filter(pc.is_in(ledger["unit"], pa.array(chosen)))
        sample = Sample(
            units=len(ledger),
            images=pc.sum(ledger["items"]).as_py(),
            rows=pc.sum(ledger["rows"]).as_py(),
            bytes=pc.sum(ledger["bytes"]).as_py(),
            use=Use(run.busy_seconds * run.cores, run.busy_seconds * run.gpus),
        )
    bytes_in, unsized = planned_bytes(plan)
    return Estimate(plan.inputs.items, plan.units, left, bytes_in, unsized, sample)


def spread(units: Sequence[int], count: int) -> list[int]:
    """At most `count` of the units, each in the middle of an equal share of them: archives are not all alike."""
    count = min(count, len(units))
    return [units[(2 * number + 1) * len(units) // (2 * count)] for number in range(count)]


def planned_bytes(plan: Plan) -> tuple[int, int]:
    """Return (bytes of the planned images, number of images of unknown size)."""
    total = unknown = 0
    for file in plan.inputs.files:
        sizes = pq.read_table(pa.BufferReader(plan.store.read(file.file)), columns=["size"])["size"]
        known = pc.greater_equal(sizes, 0)
        total += pc.sum(sizes.filter(known)).as_py() or 0
        unknown += len(sizes) - pc.sum(known).as_py()
    return total, unknown
