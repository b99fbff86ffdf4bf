"""The reconstruct worker: rows of faces/, outputs by choice, maps as files, and trouble that stays alone."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from deca_core import Codes
from deca_core.assets import procedural_head
from deca_core.crop import crop_transform, square_from_landmarks, warp
from deca_core.flame import rotation_matrix
from deca_core.roll import NEVER, UPRIGHT_FROM
from deca_world import Limits, World
from pipelines.reconstruct import prepare, reconstruct
from schemas.parquet import field_shape, fixed_values
from schemas.reconstruct import ReconstructConfig
from tasks.heads.reconstruct import ReconstructWorker
from tasks.models.loading import load_model
from tasks.units.commits import committed_parts, read_commits, standing_quarantine
from tasks.units.plan import PlanConflict, PlanError, load_plan
from tasks.units.verify import verify
from tests.deca_core.test_roll import moved, turned
from tests.tasks.stored_faces import publish

PEOPLE = [2, 3, 2]
EVERYTHING = ("codes", "displacement", "vertices", "landmarks", "normals", "texture", "mesh", "preview")


def config(source: object, dest: object, **changes: Any) -> ReconstructConfig:
    values = {
        "source": str(source),
        "dest": str(dest),
        "precision": "fp32",
        "batch_size": 2,
        "units": {"items_per_unit": 3},
        "ray": {"workers": 0},
        **changes,
    }
    return ReconstructConfig.model_validate(values)


def rows(dest: object) -> pa.Table:
    return pq.read_table(committed_parts(str(dest)))


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven faces of three subjects; the fourth crop is no image."""
    folder = tmp_path_factory.mktemp("ingested")
    publish(str(folder / "faces"), PEOPLE, shards=2, crops={(1, 1): b"not a picture"})
    return folder


@pytest.fixture(scope="module")
def done(faces: Path) -> Iterator[Path]:
    """All outputs of the seven faces; tests only read it."""
    summary = reconstruct(config(faces, faces / "out", outputs=EVERYTHING))
    assert (summary.images, summary.faces, summary.quarantined) == (7, 6, {"decode": 1})
    return faces / "out"


def test_rows_keep_the_names_of_the_dataset(faces, done):
    stored = pq.read_table(sorted((faces / "faces" / "data").glob("*.parquet")))
    good = stored.filter(pa.array([name != "001001-00" for name in stored["face_id"].to_pylist()]))
    table = rows(done)
    for name in ("face_id", "image_id", "source_uri", "identity_id", "width", "height", "landmarks", "det_score"):
        assert table[name].to_pylist() == good[name].to_pylist(), name
    [lost] = standing_quarantine(str(done))
    assert (lost.stage, lost.error) == ("decode", "ImageError")


def test_the_version_is_pinned(faces, done, tmp_path):
    pinned = load_plan(str(done)).record.config["faces"]
    assert pinned["version"] == 1
    with pytest.raises(PlanError, match="pins one version"):
        reconstruct(config(faces, done, outputs=EVERYTHING, existing="extend"))
    publish(str(tmp_path / "faces"), PEOPLE, shards=2)
    inputs = {"exclude": ["a/*"]}  # lists nothing here, and is part of the plan as for any source
    first = reconstruct(config(tmp_path / "faces", tmp_path / "out", inputs=inputs))  # the dataset itself may be named
    assert first.faces == 7
    assert load_plan(str(tmp_path / "out")).record.config["source"]["exclude"] == ["a/*"]
    publish(str(tmp_path / "faces"), [*PEOPLE, 1], shards=2, version=2)
    with pytest.raises(PlanConflict, match="version 1 -> 2"):
        reconstruct(config(tmp_path / "faces", tmp_path / "out", inputs=inputs))


