"""Files of annotations/ and faces/ in the hands of others: datasets, DuckDB, pandas, pyarrow, Ray Data."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from PIL import Image

from schemas.faces import annotations_schema, faces_schema
from tasks.people.shard import publish
from tasks.people.versions import open_faces
from tasks.sources.table_columns import image_column
from tasks.sources.walk import SourceError
from tasks.units.commits import committed_parts
from tests.tasks.annotated import EMBEDDING, add_photos, annotate, assign, settings


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    add_photos(folder / "photos", range(20))
    annotate(folder / "photos", folder / "annotations")
    assignments = assign(folder / "annotations", 8)
    publish(str(folder / "faces"), str(folder / "annotations"), assignments, settings(folder, faces_per_shard=8))
    return folder


@pytest.fixture(scope="module")
def shards(world: Path) -> list[str]:
    """Every data file of the current version; both splits."""
    opened = open_faces(str(world / "faces"))
    return [*opened.uris("train"), *opened.uris("val")]


@pytest.fixture(scope="module")
def truth(shards: list[str]) -> dict[str, dict[str, Any]]:
    """Rows by face_id, as pyarrow reads them."""
    rows = pq.read_table(shards[0]).to_pylist()
    for uri in shards[1:]:
        rows += pq.read_table(uri).to_pylist()
    return {row["face_id"]: row for row in rows}


def close(values: Sequence[float], expected: Sequence[float]) -> bool:
    return np.array_equal(np.asarray(values, np.float32).ravel(), np.asarray(expected, np.float32))


@pytest.mark.parametrize("kind", ["annotations", "faces"])
def test_datasets_shows_images_and_keeps_lengths(
    world: Path, shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    import datasets

    files = shards if kind == "faces" else committed_parts(str(world / "annotations"))
    data = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    schema = (faces_schema if kind == "faces" else annotations_schema)(EMBEDDING)
    assert data.column_names == schema.names
    assert isinstance(data.features["crop"], datasets.Image)
    assert isinstance(data.features["skin_mask"], datasets.Image)
    lengths = {"bbox": 4, "landmarks": 136, "crop_transform": 6, "embedding": EMBEDDING}
    assert {name: data.features[name].length for name in lengths} == lengths
    assert data.features["landmarks"].feature == datasets.Value("float32")
    assert data.features["width"] == datasets.Value("int32")
    stored = {row["face_id"]: row for uri in files for row in pq.read_table(uri).to_pylist()}
    assert len(data) == len(stored)
    for row in data:
        expected = stored[row["face_id"]]
        assert np.array_equal(row["crop"], Image.open(io.BytesIO(expected["crop"]["bytes"])))
        assert close(row["landmarks"], expected["landmarks"])
        assert (row["skin_mask"] is None) == (expected["skin_mask"] is None)
        assert row["skin_mask"] is None or row["skin_mask"].mode == "L"


def test_every_column_has_its_feature() -> None:
    for schema in (annotations_schema(128), faces_schema(512)):
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        assert set(features) == set(schema.names)


def test_duckdb(shards: list[str], truth: dict[str, dict[str, Any]]) -> None:
    import duckdb

    database = duckdb.connect()
    rows = database.sql(
        f"select face_id, octet_length(crop.bytes), landmarks, skin_mask is null, split from read_parquet({shards!r})"
    ).fetchall()
    assert len(rows) == len(truth)
    for face_id, size, landmarks, no_mask, split in rows:
        expected = truth[face_id]
        assert size == len(expected["crop"]["bytes"])
        assert close(landmarks, expected["landmarks"])
        assert (no_mask, split) == (expected["skin_mask"] is None, expected["split"])
    counts = database.sql(f"select identity_id, count(*) from read_parquet({shards!r}) group by all").fetchall()
    assert sum(count for _, count in counts) == len(truth)


@pytest.mark.slow
def test_pandas(shards: list[str], truth: dict[str, dict[str, Any]]) -> None:
    import pandas

    table = pandas.concat([pandas.read_parquet(uri) for uri in shards])
    assert len(table) == len(truth)
    for row in table.itertuples():
        expected = truth[row.face_id]
        assert row.crop == expected["crop"]
        assert close(row.embedding, expected["embedding"])
        assert np.float32(row.sharpness) == np.float32(expected["sharpness"])


@pytest.mark.slow
def test_pyarrow_datasets(shards: list[str], truth: dict[str, dict[str, Any]]) -> None:
    data = pyarrow.dataset.dataset(shards, format="parquet")
    assert data.schema.equals(faces_schema(EMBEDDING))
    row = next(iter(truth.values()))
    found = data.to_table(filter=pyarrow.dataset.field("face_id") == row["face_id"]).to_pylist()
    assert found == [row]


@pytest.mark.slow
def test_ray_data(shards: list[str], truth: dict[str, dict[str, Any]], ray_cluster: None) -> None:
    import ray

    rows = ray.data.read_parquet(shards, columns=["face_id", "crop", "landmarks"]).take_all()
    assert len(rows) == len(truth)
    for row in rows:
        expected = truth[row["face_id"]]
        assert row["crop"] == expected["crop"]
        assert close(row["landmarks"], expected["landmarks"])


def test_reconstruct_asks_which_of_the_images() -> None:
    schema = faces_schema(EMBEDDING)
    found = image_column(schema, "crop", "train.parquet")
    assert found is not None
    assert found.name == "crop"
    with pytest.raises(SourceError, match=r"may be in crop or skin_mask.*inputs.image_column=crop"):
        image_column(schema, None, "train.parquet")
