"""Rows of reconstructions by id and filter, their codes, the model that made them, and what is asked for in vain."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from schemas.parquet import fixed_values
from tasks.heads.selection import HeadsError, codes_of, config_of, iter_chosen, iter_heads, model_for, read_heads
from tasks.units.commits import committed_parts
from tasks.units.plan import PlanError


@pytest.fixture
def heads(stored_heads: str) -> str:
    return stored_heads


def test_all_rows_are_those_of_the_commits(heads):
    stray = Path(heads, "part-00009-deadbeef.parquet")
    shutil.copy(committed_parts(heads)[0], stray)  # a part without a commit is not data
    try:
        table = read_heads(heads).table
    finally:
        stray.unlink()
    assert table.equals(pq.read_table(committed_parts(heads)).combine_chunks())
    assert table.num_rows == 7


def test_ids_of_each_kind_come_in_the_order_asked_for(heads):
    found = read_heads(heads, ["002001-00", "person-001", "000001", "001001-00"], columns=["exp"])
    assert found.face_ids == ["002001-00", "001000-00", "001001-00", "001002-00", "000001-00"]
    assert found.table.column_names == ["face_id", "exp"]


def test_a_filter_narrows_and_reads_no_more_columns_than_asked(heads):
    everything = read_heads(heads)
    bound = float(np.median(fixed_values(everything.table, "exp")[:, 2]))
    chosen = read_heads(heads, where=f"exp[2] > {bound} and identity_id != 'person-002'", columns=["pose"])
    expected = [
        face
        for face, exp, person in zip(
            everything.face_ids,
            fixed_values(everything.table, "exp")[:, 2],
            everything.table["identity_id"].to_pylist(),
            strict=True,
        )
        if exp > bound and person != "person-002"
    ]
    assert chosen.face_ids == expected
    assert chosen.table.column_names == ["face_id", "pose"]
    both = read_heads(heads, ids=["person-000", "person-001"], where=f"exp[2] > {bound}")
    assert both.face_ids == expected


def test_streaming_gives_the_same_rows_in_batches(heads):
    tables = list(iter_heads(heads, columns=["face_id", "detail"], batch=2))
    assert [table.num_rows for table in tables] == [2, 2, 2, 1]
    together = [face for table in tables for face in table["face_id"].to_pylist()]
    assert together == read_heads(heads).face_ids


def test_places_lead_back_to_the_rows(heads):
    for chosen in iter_chosen(heads, ids=["person-001"], columns=["face_id"]):
        part = pq.read_table(Path(heads, chosen.part.file))
        assert part["face_id"].take(chosen.rows).to_pylist() == chosen.table["face_id"].to_pylist()


def test_codes_decode_to_the_stored_displacement(heads):
    found = read_heads(heads, ["001001-00", "000000-00"])
    model = model_for(heads)
    with torch.inference_mode():
        displacement = model.displacement(found.codes)[:, 0].numpy()
    step = 0.01 / 65535
    np.testing.assert_allclose(displacement, fixed_values(found.table, "displacement"), atol=2 * step)
    assert found.codes.light.shape == (2, 9, 3)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"ids": ["001001-01"]}, "no face, image or identity '001001-01'. Did you mean 001001-00"),
        ({"ids": ["person-001", "Eve", "Bob"]}, "identity 'Eve' .nor 1 more.*for example, 000000-00"),
        ({"where": "det_score > 2"}, "none of 7 rows matches 'det_score > 2'"),
        ({"ids": ["person-001"], "where": "det_score > 2"}, "none of the faces named of 7 rows matches"),
        ({"where": "age > 2"}, "no column 'age'; it has face_id,"),
        ({"where": "face_id > 2"}, "face_id is string"),
        ({"where": "pose[6] > 2"}, "out of bounds"),
        ({"columns": ["texture"]}, "no column 'texture'.*--outputs"),
    ],
)
def test_what_is_not_there_is_named(heads, asked, words):
    with pytest.raises(HeadsError, match=words):
        read_heads(heads, **asked)


def test_rows_without_codes_say_so(heads):
    with pytest.raises(HeadsError, match=r"rows without shape, tex.*--outputs codes"):
        codes_of(read_heads(heads, columns=["cam"]).table)


def test_other_places_are_no_reconstructions(heads, tmp_path):
    with pytest.raises(PlanError, match="no plan"):
        read_heads(str(tmp_path))
    copy = tmp_path / "copy"
    shutil.copytree(heads, copy)
    Path(committed_parts(str(copy))[1]).unlink()
    with pytest.raises(HeadsError, match=r"committed and missing.*deca verify"):
        read_heads(str(copy))
    (copy / "_config.json").unlink()
    with pytest.raises(HeadsError, match=r"_config.json: missing"):
        config_of(str(copy))


def test_a_checkpoint_that_did_not_make_the_rows_is_refused(heads, tmp_path):
    with pytest.raises(HeadsError, match=r"the checkpoint .*, this one is untrained-0: .*do not fit it.*--checkpoint"):
        model_for(heads, checkpoint="untrained")
    with pytest.raises(HeadsError, match=r"no checkpoint.json.*--checkpoint"):
        model_for(heads, checkpoint=str(tmp_path / "nowhere"))
