"""What a node must find of the driver's paths; tests/tasks/units/test_two_nodes.py asks real nodes."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from schemas.engine import RayConfig, UnitsConfig
from schemas.reconstruct import ReconstructConfig
from tasks.units import shared_paths
from tasks.units.ray_cluster import Node
from tasks.units.rounds import open_or_build
from tasks.units.shared_paths import SharedPathError, paths_by_setting, paths_of_run, prove_paths
from tests.tasks.conftest import HashWorker

ELSEWHERE = "cluster:6379"


@pytest.fixture(autouse=True)
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(shared_paths, "this_node", lambda: Node("3fa9c1d2e4f5a6b7", "worker-7", "10.0.0.7"))


def test_a_run_on_this_machine_notes_nothing(tmp_path: Path) -> None:
    with paths_by_setting({"dest": str(tmp_path / "out")}, None) as paths:
        assert paths.seen == ()
        paths.check_here()
        assert not list(tmp_path.iterdir())
    values = {"source": str(tmp_path), "dest": str(tmp_path / "out"), "ray": {"workers": 0, "address": ELSEWHERE}}
    prove_paths(ReconstructConfig.model_validate(values))


def test_dest_is_recognised_by_a_file_of_the_driver(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with paths_by_setting({"dest": str(out)}, ELSEWHERE) as paths:
        paths.check_here()
        (word,) = out.iterdir()
        word.write_text(word.read_text()[::-1])  # the same name and length, another file
        with pytest.raises(SharedPathError, match=rf"dest = {out}: node worker-7 \(10.0.0.7, .* is another file\. On"):
            paths.check_here()
        word.unlink()
        with pytest.raises(SharedPathError, match="there is no"):
            paths.check_here()
    assert not out.exists()  # it was made to ask


@pytest.mark.parametrize("given", ["photos", "photos/a/*.jpg", "photos/a/one.jpg"])
def test_what_is_read_is_recognised_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.chdir(tmp_path)
    image = tmp_path / "photos" / "a" / "one.jpg"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"\1" * 200_000)
    with paths_by_setting({"source": given}, ELSEWHERE) as paths:
        paths.check_here()
        copy = image.read_bytes()
        image.unlink()
        image.write_bytes(copy)  # an equal copy, as in an image of a container, is as good
        paths.check_here()
        for other in (copy[:-1] + b"\2", copy[:-1]):
            image.write_bytes(other)
            with pytest.raises(SharedPathError, match=r"source = photos.*one\.jpg is another file"):
                paths.check_here()
        paths.renewed().check_here()  # changed on the driver's machine, too
        os.rename("photos", "elsewhere")
        with pytest.raises(SharedPathError, match=f"there is no {tmp_path}/photos"):
            paths.check_here()


def test_a_relative_path_needs_the_folder_that_it_starts_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with paths_by_setting({"source": "../photos"}, ELSEWHERE) as paths:
        paths.check_here()
        monkeypatch.chdir("/")
        (tmp_path / "work").rmdir()
        with pytest.raises(SharedPathError, match=f"it leads to /photos, not to {tmp_path}/photos"):
            paths.check_here()


def test_words_buckets_and_missing_paths_are_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "world").mkdir()
    asked = {"source": "world", "checkpoint": "untrained", "bundle": "s3://b/bundle", "identity.table": "none.csv"}
    with paths_by_setting(asked, ELSEWHERE) as paths:
        assert paths.seen == ()


def test_a_run_asks_for_its_dataset_its_settings_and_its_ends(photos: Callable[..., Path], tmp_path: Path) -> None:
    plan = open_or_build(tmp_path / "out", str(photos(6)), units=UnitsConfig(items_per_unit=2))
    (tmp_path / "model").mkdir()
    config = ReconstructConfig(source="s3://b/photos", dest="s3://b/out", checkpoint=str(tmp_path / "model"))
    with paths_of_run(plan, partial(HashWorker, config), RayConfig(address=ELSEWHERE)) as paths:
        asked = {(one.setting, one.place.removeprefix(f"{tmp_path}/")) for one in paths.seen}
        ends = {("source", f"photos/{number:03d}.jpg") for number in (0, 1, 4, 5)}
        assert asked == {("dest", "out"), ("checkpoint", "model")} | ends
        paths.check_here()
