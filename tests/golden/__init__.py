"""The reference's answers on small self-made inputs; README.md lists the contents of each file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SHAPE_COLUMNS = 400  # of FLAME: 300 of identity, 100 of expression
USED = np.r_[0:100, 300:350]


def load(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of a golden file; an array with a `.step` is fixed-point and becomes float32."""
    with np.load(Path(__file__).with_name(name), allow_pickle=False) as archive:
        stored = {key: archive[key] for key in archive.files}
    steps = {key.removesuffix(".step"): stored.pop(key) for key in list(stored) if key.endswith(".step")}
    arrays = {key: (value * steps[key]).astype(np.float32) if key in steps else value for key, value in stored.items()}
    if "shapedirs" in arrays:
        arrays["shapedirs"] = _with_unused_columns(arrays["shapedirs"])
    return arrays


def _with_unused_columns(used: np.ndarray) -> np.ndarray:
    """Fill the columns that DECA does not read with noise of the same size: reading one of them fails a test."""
    noise = np.random.default_rng(0).standard_normal((*used.shape[:2], SHAPE_COLUMNS)) * used.std()
    noise[:, :, USED] = used
    return noise.astype(np.float32)