def test_columns_are_what_the_model_decodes(faces, done):
    table, model = rows(done), load_model(config(faces, done))
    codes = Codes(**{name: torch.from_numpy(fixed_values(table, name).copy()) for name, _ in Codes.zeros().items()})
    with torch.inference_mode():
        head = model.decode(codes)
        normals = model.detail_normals(head).permute(0, 2, 3, 1).numpy()
    assert np.abs(fixed_values(table, "vertices") - head.vertices.numpy()).max() < 8e-6  # half a step of a metre / 2^16
    assert np.abs(fixed_values(table, "landmarks3d") - head.landmarks3d.numpy()).max() < 1e-6
    assert np.abs(fixed_values(table, "normals") - normals).max() < 0.005
    step = float(table.schema.field("displacement").metadata[b"scale"])
    assert np.abs(fixed_values(table, "displacement") - head.displacement[:, 0].numpy()).max() <= step
    in_crop = (head.landmarks2d.numpy() + 1) * 112
    to_crop = fixed_values(table, "crop_transform")
    source = fixed_values(table, "landmarks2d")
    assert np.abs(source @ to_crop[:, :, :2].transpose(0, 2, 1) + to_crop[:, None, :, 2] - in_crop).max() < 0.01


def test_textures_have_the_colour_of_the_image(done):
    """The stored crops are plain: what the texture shows inside the face is the crop's colour."""
    table = rows(done)
    for row in range(table.num_rows):
        person, number = (int(table["image_id"][row].as_py()[at : at + 3]) for at in (0, 3))
        pixels = np.asarray(Image.open(io.BytesIO(table["texture"][row].as_py()["bytes"]))).astype(int)
        assert pixels.shape == (256, 256, 3)
        shown = pixels[pixels[..., 2] > 100]
        assert len(shown) > 5000
        assert np.abs(np.median(shown, axis=0) - [person * 10, number * 10, 128]).max() < 5
        preview = Image.open(io.BytesIO(table["preview"][row].as_py()["bytes"]))
        assert preview.size == (224, 224)
        assert np.asarray(preview).std() > 10  # a head before a black ground


def test_meshes_are_files_of_the_unit(done):
    """A GLB file a face beside the part, in the commit, of the head that the row's codes decode to."""
    table = rows(done)
    names = table["mesh_file"].to_pylist()
    assert names == [f"files/{name[:2]}/{name}.glb" for name in table["face_id"].to_pylist()]
    assert {file.file for commit in read_commits(str(done)) for file in commit.files} == set(names)
    for name in names:
        data = (done / name).read_bytes()
        assert data[:4] == b"glTF"
        assert int.from_bytes(data[8:12], "little") == len(data)
    assert verify(str(done)).ok


def test_only_what_is_asked_for_is_there(faces, tmp_path):
    reconstruct(config(faces, tmp_path / "out", outputs=["landmarks"]))
    names = rows(tmp_path / "out").schema.names
    assert {"landmarks2d", "landmarks3d", "face_id", "crop_transform"} <= set(names)
    assert not {"shape", "detail", "displacement", "vertices", "texture"} & set(names)


def test_maps_as_files_hold_the_same_steps(faces, done, tmp_path):
    out = tmp_path / "out"
    summary = reconstruct(config(faces, out, layout="files"))
    table, columns = rows(out), rows(done)
    assert "displacement" not in table.schema.names
    field = table.schema.field("displacement_file")
    assert field_shape(field) == (256, 256)
    for key in (b"scale", b"offset"):
        assert field.metadata[key] == columns.schema.field("displacement").metadata[key]
    raw = columns["displacement"].combine_chunks().flatten().to_numpy().reshape(-1, 256, 256)
    for row, name in enumerate(table["displacement_file"].to_pylist()):
        assert name == f"files/{table['face_id'][row].as_py()[:2]}/{table['face_id'][row].as_py()}.png"
        np.testing.assert_array_equal(np.asarray(Image.open(out / name)), raw[row])
    assert sum(len(commit.files) for commit in read_commits(str(out))) == 6
    assert verify(str(out)).ok
    assert summary.bytes > sum(path.stat().st_size for path in out.rglob("*.png"))
    (out / table["displacement_file"][0].as_py()).unlink()
    assert "missing" in verify(str(out)).problems[0]


def test_threads_and_batches_of_faces_change_no_byte(faces, done, tmp_path):
    again = reconstruct(config(faces, tmp_path / "out", outputs=EVERYTHING, ray={"workers": 0, "cpus_per_worker": 6}))
    assert again.faces == 6
    hashes = [[commit.sha256 for commit in read_commits(str(dest))] for dest in (done, tmp_path / "out")]
    assert hashes[0] == hashes[1]


