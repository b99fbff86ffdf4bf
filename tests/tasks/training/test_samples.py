"""Batches from faces/: what is in them, in which order, on how many ranks, after a resume, and from damaged shards.

The images are plain colours that encode what they show: red the subject, green the image.
"""

from __future__ import annotations

import itertools
import logging
import resource
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from deca_core.assets import procedural_head
from deca_core.assets.bundle import AssetBundle
from deca_core.augment import PLAIN, Augmentation
from deca_core.training import FaceBatch
from schemas.samples import DataConfig
from tasks.people.versions import FacesError
from tasks.store.storage import StorageError, Store, open_uri
from tasks.training.datasets import ShardSource, WorldSource
from tasks.training.order import BatchPlan, Blocks, Index, SamplesError
from tasks.training.samples import Samples
from tests.tasks.stored_faces import STEP, picture, publish


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("faces"))
    publish(uri)
    return uri


# Views jump about, as in training, but colours stay.
JITTER = Augmentation(brightness=0, contrast=0, saturation=0, tint=0, occlusion=0)
SMALL = DataConfig(block_faces=8, threads=2, prefetch=2)


def samples_of(
    uri: str, config: DataConfig = SMALL, version: int | None = None, view: Augmentation = JITTER, **plan: int
) -> Samples:
    source = ShardSource(uri, "train", version)
    return Samples(source, BatchPlan(**{"subjects": 2, "images": 2, **plan}), view, config)


def shown(batch: FaceBatch) -> list[tuple[int, int]]:
    """(subject, image) of every image, by its colour."""
    colours = (batch.images.mean(dim=(2, 3)) * 255 / STEP).round().int()
    return [(int(red), int(green)) for red, green, _ in colours]


def same(first: FaceBatch, second: FaceBatch) -> bool:
    names = ("images", "landmarks", "masks", "subjects")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)


def all_same(first: list[FaceBatch], second: list[FaceBatch]) -> bool:
    return len(first) == len(second) and all(map(same, first, second))


def test_batch_is_what_the_rows_say(faces: str) -> None:
    batch = next(iter(samples_of(faces, view=PLAIN)))
    assert batch.images.shape == (4, 3, 224, 224)
    assert batch.images_per_subject == 2
    people = [person for person, _ in shown(batch)]
    assert people[0] == people[1]
    assert people[2] == people[3]
    assert len(set(shown(batch))) == 4
    assert torch.equal(batch.subjects, torch.tensor(people))  # the index is sorted by subject here
    # The plain view takes 0.8 of the crop's side, 319 pixels between centres, from its middle to 223.
    x, y = ((value - 31.9) * 223 / 255.2 / 112 - 1 for value in (40 + 2 * torch.arange(68), torch.tensor(80)))
    assert torch.allclose(batch.landmarks[..., 0], x.expand(4, -1), atol=1e-5)
    assert torch.allclose(batch.landmarks[..., 1], y, atol=1e-5)
    assert torch.equal(batch.landmarks[..., 2], torch.ones(4, 68))
    assert batch.masks[:, :, :111].max() == 0
    assert batch.masks[:, :, 113:].min() > 0.999


def test_epoch_has_every_image_once_over_all_ranks(faces: str) -> None:
    """11 subjects x 4 images = 22 samples of two, on two ranks with one subject each: 11 batches, nothing left."""
    ranks = [samples_of(faces, subjects=1, rank=rank, ranks=2) for rank in range(2)]
    seen = [[pair for batch in rank for pair in shown(batch)] for rank in ranks]
    assert [rank.batches for rank in ranks] == [11, 11]
    assert not set(seen[0]) & set(seen[1])
    assert Counter(seen[0] + seen[1]) == Counter((person, image) for person in range(11) for image in range(4))


def test_remainder_is_filled_from_the_epochs_beginning(faces: str) -> None:
    """22 samples in batches of 2 x 4: the third batch lacks two, and every rank gets three batches."""
    ranks = [list(samples_of(faces, subjects=4, rank=rank, ranks=2)) for rank in range(2)]
    assert [len(rank) for rank in ranks] == [3, 3]
    seen = Counter(pair for rank in ranks for batch in rank for pair in shown(batch))
    assert len(seen) == 44
    assert sorted(seen.values()) == [1] * 40 + [2] * 4


def test_two_ranks_see_what_one_with_a_double_batch_sees(faces: str) -> None:
    alone = list(samples_of(faces, subjects=4))
    ranks = [list(samples_of(faces, subjects=2, rank=rank, ranks=2)) for rank in range(2)]
    for whole, first, second in zip(alone, *ranks, strict=True):
        for name in ("images", "landmarks", "masks", "subjects"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(first, name), getattr(second, name)]))


