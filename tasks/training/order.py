"""The order of an epoch: the images and subjects of every batch, from the index of identities alone.

A batch of the whole run has `places` = subjects of a rank * ranks. The epoch's samples, shuffled, form one sequence,
cut into as many lanes of equal length; place p of batch t holds sample t of lane p. A rank reads the blocks of its
lanes one after another, so a block is read by one rank (by two at a lane's border), and a batch mixes subjects from all
over the dataset. The order depends on (seed, epoch, places), never on the division of places among ranks, nor on time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from deca_core.errors import DecaError
from schemas.samples import DataConfig

Ints = NDArray[np.int64]


class Stream(IntEnum):
    """Purposes of random numbers. From 1: numpy takes a missing last number of a seed for 0."""

    STRETCH = 1
    IMAGES = 2
    AUGMENTATION = 3


class SamplesError(DecaError):
    """Faces that do not suffice for the requested batches; says why and what to change."""


@dataclass(frozen=True, eq=False)
class Index:
    """Positions of identities: parallel arrays (I,), sorted by shard and row."""

    shard: Ints  # number of the shard
    first_row: Ints
    rows: Ints

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class BatchPlan:
    """Shape of a rank's batch: `subjects`, `images` of each; rank `rank` of `ranks`."""

    subjects: int
    images: int
    seed: int = 0
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise SamplesError(f"rank {self.rank} of {self.ranks}: ranks count from 0; pass 0 <= rank < ranks")
        if self.subjects < 1 or self.images < 1:
            raise SamplesError(f"{self.subjects} subjects x {self.images} images make no batch: both must be >= 1")

    @property
    def places(self) -> int:
        """Subjects in the batch of all ranks together."""
        return self.subjects * self.ranks


@dataclass(frozen=True, eq=False)
class Block:
    """Whole identities of one shard that are read together."""

    shard: int
    identities: Ints  # numbers in the index


class Blocks:
    """The identities that can be sampled, cut into blocks; the same in every epoch."""

    def __init__(self, index: Index, plan: BatchPlan, config: DataConfig) -> None:
        few = index.rows < plan.images
        self.few = int(few.sum())  # identities with fewer images than a sample needs
        usable = np.flatnonzero(~few if config.few_pictures == "skip" else index.rows > 0)
        if not len(usable):
            raise SamplesError(
                f"none of the {len(index)} identities has {plan.images} images. Ask for fewer images of a "
                "subject, or set few_pictures to repeat"
            )
        self.index, self.plan = index, plan
        self.longest = max(config.pictures_per_identity, plan.images)  # stretch of an identity in an epoch
        taken = np.minimum(index.rows[usable], self.longest)
        shard = index.shard[usable]
        before = np.cumsum(taken) - taken
        _, first, inverse = np.unique(shard, return_index=True, return_inverse=True)
        place = (before - before[first][inverse]) // config.block_faces  # of the block in its shard
        starts = np.flatnonzero(np.r_[True, (np.diff(shard) != 0) | (np.diff(place) != 0)])
        self.blocks = [
            Block(int(shard[start]), members)
            for start, members in zip(starts, np.split(usable, starts[1:]), strict=True)
        ]
        self.block_of = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(usable)]))
        self.usable = usable
        self.samples_of = np.maximum(taken // plan.images, 1)
        self.samples = int(self.samples_of.sum())  # in an epoch
        self.batches = -(-self.samples // plan.places)  # in an epoch, for every rank

    def epoch(self, epoch: int) -> Order:
        """The order of one epoch.

        Every sample occurs; the last batch is filled up from the beginning of the sequence.
        """
        rng = np.random.default_rng([self.plan.seed, epoch])
        rank_of_block = rng.permutation(len(self.blocks))
        count = self.samples_of
        member = np.repeat(np.arange(len(count)), count)
        group = np.arange(self.samples) - np.repeat(np.cumsum(count) - count, count)
        order = np.lexsort((rng.random(self.samples), rank_of_block[self.block_of[member]]))
        sequence = np.resize(order, self.batches * self.plan.places)  # repeats from the beginning
        return Order(self, epoch, member[sequence], group[sequence])


class Order:
    """The samples of one epoch by position; sample t of lane p has the position p * batches + t."""

    def __init__(self, blocks: Blocks, epoch: int, member: Ints, group: Ints) -> None:
        self._blocks, self.epoch = blocks, epoch
        self._member, self._group = member, group

    def __len__(self) -> int:
        return len(self._member)

    def position(self, batch: int, place: int) -> int:
        return place * self._blocks.batches + batch

    def block(self, position: int) -> int:
        """Number of the block of a sample."""
        return int(self._blocks.block_of[self._member[position]])

    def members(self, block: int) -> Block:
        return self._blocks.blocks[block]

    def identity(self, position: int) -> int:
        return int(self._blocks.usable[self._member[position]])

    def rows(self, position: int) -> Ints:
        """Rows of the shard: the sample's K images, then all others of this epoch's stretch as spares.

        Fewer than K rows where the identity has no more.
        """
        rows = self.stretch(self.identity(position))
        shuffled = self._generator(self.identity(position), Stream.IMAGES).permutation(rows)
        return np.roll(shuffled, -int(self._group[position]) * self._blocks.plan.images)

    def stretch(self, identity: int) -> Ints:
        """Neighbouring rows of an identity that this epoch draws from."""
        index = self._blocks.index
        first, rows = int(index.first_row[identity]), int(index.rows[identity])
        taken = min(rows, self._blocks.longest)
        start = int(self._generator(identity, Stream.STRETCH).integers(rows - taken + 1)) if taken < rows else 0
        return np.arange(first + start, first + start + taken, dtype=np.int64)

    def augmentation(self, position: int) -> np.random.Generator:
        """Random generator for the augmentation of one sample."""
        return np.random.default_rng([self._blocks.plan.seed, self.epoch, position, Stream.AUGMENTATION])

    def _generator(self, identity: int, purpose: Stream) -> np.random.Generator:
        return np.random.default_rng([self._blocks.plan.seed, self.epoch, identity, purpose])
