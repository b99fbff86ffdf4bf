"""The ceilings are of the right order, and clocks are read right."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from PIL import Image

from benchmarks import ceilings


def test_best_rate_is_that_of_the_fastest_pieces():
    waits = iter([0.03] * 4 + [0.02] + [0.03] * 1000)
    rate = ceilings.best_rate(lambda: time.sleep(next(waits)), 0.25)
    assert 33.4 < rate <= 50


def test_gemm_counts_two_operations_for_each_product_of_the_fastest_side(monkeypatch):
    monkeypatch.setitem(ceilings.SIDES, "cpu", (64, 128))
    rates = {64: 1000.0, 128: 300.0}  # products a second
    monkeypatch.setattr(ceilings, "best_rate", lambda work, seconds, device: rates[len(work())])
    assert ceilings.gemm("bf16") == pytest.approx(2 * 128**3 * 300 / 1e9)


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