def test_a_head_that_is_not_finite_is_quarantined_alone(faces, tmp_path, monkeypatch):
    worker = ReconstructWorker(config(faces, tmp_path / "out", outputs=["codes", "vertices"], batch_size=4))
    items = next(iter(load_plan(str(faces / "out")).iter_units([0]))).items
    assert worker.inference is not None
    original = worker.inference.codes

    def broken(images: torch.Tensor, validate: bool) -> Codes:
        codes = original(images, validate=validate)
        cam, shape = codes.cam.clone(), codes.shape.clone()
        cam[0] = torch.nan
        shape[1] = 1e6  # finite, and no head
        return codes.replace(cam=cam, shape=shape)

    monkeypatch.setattr(worker.inference, "codes", broken)
    output = worker.process(items)
    kept = [name for batch in output.table.batches for name in batch["face_id"].to_pylist()]
    assert len(kept) == len(items) - 2
    assert [(row.stage, row.error) for row in output.quarantine] == [("encode", "EncodeError")] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": ["skeleton"]}, "Input should be"),
        ({"outputs": ["codes", "codes"]}, "twice"),
        ({"outputs": []}, "at least 1"),
        ({"outputs": ["codes"], "layout": "files"}, "does not name displacement"),
    ],
)
def test_outputs_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        config("a", "b", **changes)


@pytest.mark.slow
def test_the_batch_size_of_a_plan_stays(faces, tmp_path):
    """Without one in the config it is a CPU's when the plan is made, and the plan's from then on."""
    assert prepare(config(faces, tmp_path / "out", batch_size=None)).batch_size == 8
    first = reconstruct(config(faces, tmp_path / "out", batch_size=3))
    assert first.batch_size == 3
    again = reconstruct(config(faces, tmp_path / "out", batch_size=None))
    assert (again.units_run, again.batch_size, again.workers) == (0, 3, None)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_precision_is_measured_on_a_worker(faces, tmp_path, monkeypatch):
    """Not on the machine that plans, which may have another device."""
    monkeypatch.setattr("tasks.heads.precision.choose_precision", lambda *_: pytest.fail("measured in the driver"))
    monkeypatch.setattr("tasks.heads.precision._recall", lambda *_: pytest.fail("remembered by the driver"))
    found = prepare(config(faces, tmp_path / "out", precision="auto", batch_size=None, ray={}))
    assert found.precision in ("fp32", "mixed", "bf16")
    assert found.batch_size == 8
    assert (tmp_path / "out" / "_report" / "precision.json").is_file()


@pytest.mark.slow
def test_the_precision_of_a_plan_stays(faces, tmp_path, monkeypatch):
    """A second run, on a machine that would choose otherwise, resumes with the plan's choice."""
    import pipelines.reconstruct as flow

    first = prepare(config(faces, tmp_path / "out", precision="auto"))
    assert first.precision in ("fp32", "mixed", "bf16")
    assert (tmp_path / "out" / "_report" / "precision.json").is_file()
    summary = reconstruct(config(faces, tmp_path / "out", precision="bf16"))
    assert summary.precision == "bf16"
    monkeypatch.setattr(flow, "worker_settings", lambda *_: pytest.fail("the plan has chosen"))
    again = reconstruct(config(faces, tmp_path / "out", precision="auto"))
    assert (again.units_run, again.precision) == (0, "bf16")
    with pytest.raises(PlanConflict, match='precision "bf16" -> "fp32"'):
        reconstruct(config(faces, tmp_path / "out", precision="fp32"))


# --- rolled photographs -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rolled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph upright, rolled by 45 and by 180 degrees, with landmarks beside each; reconstructed in out/."""
    folder = tmp_path_factory.mktemp("rolled")
    world = World(procedural_head())
    someone = world.subject(2**20, 1)
    taken = world.photograph(someone, world.shot(someone, 0, Limits(yaw=(0, 20), occluders=False)), 384)
    (folder / "photos").mkdir()
    for degrees in TURNS:
        spin = turned(degrees)
        image = (warp(taken.image, spin, 384) * 255).round().astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(image).save(folder / "photos" / f"{degrees:03d}.png")
        np.save(folder / "photos" / f"{degrees:03d}.npy", moved(taken.landmarks, spin).astype(np.float32))
    reconstruct(of_photographs(folder, "out"))
    return folder


TURNS = (0, 45, 180)


def of_photographs(folder: Path, dest: str, **changes: Any) -> ReconstructConfig:
    outputs = ("codes", "displacement", "vertices", "landmarks", "texture")
    return config(folder / "photos", folder / dest, outputs=outputs, annotate={"provider": "sidecar"}, **changes)


