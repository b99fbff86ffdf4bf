"""Reading planned pictures: order, errors by row, limits, and what has changed since the plan."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.ledger import Item
from tasks.discover import discover
from tasks.read import ReadError, read_item, read_items


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
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.jpg", bytes(10**7))
    (bomb,) = discover(str(tmp_path / "bomb.zip"))
    with pytest.raises(ReadError, match="unpacks to more than the limit of 1000000 bytes"):
        read_item(replace(bomb, size=1000), max_bytes=10**6)  # a size that lies


def test_changed_since_the_plan(photos: Callable[..., Path]) -> None:
    (item,) = discover(str(photos(1)))
    Path(item.uri).write_bytes(b"longer than before")
    with pytest.raises(ReadError, match="18 bytes where 9 were planned"):
        read_item(item)


def test_zip_damage_inside_a_member(tmp_path: Path) -> None:
    path = tmp_path / "p.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", b"a" * 1000)
    items = list(discover(str(path)))
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    with pytest.raises(ReadError, match="checksum"):
        read_item(items[0])
    data[6] |= 1  # the flag for encryption
    path.write_bytes(data)
    with pytest.raises(ReadError, match="encrypted"):
        read_item(items[0])
    path.write_bytes(b"something else" * 100)
    with pytest.raises(ReadError, match="no zip header at byte 0"):
        read_item(items[0])
