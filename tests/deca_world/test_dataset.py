"""The stream of photographs: every picture once, whoever makes it."""

from __future__ import annotations

import numpy as np
import pytest
from torch.utils.data import DataLoader

from deca_world import WorldDataset

PEOPLE, IMAGES, SIZE = 3, 2, 48


def dataset(world, **options) -> WorldDataset:
    return WorldDataset(world.bundle, seed=5, people=PEOPLE, images=IMAGES, size=SIZE, **options)


def first_of(samples: list) -> object:
    """Collate for batches of one: the sample itself."""
    return samples[0]


@pytest.mark.slow
def test_workers_share_the_pictures_without_overlap(world):
    alone = {(s.person, s.image): s.photograph.image for s in dataset(world)}
    assert list(alone) == [(person, image) for person in range(PEOPLE) for image in range(IMAGES)]
    loader = DataLoader(dataset(world), batch_size=1, num_workers=2, collate_fn=first_of)
    together = [((s.person, s.image), s.photograph.image) for s in loader]
    assert sorted(key for key, _ in together) == sorted(alone)
    for key, image in together:
        np.testing.assert_array_equal(image, alone[key])


def test_ranks_are_disjoint_and_first_shifts(world):
    parts = [{(s.person, s.image) for s in dataset(world, rank=rank, ranks=2, first=10)} for rank in range(2)]
    assert not parts[0] & parts[1]
    assert {person for person, _ in parts[0] | parts[1]} == {10, 11, 12}
    with pytest.raises(ValueError, match="ranks count from 0"):
        dataset(world, rank=2, ranks=2)
