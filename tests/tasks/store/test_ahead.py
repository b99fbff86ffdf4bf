"""Work in threads: order and bound hold, errors arrive in their place, and nothing outlives its consumer."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from tasks.store.ahead import CORES, ahead, in_order, worker_cores


def wait_until(true: object, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_cores_to_decode_with(monkeypatch):
    monkeypatch.delenv(CORES, raising=False)
    assert worker_cores("cpu") == 1
    assert worker_cores("cuda") == len(os.sched_getaffinity(0))
    monkeypatch.setenv(CORES, "7.5")  # as the engine says to a worker on Ray
    assert worker_cores("cuda") == worker_cores("cpu") == 7.5


def test_everything_comes_in_order_from_another_thread():
    def source() -> Iterator[tuple[int, int]]:
        for number in range(50):
            yield number, threading.get_ident()

    got = list(ahead(source(), 3))
    assert [number for number, _ in got] == list(range(50))
    assert {thread for _, thread in got}.isdisjoint({threading.get_ident()})
    assert list(ahead([], 1)) == []


def test_no_more_than_the_depth_is_made_ahead():
    made: list[int] = []

    def source() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    things = ahead(source(), 4)
    assert next(things) == 0
    wait_until(lambda: len(made) >= 5)
    time.sleep(0.3)
    assert len(made) <= 1 + 4 + 1  # handed over, waiting, and one in the maker's hands
    assert list(things) == list(range(1, 100))


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_an_error_arrives_after_what_was_before_it(error):
    def source() -> Iterator[int]:
        yield from range(3)
        raise error

    things = ahead(source(), 2)
    assert [next(things) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(type(error)):
        next(things)


def test_a_consumer_that_stops_ends_the_thread_and_closes_the_source():
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    before = threading.active_count()
    things = ahead(source(), 2)
    next(things)
    things.close()
    assert closed.is_set()
    assert threading.active_count() == before


def test_work_in_threads_keeps_the_order_and_the_bound():
    running: set[int] = set()
    most: list[int] = []
    taken: list[int] = []
    lock = threading.Lock()

    def things() -> Iterator[int]:
        for number in range(30):
            taken.append(number)
            yield number

    def work(number: int) -> int:
        with lock:
            running.add(number)
            most.append(len(running))
        time.sleep(0.001 * (number % 3))  # later ones are done first
        with lock:
            running.discard(number)
        return number * number

    results = in_order(work, things(), threads=3, depth=5)
    assert next(results) == 0
    assert len(taken) <= 6
    assert list(results) == [number * number for number in range(1, 30)]
    assert max(most) <= 3


def test_the_first_error_is_raised_and_the_rest_not_begun():
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 2:
            raise ValueError("two")
        return number

    results = in_order(work, range(1000), threads=2)
    with pytest.raises(ValueError, match="two"):
        list(results)
    assert len(begun) < 20
