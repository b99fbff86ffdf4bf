"""The world as a stream of training pictures: a torch IterableDataset, made in memory, never on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import IterableDataset, get_worker_info

from deca_core.assets.bundle import AssetBundle
from deca_world.photograph import Photograph, World
from deca_world.scene import Limits


@dataclass(frozen=True)
class Sample:
    """One photograph and where it stands in its world."""

    person: int
    image: int
    photograph: Photograph


class WorldDataset(IterableDataset[Sample]):
    """Photographs of people `first`..`first + people - 1`, `images` of each, one person after the other.

    Workers take every n-th person, ranks of a distributed run likewise (`rank` of `ranks`): together they make each
    picture exactly once, and each picture is the same whoever makes it. Pass `batch_size=None` or a collate function.

    >>> for sample in WorldDataset(bundle, seed=0, people=2, images=3):  # doctest: +SKIP
    ...     sample.photograph.image
    """

    def __init__(
        self,
        bundle: AssetBundle,
        seed: int,
        people: int,
        images: int,
        size: int = 224,
        limits: Limits | None = None,
        first: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        super().__init__()
        if not 0 <= rank < ranks:
            raise ValueError(f"rank {rank} of {ranks}: ranks count from 0; pass 0 <= rank < ranks")
        self.bundle, self.seed, self.people, self.images, self.size = bundle, seed, people, images, size
        self.limits, self.first, self.rank, self.ranks = limits or Limits(), first, rank, ranks

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        world = World(self.bundle)
        for index in range(self.first, self.first + self.people)[self.rank * parts + part :: self.ranks * parts]:
            someone = world.person(self.seed, index)
            for image in range(self.images):
                shot = world.shot(someone, image, self.limits)
                yield Sample(index, image, world.photograph(someone, shot, self.size))
