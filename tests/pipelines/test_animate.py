"""Animations of images and videos, end to end, with what may go wrong."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
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
from tasks.heads.clips import write_clip
from tasks.heads.selection import HeadsError, read_heads
from tasks.heads.track_records import TracksError, read_tracks
from tasks.sources.walk import SourceError
from tasks.units.commits import committed_parts, read_commits, standing_quarantine
from tasks.units.plan import CONFIG, PlanConflict, load_plan
from tasks.units.verify import verify
from tests.pipelines.conftest import astronaut

HERE = {"ray": {"workers": 0}}
FRAMES = 6


def video(path: Path) -> Path:
    """The astronaut's head, moving a little, with a frame without a face; at a variable rate."""
    images = []
    for index in range(FRAMES):
        image = Image.new("RGB", (260, 240), "teal")
        if index != 3:
            image.paste(astronaut().rotate(2 * index), (4 * index, 8))
        images.append(np.asarray(image))
    write_clip(path, images, [0.0, 0.04, 0.08, 0.12, 0.18, 0.22])
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A video, a photograph, an image without a face, and the reconstructed video."""
    folder = tmp_path_factory.mktemp("animate")
    video(folder / "clip.mp4")
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


def test_rows_of_a_video_have_frame_and_time(place):
    rows = read_heads(str(place / "heads")).table.sort_by("frame")
    assert rows["frame"].to_pylist() == [0, 1, 2, 4, 5]
    assert np.allclose(rows["time"].to_numpy(), [0, 0.04, 0.08, 0.18, 0.22])
    tracks = read_tracks(str(place / "heads"))
    assert tracks["frame"].to_pylist() == [0, 1, 2, 4, 5]
    assert set(tracks["face_id"].to_pylist()) == set(rows["face_id"].to_pylist())


def test_an_image_with_a_preset_writes_every_output(place):
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
    with np.load(files["npz"], allow_pickle=False) as arrays:
        assert np.allclose(arrays["exp"], smile.exp)
        assert np.allclose(arrays["times"], smile.times)
    assert verify(str(place / "smile")).ok


def glb_json(path: Path) -> dict:
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    return json.loads(data[20 : 20 + length])


@pytest.mark.slow
def test_a_video_drives_an_image_at_its_own_times(place):
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
def test_all_heads_of_a_dataset_with_presets_resume(place):
    pairs = config(
        place,
        "pairs",
        identities=str(place / "heads"),
        identities_where="frame < 2",
        expression=["blink", "jaw-open", str(place / "photo.jpg")],
        units={"items_per_unit": 2},
    )
    summary = animate(pairs)
    assert (summary.outcome, summary.quarantined) == ("complete", {})
    assert (summary.identities, summary.expressions, summary.animations) == (2, 3, 6)
    rows = table(place, "pairs")
    assert len(set(rows["animation_id"].to_pylist())) == 6
    heads = read_heads(str(place / "heads"), where="frame < 2")
    own = rows.filter([name.endswith(heads.face_ids[1]) for name in rows["identity"].to_pylist()])
    shape = fixed_values(own, "shape")
    assert len(own) == len(rows) // 2
    assert np.array_equal(shape, np.broadcast_to(heads.codes.shape[1].numpy(), shape.shape))
    again = animate(pairs)
    assert (again.units_run, again.frames) == (0, summary.frames)
    victim = next((place / "pairs" / "_commits").iterdir())
    before = {commit.unit: commit.sha256 for commit in read_commits(str(place / "pairs"))}
    victim.unlink()
    assert animate(pairs).units_run == 1
    assert {commit.unit: commit.sha256 for commit in read_commits(str(place / "pairs"))} == before
    with pytest.raises(PlanConflict, match="fps"):
        animate(pairs.model_copy(update={"fps": 6.0}))


@pytest.mark.slow
def test_the_tracks_of_a_dataset_are_its_heads(place):
    assert animate(config(place, "tracks", identities=str(place / "heads"), expression=["jaw-open"])).identities == 1
    track = read_tracks(str(place / "heads"))
    rows = table(place, "tracks")
    assert set(rows["identity"].to_pylist()) == {f"{place}/heads#{track['track_id'][0]}"}
    assert np.array_equal(fixed_values(rows, "cam")[0], fixed_values(track, "cam")[0])


def test_a_dataset_of_an_earlier_version_resumes(place):
    """Its stored config holds settings that are gone, and its cast a head without codes, which stays in quarantine."""
    heads = [str(place / "heads"), str(place / "photo.jpg")]
    earlier = config(place, "earlier", identity=heads, expression=["jaw-open"])
    animate(earlier)
    folder = place / "earlier"
    stored = json.loads((folder / CONFIG).read_text())
    stored |= {"expressions": None, "expressions_where": None, "stills": "ease"}
    (folder / CONFIG).write_text(json.dumps(stored))
    assert load_plan(str(folder)).record.config["stills"] == "ease"
    for commit in list((folder / "_commits").iterdir()):
        commit.unlink()
    cast = next((folder / "_cast").glob("identities-*"))
    rows = pq.read_table(cast)
    errors = pa.array([None, "wall.jpg: no face"], pa.string())
    pq.write_table(rows.set_column(rows.schema.get_field_index("error"), rows.schema.field("error"), errors), cast)
    summary = animate(earlier.model_copy(update={"existing": "resume"}))
    assert (summary.outcome, summary.quarantined) == ("partial", {"read": 1})
    assert [row.message for row in standing_quarantine(str(folder))] == ["wall.jpg: no face"]
    retried = animate(earlier.model_copy(update={"existing": "retry"}))  # the cast is frozen: the reason stays
    assert (retried.outcome, retried.quarantined) == ("partial", {"read": 1})


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


@pytest.mark.parametrize(
    ("identity", "expression", "error", "words"),
    [
        ("heads", "grin", SourceError, r"no motion has the name \(smile, .*brow_raise"),
        ("wall.jpg", "smile", SourceError, "no face"),
        ("heads#0000000000000000-00", "smile", TracksError, "no track"),
        ("heads#nobody", "smile", HeadsError, "There are, for example"),
        ("missing.jpg", "smile", SourceError, "nothing that can be animated"),
        ("list.csv", "smile", SourceError, "nothing that can be animated"),
    ],
)
def test_a_name_that_gives_nothing_is_one_clear_error(place, identity, expression, error, words):
    (place / "list.csv").write_text("identity\nphoto.jpg\n")
    made = config(place, "wrong", identity=[str(place / identity)], expression=[expression])
    with pytest.raises(error, match=words):
        animate(made)
    assert not (place / "wrong" / "_plan.json").exists()


def test_another_model_than_the_rows_is_refused(place):
    made = config(place, "other", identities=str(place / "heads"), expression=["smile"], checkpoint="untrained")
    with pytest.raises(HeadsError, match="--checkpoint"):
        animate(made)


def test_a_filter_that_matches_no_row(place):
    made = config(place, "none", identities=str(place / "heads"), identities_where="frame > 99", expression=["smile"])
    with pytest.raises(HeadsError, match="none of"):
        animate(made)
