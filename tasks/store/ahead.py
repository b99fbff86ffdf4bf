"""Prefetching in threads: bounded, in order, and stopped with the consumer.

For work that releases the GIL: reading, decoding, resampling, compressing.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

Thing = TypeVar("Thing")
Made = TypeVar("Made")

CORES = "DECA_WORKER_CORES"  # variable in a worker's environment: the CPU cores that it reserved
LOOK = 0.1  # seconds between a blocked producer's checks for a stopped consumer


def worker_cores(device: str) -> float:
    """Return the CPU cores that this worker may decode with: those it reserved on Ray ($DECA_WORKER_CORES), else 1 for
    device "cpu" and all cores for a GPU.
    """
    if (reserved := os.environ.get(CORES)) is not None:
        return float(reserved)
    if device == "cpu":
        return 1.0
    return float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def ahead(source: Iterable[Thing], depth: int) -> Generator[Thing]:
    """Yield the items of `source`, which runs in its own thread at most `depth` items ahead.

    Its errors are raised here, after the items before them. Closing this generator ends the thread.
    """
    made: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not stop.is_set():
            try:
                made.put((kind, value), timeout=LOOK)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        things = iter(source)
        try:
            for thing in things:
                if not put("thing", thing):
                    break
            else:
                put("end", None)
        except BaseException as error:  # of any kind: the consumer raises it in its own thread
            put("error", error)
        finally:
            close = getattr(things, "close", None)  # a generator lets go of its files here, in its own thread
            if close is not None:
                close()

    thread = threading.Thread(target=make, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stop.set()
        thread.join()


def in_order(
    work: Callable[[Thing], Made], things: Iterable[Thing], threads: int, depth: int | None = None
) -> Iterator[Made]:
    """Yield work(item) in the order of `things`, from `threads` threads; at most `depth` (2 * threads) in flight."""
    source = iter(things)
    with ThreadPoolExecutor(threads) as pool:
        begun: deque[Future[Made]] = deque()
        try:
            begun.extend(pool.submit(work, thing) for thing in islice(source, depth or 2 * threads))
            while begun:
                made = begun.popleft().result()
                begun.extend(pool.submit(work, thing) for thing in islice(source, 1))
                yield made
        finally:
            for future in begun:
                future.cancel()
