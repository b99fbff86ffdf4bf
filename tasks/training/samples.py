"""Batches of faces for training: decoded and augmented in threads ahead of the step, in a deterministic order.

Batch t of an epoch is a pure function of the data, the settings, (seed, epoch, t) and the rank; neither the number of
threads nor their timing enters. Resuming in mid-epoch starts at batch t and decodes nothing before it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from deca_core.augment import Augmentation
from deca_core.training import FaceBatch
from schemas.samples import DataConfig
from tasks.training.batches import BatchMaker, Damage
from tasks.training.datasets import Source
from tasks.training.order import BatchPlan, Blocks, SamplesError

logger = logging.getLogger(__name__)


class Waiting:
    """Time that the training step waited for data, since `reset`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.seconds, self._since = 0.0, time.perf_counter()

    @property
    def share(self) -> float:
        """Share of the time spent waiting, 0 to 1."""
        return self.seconds / max(time.perf_counter() - self._since, 1e-9)


class Samples(IterableDataset[FaceBatch]):
    """Batches from where the last iteration ended to the end of the epoch; then the next iteration is the next epoch.

    All ranks get `batches` batches an epoch, of different samples; some samples
    occur twice to fill the last batch. One rank with 2 n subjects sees what two ranks with n see together.

    A DataLoader (batch_size=None) with any number of workers yields the same batches in the same order; its
    processes do not move this object's position, so the consuming loop calls `seek` before `state_dict`. `waiting` and
    `damage` are per process, too.

    Raises SamplesError (too few images, a damaged image under corrupt: stop), StorageError (while iterating, too).
    """

    def __init__(
        self, source: Source, plan: BatchPlan, augmentation: Augmentation, config: DataConfig | None = None
    ) -> None:
        super().__init__()
        self.source, self.plan, self.augmentation = source, plan, augmentation
        self.config = config or DataConfig()
        self._blocks = Blocks(source.index, plan, self.config)
        self.batches = self._blocks.batches  # in an epoch, the same for every rank
        self.few = self._blocks.few  # identities with fewer images than K
        self.waiting = Waiting()
        self.damage = Damage(self.config.corrupt)
        self._epoch = self._batch = 0
        if self.few:
            logger.warning(
                "%d of %d identities have fewer than %d images: %s",
                *(self.few, len(source.index), plan.images),
                "left out" if self.config.few_pictures == "skip" else "their images are repeated",
            )

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[FaceBatch]:
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        epoch, steps = self._epoch, range(self._batch, self.batches)[part::parts]
        order = self._blocks.epoch(epoch)
        maker = BatchMaker(self.source, order, steps, self.plan, self.augmentation, self.config, self.damage)
        try:
            for step in steps:
                started = time.perf_counter()
                batch = maker.take()
                self.waiting.seconds += time.perf_counter() - started
                self.seek(epoch, step + 1)
                yield batch
            self.seek(epoch + 1, 0)  # a DataLoader's worker may not have made the last batch
        finally:
            maker.close()

    def seek(self, epoch: int, batch: int) -> None:
        """Set the batch and epoch of the next iteration."""
        self._epoch, self._batch = epoch + batch // self.batches, batch % self.batches

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch, with the data and settings that it refers to."""
        order = self.config.model_dump(include={"few_pictures", "pictures_per_identity", "block_faces"})
        order |= {"seed": self.plan.seed, "places": self.plan.places, "pictures": self.plan.images}
        return {"epoch": self._epoch, "batch": self._batch, "data": self.source.fingerprint, **order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume at a position: exactly for the same batch size over all ranks, whatever their number.

        With another batch size the epoch resumes at the same share of its length in another order, so some subjects
        occur twice and some not at all, which is logged. Raises SamplesError if anything else differs.
        """
        mine = self.state_dict()
        differing = [
            name for name in mine if name not in ("epoch", "batch", "places") and state.get(name) != mine[name]
        ]
        if differing:
            words = ", ".join(f"{name} {state.get(name)!r} there, {mine[name]!r} here" for name in differing)
            raise SamplesError(f"the position was saved under other settings or on other data: {words}")
        batch = int(state["batch"])
        if state["places"] != mine["places"]:
            batch = min(math.ceil(batch * state["places"] / mine["places"]), self.batches - 1)
            logger.warning(
                "subjects in a batch of all ranks: %d before, %d now; epoch %d resumes at batch %d in another order",
                *(state["places"], mine["places"], state["epoch"], batch),
            )
        self.seek(int(state["epoch"]), batch)
