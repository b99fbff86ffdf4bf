"""Parquet files with images inside: which column, which rows, what is read, what damage does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.engine import SourceConfig
from tasks.sources import tables
from tasks.sources.discover import SourceError, discover
from tasks.sources.read import ReadError, read_item, read_items
from tasks.sources.table_columns import image_column
from tasks.store.storage import StorageError, Store

IMAGES = [b"image %d" % number * (1 + number % 7) for number in range(50)]


def structs(values: Sequence[bytes | None]) -> pa.Array:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([None if value is None else {"bytes": value, "path": "x.jpg"} for value in values], kind)


def column_name(schema: pa.Schema, wanted: str | None, uri: str = "") -> str:
    column = image_column(schema, wanted, uri)
    assert column is not None
    return column.name


def write(path: Path, group: int = 20, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


@pytest.mark.parametrize("kind", ["struct", "binary"])
def test_rows_are_items_in_any_order(tmp_path: Path, placed: Callable[[Path], str], kind: str) -> None:
    column = structs(IMAGES) if kind == "struct" else pa.array(IMAGES)
    write(tmp_path / "train.parquet", image=column, label=list(range(50)))
    folder = placed(tmp_path)
    source = f"{folder}/train.parquet"
    items = list(discover(source))
    assert [item.source_uri for item in items][:2] == [f"{source}#image[0]", f"{source}#image[1]"]
    assert [item.offset for item in items] == list(range(50))
    assert items[3].image_id == list(discover(folder))[3].image_id
    assert [data for _, data in read_items(items, threads=4)] == IMAGES
    for number in (49, 3, 4, 45, 0, 19, 20):
        assert read_item(items[number]) == IMAGES[number]
    with pytest.raises(ReadError, match="bytes, more than the limit of 10 bytes"):
        read_item(items[6], max_bytes=10)


def test_reading_forwards_opens_once_and_decodes_each_batch_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = list(discover(str(write(tmp_path / "p.parquet", image=pa.array(IMAGES)))))
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


def test_folder_of_images_and_tables(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    write(tmp_path / "b" / "t.parquet", photo=structs(IMAGES[:2]))
    write(tmp_path / "metadata.parquet", file_name=["a.jpg"], age=[3.5])  # an imagefolder's labels
    write(tmp_path / "_plan" / "x.parquet", photo=pa.array(IMAGES))
    write(tmp_path / "_notes.parquet", photo=pa.array(IMAGES))
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
    two = pa.table({"crop": structs(IMAGES), "mask": structs(IMAGES), "label": list(range(50))})
    features = {"crop": {"_type": "Image"}, "mask": {"_type": "Audio"}, "label": {"_type": "Value"}}
    note = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    assert column_name(two.schema.with_metadata(note), None) == "crop"
    assert column_name(two.rename_columns(["image", "mask", "l"]).schema, None) == "image"
    assert column_name(two.schema, "mask") == "mask"
    assert column_name(pa.schema([("embedding", pa.binary()), ("x", two.schema[0].type)]), None) == "x"
    assert image_column(pa.schema([("a", pa.string())]), None, "") is None
    pq.write_table(two, tmp_path / "two.parquet")
    place = str(tmp_path / "two.parquet")
    for settings, message in (
        ({}, r"two.parquet: images may be in crop or mask.*inputs.image_column=crop.*label \(int64\)"),
        ({"image_column": "label"}, r"the column 'label' .* is no column of bytes .*crop \(struct"),
        ({"image_column": "nope"}, r"the column 'nope' .* does not exist. The columns are crop"),
    ):
        with pytest.raises(SourceError, match=message):
            list(discover(place, SourceConfig(**settings)))
    write(tmp_path / "none" / "t.parquet", age=[1.5])
    with pytest.raises(SourceError, match=r"no column of images .* and none of URIs. The columns are age \(double\)"):
        list(discover(str(tmp_path / "none" / "t.parquet")))
    with pytest.raises(SourceError, match="no images in"):
        list(discover(str(tmp_path / "none")))


def test_empty_and_missing_values_fail_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "p.parquet", image=structs([b"a", None, b""]), other=pa.array([None, b"x", b"y"]))
    first, missing, empty = discover(str(path))
    assert (read_item(first), read_item(empty)) == (b"a", b"")
    with pytest.raises(ReadError, match=r"row 1 of .* holds no bytes"):
        read_item(missing)
    (null, *_) = discover(str(path), SourceConfig(image_column="other"))
    with pytest.raises(ReadError, match=r"row 0 of .* holds no bytes"):
        read_item(null)


def test_a_table_that_changed_since_the_plan(tmp_path: Path) -> None:
    path = write(tmp_path / "p.parquet", image=pa.array(IMAGES))
    item = next(discover(str(path)))
    assert read_item(item) == IMAGES[0]
    os.utime(path)
    assert read_item(next(discover(str(path)))) == IMAGES[0]
    with pytest.raises(ReadError, match="changed since the plan"):
        read_item(item)


def test_a_dataset_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    rows = {"image": [{"bytes": data, "path": None} for data in IMAGES], "label": list(range(50))}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "data.parquet"))
    assert [data for _, data in read_items(discover(str(tmp_path)))] == IMAGES


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def cells(*rows: tuple[bytes | None, str | None] | None) -> list[dict[str, Any] | None]:
    return [None if row is None else {"bytes": row[0], "path": row[1]} for row in rows]


def members_of(path: Path, **settings: Any) -> dict[str, bytes | str]:
    """Member to its bytes, or to the message of the error that reading it raised."""
    items = discover(str(path), SourceConfig(**settings))
    return {
        item.member or "": data if isinstance(data, bytes) else str(data) for item, data in read_items(items, threads=2)
    }


@pytest.mark.parametrize("empty", [pa.binary(), pa.null(), pa.large_binary()])
@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_paths_are_read_where_the_bytes_are_missing(tmp_path: Path, empty: pa.DataType, text: pa.DataType) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"a")
    (tmp_path / "b.heic").write_bytes(b"b")
    kind = pa.struct([("bytes", empty), ("path", text)])
    names = ["images/a.jpg", str(tmp_path / "b.heic"), "gone.jpg", None]
    paths = pa.array(names).cast(text) if not pa.types.is_dictionary(text) else pa.array(names).dictionary_encode()
    column = pa.StructArray.from_arrays([pa.nulls(4, empty), paths], fields=list(kind))
    found = members_of(write(tmp_path / "p.parquet", image=column))
    assert (found["image[0]"], found["image[1]"]) == (b"a", b"b")
    assert found["image[2]"] == f"image[2] has no bytes and names {tmp_path}/gone.jpg, which does not exist"
    assert "holds no bytes and no path" in str(found["image[3]"])


def test_paths_in_a_bucket_and_their_limits(tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(s3.uri("table-paths"))
    store.write("images/a.jpg", b"a")
    table = write(tmp_path / "p.parquet", image=pa.array(cells((None, "../images/a.jpg"), (b"own", "x")), IMAGE))
    store.write("tables/p.parquet", table.read_bytes())
    items = list(discover(store.join("tables/p.parquet")))
    assert [read_item(item) for item in items] == [b"a", b"own"]
    with pytest.raises(ReadError, match="limit of 0 bytes"):
        read_item(items[0], max_bytes=0)
    monkeypatch.setenv("DECA_ALLOWED_ROOTS", str(tmp_path))
    with pytest.raises(StorageError, match=r"images/a.jpg is not read: a file in .*/tables names it"):
        read_item(items[0])
    monkeypatch.setenv("DECA_ALLOWED_ROOTS", f"{tmp_path},{store.uri}")
    assert read_item(items[0]) == b"a"


def test_a_link_does_not_lead_out_of_the_allowed_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "in.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "t" / "own.jpg").write_bytes(b"own")
    rows = cells((None, "in.jpg"), (None, str(tmp_path / "secret.jpg")), (None, "own.jpg"))
    path = write(tmp_path / "t" / "p.parquet", image=pa.array(rows, IMAGE))
    assert list(members_of(path).values()) == [b"secret", b"secret", b"own"]  # as a list's
    monkeypatch.setenv("DECA_ALLOWED_ROOTS", str(tmp_path / "out"))
    first, second, third = members_of(path).values()
    assert "in.jpg is not read" in str(first)
    assert "secret.jpg is not read" in str(second)
    assert third == b"own"


LISTS = [
    pa.list_(IMAGE),
    pa.large_list(IMAGE),
    pa.list_(pa.struct([("bytes", pa.large_binary())])),
]


@pytest.mark.parametrize("kind", LISTS, ids=str)
def test_lists_give_a_row_an_image_with_its_index(tmp_path: Path, kind: pa.DataType) -> None:
    def image(data: bytes) -> dict[str, Any]:
        return {field.name: {"bytes": data, "path": "x.jpg"}[field.name] for field in kind.value_type}

    rows = [[image(b"a"), image(b"b")], [], None, [image(b"c")] * 3, [None, image(b"d")]]
    table = pa.table({"images": pa.array(rows, kind), "label": range(5)})
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=2)
    found = members_of(tmp_path / "p.parquet")
    names = ["[0][0]", "[0][1]", "[3][0]", "[3][1]", "[3][2]", "[4][0]", "[4][1]"]
    assert list(found) == [f"images{name}" for name in names]
    expected = [b"a", b"b", b"c", b"c", b"c", None, b"d"]
    for value, wanted in zip(found.values(), expected, strict=True):
        if wanted is None:
            assert "holds no bytes" in str(value)
        else:
            assert value == wanted
    items = list(discover(str(tmp_path / "p.parquet")))
    assert [item.offset for item in items] == [0, 0, 3, 3, 3, 4, 4]
    assert isinstance(read_item(items[6]), bytes)  # backwards as well
    assert isinstance(read_item(items[0]), bytes)


def test_lists_of_paths(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"x")
    for nothing in (pa.nulls(3), pa.nulls(3, pa.binary())):
        images = pa.StructArray.from_arrays([nothing, pa.array(["x.jpg", "x.jpg", "gone.jpg"])], ["bytes", "path"])
        path = write(tmp_path / "p.parquet", images=pa.ListArray.from_arrays([0, 2, 2, 3], images))
        first, second, gone = members_of(path).values()
        assert first == second == b"x"
        assert "images[2][0] has no bytes and names" in str(gone)


def test_lists_of_a_fixed_size_and_of_plain_bytes(tmp_path: Path) -> None:
    pair = pa.list_(IMAGE, 2)
    path = write(tmp_path / "pairs.parquet", pair=pa.array([cells((b"a", None), (b"b", None))] * 2, pair))
    assert members_of(path) == {"pair[0][0]": b"a", "pair[0][1]": b"b", "pair[1][0]": b"a", "pair[1][1]": b"b"}
    plain = write(tmp_path / "plain.parquet", tokens=pa.array([[b"a"], [b"b", b"c"]]))
    with pytest.raises(SourceError, match=r"Name one: --set inputs.image_column=NAME"):
        members_of(plain)  # tokens, most often: only where the config names it
    assert list(members_of(plain, image_column="tokens").values()) == [b"a", b"b", b"c"]


def test_images_below_structs(tmp_path: Path) -> None:
    sample = pa.struct([("image", IMAGE), ("age", pa.int32()), ("views", pa.list_(pa.struct([("image", IMAGE)])))])
    rows = [
        {"image": {"bytes": b"a", "path": None}, "age": 1, "views": [{"image": {"bytes": b"v", "path": None}}]},
        None,
        {"image": None, "age": 3, "views": [None, {"image": {"bytes": b"w", "path": None}}]},
    ]
    path = write(tmp_path / "p.parquet", sample=pa.array(rows, sample))
    with pytest.raises(SourceError, match=r"may be in sample.image or sample.views.image.*image_column=sample.image\."):
        members_of(path)
    found = members_of(path, image_column="sample.image")
    assert found["sample.image[0]"] == b"a"
    assert "holds nothing" in str(found["sample.image[1]"])
    assert "holds no bytes" in str(found["sample.image[2]"])
    views = members_of(path, image_column="sample.views.image")
    assert views == {"sample.views.image[0][0]": b"v", "sample.views.image[2][1]": b"w"}


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), "dictionary", "path dictionary"])
def test_bytes_in_every_storage(tmp_path: Path, kind: Any) -> None:
    values = [b"a", b"b", b"a", None]
    if kind == "dictionary":
        column = pa.array(values).dictionary_encode()
    elif kind == "path dictionary":
        parts = [pa.array(values).dictionary_encode(), pa.array(["x"] * 3 + [None]).dictionary_encode()]
        column = pa.StructArray.from_arrays(parts, ["bytes", "path"])
    else:
        column = pa.array(values, kind)
    found = members_of(write(tmp_path / "p.parquet", image=column))
    assert list(found.values())[:3] == [b"a", b"b", b"a"]
    assert "holds no bytes" in str(found["image[3]"])


def test_a_table_that_may_be_a_list_too_must_be_named(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"x")
    path = write(tmp_path / "p.parquet", url=["x.jpg"], images=pa.array([cells((b"a", None))], pa.list_(IMAGE)))
    with pytest.raises(
        SourceError, match=r"in images, and url may name files.*image_column=images or .*uri_column=url"
    ):
        members_of(path)
    assert members_of(path, image_column="images") == {"images[0][0]": b"a"}
    assert members_of(path, uri_column="url") == {"": b"x"}


def test_columns_of_an_earlier_version_stay_the_chosen_ones(tmp_path: Path) -> None:
    """Columns at the top go before nested ones, so that no earlier plan reads another column now."""
    schema = pa.schema([("jpg", pa.binary()), ("thumbs", pa.list_(IMAGE)), ("s", pa.struct([("i", IMAGE)]))])
    assert column_name(schema, None) == "jpg"
    awkward = pa.table({"a[0]": pa.array([b"x", b"y"]), "b": [1, 2]})
    pq.write_table(awkward, tmp_path / "p.parquet")
    assert members_of(tmp_path / "p.parquet") == {"a[0][0]": b"x", "a[0][1]": b"y"}


def test_the_features_of_hugging_face_reach_into_lists_and_structs() -> None:
    two = pa.struct([("sound", IMAGE), ("views", pa.list_(IMAGE))])
    features = {
        "s": {"sound": {"_type": "Audio"}, "views": {"feature": {"_type": "Image"}, "_type": "List"}},
        "old": [{"_type": "Value"}],
    }
    note = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    schema = pa.schema([("s", two), ("old", pa.list_(pa.int8()))])
    assert column_name(schema.with_metadata(note), None) == "s.views"


def test_damage_and_false_counts_in_lists_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "p.parquet", images=pa.array([cells((b"a" * 999, "x.jpg"))] * 9, pa.list_(IMAGE)))
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(0).column(1).dictionary_page_offset  # of the paths
    data[start : start + 30] = bytes(30)
    (tmp_path / "broken.parquet").write_bytes(data)
    with pytest.raises(SourceError, match="cannot read"):
        list(discover(str(tmp_path / "broken.parquet")))
    assert len(list(discover(str(tmp_path)))) == 9 + 1  # in a folder it is one item, which fails when it is read
    (broken, *_) = discover(str(tmp_path))
    with pytest.raises(ReadError, match="damaged archive"):
        read_item(broken)
    monkeypatch.setattr(tables, "MOST_VALUES", 8)
    with pytest.raises(SourceError, match="9 values in lists, the limit is 8"):
        list(discover(str(path)))


def test_local_images_as_hugging_face_writes_them(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    for name in "ab":
        Image.new("RGB", (8, 8), (ord(name), 0, 0)).save(tmp_path / f"{name}.png")
    paths = [str(tmp_path / f"{name}.png") for name in "ab"]
    one = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image(decode=False))
    many = datasets.Dataset.from_dict({"views": [paths, paths[:1]]})
    many = many.cast_column("views", datasets.List(datasets.Image(decode=False)))
    for dataset, name, count in ((one, "one", 2), (many, "many", 3)):
        (tmp_path / name).mkdir()
        dataset.to_parquet(str(tmp_path / name / "p.parquet"))
        found = [data for _, data in read_items(discover(str(tmp_path / name)))]
        assert found == [Path(path).read_bytes() for path in [*paths, paths[0]][:count]]
