"""Versions: reading, taking old ones away whatever interrupts it, and a check that finds every kind of untruth."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from schemas.ledger import StoredFile
from schemas.parquet import write_table
from tasks.people import versions
from tasks.people.shard import publish
from tasks.people.versions import (
    FacesError,
    current,
    gc,
    list_versions,
    named_files,
    open_faces,
    read_assignments,
    read_version,
    verify_faces,
)
from tasks.store.scratch import STALE_SECONDS
from tasks.store.storage import Store, hash_file
from tests.tasks.annotated import add_photos, annotate, assign, settings


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions of 60 faces: the second shares shards with the first, the third with neither."""
    folder = tmp_path_factory.mktemp("three")
    add_photos(folder / "photos", range(30))
    annotate(folder / "photos", folder / "annotations")
    for number, (people, left_out, size) in enumerate([(12, 7, 8), (12, 6, 8), (5, 6, 30)], start=1):
        assignments = assign(folder / "annotations", people, left_out=left_out)
        config = settings(folder, faces_per_shard=size)
        version, _ = publish(str(folder / "faces"), str(folder / "annotations"), assignments, config)
        assert version.version == number
    return folder


@pytest.fixture
def faces(three: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(three / "faces", tmp_path / "faces"))


def present(faces: Path) -> set[str]:
    return {str(path.relative_to(faces)) for path in faces.rglob("*") if path.is_file()}


def everything(faces: Path, *numbers: int) -> set[str]:
    """What a folder holds that keeps these versions."""
    names = {f"versions/{number:06d}.json" for number in numbers} | {"_current.json"}
    return names.union(*(named_files(read_version(str(faces), number)) for number in numbers))


# --- reading ----------------------------------------------------------------------------------------------------------


def test_readers_find_the_version_that_holds(faces: Path) -> None:
    assert list_versions(str(faces)) == [1, 2, 3]
    version = current(str(faces))
    assert version == read_version(str(faces), 3)
    opened = open_faces(str(faces))
    assert opened.version == version
    rows = {split: pa.concat_tables([pq.read_table(uri) for uri in opened.uris(split)]) for split in ("train", "val")}
    assert set(rows["train"]["split"].to_pylist()) == {"train"}
    assert set(rows["val"]["split"].to_pylist()) == {"val"}
    index = opened.identities()
    assert pc.sum(index["rows"]).as_py() == len(rows["train"]) + len(rows["val"])
    for row in index.to_pylist():
        ids = pq.read_table(faces / row["shard"])["identity_id"].to_pylist()
        first, last = row["first_row"], row["first_row"] + row["rows"]
        assert [at for at, name in enumerate(ids) if name == row["identity_id"]] == list(range(first, last))
    assignments = read_assignments(str(faces))
    assert assignments is not None
    assert len(assignments) == 60


def test_absent_and_damaged_versions_are_named(faces: Path, tmp_path: Path) -> None:
    assert current(str(tmp_path / "none")) is None
    assert read_assignments(str(tmp_path / "none")) is None
    assert gc(str(tmp_path / "none")) == []
    with pytest.raises(FacesError, match=r"none holds no version. Publish one with: deca ingest"):
        open_faces(str(tmp_path / "none"))
    with pytest.raises(FacesError, match=r"holds no version 9; it holds 1, 2, 3"):
        read_version(str(faces), 9)
    (faces / read_version(str(faces), 3).assignments_file.file).unlink()
    with pytest.raises(FacesError, match=r"index/assignments-.* is missing. Look with: deca verify"):
        read_assignments(str(faces))
    (faces / "_current.json").write_text("{}")
    with pytest.raises(FacesError, match=r"_current.json is damaged .*version: Field required.*kept record"):
        current(str(faces))


# --- taking away ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "left"), [(0, (3,)), (1, (2, 3)), (2, (1, 2, 3)), (9, (1, 2, 3))])
def test_gc_keeps_what_is_named(faces: Path, keep: int, left: tuple[int, ...]) -> None:
    before, expected = present(faces), everything(faces, *left)
    deleted = gc(str(faces), keep)
    assert present(faces) == expected
    assert set(deleted) == before - expected
    assert verify_faces(str(faces)).ok
    assert gc(str(faces), keep) == []


