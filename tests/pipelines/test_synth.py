"""The embedded world as an archive: layouts, truth, the same bytes again."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from deca_world.wrinkles import LIMIT
from pipelines.synth import synth
from schemas.parquet import fixed_values
from schemas.world import SynthConfig
from tasks.sources.discover import discover
from tasks.sources.read import read_items
from tasks.units.commits import committed_parts, read_commits


def config(dest: Path, **changes: object) -> SynthConfig:
    values = {"dest": str(dest), "identities": 2, "images_per_identity": 2, "size": 128, "seed": 11}
    return SynthConfig.model_validate({**values, "units": {"items_per_unit": 3}, "ray": {"workers": 0}, **changes})


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Two subjects, two images of each; tests only read it."""
    dest = tmp_path_factory.mktemp("world")
    assert synth(config(dest)).outcome == "complete"
    return dest


def test_truth_has_a_row_an_image(world):
    table = pq.read_table(committed_parts(str(world / "truth.parquet")))
    assert table["identity_id"].to_pylist() == ["000000", "000000", "000001", "000001"]
    for path, digest in zip(table["path"].to_pylist(), table["sha256"].to_pylist(), strict=True):
        assert hashlib.sha256((world / path).read_bytes()).hexdigest() == digest
    landmarks = fixed_values(table, "landmarks")
    assert landmarks.shape == (4, 68, 2)
    assert abs(landmarks.mean() - 64) < 25  # faces are in the middle of 128 pixels
    shape = fixed_values(table, "shape")
    assert (shape[0] == shape[1]).all()
    assert (shape[0] != shape[2]).any()
    assert abs(fixed_values(table, "displacement")).max() < LIMIT
    assert fixed_values(table, "vertices").shape[2] == 3


def test_same_seed_same_bytes_and_nothing_to_do_twice(world, tmp_path):
    again = synth(config(tmp_path / "again"))
    assert again.images == 4
    before, after = (
        [commit.sha256 for commit in read_commits(str(dest / "truth.parquet"))] for dest in (world, tmp_path / "again")
    )
    assert before == after
    assert synth(config(tmp_path / "again")).units_run == 0


def test_flat_names_do_not_contain_the_identity(tmp_path):
    synth(config(tmp_path, layout="flat", images_per_identity=1))
    names = [path.name for path in (tmp_path / "photos").iterdir()]
    assert len(names) == 2
    assert all(len(name) == len("0123456789abcdef.jpg") and "000000" not in name for name in names)


def test_tars_contain_the_same_images_and_are_a_source(world, tmp_path):
    synth(config(tmp_path, layout="tar"))
    items = list(discover(str(tmp_path / "photos")))
    assert [item.member for item in items] == ["000000/000.jpg", "000000/001.jpg", "000001/000.jpg", "000001/001.jpg"]
    for item, data in read_items(items):
        assert data == (world / "photos" / str(item.member)).read_bytes()
    with tarfile.open(next((tmp_path / "photos").iterdir())) as archive:
        assert archive.getmembers()[0].mtime == 0
