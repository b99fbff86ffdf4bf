"""Labels from paths and tables."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.people.identities import IdentityError, path_labels, places_below, table_labels


@pytest.mark.parametrize(
    ("pattern", "path", "label"),
    [
        ("{identity}/{image}", "ada/1.jpg", "ada"),
        ("{identity}/{image}", "x/ada/1.jpg", None),
        ("{any}{identity}/{image}", "x/y/ada/1.jpg", "a"),  # {any} takes what it can
        ("{any}/{identity}/{image}", "x/y/ada/1.jpg", "ada"),
        ("people/{identity}_{image}.jpg", "people/Aaron_Eckhart_0001.jpg", "Aaron_Eckhart"),
        ("people/{identity}_{image}.jpg", "people/Aaron_Eckhart_0001xjpg", None),
        ("{any}#{identity}/{image}", "b/photos-1.tar#ada/1.jpg", "ada"),
        ("{identity}/{image}", "photos-1.tar#ada/1.jpg", None),  # the archive is not a part of the name
        ("{identity}/{image}", "ada/photos.tar#1.jpg", "ada"),
        ("a+b (c)/{identity}.{image}", "a+b (c)/ada.jpg", "ada"),
        ("{identity}/{image}", "..\n é/1.jpg", "..\n é"),
    ],
)
def test_patterns(pattern: str, path: str, label: str | None) -> None:
    fitting = pattern.format(identity="fits", image="1", any="any")
    assert path_labels(pa.array([path, fitting]), pattern)[0].as_py() == label


def test_a_pattern_that_matches_nothing_says_what_a_path_is() -> None:
    with pytest.raises(IdentityError, match=r"'\{identity\}/\{image\}' matches none of the 1 .*'flat\.jpg'"):
        path_labels(pa.array(["flat.jpg"]), "{identity}/{image}")


@pytest.mark.parametrize("pattern", ["{identity}/{person}", "{identity}/{identity}", "{image}"])
def test_patterns_that_make_no_sense(pattern: str) -> None:
    with pytest.raises(IdentityError, match=r"identity\.pattern"):
        path_labels(pa.array(["a/b"]), pattern)


def test_places_are_below_the_source_only() -> None:
    uris = pa.array(["/data/photos/a/1.jpg", "/data/photos-2/a.jpg", "/data/photos/x.tar#m.jpg"])
    assert places_below(uris, "/data/photos").to_pylist() == ["a/1.jpg", "/data/photos-2/a.jpg", "x.tar#m.jpg"]
    assert places_below(uris, "").to_pylist() == uris.to_pylist()


URIS = ["/data/photos/1.jpg", "/data/photos/2.jpg", "/data/photos/3.jpg", "/data/photos/x.tar#4.jpg"]


def labels(table: Path, uris: list[str]) -> list[str | None]:
    column = pa.array(uris)
    return table_labels(column, places_below(column, uris[0].rpartition("/")[0]), str(table)).to_pylist()


def test_a_table_may_name_images_in_three_ways(tmp_path: Path) -> None:
    uris = [f"{tmp_path}/photos/{name}" for name in ("1.jpg", "2.jpg", "3.jpg", "x.tar#4.jpg", "5.jpg")]
    table = tmp_path / "who.csv"
    table.write_text(f"path,age,identity\n{uris[0]},3,007\nphotos/2.jpg,,ada\n3.jpg,1,ada\nx.tar#4.jpg,1,é\n5.jpg,2,\n")
    assert labels(table, uris) == ["007", "ada", "ada", "é", None]


def test_tsv_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "who.tsv").write_text("uri\tlabel\n/data/photos/1.jpg\tada\n")
    assert labels(tmp_path / "who.tsv", URIS) == ["ada", None, None, None]
    pq.write_table(pa.table({"path": ["2.jpg", "9.jpg"], "identity_id": [7, 8]}), tmp_path / "who.parquet")
    assert labels(tmp_path / "who.parquet", URIS) == [None, "7", None, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,identity\nz.jpg,ada\n", "names none of the 4 faces' images.*'z.jpg'.*'1.jpg'"),
        ("path,name\n1.jpg,ada\n", "no column of identities.*path, name"),
        ("name,identity\n1.jpg,ada\n", "no column of images"),
        ("path,identity\n1.jpg,ada\n1.jpg,bob\n", "'1.jpg' is said to be 'ada' and 'bob'"),
        ("path,identity\n", "no row names"),
        ("path,identity\n1.jpg,ada,x\n", "who.csv"),
        ("", "who.csv"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "who.csv").write_text(text)
    with pytest.raises(IdentityError, match=message):
        labels(tmp_path / "who.csv", URIS)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"there is no table at .*who\.csv"):
        labels(tmp_path / "who.csv", URIS)
