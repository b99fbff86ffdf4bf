"""Discovery: what counts as an image, in which order, from which kinds of source, and what damage does."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from s3fs import S3FileSystem

from schemas.engine import SourceConfig
from tasks.sources.discover import Digests, SourceError, discover
from tasks.sources.read import read_item
from tasks.store.ranges import ReadError
from tasks.store.storage import Store
from tests.tasks.sources.archives import JAPANESE, shift_jis_zip, write_tar, write_zip

NAMES = ["a b#1.jpg", "a/z.PNG", "a-b/x.jpeg", "a.tif", "ü/日本 ?.webp", "Z.gif", "deep/er/still/1.bmp"]


def fill(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def places(source: str | Path, **settings: Any) -> list[str]:
    root = str(source).rstrip("/")
    found = list(discover(str(source), SourceConfig(**settings)))
    assert [item.index for item in found] == list(range(len(found)))
    return [item.source_uri.removeprefix(root).lstrip("/") for item in found]


def make_tar(path: Path, names: list[str], mode: str = "w") -> None:
    write_tar(path, [(name, name.encode() * 100) for name in names], mode)


def test_folder_names_hidden_files_and_order(tmp_path: Path) -> None:
    fill(tmp_path, [*NAMES, ".hidden.jpg", "._a.jpg", ".cache/x.jpg", "notes.txt", "a.jpg.part", "a.jpg.deca.png"])
    assert places(tmp_path) == sorted(NAMES)


def test_bucket_gives_the_order_of_the_folder_over_many_pages(
    tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, [*NAMES, ".cache/x.jpg", "notes.txt"])
    store = Store(s3.uri("discover"))
    for name in [*NAMES, ".cache/x.jpg", "notes.txt"]:
        store.write(name, name.encode())
    Store(s3.uri("discover-more")).write("other.jpg", b"")
    real, pages = S3FileSystem.call_s3, []

    def small_pages(self: S3FileSystem, method: str, **request: Any) -> Any:
        pages.append(method)
        return real(self, method, **request, MaxKeys=2)

    monkeypatch.setattr(S3FileSystem, "call_s3", small_pages)
    assert places(store.uri) == places(tmp_path)
    assert len(pages) == 5
    items = list(discover(store.uri))
    assert [read_item(item) for item in items] == [item.source_uri.split("discover/")[1].encode() for item in items]
    assert all(item.etag and item.size == len(read_item(item)) for item in items)


def test_single_image_and_other_file_systems(tmp_path: Path, s3: Any) -> None:
    fill(tmp_path, ["one.jpg"])
    Store(s3.uri("single")).write("one.jpg", b"one.jpg")
    memory = Store(f"memory://{tmp_path.name}")
    for name in ("one.jpg", "sub/two.jpg", ".x/three.jpg"):
        memory.write(name, name.encode())
    ids = set()
    for source in (f"{tmp_path}/one.jpg", s3.uri("single/one.jpg"), memory.join("one.jpg")):
        (item,) = discover(source)
        assert read_item(item) == b"one.jpg"
        ids.add(item.image_id)
    assert len(ids) == 1  # the folder of a single image is its root
    assert places(memory.uri) == ["one.jpg", "sub/two.jpg"]


def test_include_and_exclude(tmp_path: Path) -> None:
    fill(tmp_path, ["a/1.jpg", "a/2.png", "b/1.jpg"])
    make_tar(tmp_path / "c.tar", ["in/1.jpg", "in/2.jpg"])
    assert places(tmp_path, include=["*.jpg"], exclude=["b/*", "*2.jpg"]) == ["a/1.jpg", "c.tar#in/1.jpg"]
    assert places(tmp_path, extensions=["PNG"], exclude=["c.tar"]) == ["a/2.png"]


def test_webdataset_tars_give_their_images(tmp_path: Path) -> None:
    """Samples are keys with several files; the image is found by its extension, its neighbours are no items."""
    names = ["a/0001.jpg", "a/0001.json", "a/0001.cls", "a/0002.json", "a/0002.png", "a/0002.txt", "a/0003.seg.png"]
    make_tar(tmp_path / "shard-000000.tar", names)
    make_tar(tmp_path / "shard-000001.tar", ["b/0004.jpg.json", "b/0004.JPG", "b/0005.npy"])
    found = [item.member for item in discover(str(tmp_path), SourceConfig(exclude=("*.seg.png",)))]
    assert found == ["a/0001.jpg", "a/0002.png", "b/0004.JPG"]
    shards = f"{tmp_path}/shard-*.tar"
    items = list(discover(shards))
    assert [item.member for item in items] == ["a/0001.jpg", "a/0002.png", "a/0003.seg.png", "b/0004.JPG"]
    assert [read_item(item) for item in items] == [(item.member or "").encode() * 100 for item in items]
    assert items[0].image_id == next(discover(str(tmp_path))).image_id


def test_output_inside_the_source_is_no_input(tmp_path: Path) -> None:
    fill(tmp_path, ["a.jpg", "out/mesh/skin.png"])
    assert [item.uri for item in discover(str(tmp_path), skip=str(tmp_path / "out"))] == [f"{tmp_path}/a.jpg"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    fill(tmp_path, ["real/a.jpg"])
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "up").symlink_to(tmp_path / "real")
    (tmp_path / "photos" / "broken.jpg").symlink_to(tmp_path / "gone")
    broken, linked = discover(str(tmp_path / "photos"))
    assert linked.uri.endswith("linked/a.jpg")
    assert broken.size == -1
    with pytest.raises(FileNotFoundError):
        read_item(broken)


@pytest.mark.skipif(os.name != "posix", reason="names that are no text exist on POSIX only")
def test_a_name_that_is_not_text_is_planned_and_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(b"x")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg"))).write_bytes(b"x")
    bad, good = discover(str(tmp_path))
    assert bad.uri.endswith(r"caf\xe9.jpg")
    assert read_item(good) == b"x"
    with pytest.raises(FileNotFoundError):
        read_item(bad)


@pytest.mark.parametrize("name", ["p.tar", "p.tar.gz", "p.TGZ"])
def test_tar_members_by_offset(tmp_path: Path, name: str, placed: Callable[[Path], str]) -> None:
    names = ["b.jpg", "dir/a #2.png", "ü" * 120 + ".jpg", "readme.txt", "._b.jpg", "b.jpg"]
    make_tar(tmp_path / name, names, "w" if name.endswith("tar") else "w:gz")
    source = placed(tmp_path)
    items = list(discover(source))
    expected = [names[0], names[1], names[2], names[5]]
    assert [item.member for item in items] == expected
    assert [read_item(item) for item in items[:3]] == [member.encode() * 100 for member in expected[:3]]
    with pytest.raises(ReadError, match="more than once"):  # the second of one name has no id of its own
        read_item(items[3])
    assert list(discover(f"{source}/{name}"))[1].image_id == items[1].image_id


def test_zip_members_stored_and_deflated(tmp_path: Path, placed: Callable[[Path], str]) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.mkdir("dir")
        archive.writestr("dir/a ü.jpg", b"stored" * 50, zipfile.ZIP_STORED)
        archive.writestr("b.png", b"deflated" * 5000, zipfile.ZIP_DEFLATED)
        archive.writestr("__MACOSX/._b.png", b"", zipfile.ZIP_STORED)
        with archive.open("streamed.jpg", "w") as member:
            member.write(os.urandom(3000))
    items = list(discover(f"{placed(tmp_path)}/p.zip"))
    with zipfile.ZipFile(tmp_path / "p.zip") as archive:
        assert [item.member for item in items] == ["dir/a ü.jpg", "b.png", "streamed.jpg"]
        assert [read_item(item) for item in items] == [archive.read(item.member or "") for item in items]


def test_zip64_and_a_zip_behind_other_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Archives of more than 4 GB keep sizes and places in extra fields; a lower limit gives such a zip of few bytes."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    with open(tmp_path / "p.zip", "wb") as file:
        file.write(b"#!/bin/sh\n" * 20)
        with zipfile.ZipFile(file, "w") as archive:
            for number in range(5):
                archive.writestr(f"{number}.jpg", b"%d" % number * 150)
            archive.comment = b"a comment"
    items = list(discover(str(tmp_path / "p.zip")))
    assert [item.member for item in items] == [f"{number}.jpg" for number in range(5)]
    assert [read_item(item) for item in items] == [b"%d" % number * 150 for number in range(5)]


def test_hostile_tar_members_touch_no_disk(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    with tarfile.open(inside / "evil.tar", "w") as tar:
        for name, kind in {
            "/etc/abs.jpg": tarfile.REGTYPE,
            "../../up.jpg": tarfile.REGTYPE,
            "link.jpg": tarfile.SYMTYPE,
            "hard.jpg": tarfile.LNKTYPE,
            "device.jpg": tarfile.CHRTYPE,
            "fifo.jpg": tarfile.FIFOTYPE,
        }.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            entry.size = 4 if kind == tarfile.REGTYPE else 0
            tar.addfile(entry, io.BytesIO(b"data"))
    items = list(discover(str(inside)))
    assert [item.member for item in items] == ["/etc/abs.jpg", "../../up.jpg"]
    assert [read_item(item) for item in items] == [b"data", b"data"]
    assert sorted(os.listdir(tmp_path)) == ["in"]


@pytest.mark.parametrize(
    "name", ["cut.tar", "cut.tar.gz", "header.tar", "text.tar", "text.tgz", "cut.zip", "empty.zip"]
)
def test_damaged_archives_give_what_is_left_and_one_item_that_fails(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    readable = 0
    if name.startswith(("text", "empty")):
        path.write_bytes(b"this is no archive" if name.startswith("text") else b"")
    elif name == "cut.zip":
        write_zip(path, {"a.jpg": b"a" * 1000})
        path.write_bytes(path.read_bytes()[:-30])
    else:
        make_tar(path, [f"{number}{'x' * 30}.jpg" for number in range(30)], "w:gz" if name.endswith("gz") else "w")
        data = bytearray(path.read_bytes())
        if name == "header.tar":
            with tarfile.open(path) as tar:
                entry = tar.getmembers()[10]
            data[entry.offset : entry.offset + 512] = b"\xff" * 512
            path.write_bytes(data)
            readable = 10
        else:
            path.write_bytes(data[: len(data) // 2])
            readable = 8
    (tmp_path / "z.jpg").write_bytes(b"z")
    *members, archive_item, neighbour = discover(str(tmp_path))
    assert len(members) >= readable
    assert len(members) < 30
    assert archive_item.member is None
    assert read_item(neighbour) == b"z"
    with pytest.raises(Exception, match="damaged archive"):
        read_item(archive_item)
    for item in members[:readable]:
        assert read_item(item) == (item.member or "").encode() * 100


def test_missing_and_empty_sources_say_what_to_do(tmp_path: Path, s3: Any) -> None:
    (tmp_path / "notes.txt").write_text("")
    cases = {
        f"{tmp_path}/gone": rf"{tmp_path}/gone does not exist. Check with: ls -ld '{tmp_path}'",
        f"{tmp_path}": r"no images in .*jpg.*Check with",
        s3.uri("nothing/here"): r"no images in s3://photos/nothing/here .*aws s3 ls s3://photos/",
        "s3://no-such-bucket/photos": r"s3://no-such-bucket/photos does not exist.*aws s3 ls",
        "nope://photos": r"no file system for nope://",
    }
    for source, message in cases.items():
        with pytest.raises(SourceError, match=message):
            list(discover(source))


def test_deduplication_keeps_the_first_of_each_content(
    tmp_path: Path, placed: Callable[[Path], str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "photos"
    contents = {"a.jpg": b"one", "b/c.jpg": b"one", "d.jpg": b"two", "e.jpg": b"six", "f.jpg": b"two", "g.jpg": b""}
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    write_tar(folder / "z.tar", [("1.jpg", b"six"), ("2.jpg", b"new")])
    (folder / "z2.tar").write_bytes((folder / "z.tar").read_bytes()[:700] + b"broken" * 200)
    source = placed(folder)
    expected = ["a.jpg", "d.jpg", "e.jpg", "g.jpg", "z.tar#2.jpg", "z2.tar"]
    with caplog.at_level("INFO", "deca"):
        assert places(source, deduplicate=True) == expected
    assert "4 images have the content of an earlier one" in caplog.text
    assert len(places(source)) == 10


def test_deduplication_of_objects_reads_nothing(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(s3.uri("doubles-by-etag"))
    for name, data in {"a.jpg": b"one", "b.jpg": b"one", "c.jpg": b"two"}.items():
        store.write(name, data)
    monkeypatch.setattr(
        "tasks.sources.discover.read_items", lambda items, **options: iter([(item, 1 / 0) for item in items])
    )
    assert places(store.uri, deduplicate=True) == ["a.jpg", "c.jpg"]


def test_digests_are_a_set_in_little_memory() -> None:
    digests, known = Digests(), set()
    for number in range(30_000):
        digest = hashlib.md5(b"%d" % (number % 20_000)).digest()
        assert digests.add(digest) == (digest not in known)
        known.add(digest)
    assert digests.count == len(known) == 20_000
    assert len(digests.table) <= 54 * 20_000


def left_out_of(source: Path | str, **settings: Any) -> dict[str, int]:
    counts: Counter[str] = Counter()
    list(discover(str(source), SourceConfig(**settings), left_out=counts))
    return dict(counts)


def test_what_looks_like_an_image_and_is_not_read_is_counted(tmp_path: Path) -> None:
    fill(tmp_path, ["a.jpg", "b.HEIC", "deep/c.heic", "d.cr2", "e.svg", "f.json", "notes.md", ".hidden.heic", "h.mp4"])
    make_tar(tmp_path / "t.tar", ["1.jpeg", "2.heic", "3.json", "4.zip", "5.mp4", ".__6.heic"])
    everything = {".heic": 3, ".cr2": 1, ".svg": 1, ".zip in an archive": 1}
    assert left_out_of(tmp_path) == everything
    assert left_out_of(tmp_path, videos=True, include=["*.jp*g", "*.heic"]) == {".heic": 2}  # b.HEIC is not included
    assert left_out_of(tmp_path, exclude=["*.heic", "*.HEIC", "*.svg"]) == {".cr2": 1, ".zip in an archive": 1}
    assert left_out_of(tmp_path, extensions=["jpg", "jpeg"]) == {}  # whoever says what to take, leaves the rest out
    assert places(tmp_path, extensions=["heic"]) == ["b.HEIC", "deep/c.heic", "t.tar#2.heic"]
    assert left_out_of(f"{tmp_path}/*.jpg") == {}
    assert left_out_of(f"{tmp_path}/t.tar") == {".heic": 1, ".zip in an archive": 1}


def test_a_source_of_nothing_that_can_be_read_says_why(tmp_path: Path) -> None:
    fill(tmp_path, ["a.heic", "b.heic"])
    with pytest.raises(
        SourceError, match=r"no images in .*\(left out: 2 \.heic \(pip install pillow-heif\); looked for"
    ):
        list(discover(str(tmp_path)))


def test_what_is_named_is_taken_whatever_its_ending(tmp_path: Path) -> None:
    fill(tmp_path, ["photo", "a.heic", "b.happy"])
    for name in ("photo", "a.heic", "b.happy"):
        (item,) = discover(f"{tmp_path}/{name}")
        assert read_item(item) == name.encode()
    (tmp_path / "list.txt").write_text("photo\na.heic\nb.happy\n")
    assert len(list(discover(f"{tmp_path}/list.txt"))) == 3


def test_names_in_zips(tmp_path: Path) -> None:
    shift_jis = str(shift_jis_zip(tmp_path / "windows.zip", {JAPANESE: b"data"}))
    (raw,) = discover(shift_jis)
    assert raw.member == JAPANESE.encode("cp932").decode("cp437")  # as before, so that ids of datasets stay
    (named,) = discover(shift_jis, SourceConfig(zip_encoding="cp932"))
    assert named.member == JAPANESE
    assert read_item(raw) == read_item(named) == b"data"
    write_zip(tmp_path / "flagged.zip", {JAPANESE: b"data"})  # zipfile sets the flag
    for settings in ({}, {"zip_encoding": "cp932"}):
        (item,) = discover(str(tmp_path / "flagged.zip"), SourceConfig(**settings))
        assert item.member == JAPANESE