@pytest.mark.parametrize("deletions", [0, 1, 2, 5])
def test_an_interrupted_gc_leaves_whole_versions(faces: Path, monkeypatch: pytest.MonkeyPatch, deletions: int) -> None:
    done: list[str] = []
    delete = Store.delete

    def interrupted(self: Store, name: str) -> None:
        if len(done) == deletions:
            raise KeyboardInterrupt
        done.append(name)
        delete(self, name)

    monkeypatch.setattr(Store, "delete", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gc(str(faces))
    monkeypatch.undo()
    for number in list_versions(str(faces)):
        assert named_files(read_version(str(faces), number)) <= present(faces)
    assert verify_faces(str(faces)).ok
    for path in [*(faces / "data").iterdir(), *(faces / "index").iterdir()]:
        os.utime(path, (time.time() - STALE_SECONDS - 60,) * 2)
    gc(str(faces))
    assert present(faces) == everything(faces, 3)


def test_gc_leaves_what_may_be_on_its_way(faces: Path) -> None:
    (faces / "data/train-00000-0a1b2c3d.parquet").write_bytes(b"of a publication that is not recorded yet")
    (faces / "data/.deca-elsewhere-1-0a1b2c3d-x.tmp").write_bytes(b"being written")
    (faces / "data/train-00000-aaaaaaaa.parquet").write_bytes(b"left over")
    os.utime(faces / "data/train-00000-aaaaaaaa.parquet", (0, 0))
    shutil.copy(faces / "versions/000003.json", faces / "_current.json")
    later = json.loads((faces / "versions/000001.json").read_text()) | {"version": 4}
    (faces / "versions/000004.json").write_text(json.dumps(later))
    assert verify_faces(str(faces)).leftovers == [
        "data/train-00000-0a1b2c3d.parquet",
        "data/train-00000-aaaaaaaa.parquet",
    ]
    expected = everything(faces, 3, 4)
    gc(str(faces))
    on_their_way = {"data/train-00000-0a1b2c3d.parquet", "data/.deca-elsewhere-1-0a1b2c3d-x.tmp"}
    assert present(faces) == expected | on_their_way


# --- checking ---------------------------------------------------------------------------------------------------------


def republish(faces: Path, field: str, number: int | None, change: Callable[[pa.Table], pa.Table]) -> None:
    """Put a changed file in place of one of the current version, recorded as if it were right."""
    record = json.loads((faces / "_current.json").read_text())
    entry = record[field] if number is None else record[field][number]
    path = faces / entry["file"]
    before = pq.read_table(path)
    after = change(before)
    assert not after.equals(before)
    write_table(after, path)
    size, sha256 = hash_file(path)
    entry.update(StoredFile(file=entry["file"], bytes=size, sha256=sha256).model_dump())
    (faces / "_current.json").write_text(json.dumps(record))


def column(name: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    """Sets a column of all rows to one value."""

    def change(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index(name)
        kind = table.schema.field(at)
        return table.set_column(at, kind, pa.array([value] * len(table), kind.type))

    return change


def interleaved(table: pa.Table) -> pa.Table:
    """The first row behind the last one, which is somebody else's."""
    assert table["identity_id"][0] != table["identity_id"][-1]
    return pa.concat_tables([table.slice(1), table.slice(0, 1)])


def doubled(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(0, 1), table.slice(0, len(table) - 1)])


@pytest.mark.parametrize(
    ("field", "number", "change", "message"),
    [
        ("shards", 0, interleaved, "lies in 2 places"),
        ("shards", 0, doubled, "face_id .*: 2 times"),
        ("shards", 0, lambda table: table.slice(1), "rows, .* recorded"),
        ("shards", 0, column("split", "val"), "does not belong to the split train"),
        ("shards", 0, column("identity_id", "nobody"), "the faces it keeps are not those in the shards"),
        ("identities_file", None, column("first_row", 1), "is not where the identities lie"),
        ("assignments_file", None, column("left_out", None), "the faces it keeps are not those in the shards"),
    ],
)
def test_untruths_are_found(faces: Path, field: str, number: int | None, change: Any, message: str) -> None:
    assert verify_faces(str(faces)).ok
    republish(faces, field, number, change)
    found = verify_faces(str(faces))
    assert any(pc.match_substring_regex(pa.array([text]), message)[0].as_py() for text in found.problems), found


def test_missing_and_changed_files_are_found(faces: Path) -> None:
    version = open_faces(str(faces)).version
    gone, changed = version.shards[0].file, version.identities_file.file
    (faces / gone).unlink()
    data = bytearray((faces / changed).read_bytes())
    data[len(data) // 2] ^= 1
    (faces / changed).write_bytes(data)
    found = verify_faces(str(faces))
    assert found.problems[0] == f"{gone}: missing"
    assert found.problems[1].startswith(f"{changed}: changed since it was published")
    assert (found.files, found.rows) == (len(version.shards) + 2, version.faces)


# --- object storage ---------------------------------------------------------------------------------------------------


def test_a_bucket_holds_the_same(three: Path, s3: Any, tmp_path: Path) -> None:
    photos, dest = str(three / "photos"), s3.uri(f"ingest/{tmp_path.name}")
    annotations, faces = f"{dest}/annotations", f"{dest}/faces"
    annotate(photos, annotations)
    for people, size in ((12, 8), (5, 30)):
        config = settings(dest, faces_per_shard=size)
        publish(faces, annotations, assign(annotations, people, left_out=6), config)
    here, there = current(str(three / "faces")), current(faces)
    assert here is not None
    assert there is not None
    assert [file.sha256 for file in there.shards] == [file.sha256 for file in here.shards]
    assert there.identities_file == here.identities_file
    assert verify_faces(faces).ok
    first = named_files(read_version(faces, 1)) - named_files(there)
    assert set(gc(faces)) == {*first, "versions/000001.json"}
    found = verify_faces(faces)
    assert (found.problems, found.leftovers) == ([], [])
    (uri, *_) = open_faces(faces).uris("train")
    assert uri.startswith(faces)
    assert len(pq.read_table(pa.BufferReader(Store(faces).read(uri.removeprefix(f"{faces}/"))))) == there.shards[0].rows
    assert publish(faces, annotations, assign(annotations, 5, left_out=6), config)[1] is False


def test_ages_are_seconds_on_every_store(faces: Path, s3: Any, tmp_path: Path) -> None:
    for store in (Store(faces), Store(s3.uri(f"ages/{tmp_path.name}")), Store(f"memory://{tmp_path.name}")):
        store.write("data/x.parquet", b"x")
        assert versions._age(store, "data/x.parquet") < 60
        assert versions._age(store, "data/gone.parquet") == 0
    os.utime(faces / "data/x.parquet", (time.time() - 3600,) * 2)
    assert 3590 < versions._age(Store(faces), "data/x.parquet") < 3700
