"""Rows of a published faces/ dataset as items: order, the crop, what is lost with a shard, and only with it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from deca_core.crop import LANDMARK_MARGIN, crop_transform, square_from_landmarks, warp
from schemas.faces import CROP_SCALE, CROP_SIZE
from schemas.ledger import Item
from tasks.people.face_rows import FaceRow, face_items, find_row, is_face_item, read_rows
from tasks.people.versions import Faces, open_faces
from tasks.sources.images import decode_image
from tests.tasks.stored_faces import publish


@pytest.fixture
def faces(tmp_path) -> Faces:
    publish(str(tmp_path / "faces"))
    return open_faces(str(tmp_path / "faces"))


def stored_ids(faces: Faces) -> list[str]:
    uris = [*faces.uris("train"), *faces.uris("val")]
    return [name for uri in uris for name in pq.read_table(uri)["face_id"].to_pylist()]


def rows_of(items: list[Item]) -> list[FaceRow]:
    rows = [row for _, row in read_rows(items)]
    assert all(isinstance(row, FaceRow) for row in rows), rows
    return rows  # type: ignore[return-value]


def test_every_row_is_an_item_in_the_datasets_order(faces):
    items = list(face_items(faces))
    assert [item.index for item in items] == list(range(48))
    assert all(map(is_face_item, items))
    rows = rows_of(items)
    assert [row.columns["face_id"] for row in rows] == stored_ids(faces)
    assert [row.item for row in rows] == items
    first = rows[0]
    assert first.columns["identity_id"] == f"person-{int(first.columns['image_id'][:3]):03d}"
    assert first.landmarks.shape == (68, 2)
    assert decode_image(first.crop).shape == (320, 320, 3)


@pytest.mark.parametrize("chosen", [[5], [0, 1, 13, 14, 47], [47, 3, 4, 20]])
def test_any_rows_may_be_asked_for(faces, chosen):
    """As a retry does: some rows, across row groups of three and across shards."""
    items = list(face_items(faces))
    ids = stored_ids(faces)
    assert [row.columns["face_id"] for row in rows_of([items[n] for n in chosen])] == [ids[n] for n in chosen]
    for number in chosen:
        assert find_row(items, ids[number]) == items[number]
    assert find_row(items, "nobody") is None


def test_a_shard_that_is_gone_costs_its_own_rows(faces):
    items = list(face_items(faces))
    victim = items[20].uri
    Path(victim).unlink()
    for item, row in read_rows(items):
        assert isinstance(row, FaceRow) != (item.uri == victim)
        if item.uri == victim:
            assert "deca gc" in str(row)


def test_a_damaged_shard_costs_its_own_rows(faces):
    items = list(face_items(faces))
    victim = Path(items[0].uri)
    victim.write_bytes(victim.read_bytes()[:-100])
    lost = {item.index for item, row in read_rows(items) if isinstance(row, Exception)}
    assert lost == {item.index for item in items if item.uri == str(victim)}


def test_rows_beyond_the_end_and_other_tables_are_errors(faces, tmp_path):
    items = list(face_items(faces))
    beyond = Item(0, items[0].uri, "face-row[999]", 999)
    [(_, error)] = read_rows([beyond])
    assert "there is no row 999" in str(error)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    [(_, error)] = read_rows([Item(0, str(tmp_path / "other.parquet"), "face-row[0]", 0)])
    assert "no column" in str(error)


def test_a_row_without_a_crop_is_alone_in_that(tmp_path):
    publish(str(tmp_path / "faces"), people=[4, 4], shards=1, crops={(0, 1): None})
    got = [isinstance(row, FaceRow) for _, row in read_rows(list(face_items(open_faces(str(tmp_path / "faces")))))]
    assert got.count(False) == 1


def test_the_crop_out_of_the_stored_crop_shows_what_the_photograph_does():
    """Against the crop made from the photograph itself: the same pixels but for one JPEG and one resampling more."""
    from skimage import data

    photograph = data.astronaut()
    angle = np.linspace(0, 2 * np.pi, 68)
    landmarks = np.stack([224 + 42 * np.cos(angle), 118 + 50 * np.sin(angle)], axis=1).astype(np.float32)
    stored = crop_transform(square_from_landmarks(landmarks, CROP_SCALE / LANDMARK_MARGIN), CROP_SIZE)
    larger = (warp(photograph, stored, CROP_SIZE) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(larger).save(buffer, "JPEG", quality=95)
    row = FaceRow(Item(0, "a"), {"landmarks": landmarks}, buffer.getvalue(), stored)
    wanted = crop_transform(square_from_landmarks(landmarks))
    got, truth = row.warped(decode_image(row.crop), wanted), warp(photograph, wanted)
    assert np.abs(got - truth).mean() < 0.012
    moved = wanted + np.array([[0, 0, 1.0], [0, 0, 0]])  # a shift of one pixel would show
    assert np.abs(row.warped(decode_image(row.crop), moved) - truth).mean() > 1.5 * np.abs(got - truth).mean()
