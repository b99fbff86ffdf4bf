"""A bundle folder comes back as it was saved, or not at all."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from deca_core.assets import BundleError, load_bundle
from deca_core.assets.bundle import ARRAYS_FILE, META_FILE


def test_round_trip(mini, tmp_path):
    named = dataclasses.replace(
        mini,
        albedo_mean=np.full((3, 256, 256), 0.5, np.float32),
        albedo_basis=np.zeros((50, 3, 256, 256), np.float32),
        expression_names=("smile", "blink"),
    )
    found = load_bundle(named.save(tmp_path / "bundle"))
    assert (found.name, found.source, found.expression_names) == (named.name, named.source, named.expression_names)
    assert found.hash == named.hash
    for name, array in named.arrays().items():
        np.testing.assert_array_equal(found.arrays()[name], array)
    assert mini.save(tmp_path / "bundle") == tmp_path / "bundle"  # replaced
    assert load_bundle(tmp_path / "bundle").albedo_mean is None


def test_the_hash_is_of_the_arrays(mini):
    assert dataclasses.replace(mini, name="another").hash == mini.hash
    moved = mini.v_template.copy()
    moved[0, 0] += 1e-6
    assert dataclasses.replace(mini, v_template=moved).hash != mini.hash


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"faces": np.zeros((3, 4), np.int64)}, r"faces has shape \(3, 4\)"),
        ({"faces": np.full((1058, 3), 576)}, r"faces points outside 0..575"),
        ({"v_template": np.zeros((576, 3))}, "float64"),
        ({"pose_basis": np.full((576, 3, 36), np.inf, np.float32)}, "NaN or infinity"),
        ({"albedo_mean": np.zeros((3, 256, 256), np.float32)}, "come together"),
        ({"face_mask": np.zeros((512, 512), np.float32)}, "face_mask has shape"),
    ],
)
def test_arrays_that_do_not_fit_are_named(mini, changes, pattern):
    with pytest.raises(BundleError, match=pattern):
        dataclasses.replace(mini, **changes)


def test_missing_damaged_and_changed_folders(mini, tmp_path):
    with pytest.raises(BundleError, match=r"no bundle.json.*deca assets"):
        load_bundle(tmp_path)
    folder = mini.save(tmp_path / "bundle")
    meta = json.loads((folder / META_FILE).read_text())
    for change, pattern in (
        ({"schema_version": 99}, "schema 99"),
        ({"hash": "0" * 64}, "do not match the recorded hash"),
    ):
        (folder / META_FILE).write_text(json.dumps({**meta, **change}))
        with pytest.raises(BundleError, match=pattern):
            load_bundle(folder)
    (folder / META_FILE).write_text(json.dumps({key: value for key, value in meta.items() if key != "source"}))
    with pytest.raises(BundleError, match="incomplete"):
        load_bundle(folder)
    (folder / META_FILE).write_text("{")
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(folder)
    (folder / META_FILE).write_text(json.dumps(meta))
    (folder / ARRAYS_FILE).write_bytes((folder / ARRAYS_FILE).read_bytes()[:100])
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(folder)
