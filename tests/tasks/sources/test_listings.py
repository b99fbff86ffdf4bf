"""Lists of URIs: columns, relative paths, rows that name nothing, rows that name what is not there."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.engine import SourceConfig
from tasks.sources.discover import SourceError, discover
from tasks.sources.listings import LONGEST, LONGEST_LINE, listed_uris
from tasks.sources.read import read_item
from tasks.store.ranges import ReadError
from tasks.store.storage import Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "sub/b.png", "no extension", "c,1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def names(folder: Path, source: Path, **settings: Any) -> list[str]:
    return [item.uri.removeprefix(f"{folder}/") for item in discover(str(source), SourceConfig(**settings))]


def put(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_kinds_of_lists_give_the_same_plan(folder: Path) -> None:
    entries = ["sub/b.png", "a.jpg", "no extension", "c,1.jpg"]
    quoted = ["sub/b.png", "a.jpg", "no extension", '"c,1.jpg"']
    table = pa.table({"label": [1, 2, 3, 4], "path": pa.array(entries).dictionary_encode()})
    pq.write_table(table, folder / "l.parquet")
    sources = [
        put(folder / "l.txt", "\ufeff" + "\r\n".join(["", *entries, " "])),
        put(folder / "l.csv", "label, path\n" + "".join(f"x,{entry}\n" for entry in quoted) + "\n"),
        put(folder / "l.tsv", "url\tx\n" + "".join(f"{entry}\t\n" for entry in entries)),
        folder / "l.parquet",
    ]
    plans = [list(discover(str(source))) for source in sources]
    assert plans[0] == plans[1] == plans[2] == plans[3]
    assert [item.uri for item in plans[0]] == [f"{folder}/{entry}" for entry in entries]
    assert [read_item(item) for item in plans[0]] == [entry.encode() for entry in entries]
    (single,) = discover(str(folder / "a.jpg"))
    assert plans[0][1].image_id == single.image_id  # the same id as from the folder
    assert names(folder, put(folder / "o.csv", "url,mine\nx,a.jpg\n"), uri_column="mine") == ["a.jpg"]
    assert names(folder, folder / "l.txt", exclude=("sub/*",), include=("*.png", "*.jpg")) == ["a.jpg", "c,1.jpg"]


def test_doubled_entries_are_planned_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "deca"):
        text = f"a.jpg\n./a.jpg\n{folder}/a.jpg\nfile://{folder}/a.jpg\nsub/../a.jpg\nsub/b.png\na.jpg\n"
        assert names(folder, put(folder / "l.txt", text)) == ["a.jpg", "sub/b.png"]
    assert "names 5 images more than once" in caplog.text


def test_what_is_not_there_fails_alone(folder: Path, s3: Any) -> None:
    store = Store(s3.uri("lists/in"))
    store.write("here.jpg", b"here")
    store.write("l.csv", b"uri\nhere.jpg\ngone.jpg\ns3://photos/lists/in/here.jpg\n../in/here.jpg\nnope://x/y.jpg\n")
    here, gone, foreign = discover(store.join("l.csv"))
    assert [here.uri, gone.uri] == [store.join("here.jpg"), store.join("gone.jpg")]
    assert (here.size, here.etag) == (-1, None)  # not looked up
    assert read_item(here) == b"here"
    with pytest.raises(FileNotFoundError):
        read_item(gone)
    with pytest.raises(Exception, match="no file system for nope://"):
        read_item(foreign)
    missing, present = discover(str(put(folder / "l.txt", "gone.tar\na.jpg\n")))
    with pytest.raises(Exception, match="damaged archive: FileNotFoundError"):
        read_item(missing)
    assert read_item(present) == b"a.jpg"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "path,x\na.jpg,1\n,2\n", r"l.csv, line 3: empty"),
        ("l.csv", "path\na.jpg\nNaN\n", r"l.csv, line 3: empty"),
        ("l.csv", "x,path\n1,a.jpg\n2\n", r"l.csv, line 3: 1 columns where the header has 2"),
        ("l.csv", "a.jpg\nb.jpg\n", r"l.csv: no column called uri, .*; the columns are a.jpg. Name .*uri_column=NAME"),
        ("l.csv", "", r"l.csv: no column called uri"),
        ("l.csv", f"path\na.jpg\n{'x' * (LONGEST + 1)}\n", rf"l.csv, line 3: {LONGEST + 1} characters \('xxx.*'...\)"),
        ("l.csv", f"path\n{'x' * 200_000}\n", r"l.csv, line 2: field larger than field limit"),
        ("l.csv", f"path\n{'x' * LONGEST_LINE}", r"l.csv, line 2: longer than 1048576 characters"),
        ("l.csv", 'path\n"a\nb.jpg"\n', r"l.csv, line 3: 'a\\nb.jpg' has control characters"),
        ("l.txt", "a.jpg\nb\0.jpg\n", r"l.txt, line 2: 'b\\x00.jpg' has control characters"),
        ("l.txt", "a.jpg\ns3://key:secret@b:1/c.jpg\n", r"l.txt, line 2: s3:// URI with credentials"),
        ("l.txt", "\n \n", r"no images in .*l.txt"),
    ],
)
def test_rows_that_name_nothing_are_errors_with_file_and_row(folder: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        list(discover(str(put(folder / name, text))))
    assert len(str(caught.value)) < 700
    assert "secret" not in str(caught.value)


def test_bytes_that_are_no_text(folder: Path) -> None:
    (folder / "l.txt").write_bytes(b"a.jpg\n\xff\xfe.jpg\n")
    with pytest.raises(SourceError, match=r"l.txt: not UTF-8 text"):
        list(discover(str(folder / "l.txt")))


def test_hostile_columns_of_parquet(folder: Path) -> None:
    path = folder / "l.parquet"

    def refused(message: str, column: Any, **settings: Any) -> None:
        pq.write_table(pa.table({"path": column, "n": list(range(len(column)))}), path)
        with pytest.raises(SourceError, match=message):
            list(discover(str(path), SourceConfig(**settings)))

    refused(
        r"l.parquet: the column 'path' is double, not text. The columns are path \(double\), n", [1.0, float("nan")]
    )
    refused(r"l.parquet, row 1: empty", ["a.jpg", None])
    refused(r"l.parquet, row 2: 10000000 characters", ["a.jpg", "b.jpg", "x" * 10**7])
    refused(r"l.parquet: no column 'uri'; the columns are path \(string\)", ["a.jpg"], uri_column="uri")
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")]
    )
    refused(r"l.parquet, row 0: not UTF-8 text", broken)
    path.write_bytes(b"PAR1 no")
    with pytest.raises(SourceError, match=r"cannot read .*l.parquet"):
        list(discover(str(path), SourceConfig(uri_column="path")))


def test_settings_that_do_not_go_together(folder: Path) -> None:
    with pytest.raises(SourceError, match=r"is no list, so inputs\.uri_column means nothing"):
        list(discover(str(folder), SourceConfig(uri_column="path")))
    with pytest.raises(ValueError, match="exclude one another"):
        SourceConfig(uri_column="path", image_column="image")
    with pytest.raises(SourceError, match=r"gone.csv does not exist"):
        list(discover(str(folder / "gone.csv")))


def test_a_table_in_a_list_must_hold_images(folder: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"]}), folder / "t.parquet")
    pq.write_table(pa.table({"age": [1.5]}), folder / "ages.parquet")
    assert names(folder, put(folder / "l.txt", "t.parquet\na.jpg\n")) == ["t.parquet", "a.jpg"]
    with pytest.raises(SourceError, match=r"ages.parquet: no column of images. The columns are age"):
        names(folder, put(folder / "l.txt", "ages.parquet\n"))


def test_a_pipe_in_a_list_does_not_block(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jpg")
    (item,) = discover(str(put(folder / "l.txt", "pipe.jpg\n")))
    with pytest.raises(ReadError, match="is no regular file"):
        read_item(item)


def test_no_way_out_of_the_bucket(s3: Any) -> None:
    store = Store(s3.uri("lists/out"))
    store.write("l.txt", b"../../../other/x.jpg\n")
    with pytest.raises(SourceError, match=r"l.txt, line 1: .* leads out of the bucket"):
        list(discover(store.join("l.txt")))


def test_memory_does_not_grow_with_the_list(folder: Path) -> None:
    def peak(count: int) -> int:
        path = put(folder / f"{count}.txt", "".join(f"{number}.jpg\n" for number in range(count)))
        tracemalloc.start()
        try:
            assert sum(1 for _ in listed_uris(str(path), None)) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(50_000) < peak(1_000) + 2**20
