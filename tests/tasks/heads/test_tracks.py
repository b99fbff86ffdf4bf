"""Identity assignment over frames, shared codes of a track, and the tracks/ dataset."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from deca_core.assets import AssetBundle, procedural_head
from deca_core.codes import Codes
from schemas.engine import UnitsConfig
from schemas.ledger import Item
from schemas.parquet import fixed_values
from schemas.reconstruct import reconstruction_schema
from schemas.tracks import VideoConfig
from tasks.annotate.find_faces import record_batch
from tasks.heads.consensus import shape_metric
from tasks.heads.track_records import TracksError, read_track, read_tracks, verify_tracks
from tasks.heads.tracks import follow, has_frames, make_tracks, share_track
from tasks.sources.videos import frame_of
from tasks.units.commit import commit_unit
from tasks.units.rounds import open_or_build

POINTS = np.random.default_rng(0).uniform(-40, 40, (68, 2)).astype(np.float32)


def at(*places: tuple[float, float]) -> np.ndarray:
    return np.stack([POINTS + np.array(place, np.float32) for place in places])


def numbers(frames: list[int], places: list[tuple[float, float]], **known: object) -> list[int]:
    shapes = known.get("shapes", np.zeros((len(frames), 100)))
    identities = known.get("identities", [None] * len(frames))
    return follow(np.array(frames) / 25, at(*places), shapes, identities, 0.5).tolist()


def test_two_subjects_crossing_paths():
    frames = [frame for frame in range(20) for _ in range(2)]
    places = [place for frame in range(20) for place in ((100 + 12 * frame, 100), (330 - 12 * frame, 190))]
    assert numbers(frames, places) == [0, 1] * 20


def test_the_order_of_faces_in_a_frame_is_irrelevant():
    places = [(100, 100), (300, 100), (302, 100), (101, 100), (99, 100), (305, 100)]
    assert numbers([0, 0, 1, 1, 2, 2], places) == [0, 1, 1, 0, 0, 1]


def test_a_short_absence_is_bridged_and_a_long_one_is_not():
    assert numbers([0, 1, 2, 13, 14], [(100, 100)] * 5) == [0] * 5
    assert numbers([0, 1, 2, 16, 17], [(100, 100)] * 5) == [0, 0, 0, 1, 1]


def test_a_cut_to_another_subject_at_the_same_place():
    shapes = np.zeros((6, 100))
    shapes[3:, 0] = 9.0  # millimetres
    assert numbers([0, 1, 2, 3, 4, 5], [(100, 100)] * 6, shapes=shapes) == [0, 0, 0, 1, 1, 1]


def test_a_jump_is_another_subject():
    assert numbers([0, 1], [(100, 100), (190, 100)]) == [0, 1]


def test_known_identities_are_joined_across_gaps_and_never_mixed():
    assert numbers([0, 1, 100, 101], [(100, 100)] * 4, identities=["ann", "ann", "ann", "bob"]) == [0, 0, 0, 1]
    twice = numbers([0, 50, 50], [(100, 100), (100, 100), (300, 100)], identities=["ann"] * 3)
    assert twice[1] != twice[2]  # an identity occurs once a frame, whatever the labels say


def test_a_track_shares_what_most_frames_say():
    rng = torch.Generator().manual_seed(0)
    true = Codes(**{name: torch.randn(value.shape, generator=rng) for name, value in Codes.zeros().items()})
    codes = Codes(
        **{
            name: value.expand(20, *value.shape[1:]) + 0.05 * torch.randn(20, *value.shape[1:], generator=rng)
            for name, value in true.items()
        }
    )
    codes.shape[7] += 3.0  # a frame of another subject
    found = share_track(codes, shape_metric(procedural_head()))
    for name in ("shape", "tex", "detail"):
        values = getattr(found, name)
        assert torch.equal(values, values[:1].expand_as(values))
        assert (values[0] - getattr(true, name)[0]).abs().max() < 0.06
    assert torch.equal(found.exp, codes.exp)


# --- the dataset ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle() -> AssetBundle:
    return procedural_head()


def write_rows(dest: Path, uris: list[str], bundle: AssetBundle, units: int = 2) -> None:
    """A committed reconstructions/ dataset of these frames, one face each, with noisy codes."""
    rng = np.random.default_rng(1)
    items = [
        Item(index, uri.rpartition("#")[0] or uri, uri.rpartition("#")[2] if "#" in uri else None)
        for index, uri in enumerate(uris)
    ]
    plan = open_or_build(
        str(dest),
        "/clips",
        config={"flow": "reconstruct"},
        weights={"bundle": bundle.hash, "checkpoint": "c"},
        units=UnitsConfig(items_per_unit=-(-len(items) // units)),
        items=items,
    )
    schema = reconstruction_schema(0.01, ("codes",))
    for unit in plan.iter_units():
        count = len(unit.items)
        zero = {name: value.numpy() for name, value in Codes.zeros(count).items()}
        fixed = {name: (value + rng.normal(0, 0.03, value.shape)).astype(np.float32) for name, value in zero.items()}
        fixed["cam"] = np.tile(np.array([[7, 0, 0]], np.float32), (count, 1))
        frames = [frame_of(item.source_uri) for item in unit.items]
        columns = {
            "face_id": [f"{item.image_id}-00" for item in unit.items],
            "image_id": [item.image_id for item in unit.items],
            "source_uri": [item.source_uri for item in unit.items],
            "face_index": [0] * count,
            "identity_id": [None] * count,
            "frame": [frame and frame.number for frame in frames],
            "time": [frame and frame.seconds for frame in frames],
            "width": [640] * count,
            "height": [480] * count,
            "det_score": [1.0] * count,
            "checkpoint": ["c"] * count,
            "bbox": np.tile(np.array([[260, 260, 340, 340]], np.float32), (count, 1)),
            "landmarks": np.tile(POINTS + 300, (count, 1, 1)),
            "crop_transform": np.tile(np.array([[[1, 0, -190], [0, 1, -190]]], np.float32), (count, 1, 1)),
            **fixed,
        }
        commit_unit(plan, unit, pa.Table.from_batches([record_batch(schema, columns)]), [], 0.1)


def clip(name: str, frames: list[int]) -> list[str]:
    return [f"/clips/{name}#t={frame / 25:.6f}&frame={frame}" for frame in frames]


def test_tracks_of_two_videos_and_no_image(tmp_path, bundle):
    uris = [*clip("a.mp4", [0, 1, 2, 3, 5, 6]), "/clips/photo.jpg", *clip("b.mp4", [0, 1, 40, 41])]
    write_rows(tmp_path, uris, bundle)
    assert has_frames(str(tmp_path), VideoConfig())
    record = make_tracks(str(tmp_path), bundle, VideoConfig())
    assert (record.videos, record.tracks, record.faces) == (2, 3, 10)
    table = read_tracks(str(tmp_path))
    assert table["frame"].to_pylist() == [0, 1, 2, 3, 5, 6, 0, 1, 40, 41]
    assert np.allclose(table["time"].to_numpy(), table["frame"].to_numpy() / 25)
    assert table["track_id"].to_pylist()[6][-3:] == "-00"
    assert table["track_id"].to_pylist()[8][-3:] == "-01"
    longest = read_track(str(tmp_path))
    assert len(longest) == 6
    shapes = fixed_values(longest, "shape")
    assert np.array_equal(shapes, np.broadcast_to(shapes[:1], shapes.shape))
    assert make_tracks(str(tmp_path), bundle, VideoConfig()) == record  # the stored one is returned
    assert verify_tracks(str(tmp_path)).ok


def test_a_folder_of_frames_is_a_clip_where_its_rate_is_said(tmp_path, bundle):
    uris = [f"/clips/walk/frame-{frame}.png" for frame in (1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9)]  # as names sort
    write_rows(tmp_path, uris, bundle)
    assert not has_frames(str(tmp_path), VideoConfig())
    make_tracks(str(tmp_path), bundle, VideoConfig(fps=10))
    table = read_tracks(str(tmp_path))
    assert table["frame"].to_pylist() == list(range(11))
    assert np.allclose(table["time"].to_numpy(), np.arange(11) / 10)
    assert set(table["video"].to_pylist()) == {"/clips/walk"}


def test_smoothing_is_a_setting(tmp_path, bundle):
    write_rows(tmp_path, clip("a.mp4", list(range(20))), bundle, units=1)
    make_tracks(str(tmp_path), bundle, VideoConfig(smooth_s=0))
    raw = fixed_values(read_tracks(str(tmp_path)), "exp")
    make_tracks(str(tmp_path), bundle, VideoConfig())
    smooth = fixed_values(read_tracks(str(tmp_path)), "exp")
    assert np.abs(np.diff(smooth, 2, axis=0)).mean() < 0.5 * np.abs(np.diff(raw, 2, axis=0)).mean()
    assert len(list((tmp_path / "tracks").glob("*.parquet"))) == 1  # the earlier file is gone


def test_tracks_of_other_rows_are_refused_and_damage_is_found(tmp_path, bundle):
    write_rows(tmp_path / "none", ["/clips/a.jpg"], bundle, units=1)
    with pytest.raises(TracksError, match="no tracks"):
        read_tracks(str(tmp_path / "none"))
    dest = tmp_path / "heads"
    write_rows(dest, clip("a.mp4", list(range(8))), bundle)
    make_tracks(str(dest), bundle, VideoConfig())
    with pytest.raises(TracksError, match=r"no track 'x'.*8 frames"):
        read_track(str(dest), "x")
    file = next((dest / "tracks").glob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-20] + bytes(20))
    assert not verify_tracks(str(dest)).ok
    commit = next((dest / "_commits").iterdir())
    commit.write_text(json.dumps(json.loads(commit.read_text()) | {"sha256": "0" * 64}))
    with pytest.raises(TracksError, match=r"rows came or went.*--resume"):
        read_tracks(str(dest))
