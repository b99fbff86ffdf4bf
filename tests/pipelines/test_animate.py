"""From a film and a photograph to heads that move: the whole way, with everything that may be wrong on it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from deca_core.animation import preset
from deca_core.assets import procedural_head
from pipelines.animate import animate
from pipelines.reconstruct import reconstruct
from schemas.animate import AnimateConfig
from schemas.parquet import fixed_values
from schemas.reconstruct import ReconstructConfig
from tasks.heads.cast import CastError
from tasks.heads.clips import write_clip
from tasks.heads.selection import HeadsError, read_heads
from tasks.heads.track_records import read_tracks
from tasks.units.commits import committed_parts, read_commits, standing_quarantine
from tasks.units.plan import PlanConflict
from tasks.units.verify import verify
from tests.pipelines.conftest import astronaut

HERE = {"ray": {"workers": 0}}
FRAMES = 6


def film(path: Path) -> Path:
    """The astronaut's head, moving a little, with a frame without anybody; at an uneven rate."""
    pictures = []
    for index in range(FRAMES):
        picture = Image.new("RGB", (260, 240), "teal")
        if index != 3:
            picture.paste(astronaut().rotate(2 * index), (4 * index, 8))
        pictures.append(np.asarray(picture))
    write_clip(path, pictures, [0.0, 0.04, 0.08, 0.12, 0.18, 0.22])
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A film, a photograph, a wall, and the film reconstructed."""
    folder = tmp_path_factory.mktemp("animate")
    film(folder / "clip.mp4")
    astronaut().save(folder / "photo.jpg", quality=95)
    Image.new("RGB", (120, 120), "teal").save(folder / "wall.jpg")
    settings = {"source": str(folder / "clip.mp4"), "dest": str(folder / "heads"), "precision": "fp32", **HERE}
    summary = reconstruct(ReconstructConfig.model_validate(settings))
    assert (summary.images, summary.faces, summary.tracks) == (FRAMES, FRAMES - 1, 1)
    assert summary.quarantined == {"detect": 1}
    return folder


def config(place: Path, dest: str, **changes: object) -> AnimateConfig:
    values = {"dest": str(place / dest), "size": 64, "fps": 5, "outputs": ("codes",), **HERE, **changes}
    return AnimateConfig.model_validate(values)


def table(place: Path, dest: str):
    return pq.read_table(committed_parts(str(place / dest)))


def test_rows_of_a_film_know_their_frame_and_time(place):
    rows = read_heads(str(place / "heads")).table.sort_by("frame")
    assert rows["frame"].to_pylist() == [0, 1, 2, 4, 5]
    assert np.allclose(rows["time"].to_numpy(), [0, 0.04, 0.08, 0.18, 0.22])
    tracks = read_tracks(str(place / "heads"))
    assert tracks["frame"].to_pylist() == [0, 1, 2, 4, 5]
    assert set(tracks["face_id"].to_pylist()) == set(rows["face_id"].to_pylist())


def test_one_photograph_with_a_preset_gives_all_there_is(place):
    smile = preset("smile", procedural_head().expression_names, 5)
    everything = ("codes", "displacement", "clip", "glb", "npz")
    made = config(place, "smile", identity=[str(place / "photo.jpg")], expression=["smile"], outputs=everything)
    summary = animate(made)
    assert summary.outcome == "complete"
    assert summary.frames == len(smile)
    rows = table(place, "smile")
    assert np.allclose(fixed_values(rows, "exp"), smile.exp)
    for name in ("shape", "tex", "detail", "cam", "light"):
        values = fixed_values(rows, name)
        assert np.array_equal(values, np.broadcast_to(values[:1], values.shape))
    assert fixed_values(rows, "displacement").shape == (len(smile), 256, 256)
    files = {name.rpartition(".")[2]: place / "smile" / name for name in summary.files}
    with av.open(str(files["mp4"])) as clip:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in clip.decode(video=0)]
    assert np.allclose([time for time, _ in frames], smile.times, atol=1e-4)
    assert frames[0][1].shape == (64, 128, 3)
    change = np.abs(frames[0][1].astype(int) - frames[5][1]).mean()
    assert change > 2 * np.abs(frames[0][1].astype(int) - frames[-1][1]).mean()  # there and back
    gltf = glb_json(files["glb"])
    assert gltf["animations"][0]["channels"]
    assert "smile" in gltf["meshes"][0]["extras"]["targetNames"]
    again = config(place, "again", identity=[str(place / "photo.jpg")], expression=[str(files["npz"])])
    animate(again)
    assert np.allclose(fixed_values(table(place, "again"), "exp"), smile.exp)
    assert verify(str(place / "smile")).ok


def glb_json(path: Path) -> dict:
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    return json.loads(data[20 : 20 + length])


@pytest.mark.slow
def test_a_film_drives_a_photograph_at_its_own_times(place):
    animate(config(place, "driven", identity=[str(place / "photo.jpg")], expression=[str(place / "heads")]))
    rows, track = table(place, "driven"), read_tracks(str(place / "heads"))
    assert np.allclose(rows["time"].to_numpy(), track["time"].to_numpy())
    assert np.array_equal(fixed_values(rows, "exp"), fixed_values(track, "exp"))
    assert np.array_equal(fixed_values(rows, "pose")[:, 3:], fixed_values(track, "pose")[:, 3:])
    heads = fixed_values(rows, "pose")[:, :3]
    assert np.array_equal(heads, np.broadcast_to(heads[:1], heads.shape))  # the photograph's
    animate(config(place, "direct", identity=[str(place / "photo.jpg")], expression=[str(place / "clip.mp4")]))
    assert np.allclose(fixed_values(table(place, "direct"), "exp"), fixed_values(rows, "exp"), atol=1e-4)


@pytest.mark.slow
def test_all_heads_with_all_motions_go_on_where_they_stopped(place):
    (place / "motions.csv").write_text(
        f"expression\nblink\n{place}/wall.jpg\njaw-open\nheads/#nobody\n{place}/talk.json\nno-such-motion\n"
    )
    frames = [{"exp": {"smile": 0.5}, "jaw": 0.1, "time": 0.0}, {"exp": {"pucker": 1}, "time": 0.2}]
    (place / "talk.json").write_text(json.dumps(frames))
    pairs = config(
        place,
        "pairs",
        identities=str(place / "heads"),
        identities_where="frame < 2",
        expressions=str(place / "motions.csv"),
        units={"items_per_unit": 5},
    )
    summary = animate(pairs)
    assert summary.outcome == "partial"
    assert (summary.identities, summary.expressions, summary.animations) == (2, 6, 12)
    assert summary.quarantined == {"read": 6}
    reasons = " ".join(row.message for row in standing_quarantine(str(place / "pairs")))
    for words in ("no face found", "no face, image or identity 'nobody'", "nothing that can be animated"):
        assert words in reasons
    rows = table(place, "pairs")
    assert len(set(rows["animation_id"].to_pylist())) == 6
    talk = rows.filter([name.endswith("talk.json") for name in rows["expression"].to_pylist()])
    assert np.allclose(talk["time"].to_numpy(), [0.0, 0.2, 0.0, 0.2])
    again = animate(pairs)
    assert (again.units_run, again.frames) == (0, summary.frames)
    victim = next((place / "pairs" / "_commits").iterdir())
    before = {commit.unit: commit.sha256 for commit in read_commits(str(place / "pairs"))}
    victim.unlink()
    assert animate(pairs).units_run == 1
    assert {commit.unit: commit.sha256 for commit in read_commits(str(place / "pairs"))} == before
    retried = animate(pairs.model_copy(update={"existing": "retry"}))  # the cast is frozen: the reasons stay
    assert (retried.outcome, retried.quarantined) == ("partial", {"read": 6})
    with pytest.raises(PlanConflict, match="fps"):
        animate(pairs.model_copy(update={"fps": 6.0}))


@pytest.mark.slow
def test_the_prefect_flow_on_ray_gives_the_same(place, prefect_harness, ray_cluster):
    from pipelines import flows

    pairs = {
        "identities": str(place / "heads"),
        "identities_where": "frame < 2",
        "expression": ["blink"],
        "units": {"items_per_unit": 1},
    }
    animate(config(place, "here", **pairs))
    summary = flows.animate(config(place, "there", **pairs, ray={"workers": 1}))
    assert (summary.outcome, summary.animations) == ("complete", 2)
    here, there = ([commit.sha256 for commit in read_commits(str(place / name))] for name in ("here", "there"))
    assert len(here) == 2
    assert here == there


def test_single_faces_as_frames(place):
    heads = str(place / "heads")
    made = config(
        place,
        "stills",
        identities=heads,
        identities_where="frame == 0",
        expressions=heads,
        expressions_where="frame > 0",
        stills="frame",
    )
    assert animate(made).frames == 4
    expected = read_heads(heads, where="frame > 0").codes.exp.numpy()
    assert np.array_equal(fixed_values(table(place, "stills"), "exp"), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("identity", "expression", "error", "words"),
    [
        ("heads", "grin", CastError, r"no motion has the name \(smile, .*brow_raise"),
        ("wall.jpg", "smile", CastError, "no face"),
        ("heads#0000000000000000-00", "smile", CastError, "no track"),
        ("heads#nobody", "smile", CastError, "There are, for example"),
        ("missing.npz", "smile", CastError, "does not exist"),
        ("codes.json", "smile", CastError, "say nothing of a person"),
        ("heads", "bad.json", CastError, "no expression component 'grin'"),
    ],
)
def test_a_name_that_gives_nothing_is_one_clear_error(place, identity, expression, error, words):
    (place / "codes.json").write_text('[{"exp": {"smile": 1}}]')
    (place / "bad.json").write_text('[{"exp": {"grin": 1}}]')
    known = {"grin": "grin", "smile": "smile"}
    made = config(
        place, "wrong", identity=[str(place / identity)], expression=[known.get(expression, str(place / expression))]
    )
    with pytest.raises(error, match=words):
        animate(made)
    assert not (place / "wrong" / "_plan.json").exists()


def test_another_model_than_the_rows_is_refused(place):
    made = config(place, "other", identities=str(place / "heads"), expression=["smile"], checkpoint="untrained")
    with pytest.raises(HeadsError, match="--checkpoint"):
        animate(made)


def test_a_filter_that_matches_nobody(place):
    made = config(place, "none", identities=str(place / "heads"), identities_where="frame > 99", expression=["smile"])
    with pytest.raises(HeadsError, match="none of"):
        animate(made)
