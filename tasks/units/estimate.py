"""What a plan will take, from a few of its units that are really run: bytes, hours, money.

The units that are run are the plan's own and are committed as such: the run that follows has them done already.
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
    """What workers hold: cores and GPUs, times seconds."""

    core_seconds: float
    gpu_seconds: float

    @classmethod
    def of(cls, run: RunSummary) -> Use:
        """What a run held from its beginning to its end, starting and waiting included."""
        return cls(run.workers * run.cores * run.seconds, run.workers * run.gpus * run.seconds)

    @property
    def hours(self) -> float:
        """GPU-hours where GPUs take part, else core-hours: what is paid for."""
        return (self.gpu_seconds or self.core_seconds) / HOUR

    @property
    def unit(self) -> str:
        return "GPU-hours" if self.gpu_seconds else "core-hours"

    def price(self, per_hour: float | None) -> float | None:
        """Money for the hours; None where an hour has no price."""
        return None if per_hour is None else round(self.hours * per_hour, 4)


@dataclass(frozen=True)
class Sample:
    """What the units that were run came to."""

    units: int
    images: int
    rows: int
    bytes: int  # of the parts
    use: Use  # of busy workers


@dataclass(frozen=True)
class Estimate:
    """A plan before its start, or where it stands."""

    images: int
    units: int
    left: int  # images without a commit before this estimate
    bytes_in: int  # of the pictures whose size the source tells
    unsized: int  # pictures whose size it does not tell
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
        """What the images that are left take, those of the sample included; starting workers comes on top."""
        if self.sample is None:
            return None
        busy = self.sample.use
        return Use(self._scaled(busy.core_seconds, self.left), self._scaled(busy.gpu_seconds, self.left))


def estimate(plan: Plan, factory: Factory, ray: RayConfig, units: int) -> Estimate:
    """Run and commit `units` pending units, spread evenly over the plan, and conclude from them. 0: run none.

    ray: as the run that follows will have it: what an image takes depends on who else computes.
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
    """(bytes of the planned pictures, pictures whose size is not known)."""
    total = unknown = 0
    for file in plan.inputs.files:
        sizes = pq.read_table(pa.BufferReader(plan.store.read(file.file)), columns=["size"])["size"]
        known = pc.greater_equal(sizes, 0)
        total += pc.sum(sizes.filter(known)).as_py() or 0
        unknown += len(sizes) - pc.sum(known).as_py()
    return total, unknown
