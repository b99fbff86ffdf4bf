"""Items, quarantine rows and their tables."""

from __future__ import annotations

from schemas.ledger import (
    MESSAGE_LIMIT,
    Item,
    Quarantined,
    Unit,
    quarantine_to_table,
    table_to_items,
    table_to_quarantine,
    units_to_table,
    with_item,
)


def test_items_survive_their_table() -> None:
    items = [
        Item(0, "/x/a b#.jpg", size=3, etag="1-3", root="/x"),
        Item(1, "/x/a.tar", "ü/b.png", 512, 7, "t", face_index=2, attempts=1, root="/x"),
    ]
    assert table_to_items(units_to_table([Unit(0, items)]), "/x") == items


def test_image_id_is_relative_to_the_source() -> None:
    here = Item(0, "/x/photos/sub/a.tar", "b.png", root="/x/photos")
    moved = Item(9, "s3://bucket/copy/sub/a.tar", "b.png", root="s3://bucket/copy")
    assert here.image_id == moved.image_id
    assert len(here.image_id) == 16
    assert here.image_id != Item(0, "/x/photos/sub/a.tar", "c.png", root="/x/photos").image_id
    assert here.source_uri == "/x/photos/sub/a.tar#b.png"


def test_quarantine_survives_its_table_in_a_fixed_order() -> None:
    first = Quarantined.of(Item(3, "/x/a.jpg"), "read", OSError("line one\n  line two " + "x" * 999))
    second = Quarantined.of(Item(3, "/x/a.jpg", attempts=1), "crop", "CropError", "outside", face_index=0)
    table = quarantine_to_table([second, first])
    assert table.equals(quarantine_to_table([first, second]))
    assert table_to_quarantine(table) == [first, second]
    assert first.message.startswith("line one line two x")
    assert len(first.message) == MESSAGE_LIMIT
    assert (first.error, first.attempts, second.error, second.attempts) == ("OSError", 1, "CropError", 2)


def test_a_row_takes_face_and_attempts_of_its_retried_item() -> None:
    item = Item(3, "/x/a.jpg", face_index=2, attempts=4)
    row = with_item(Quarantined(3, "/x/a.jpg", None, "read", "OSError", "gone"), item)
    assert (row.face_index, row.attempts) == (2, 5)
