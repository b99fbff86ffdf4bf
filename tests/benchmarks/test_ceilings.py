"""The ceilings are of the right order, and clocks are read right."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import ceilings


def test_best_rate_is_that_of_the_fastest_pieces():
    waits = iter([0.03] * 4 + [0.02] + [0.03] * 1000)
    rate = ceilings.best_rate(lambda: time.sleep(next(waits)), 0.25)
    assert 33.4 < rate <= 50


def test_gemm_is_a_rate_that_the_same_product_reaches_by_hand():
    torch.set_num_threads(1)
    a = torch.randn(512, 512)
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        torch.mm(a, a)
        seconds.append(time.perf_counter() - started)
    by_hand = 2 * 512**3 / min(seconds) / 1e9
    assert 0.2 * by_hand < ceilings.gemm("fp32", 0.2) < 20 * by_hand  # the machine may be busy


def test_a_copy_counts_what_it_reads_and_what_it_writes(monkeypatch):
    monkeypatch.setitem(ceilings.COPIED, "cpu", 1000)
    monkeypatch.setattr(ceilings, "best_rate", lambda work, seconds, device: 2e6)  # copies a second
    assert ceilings.copy() == pytest.approx(2 * 1000 * 2e6 / 1e9)


def test_the_jpeg_is_a_photograph_in_size_and_the_same_every_time():
    data = ceilings.jpeg(256)
    assert data == ceilings.jpeg(256)
    picture = np.asarray(Image.open(io.BytesIO(data)))
    assert picture.shape == (256, 256, 3)
    assert 1 < 8 * len(data) / 256**2 < 5  # bits a pixel
    assert ceilings.jpeg_decode(0.05, 64, threads=2) > 10