@pytest.mark.slow
def test_a_rolled_photograph_keeps_its_roll(rolled):
    """Recorded pose, landmarks in source pixels, vertices and texture are those of the photograph as it lies."""
    assert load_plan(str(rolled / "out")).record.config["upright_from"] == UPRIGHT_FROM
    table = rows(rolled / "out").sort_by("source_uri")
    level, *others = (table.slice(index, 1) for index in range(3))
    for degrees, row in zip(TURNS[1:], others, strict=True):
        turn = rotation_matrix(torch.tensor([0.0, 0.0, np.radians(degrees)])).numpy()
        heads = [rotation_matrix(torch.from_numpy(fixed_values(one, "pose")[0, :3].copy())) for one in (level, row)]
        cosine = (float(np.trace(turn @ heads[0].numpy() @ heads[1].numpy().T)) - 1) / 2
        assert np.degrees(np.arccos(min(cosine, 1.0))) < 3
        release = crop_transform(square_from_landmarks(fixed_values(row, "landmarks")[0]))
        assert np.array_equal(fixed_values(row, "crop_transform")[0], release.astype(np.float32))
        points = [fixed_values(one, "landmarks2d")[0] for one in (level, row)]
        assert np.linalg.norm(moved(points[0], turned(degrees)) - points[1], axis=1).mean() < 2
        vertices = [fixed_values(one, "vertices")[0] for one in (level, row)]
        centred = [one - one.mean(0) for one in vertices]
        assert np.linalg.norm(centred[0] @ turn.T - centred[1], axis=1).mean() < 0.004
        skin = [np.asarray(Image.open(io.BytesIO(one["texture"][0].as_py()["bytes"]))) / 255 for one in (level, row)]
        assert np.abs(skin[0] - skin[1])[96:160, 96:160].mean() < 0.05  # about the nose


def test_upright_faces_are_the_same_bytes(rolled):
    """The setting off is the release; where a face does not roll, on and off are the same."""
    reconstruct(of_photographs(rolled, "release", upright_from=180))
    assert load_plan(str(rolled / "release")).record.config["upright_from"] == NEVER
    on, off = (rows(rolled / name).sort_by("source_uri") for name in ("out", "release"))
    assert on.slice(0, 1).equals(off.slice(0, 1))
    lost = fixed_values(off.slice(1, 1), "landmarks2d")[0] - fixed_values(on.slice(1, 1), "landmarks2d")[0]
    assert np.linalg.norm(lost, axis=1).mean() > 8


@pytest.mark.slow
def test_a_plan_older_than_the_setting_turns_nothing(rolled, tmp_path):
    """It keeps its setting: run again, extended by a rolled photograph, and resumed."""
    (tmp_path / "photos").mkdir()

    def add(degrees: int) -> None:
        for suffix in ("png", "npy"):
            shutil.copy(rolled / "photos" / f"{degrees:03d}.{suffix}", tmp_path / "photos")

    add(0)
    reconstruct(of_photographs(tmp_path, "older", upright_from=180))
    for name, inside in (("_plan.json", "config"), ("_config.json", None)):
        record = json.loads((tmp_path / "older" / name).read_text())
        del (record[inside] if inside else record)["upright_from"]
        (tmp_path / "older" / name).write_text(json.dumps(record))
    assert reconstruct(of_photographs(tmp_path, "older")).units_run == 0  # no conflict
    add(45)
    assert reconstruct(of_photographs(tmp_path, "older", existing="extend")).units_run == 1
    places = (tmp_path / "older", rolled / "release", rolled / "out")
    added, off, on = (fixed_values(rows(place).sort_by("source_uri").slice(1, 1), "pose") for place in places)
    assert np.abs(added - off).max() < 1e-4  # last bits: another batch
    assert np.abs(added - on).max() > 0.3
    for existing, expected in (("resume", NEVER), ("extend", NEVER), ("new", UPRIGHT_FROM)):
        assert prepare(of_photographs(tmp_path, "older", existing=existing)).upright_from == expected
    with pytest.raises(PlanConflict, match=r"config upright_from 180\.0 -> 30\.0"):
        reconstruct(of_photographs(tmp_path, "older", upright_from=30))
