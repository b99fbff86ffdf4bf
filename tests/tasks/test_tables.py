"""Parquet files with pictures inside: which column, which rows, what is read, what damage does."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.engine import SourceConfig
from tasks import tables
from tasks.discover import SourceError, discover
from tasks.read import ReadError, read_item, read_items
from tasks.storage import Store

PICTURES = [b"picture %d" % number * (1 + number % 7) for number in range(50)]


def structs(values: Sequence[bytes | None]) -> pa.Array:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([None if value is None else {"bytes": value, "path": "x.jpg"} for value in values], kind)


def write(path: Path, group: int = 20, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


@pytest.mark.parametrize("where", ["local", "s3"])
@pytest.mark.parametrize("kind", ["struct", "binary"])
def test_rows_are_items_in_any_order(tmp_path: Path, where: str, kind: str, request: pytest.FixtureRequest) -> None:
    column = structs(PICTURES) if kind == "struct" else pa.array(PICTURES)
    source = str(write(tmp_path / "p" / "train.parquet", image=column, label=list(range(50))))
    if where == "s3":
        store = Store(request.getfixturevalue("s3").uri(f"tables-{kind}"))
        store.write("train.parquet", Path(source).read_bytes())
        source = store.join("train.parquet")
    items = list(discover(source))
    assert [item.source_uri for item in items][:2] == [f"{source}#image[0]", f"{source}#image[1]"]
    assert [item.offset for item in items] == list(range(50))
    assert items[3].image_id == list(discover(str(Path(source).parent) if where == "local" else store.uri))[3].image_id
    assert [data for _, data in read_items(items, threads=4)] == PICTURES
    for number in (49, 3, 4, 45, 0, 19, 20):
        assert read_item(items[number]) == PICTURES[number]
    with pytest.raises(ReadError, match="bytes, more than the limit of 10 bytes"):
        read_item(items[6], max_bytes=10)


def test_reading_forwards_opens_once_and_decodes_each_batch_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = list(discover(str(write(tmp_path / "p.parquet", image=pa.array(PICTURES)))))
    opened, batches = [], []
    real = pq.ParquetFile.iter_batches

    def counted(self: Any, *options: Any, **named: Any) -> Any:
        opened.append(named["row_groups"])
        for batch in real(self, *options, **named):
            batches.append(len(batch))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    for _ in read_items(items, threads=4):
        pass
    assert opened == [[0], [1], [2]]
    assert sum(batches) == 50
    assert max(batches) <= tables.BATCH


def test_folder_of_pictures_and_tables(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    write(tmp_path / "b" / "t.parquet", photo=structs(PICTURES[:2]))
    write(tmp_path / "metadata.parquet", file_name=["a.jpg"], age=[3.5])  # an imagefolder's labels
    write(tmp_path / "_plan" / "x.parquet", photo=pa.array(PICTURES))
    write(tmp_path / "_notes.parquet", photo=pa.array(PICTURES))
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "b" / "t.parquet").read_bytes()[:-9])
    names = [item.source_uri.removeprefix(f"{tmp_path}/") for item in discover(str(tmp_path))]
    expected = ["a.jpg", "b/t.parquet#photo[0]", "b/t.parquet#photo[1]", "cut.parquet"]
    assert names == expected
    (cut,) = (item for item in discover(str(tmp_path)) if item.uri.endswith("cut.parquet"))
    with pytest.raises(ReadError, match=r"damaged .*magic bytes"):
        read_item(cut)
    with pytest.raises(SourceError, match=r"cannot read .*cut.parquet.*Check with"):
        list(discover(str(tmp_path / "cut.parquet")))
    some = list(discover(str(tmp_path), SourceConfig(include=("*photo[[]1]",))))
    assert [item.member for item in some] == ["photo[1]", None]


def test_which_column(tmp_path: Path) -> None:
    two = pa.table({"crop": structs(PICTURES), "mask": structs(PICTURES), "label": list(range(50))})
    features = {"crop": {"_type": "Image"}, "mask": {"_type": "Audio"}, "label": {"_type": "Value"}}
    note = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    assert tables.image_column(two.schema.with_metadata(note), None, "") == "crop"
    assert tables.image_column(two.rename_columns(["image", "mask", "l"]).schema, None, "") == "image"
    assert tables.image_column(two.schema, "mask", "") == "mask"
    assert tables.image_column(pa.schema([("embedding", pa.binary()), ("x", two.schema[0].type)]), None, "") == "x"
    assert tables.image_column(pa.schema([("a", pa.string())]), None, "") is None
    pq.write_table(two, tmp_path / "two.parquet")
    place = str(tmp_path / "two.parquet")
    for settings, message in (
        ({}, r"two.parquet: pictures may be in crop or mask.*inputs.image_column=crop.*label \(int64\)"),
        ({"image_column": "label"}, r"the column 'label' .* is no column of bytes .*crop \(struct"),
        ({"image_column": "nope"}, r"the column 'nope' .* does not exist. The columns are crop"),
    ):
        with pytest.raises(SourceError, match=message):
            list(discover(place, SourceConfig(**settings)))
    write(tmp_path / "none" / "t.parquet", age=[1.5])
    with pytest.raises(SourceError, match=r"no column of pictures .* and none of URIs. The columns are age \(double\)"):
        list(discover(str(tmp_path / "none" / "t.parquet")))
    with pytest.raises(SourceError, match="no pictures in"):
        list(discover(str(tmp_path / "none")))


def test_empty_and_missing_values_fail_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "p.parquet", image=structs([b"a", None, b""]), other=pa.array([None, b"x", b"y"]))
    with pytest.raises(SourceError, match="image_column"):
        list(discover(str(path), SourceConfig(image_column="gone")))
    first, missing, empty = discover(str(path))
    assert (read_item(first), read_item(empty)) == (b"a", b"")
    with pytest.raises(ReadError, match=r"row 1 of .* holds no bytes"):
        read_item(missing)
    (null, *_) = discover(str(path), SourceConfig(image_column="other"))
    with pytest.raises(ReadError, match=r"row 0 of .* holds no bytes"):
        read_item(null)


def test_a_table_that_changed_since_the_plan(tmp_path: Path) -> None:
    path = write(tmp_path / "p.parquet", image=pa.array(PICTURES))
    item = next(discover(str(path)))
    assert read_item(item) == PICTURES[0]
    os.utime(path)
    assert read_item(next(discover(str(path)))) == PICTURES[0]
    with pytest.raises(ReadError, match="changed since the plan"):
        read_item(item)


def test_a_dataset_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    rows = {"image": [{"bytes": data, "path": None} for data in PICTURES], "label": list(range(50))}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "data.parquet"))
    assert [data for _, data in read_items(discover(str(tmp_path)))] == PICTURES
