"""Patterns as sources: what they match, in which order, and what is listed for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from s3fs import S3FileSystem

from tasks.sources.discover import SourceError, discover, source_root
from tasks.sources.walk import Glob, resolve
from tasks.store.storage import Store

NAMES = [
    "2023/a/front1.png",
    "2023/b/front2.png",
    "2023/b/side.png",
    "2024/a/front3.png",
    "2024/front4.png",
    "front5.png",
]


@pytest.fixture(params=["local", "s3", "memory"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        root = request.getfixturevalue("s3").uri(f"globs/{tmp_path.name}")
    else:
        root = str(tmp_path / "photos") if request.param == "local" else f"memory://{tmp_path.name}-photos"
    for name in [*NAMES, "2024/.cache/front6.png"]:
        Store(root).write(name, name.encode())
    return root


@pytest.mark.parametrize(
    ("pattern", "expected", "base"),
    [
        ("2023/*/front*.png", NAMES[:2], "2023"),
        ("*/*/front*.png", [*NAMES[:2], NAMES[3]], ""),
        ("**/front*.png", [NAMES[0], NAMES[1], NAMES[3], NAMES[4], NAMES[5]], ""),
        ("2024/**", NAMES[3:5], "2024"),
        ("202[34]/?/side.png", [NAMES[2]], ""),
        ("20*/**/a/*", [NAMES[0], NAMES[3]], ""),
        ("*", [NAMES[5]], ""),
    ],
)
def test_patterns(source: str, pattern: str, expected: list[str], base: str) -> None:
    items = list(discover(f"{source}/{pattern}"))
    assert [item.uri.removeprefix(f"{source}/") for item in items] == expected
    root = f"{source}/{base}".rstrip("/")
    assert {item.root for item in items} == {root} == {source_root(f"{source}/{pattern}")}
    whole = {item.uri: item.image_id for item in discover(root)}
    assert all(item.image_id == whole[item.uri] for item in items)  # the same ids as without the pattern


def test_a_pattern_that_matches_nothing_names_itself(source: str) -> None:
    with pytest.raises(SourceError, match=r"no images in .*/\*\*/back.png"):
        list(discover(f"{source}/**/back.png"))


def test_wrong_patterns(tmp_path: Path) -> None:
    for pattern, message in (
        ("s3://buck*/a.jpg", "a bucket without wildcards in front"),
        (f"{tmp_path}/a**.jpg", "must be a whole part of the path"),
        (f"{tmp_path}/gone/*.jpg", rf"{tmp_path}/gone does not exist"),
    ):
        with pytest.raises(SourceError, match=message):
            list(discover(pattern))


def test_a_folder_whose_name_has_brackets_is_a_folder(tmp_path: Path, s3: Any) -> None:
    for root in (str(tmp_path / "trip [2020]"), s3.uri("globs/trip [2020]")):
        Store(root).write("a*.jpg", b"x")
        Store(root).write("ab.jpg", b"y")
        assert [item.uri for item in discover(root)] == [f"{root}/a*.jpg", f"{root}/ab.jpg"]
        assert [item.uri for item in discover(f"{root}/a*.jpg")] == [f"{root}/a*.jpg"]


def test_only_folders_that_can_match_are_listed(tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        Store(tmp_path).write(name, b"")
    listed: list[str] = []
    real = os.scandir

    def counted(path: str) -> Any:
        listed.append(os.path.relpath(path, tmp_path))
        return real(path)

    monkeypatch.setattr("tasks.sources.walk.os.scandir", counted)
    assert len(list(discover(f"{tmp_path}/2*/a/*.png"))) == 2
    assert listed == [".", "2023", "2023/a", "2024", "2024/a"]
    prefixes: list[str] = []
    call = S3FileSystem.call_s3

    def noted(self: S3FileSystem, method: str, **request: Any) -> Any:
        prefixes.append(request["Prefix"])
        return call(self, method, **request)

    monkeypatch.setattr(S3FileSystem, "call_s3", noted)
    Store(s3.uri("narrow")).write("2023-05/a.jpg", b"")
    Store(s3.uri("narrow")).write("2024-05/a.jpg", b"")
    assert len(list(discover(s3.uri("narrow/2024-*/a.jpg")))) == 1
    assert prefixes == ["narrow/2024-"]


@pytest.mark.parametrize(
    ("pattern", "folder", "expected"),
    [
        ("/p/*/b.jpg", "/p/x", True),
        ("/p/*/b.jpg", "/p/x/y", False),
        ("/p/a*/b/*", "/p/c", False),
        ("/p/a*/b/*", "/p/ab/b", True),
        ("/p/a*/b/*", "/p/ab/c", False),
        ("/p/a*/**/c/*.jpg", "/p/ab/any/thing", True),
    ],
)
def test_may_hold(pattern: str, folder: str, expected: bool) -> None:
    assert Glob("/p", pattern).may_hold(folder) == expected


def test_pipes_and_sockets_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    os.mkfifo(tmp_path / "b.jpg")
    assert [item.uri for item in discover(str(tmp_path))] == [f"{tmp_path}/a.jpg"]


@pytest.mark.parametrize(
    ("entry", "base", "expected"),
    [
        ("b/../c.jpg", "s3://bucket/x", "s3://bucket/x/c.jpg"),
        ("./c.jpg", "s3://bucket", "s3://bucket/c.jpg"),
        ("../c d#1?.jpg", "/lists/x", "/lists/c d#1?.jpg"),
        ("~/c.jpg", "/lists", "/lists/~/c.jpg"),
        ("https://host/c.jpg?size=1", "/lists", "https://host/c.jpg?size=1"),
        ("file:///a/c.jpg", "s3://bucket", "/a/c.jpg"),
    ],
)
def test_relative_paths(entry: str, base: str, expected: str) -> None:
    assert resolve(entry, base) == expected
