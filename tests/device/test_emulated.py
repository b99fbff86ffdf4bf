"""The device that is not there refuses what torch's own fake tensors refuse, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.device.emulated import EmulatedTensor, emulated_cuda

Case = Callable[[Callable[..., Tensor], Callable[..., Tensor]], object]  # makers of tensors there and on the CPU

CASES: dict[str, Case] = {
    "sum": lambda there, here: there(3) + here(3),
    "both there": lambda there, here: there(3) + there(3),
    "a number from the CPU": lambda there, here: there(3) * here(),
    "into a tensor of the CPU": lambda there, here: here(3).add_(there(3)),
    "matrix product": lambda there, here: there(3, 3) @ here(3, 3),
    "einsum": lambda there, here: torch.einsum("ab,bc->ac", here(2, 3), there(3, 4)),
    "where": lambda there, here: torch.where(there(3) > 0, here(3), 0.0),
    "where, a number": lambda there, here: torch.where(there(3) > 0, there(3), 0.0),
    "joined": lambda there, here: torch.cat([there(3), here(3)]),
    "convolved": lambda there, here: torch.conv2d(there(1, 1, 4, 4), here(1, 1, 3, 3)),
    "looked up": lambda there, here: there(3)[here(2).long()],
    "looked up on the CPU": lambda there, here: here(3)[there(2).long()],
    "index_select": lambda there, here: there(3).index_select(0, here(2).long()),
    "index_add": lambda there, here: there(3).index_add(0, here(2).long(), there(2)),
    "written by index": lambda there, here: there(3).index_put_((here(2).long(),), there(2)),
    "gathered": lambda there, here: there(3).gather(0, here(2).long()),
    "sampled": lambda there, here: torch.nn.functional.grid_sample(
        there(1, 1, 4, 4), here(1, 2, 2, 2), align_corners=False
    ),
    "copied": lambda there, here: there(3).copy_(here(3)),
    "copied to the CPU": lambda there, here: here(3).copy_(there(3)),
    "moved": lambda there, here: here(3).to(there(1).device) + there(3),
    "like": lambda there, here: torch.zeros_like(there(3)) + there(3),
    "new": lambda there, here: there(3).new_tensor([1.0, 2.0, 3.0]) + there(3),
    "made there": lambda there, here: torch.eye(3, device=there(1).device) @ there(3, 3),
    "made on the CPU": lambda there, here: torch.eye(3) @ there(3, 3),
    "looked up by a list": lambda there, here: there(3)[[0, 2]],
    "written": lambda there, here: there(3).__setitem__([0, 2], 1.0),
    "numpy": lambda there, here: there(3).numpy(),
}


ALLOWED = frozenset(
    {
        *(
            "both there",
            "a number from the CPU",
            "where, a number",
            "looked up",
            "copied",
            "copied to the CPU",
            "moved",
        ),
        *("like", "new", "made there", "looked up by a list", "written", "written by index"),
    }
)
# What fake tensors let pass and a GPU does not.
MISSED_BY_FAKE_TENSORS = frozenset({"convolved", "looked up on the CPU"})


def refused(name: str, device: torch.device | str) -> bool:
    try:
        CASES[name](lambda *shape: torch.zeros(shape, device=device), lambda *shape: torch.zeros(shape))
    except (RuntimeError, TypeError):
        return True
    return False


@pytest.mark.parametrize("name", CASES)
def test_refuses_what_a_gpu_refuses(name, device):
    """With `--device cuda` the table itself is held against a GPU."""
    assert refused(name, device) == (name not in ALLOWED)


@pytest.mark.parametrize("name", sorted(set(CASES) - MISSED_BY_FAKE_TENSORS))
def test_refuses_what_fake_tensors_refuse(name):
    with FakeTensorMode():
        assert refused(name, "cuda") == (name not in ALLOWED)


def test_values_and_gradients_are_the_cpus():
    values = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(144, 2)
    )
    expected = network(values).square().sum()
    expected.backward()
    slopes = [value.grad.clone() for value in network.parameters()]
    network.zero_grad()
    with emulated_cuda() as device:
        network.to(device)
        optimizer = torch.optim.Adam(network.parameters())
        loss = network(values.to(device)).square().sum()
        loss.backward()
        torch.testing.assert_close(loss.detach().cpu(), expected.detach())
        for value, slope in zip(network.parameters(), slopes, strict=True):
            assert isinstance(value.grad, EmulatedTensor)
            torch.testing.assert_close(value.grad.cpu(), slope, rtol=1e-4, atol=1e-6)
        before = network[0].weight.detach().clone().cpu()
        optimizer.step()
        assert not torch.equal(network[0].weight.detach().cpu(), before)


def test_autocast_halves_what_a_gpu_halves():
    with emulated_cuda() as device:
        layer = torch.nn.Linear(3, 2).to(device)
        values = torch.zeros(1, 3, device=device)
        with torch.autocast("cuda", torch.bfloat16):
            assert layer(values).dtype == torch.bfloat16
            with torch.autocast("cuda", enabled=False):
                assert layer(values).dtype == torch.float32


def test_threads_see_the_device_until_it_ends():
    found: list[torch.device] = []
    with emulated_cuda() as device:
        thread = threading.Thread(target=lambda: found.append(torch.zeros(1).to(device).device))
        thread.start()
        thread.join()
        assert torch.cuda.is_available()
    assert [one.type for one in found] == ["cuda"]
    assert isinstance(torch.zeros(1), Tensor)
    assert not isinstance(torch.zeros(1) + 1, EmulatedTensor)
