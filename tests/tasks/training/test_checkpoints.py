"""Training states in storage: what is read is what was published, and nothing half-written counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from schemas.train import TrainPlan
from tasks.store.storage import Store
from tasks.training.checkpoints import (
    TrainState,
    optimizer_tensors,
    prune,
    publish_state,
    read_state,
    restore_optimizer,
)
from tasks.training.records import TrainStateError, checkpoint_at, list_checkpoints
from tests.tasks.train_runs import assert_equal_states

PLAN = TrainPlan(config={"seed": 1}, inputs={"bundle": "b"}, fingerprint="f" * 64)


def some_state(step: int) -> TrainState:
    generator = torch.Generator().manual_seed(step)
    weights = {"a.weight": torch.randn(3, 4, generator=generator), "a.count": torch.tensor(step)}
    mean = {"a.weight": torch.randn(3, 4, generator=generator)}
    return TrainState(weights, mean, {"a.weight.step": torch.tensor(float(step))}, step, {"epoch": 1, "batch": step})


def publish(store: Store, step: int, total: float | None = None) -> None:
    publish_state(store, PLAN, "coarse", 2, some_state(step), {} if total is None else {"total": total})


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store, 7, 0.5)
    [record] = list_checkpoints(store, "coarse")
    assert (record.step, record.ranks, record.plan, record.validation) == (7, 2, PLAN, {"total": 0.5})
    assert_equal_states(read_state(store, record), some_state(7))


def test_a_checkpoint_is_found_by_its_step_whatever_a_listing_says(tmp_path: Path, monkeypatch) -> None:
    store = Store(tmp_path)
    publish(store, 2)
    publish(store, 4)
    monkeypatch.setattr(Store, "list", lambda self, folder: [])
    assert checkpoint_at(store, "coarse", 4).step == 4
    with pytest.raises(FileNotFoundError):
        checkpoint_at(store, "coarse", 6)


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        publish(Store(tmp_path / name), 3)
    first, second = (sorted((tmp_path / name).rglob("*.*")) for name in ("one", "two"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert len(first) == 4


def test_files_without_a_record_do_not_count(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store, 2)
    publish(store, 4)
    (tmp_path / "checkpoints/coarse/00000004.json").unlink()
    assert [record.step for record in list_checkpoints(store, "coarse")] == [2]


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_file_is_named_with_the_way_out(tmp_path: Path, damage: bytes | None) -> None:
    store = Store(tmp_path)
    publish(store, 2)
    path = tmp_path / "checkpoints/coarse/00000002/weights.safetensors"
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    with pytest.raises(TrainStateError, match=r"weights.safetensors.*Delete checkpoints/coarse/00000002.json"):
        read_state(store, list_checkpoints(store, "coarse")[0])


def test_a_damaged_record_is_an_error(tmp_path: Path) -> None:
    publish(Store(tmp_path), 2)
    (tmp_path / "checkpoints/coarse/00000002.json").write_text("{}")
    with pytest.raises(TrainStateError, match=r"00000002\.json is damaged"):
        list_checkpoints(Store(tmp_path), "coarse")


def test_prune_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for step, total in ((1, 0.9), (2, 0.1), (3, 0.8), (4, 0.5), (5, 0.7)):
        publish(store, step, total)
    assert prune(store, "coarse", keep_last=2, keep_best=1) == [1, 3]
    assert [record.step for record in list_checkpoints(store, "coarse")] == [2, 4, 5]
    assert not (tmp_path / "checkpoints/coarse/00000003/weights.safetensors").exists()
    assert (tmp_path / "checkpoints/coarse/00000002/weights.safetensors").exists()


def test_an_interrupted_prune_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, delete = Store(tmp_path), Store.delete
    for step in (1, 2):
        publish(store, step)
    first = {path for path in tmp_path.rglob("00000001*") if path.is_file()} | {*tmp_path.rglob("00000001/*")}
    for allowed in range(len(first)):
        for step in (1, 2):
            publish(store, step)
        left = iter(range(allowed))

        def dying(self: Store, name: str, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            delete(self, name)

        with monkeypatch.context() as patch:
            patch.setattr(Store, "delete", dying)
            with pytest.raises(KeyboardInterrupt):
                prune(store, "coarse", keep_last=1, keep_best=0)
        assert list_checkpoints(store, "coarse")[-1].step == 2
        assert read_state(store, list_checkpoints(store, "coarse")[-1]).step == 2
        prune(store, "coarse", keep_last=1, keep_best=0)
        assert not [path for path in first if path.exists()]


def test_adam_resumes_as_if_uninterrupted() -> None:
    def steps(model: nn.Linear, optimizer: torch.optim.Adam, first: int, last: int) -> None:
        for step in range(first, last):
            optimizer.zero_grad()
            model(torch.full((2, 3), float(step))).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    straight = nn.Linear(3, 2)
    resumed = nn.Linear(3, 2)
    resumed.load_state_dict(straight.state_dict())
    whole = torch.optim.Adam(straight.parameters(), lr=0.1)
    steps(straight, whole, 0, 6)
    half = torch.optim.Adam(resumed.parameters(), lr=0.1)
    steps(resumed, half, 0, 3)
    kept = {name: value.clone() for name, value in optimizer_tensors(half, dict(resumed.named_parameters())).items()}
    fresh = torch.optim.Adam(resumed.parameters(), lr=0.1)
    restore_optimizer(fresh, dict(resumed.named_parameters()), kept)
    steps(resumed, fresh, 3, 6)
    assert torch.equal(straight.weight, resumed.weight)
    assert torch.equal(straight.bias, resumed.bias)


def test_a_state_of_another_model_is_refused() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(TrainStateError, match=r"lacks: other\.weight"):
        restore_optimizer(optimizer, dict(model.named_parameters()), {"other.weight.step": torch.tensor(1.0)})
