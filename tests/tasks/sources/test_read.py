"""Reading planned images: order, errors by row, limits, and what has changed since the plan."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from s3fs import S3FileSystem

from schemas.ledger import Item
from tasks.sources.discover import discover
from tasks.sources.read import ReadError, read_item, read_items
from tasks.store.ranges import read_bytes
from tasks.store.storage import Store
from tests.tasks.sources.archives import write_tar, write_zip


def test_order_is_kept_and_an_error_stays_with_its_row(photos: Callable[..., Path]) -> None:
    items = list(discover(str(photos(40))))
    Path(items[7].uri).unlink()
    results = list(read_items(items, threads=4))
    assert [item for item, _ in results] == items
    assert isinstance(results[7][1], FileNotFoundError)
    assert [data for _, data in results if isinstance(data, bytes)] == [b"picture %d" % n for n in range(40) if n != 7]


def test_reading_ahead_is_bounded(photos: Callable[..., Path]) -> None:
    items = list(discover(str(photos(40))))
    taken = 0

    def counted() -> Iterator[Item]:
        nonlocal taken
        for item in items:
            taken += 1
            yield item

    reader = read_items(counted(), threads=3)
    next(reader)
    assert taken == 7
    reader.close()


def test_limits(photos: Callable[..., Path], tmp_path: Path) -> None:
    (item,) = discover(str(photos(1)))
    with pytest.raises(ReadError, match="9 bytes, more than the limit of 8 "):
        read_item(item, max_bytes=8)
    with pytest.raises(ReadError, match="more than the limit of 8 bytes"):
        read_item(replace(item, size=-1), max_bytes=8)
    assert read_item(replace(item, size=-1), max_bytes=9) == b"picture 0"
    (bomb,) = discover(str(write_zip(tmp_path / "bomb.zip", {"bomb.jpg": bytes(10**7)}, zipfile.ZIP_DEFLATED)))
    with pytest.raises(ReadError, match="unpacks to more than the 1000 bytes that the zip declares"):
        read_item(replace(bomb, size=1000), max_bytes=10**6)  # a false size


def test_a_file_that_changed_since_the_plan(photos: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = photos(3)
    longer, touched, writing = discover(str(folder))
    Path(longer.uri).write_bytes(b"longer than before")
    os.utime(touched.uri, ns=(10**18, 10**18 + 1))
    for item in (longer, touched):
        with pytest.raises(ReadError, match=f"changed since the plan: {item.uri} was 10{'0' * 17}-9, is "):
            read_item(item)
    assert read_item(replace(touched, etag=None)) == b"picture 1"

    real = os.fstat
    seen = []

    def written_between(handle: int) -> os.stat_result:
        seen.append(handle)
        if len(seen) > 2:  # after the first check and the size
            os.utime(writing.uri)
        return real(handle)

    monkeypatch.setattr("tasks.store.ranges.os.fstat", written_between)
    with pytest.raises(ReadError, match="changed since the plan"):
        read_item(writing)


def test_an_archive_that_changed_since_the_plan(tmp_path: Path) -> None:
    for name, mode in (("a.tar", "w"), ("b.tgz", "w:gz")):
        write_tar(tmp_path / name, [(f"{number}.jpg", bytes(1000)) for number in range(3)], mode)
    items = list(discover(str(tmp_path)))
    assert [read_item(item) for item in items] == [bytes(1000)] * 6
    for name in ("a.tar", "b.tgz"):
        os.utime(tmp_path / name)
    read_item(next(discover(str(tmp_path / "b.tgz"))))  # the open packed tar is of another version now
    for item in items:
        with pytest.raises(ReadError, match="changed since the plan"):
            read_item(item)


def test_an_object_is_read_with_one_request_that_finds_changes(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(s3.uri("changing"))
    store.write("a.jpg", b"before")
    store.write("b.jpg", b"as it was")
    changed, same = discover(store.uri)
    store.write("a.jpg", b"AFTER!")  # the same size
    requests = []
    real = S3FileSystem._call_s3

    async def counted(self: S3FileSystem, method: str, *rest: Any, **request: Any) -> Any:
        requests.append(method)
        return await real(self, method, *rest, **request)

    monkeypatch.setattr(S3FileSystem, "_call_s3", counted)
    assert read_item(same) == b"as it was"
    with pytest.raises(ReadError, match=r"changed since the plan: s3://photos/changing/a.jpg was \w{32}, is \w{32}\."):
        read_item(changed)
    with pytest.raises(ReadError, match="9 bytes, more than the limit of 8 bytes"):
        read_item(replace(same, size=-1), max_bytes=8)
    assert requests == ["get_object"] * 3
    assert read_bytes(same.uri, 3, 2, etag=same.etag) == b"it"
    assert read_bytes(same.uri, 3) == b"it was"
    store.delete("b.jpg")
    with pytest.raises(FileNotFoundError):
        read_item(same)


def test_a_body_that_breaks_off_is_read_again(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3fs.core import S3_RETRYABLE_ERRORS

    store = Store(s3.uri("breaking"))
    store.write("a.jpg", b"whole")
    (item,) = discover(store.uri)
    real, broken = S3FileSystem._call_s3, []

    async def breaks(self: S3FileSystem, method: str, *rest: Any, **request: Any) -> Any:
        if len(broken) < 2:
            broken.append(method)
            raise S3_RETRYABLE_ERRORS[0]("connection lost")
        return await real(self, method, *rest, **request)

    monkeypatch.setattr(S3FileSystem, "_call_s3", breaks)
    monkeypatch.setattr("tasks.store.ranges.PAUSE", 0.001)
    assert read_item(item) == b"whole"
    assert len(broken) == 2


def test_zip_damage_inside_a_member(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "p.zip", {"a.jpg": b"a" * 1000})
    # Damage that the etag does not show, as on a store without etags.
    item = replace(next(discover(str(path))), etag=None)
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    with pytest.raises(ReadError, match="checksum"):
        read_item(item)
    data[6] |= 1  # the flag for encryption
    path.write_bytes(data)
    with pytest.raises(ReadError, match="encrypted"):
        read_item(item)
    path.write_bytes(b"something else" * 100)
    with pytest.raises(ReadError, match="no zip header at byte 0"):
        read_item(item)