def test_order_follows_seed_and_epoch_and_nothing_else(faces: str) -> None:
    samples = samples_of(faces)
    first, second = list(samples), list(samples)
    assert not all_same(first, second)  # another epoch
    assert sorted(map(shown, first)) != sorted(map(shown, second))  # other pairs, not only another order
    slow = samples_of(faces, SMALL.model_copy(update={"threads": 1, "prefetch": 1}))
    assert all_same(first, list(slow))
    assert not all_same(first, list(samples_of(faces, seed=1)))


def test_threads_of_uneven_speed_do_not_change_the_order(faces: str, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = list(samples_of(faces))
    load = ShardSource.load

    def slowly(self: ShardSource, shard: int, rows: NDArray[np.int64]) -> object:
        time.sleep(0.02 * (shard + int(rows[0]) % 3))
        return load(self, shard, rows)

    monkeypatch.setattr(ShardSource, "load", slowly)
    assert all_same(straight, list(samples_of(faces)))


def run(samples: Samples, batches: int) -> list[FaceBatch]:
    found: list[FaceBatch] = []
    while len(found) < batches:
        for batch in samples:
            found.append(batch)
            if len(found) == batches:
                break
    return found


@pytest.mark.parametrize("stop", [7, 11, 12])
def test_resume_continues_at_the_exact_sample(faces: str, stop: int) -> None:
    """20 batches straight, over the epoch's end at 11, against a stop and a fresh object with the saved position."""
    straight = run(samples_of(faces), 20)
    before = samples_of(faces)
    first = run(before, stop)
    after = samples_of(faces)
    after.load_state_dict(before.state_dict())
    assert all_same(first + run(after, 20 - stop), straight)


def test_resume_on_two_ranks_what_one_began(faces: str) -> None:
    alone = samples_of(faces, subjects=4)
    straight = run(samples_of(faces, subjects=4), 5)
    run(alone, 2)
    ranks = [samples_of(faces, subjects=2, rank=rank, ranks=2) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(alone.state_dict())
    for whole, first, second in zip(straight[2:], *(run(rank, 3) for rank in ranks), strict=True):
        assert torch.equal(whole.images, torch.cat([first.images, second.images]))


def test_resume_with_another_batch_continues_at_the_same_share(faces: str, caplog: pytest.LogCaptureFixture) -> None:
    before = samples_of(faces, subjects=2)
    run(before, 4)  # 8 of 22 samples
    after = samples_of(faces, subjects=1)
    with caplog.at_level(logging.WARNING):
        after.load_state_dict(before.state_dict())
    assert after.state_dict()["batch"] == 8
    assert "2 before, 1 now" in caplog.text


def test_position_of_other_data_or_settings_is_refused(faces: str) -> None:
    state = samples_of(faces).state_dict()
    with pytest.raises(SamplesError, match="pictures 2 there, 4 here"):
        samples_of(faces, images=4).load_state_dict(state)
    with pytest.raises(SamplesError, match="seed"):
        samples_of(faces, seed=3).load_state_dict(state)


@pytest.mark.slow
def test_dataloader_workers_keep_the_order(faces: str) -> None:
    straight = list(samples_of(faces))
    samples = samples_of(faces, SMALL.model_copy(update={"threads": 1}))
    samples.seek(0, 3)
    loader = DataLoader(samples, batch_size=None, num_workers=2, timeout=60, multiprocessing_context="spawn")
    assert all_same(list(loader), straight[3:])


# --- few images, heavy identities -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_few_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    publish(str(tmp_path), [1, 2, 3, 6, 4], shards=2)
    with caplog.at_level(logging.WARNING):
        skipping = samples_of(str(tmp_path), images=3, subjects=1)
    assert "2 of 4 identities have fewer than 3 images: left out" in caplog.text
    seen = Counter(pair for batch in skipping for pair in shown(batch))
    assert seen == Counter([(2, n) for n in range(3)] + [(3, n) for n in range(6)])
    config = SMALL.model_copy(update={"few_pictures": "repeat"})
    repeating = samples_of(str(tmp_path), config, images=3, subjects=1)
    seen = Counter(pair for batch in repeating for pair in shown(batch))
    assert seen[0, 0] == 3
    assert sorted(seen[1, n] for n in range(2)) == [1, 2]
    assert repeating.few == 2
    with pytest.raises(SamplesError, match=r"none of the 4 identities has 7 images.*few_pictures"):
        samples_of(str(tmp_path), images=7)


@pytest.mark.slow
def test_heavy_identity_gives_another_stretch_each_epoch(tmp_path: Path) -> None:
    publish(str(tmp_path), [20, 4, 4], shards=1)
    samples = samples_of(str(tmp_path), SMALL.model_copy(update={"pictures_per_identity": 6}), subjects=1)
    epochs = [[pair for batch in samples for pair in shown(batch)] for _ in range(8)]
    stretches = [sorted(image for person, image in epoch if person == 0) for epoch in epochs]
    for stretch in stretches:
        assert len(set(stretch)) == 6
        assert stretch[-1] - stretch[0] == 5  # neighbours, so few row groups are read
    assert len({stretch[0] for stretch in stretches}) > 3


# --- damage -----------------------------------------------------------------------------------------------------------


def test_corrupt_crop_is_replaced_in_the_same_way_every_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    crops = {(3, 1): picture(3, 1)[:300], (5, 2): b"no picture", (6, 0): None}
    publish(str(tmp_path), crops=crops)
    samples = samples_of(str(tmp_path))
    with caplog.at_level(logging.WARNING):
        batches = list(samples)
    assert len(samples.damage.found) == 3
    assert caplog.text.count("replaced in training") == 3
    seen = Counter(pair for batch in batches for pair in shown(batch))
    assert not set(crops) & set(seen)
    for person in (3, 5, 6):  # still two samples, of the three remaining images
        assert sorted(seen[person, n] for n in range(4) if (person, n) in seen) == [1, 1, 2]
    for batch in batches:
        assert shown(batch)[0] != shown(batch)[1]
        assert shown(batch)[2] != shown(batch)[3]
    slow = samples_of(str(tmp_path), SMALL.model_copy(update={"threads": 1, "prefetch": 1}))
    slow.seek(0, 4)
    assert all_same(list(slow), batches[4:])


def test_subject_without_a_readable_image_is_replaced_by_others(tmp_path: Path) -> None:
    publish(str(tmp_path), crops={(4, n): b"" for n in range(3)})
    batches = list(samples_of(str(tmp_path)))
    people = Counter(person for batch in batches for person, _ in shown(batch))
    assert 4 not in people
    assert sum(people.values()) == 44
    for batch in batches:
        assert batch.subjects.tolist() == [person for person, _ in shown(batch)]


def test_corrupt_shard_is_left_out_or_stops(tmp_path: Path) -> None:
    record = publish(str(tmp_path))
    path = tmp_path / record.shards[1].file
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    path.write_bytes(data)
    samples = samples_of(str(tmp_path))
    batches = list(samples)
    assert all(record.shards[1].file in name for name in samples.damage.found)
    people = {person for batch in batches for person, _ in shown(batch)}
    assert people == {0, 1, 2, 3, 8, 9, 10}
    assert all_same(batches, list(samples_of(str(tmp_path), SMALL.model_copy(update={"threads": 1}))))
    stopping = samples_of(str(tmp_path), SMALL.model_copy(update={"corrupt": "stop"}))
    with pytest.raises(SamplesError, match=r"train-00001.*deca verify"):
        list(stopping)


def test_shard_of_another_length_is_damaged(tmp_path: Path) -> None:
    record = publish(str(tmp_path))
    path = tmp_path / record.shards[0].file
    path.write_bytes(path.read_bytes()[:-100])
    samples = samples_of(str(tmp_path))
    assert len(list(samples)) == 11
    assert f"published were {record.shards[0].bytes}" in next(iter(samples.damage.found.values()))


def test_nothing_readable_stops(tmp_path: Path) -> None:
    publish(str(tmp_path), crops={(person, n): b"x" for person in range(12) for n in range(4)})
    with pytest.raises(SamplesError, match="no sample of the epoch can be decoded"):
        list(samples_of(str(tmp_path)))


def test_missing_shard_stops(tmp_path: Path) -> None:
    record = publish(str(tmp_path))
    (tmp_path / record.shards[2].file).unlink()
    with pytest.raises(SamplesError, match=r"gone.*deca gc"):
        list(samples_of(str(tmp_path)))


# --- versions and storage ---------------------------------------------------------------------------------------------


def test_version_is_pinned_at_the_start(tmp_path: Path) -> None:
    publish(str(tmp_path))
    straight = list(samples_of(str(tmp_path)))
    samples = samples_of(str(tmp_path))
    begun = run(samples, 4)
    publish(str(tmp_path), [6] * 9, version=2)
    assert all_same(begun + run(samples, 7), straight)
    newer = samples_of(str(tmp_path))
    assert newer.source.version.version == 2
    with pytest.raises(SamplesError, match="data"):
        newer.load_state_dict(samples.state_dict())
    again = samples_of(str(tmp_path), version=1)
    again.load_state_dict({**samples.state_dict(), "epoch": 0, "batch": 4})
    assert all_same(run(again, 7), straight[4:])


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(FacesError, match="no version"):
        samples_of(str(tmp_path))
    publish(str(tmp_path), [4], shards=0)
    with pytest.raises(SamplesError, match="no faces in split 'train'"):
        samples_of(str(tmp_path))


def test_s3(s3, faces: str, tmp_path: Path) -> None:
    uri = s3.uri("samples/faces")
    record = publish(uri)
    samples = samples_of(uri)
    assert all_same(list(samples), list(samples_of(faces)))
    store = Store(uri)
    store.write(record.shards[0].file, store.read(record.shards[0].file)[:5000])
    damaged = samples_of(uri)
    assert len(list(damaged)) == 11
    assert damaged.damage.found


@pytest.mark.slow
@pytest.mark.parametrize("answered", [0, 6])
def test_unreachable_storage_is_an_error_not_damage(s3, answered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network fails at the first footer, or after the footers of three shards, among their columns."""
    uri = s3.uri("samples/unreachable")
    publish(uri)
    samples = samples_of(uri)
    fs, _ = open_uri(uri)
    cat_file, calls = fs.cat_file, itertools.count()

    def fail(*args: object, **options: object) -> bytes:
        if next(calls) >= answered:
            raise PermissionError("403 Forbidden")
        return cat_file(*args, **options)

    monkeypatch.setattr(fs, "cat_file", fail)
    with pytest.raises(StorageError, match="permission denied"):
        list(samples)
    assert not samples.damage.found


@pytest.mark.slow
def test_too_many_open_files_are_an_error_not_damage(tmp_path: Path) -> None:
    publish(str(tmp_path))
    samples = samples_of(str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(StorageError, match=r"cannot read .*data/train"):
            list(samples)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not samples.damage.found
    assert len(list(samples)) == 11


# --- the order by itself ----------------------------------------------------------------------------------------------


def test_blocks_are_read_in_one_go() -> None:
    """1000 subjects x 4 in 10 shards: the lanes of a rank hold few blocks at a time, and read each of them once."""
    people = np.arange(1000)
    index = Index(people // 100, people % 100 * 4, np.full(1000, 4))
    plan = BatchPlan(subjects=4, images=2, ranks=2)
    blocks = Blocks(index, plan, DataConfig(block_faces=40))
    order = blocks.epoch(0)
    assert blocks.batches == 250
    reads = Counter[int]()
    for place in range(8):
        lane = [order.block(order.position(batch, place)) for batch in range(blocks.batches)]
        runs = [block for number, block in enumerate(lane) if number == 0 or lane[number - 1] != block]
        assert len(runs) == len(set(runs))
        reads.update(runs)
    assert len(reads) == 100  # ten subjects each
    assert sum(reads.values()) <= 100 + 7  # lanes share a block at their borders
    shards = [blocks.blocks[order.block(order.position(0, place))].shard for place in range(8)]
    assert len(set(shards)) > 3  # a batch comes from all over the dataset


def test_waiting_is_measured(faces: str, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, waits = samples_of(faces), []
    for _ in samples:
        time.sleep(0.15)  # a step, while the next batches are made
        waits.append(samples.waiting.seconds)
    assert min(np.diff(waits)) < 0.02
    load = ShardSource.load

    def slowly(self: ShardSource, shard: int, rows: NDArray[np.int64]) -> object:
        time.sleep(0.5)
        return load(self, shard, rows)

    monkeypatch.setattr(ShardSource, "load", slowly)
    samples.waiting.reset()
    next(iter(samples))
    assert samples.waiting.seconds >= 0.5
    assert 0 < samples.waiting.share <= 1


# --- the embedded world -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def head() -> AssetBundle:
    return procedural_head()


@pytest.mark.slow
def test_world_is_a_source_like_faces(head: AssetBundle) -> None:
    plan = BatchPlan(subjects=2, images=2, seed=5)
    samples = Samples(WorldSource(head, 0, people=3, images=2), plan, PLAIN, SMALL)
    straight = run(samples, 4)
    before, after = (Samples(samples.source, plan, PLAIN, SMALL) for _ in range(2))
    first = run(before, 1)
    after.load_state_dict(before.state_dict())
    assert all_same(first + run(after, 3), straight)
    assert {int(person) for batch in straight[:2] for person in batch.subjects} == {0, 1, 2}
    batch = straight[0]
    points = batch.landmarks[..., :2]
    extent = (points.amax(dim=1) - points.amin(dim=1)).mean(dim=1) / 2
    assert torch.allclose(extent, torch.tensor(1 / 1.6), atol=0.01)  # the view is 1.6 times as wide as the face
    nose = ((points[:, 30] + 1) * 112).long().clamp(0, 223)
    assert sum(float(batch.masks[n, 0, y, x]) for n, (x, y) in enumerate(nose)) >= 3  # an occluder may hide one
    assert batch.masks[:, :, :10].mean() < 0.05  # hair and background are no skin
