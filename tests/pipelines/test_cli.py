"""The command line: help, exit codes, one clear error before any work."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from deca_core import DECA, Codes
from deca_core.animation import MotionError
from deca_core.assets import procedural_head
from deca_core.camera import from_pixels
from deca_core.checkpoint import save_checkpoint
from deca_core.metrics import normalized_mean_error, rotation_error
from pipelines.synth import synth
from schemas.parquet import fixed_values
from schemas.world import SynthConfig
from tasks.measure.world_truth import WorldTruth
from tasks.models.loading import GeometryModel
from tasks.reports.viewer import ViewerError
from tasks.store.ranges import ReadError
from tasks.units.commits import committed_parts
from tests.pipelines.conftest import astronaut

COMMANDS = [
    "demo",
    "synth",
    "ingest",
    "reconstruct",
    "fit",
    "animate",
    "train",
    "evaluate",
    "export",
    "plan",
    "status",
    "retry",
    "verify",
    "gc",
    "report",
    "assets import",
    "assets head",
    "assets show",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(deca, command):
    code, printed = deca(*command.split(), "--help")
    assert code == 0
    assert f"deca {command}" in printed.partition("Example")[2]


@pytest.mark.parametrize("error", [ViewerError("no three.js here"), ReadError("photo.jpg: gone"), MotionError("lame")])
def test_an_expected_error_is_one_line(deca, monkeypatch, tmp_path, error):
    monkeypatch.setattr("pipelines.status.status_report", Mock(side_effect=error))
    code, printed = deca("status", tmp_path)
    assert (code, printed) == (1, f"error: {error}\n")
    code, printed = deca("status", tmp_path, "--debug")
    assert code == 1
    assert "Traceback (most recent call last)" in printed
    assert printed.endswith(f"error: {error}\n")


def test_an_unexpected_error_is_one_line_and_its_traceback_a_file(deca, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-anybody")
    monkeypatch.setattr("pipelines.status.status_report", Mock(side_effect=KeyError("lost\nnot-for-anybody")))
    code, printed = deca("status", tmp_path)
    assert code == 1
    assert printed.count("\n") == 1
    assert printed.startswith("error: unexpected KeyError: 'lost")
    assert "Traceback (most" not in printed
    (file,) = tmp_path.glob("deca-traceback-*")
    assert printed.endswith(f"{file}\n")
    written = file.read_text()
    assert "Traceback (most recent call last)" in written
    assert "not-for-anybody" not in printed + written
    assert "Traceback (most recent call last)" in deca("--debug", "status", tmp_path)[1]


def test_outputs_layout_and_precision_are_options(deca, tmp_path):
    _, printed = deca("reconstruct", "--help")
    for words in ("--outputs", "--layout", "--precision", "people/faces"):
        assert words in printed
    code, printed = deca("reconstruct", tmp_path, tmp_path / "out", "--outputs", "codes,mash")
    assert code == 1
    assert "outputs.1" in printed
    assert "preview" in printed  # what there is


def test_a_run_from_plan_to_retry(deca, trouble, tmp_path):
    folder, out = trouble[0], tmp_path / "out"
    settings = ("--set", "units.items_per_unit=8")
    code, printed = deca("plan", folder, out, "--calibrate", 0, *settings)
    assert code == 0
    assert "in 2 units" in printed or "in 3 units" in printed
    assert deca("status", out)[0] == 2
    code, printed = deca("reconstruct", folder, out, "--workers", 0, *settings)
    assert code == 2
    assert "UNTRAINED NETWORK" not in printed
    code, printed = deca("status", out)
    assert code == 2
    assert "bomb.png" in printed
    assert "deca retry" in printed
    assert deca("retry", out, "--workers", 0)[0] == 2
    assert deca("verify", out)[0] == 0
    part = next(out.glob("part-*"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    code, printed = deca("verify", out)
    assert code == 1
    assert part.name in printed


@pytest.fixture(scope="module")
def marked(tmp_path_factory) -> Path:
    """Photographs of a small world, the true landmarks beside them and the truth in truth.parquet/."""
    world = tmp_path_factory.mktemp("world")
    settings = {"identities": 2, "images_per_identity": 2, "size": 160, "seed": 4, "max_yaw": 40.0}
    synth(SynthConfig.model_validate({**settings, "dest": str(world), "ray": {"workers": 0}}))
    truth = WorldTruth(str(world))
    for path, face in zip(truth.paths, truth.faces(range(4)), strict=True):
        np.save((world / path).with_suffix(".npy"), face.landmarks)
    return world


def test_a_fit_needs_no_network(deca, marked, tmp_path):
    out = tmp_path / "out"
    command = ("fit", marked / "photos", out, "--provider", "sidecar", "--workers", 0)
    code, printed = deca(*command)
    assert code == 0, printed
    assert "UNTRAINED" not in printed
    assert (out / "_report" / "contact_sheet.png").is_file()
    table = pq.read_table(committed_parts(str(out)))
    truth = WorldTruth(str(marked))
    number = {str(marked / path): index for index, path in enumerate(truth.paths)}
    faces = list(truth.faces([number[uri] for uri in table["source_uri"].to_pylist()]))
    assert set(table["checkpoint"].to_pylist()) == {"landmark-fit"}
    assert len(faces) == 4
    codes = Codes(**{name: torch.from_numpy(fixed_values(table, name).copy()) for name, _ in Codes.zeros().items()})
    transform = torch.from_numpy(fixed_values(table, "crop_transform").copy())
    points = torch.from_numpy(np.stack([face.landmarks for face in faces]))
    target = from_pixels(points @ transform[..., :2].mT + transform[..., 2][:, None])
    seen = GeometryModel(procedural_head()).decode(codes).landmarks2d
    assert normalized_mean_error(target, seen).max() < 0.005
    assert rotation_error(codes.pose[:, :3], torch.cat([face.codes.pose for face in faces])[:, :3]).max() < 4
    assert not any(getattr(codes, name).any() for name in ("tex", "detail"))
    expected = procedural_head().fixed_displacement
    step = float(table.schema.field("displacement").metadata[b"scale"])
    assert np.abs(fixed_values(table, "displacement") - expected).max() <= step

    settings = (out / "_config.json").read_bytes()
    code, printed = deca(*command)
    assert code == 0
    assert "0 run, 1 done before" in printed
    assert (out / "_config.json").read_bytes() == settings
    code, printed = deca("reconstruct", *command[1:3], "--workers", 0, "--set", "annotate.provider=sidecar")
    assert code == 1
    assert "codes" in printed
    code, printed = deca(*command, "--set", "checkpoint=ckpt")
    assert code == 1
    assert "codes=landmarks uses no network" in printed


def test_an_ingest_from_plan_to_gc(deca, photos, tmp_path):
    out, units = tmp_path / "out", ("--set", "units.items_per_unit=3")
    options = (*units, "--workers", 0, "--set", "identity.method=none")
    code, printed = deca("plan", photos, out, "--flow", "ingest", "--calibrate", 0, *units)
    assert code == 0
    assert "4 images in 2 units" in printed
    code, printed = deca("status", out)
    assert code == 2
    assert "0 faces annotated" not in printed  # nothing to group yet, but two units are pending
    code, printed = deca("ingest", photos, out, *options)
    assert code == 0, printed
    assert "4 of 4 identities" in printed
    assert "version 1 published" in printed
    code, printed = deca("status", out)
    assert code == 0
    assert "4 of 4 identities, version 1" in printed
    code, printed = deca("verify", out)
    assert code == 0
    assert printed.count("0 problems") == 2
    code, printed = deca("report", out / "faces")
    assert code == 0
    assert str(out / "faces" / "card.html") in printed

    code, printed = deca("ingest", photos, out, *options, "--min-images", 2)
    assert code == 1
    assert "no face of 4 images was kept: 4 x few pictures (shards.min_images=2)" in printed
    code, printed = deca("ingest", photos, out, *options, "--set", "identity.method=cluster")
    assert code == 0
    assert "2, new" in printed
    code, printed = deca("gc", out, "--dry-run")
    assert code == 0
    assert "versions/000001.json" in printed
    assert (out / "faces" / "versions" / "000001.json").exists()
    code, freed = deca("gc", out)
    assert code == 0
    assert freed.splitlines()[:-1] == printed.splitlines()[:-1]
    assert freed.splitlines()[-1] == printed.splitlines()[-1].replace("would delete", "deleted")
    assert deca("verify", out / "faces")[0] == 0
    assert "deleted 0 files" in deca("gc", out / "faces")[1]


def test_a_damaged_shard_is_named(deca, photos, tmp_path):
    out = tmp_path / "out"
    deca("ingest", photos, out, "--workers", 0, "--set", "identity.method=none")
    shard = next((out / "faces" / "data").iterdir())
    shard.write_bytes(shard.read_bytes()[:-1])
    code, printed = deca("verify", out)
    assert code == 1
    assert shard.name in printed


def test_status_reports_annotations_that_are_not_grouped(deca, photos, tmp_path):
    out = tmp_path / "out"
    deca("ingest", photos, out, "--workers", 0, "--set", "identity.method=none")
    (out / "faces" / "_current.json").unlink()  # as after a kill behind the last unit
    code, printed = deca("status", out)
    assert code == 2
    assert "4 faces annotated, 0 grouped: run deca ingest again" in printed
    for command in ("gc", "report"):
        code, printed = deca(command, out)
        assert code == 1
        assert "holds no faces" in printed


@pytest.mark.slow
def test_a_run_without_rows_fails_until_an_image_is_readable(deca, tmp_path):
    out, listing, options = tmp_path / "out", tmp_path / "list.txt", ("--workers", 0, "--precision", "fp32")
    listing.write_text("late.jpg\n")
    for command in (("reconstruct", listing, out, *options), ("retry", out, "--workers", 0)):
        code, printed = deca(*command)
        assert code == 1
        assert "error: nothing came of 1 image: 1 x read FileNotFoundError" in printed
        assert f"Look: deca status {out}" in printed
        assert deca("status", out)[0] == 2
    astronaut().save(tmp_path / "late.jpg")
    assert deca("retry", out, "--workers", 0)[0] == 0


def test_retry_takes_the_folder_of_an_ingest(deca, photos, tmp_path):
    out, options = tmp_path / "out", ("--workers", 0)
    (photos / "late.jpg").write_bytes(b"")
    code, printed = deca("ingest", photos, out, *options, "--set", "identity.method=none")
    assert code == 2
    assert f"deca status {out}" in printed
    code, printed = deca("retry", out, *options)
    assert code == 2
    assert "1 run, 1 done before" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pattern", "{image}"], "must contain {identity}"),
        (["--provider", "oracle"], "oracle"),
        (["--min-images", "0"], "min_images"),
        (["--set", "identity.neighbors=3"], "identity.neighbors"),
        (["--resume", "--new"], "exclude"),
    ],
)
def test_errors_of_an_ingest_come_before_any_work(deca, photos, tmp_path, arguments, message):
    code, printed = deca("ingest", photos, tmp_path / "out", *arguments, "--workers", 0)
    assert code == 1
    assert message in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out" / "annotations" / "_plan.json").exists()


def test_plan_knows_which_settings_belong_to_which_flow(deca, photos, tmp_path):
    code, printed = deca("plan", photos, tmp_path / "out", "--flow", "ingest", "--checkpoint", "ckpt")
    assert code == 1
    assert "checkpoint" in printed


@pytest.mark.slow
def test_another_plan_in_the_same_place_is_refused(deca, photos, tmp_path):
    out = tmp_path / "out"
    deca("plan", photos, out, "--calibrate", 0)
    code, printed = deca("reconstruct", photos, out, "--workers", 0, "--set", "batch_size=3")
    assert code == 1
    assert "batch_size 8 -> 3" in printed
    assert "--resume" in printed
    assert deca("reconstruct", photos, out, "--workers", 0, "--resume")[0] == 0
    assert deca("reconstruct", photos, out, "--workers", 0, "--new", "--set", "batch_size=3")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{photos}", "{tmp}/out", "--checkpoint", "{photos}"], "checkpoint"),
        (["{photos}", "{tmp}/out", "--checkpoint", "{ckpt}", "--bundle", "{bundle}"], "bundle"),
        (["{photos}", "{tmp}/out", "--bundle", "{photos}"], "bundle.json"),
        (["{photos}", "{tmp}/out", "--set", "colour=red"], "colour"),
        (["{photos}", "{tmp}/out", "--set", "colour"], "KEY=VALUE"),
        (["{photos}", "{tmp}/out", "--config", "{tmp}/none.yaml"], "none.yaml"),
        (["{photos}", "{tmp}/out", "--resume", "--new"], "exclude"),
        (["{photos}", "{tmp}/out", "--consensus-detail"], "goes with consensus"),
    ],
)
def test_errors_come_before_any_work(deca, photos, tmp_path, other_bundle, arguments, message):
    checkpoint, bundle = other_bundle
    places = {"tmp": tmp_path, "photos": photos, "ckpt": checkpoint, "bundle": bundle}
    code, printed = deca("reconstruct", *(argument.format(**places) for argument in arguments), "--workers", 0)
    assert code == 1
    assert message in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out" / "_plan.json").exists()


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory) -> tuple[Path, Path]:
    """A checkpoint of the procedural head, and a bundle it was not made for."""
    import dataclasses

    folder = tmp_path_factory.mktemp("models")
    head = procedural_head()
    torch.manual_seed(0)
    save_checkpoint(DECA(head), folder / "ckpt")
    dataclasses.replace(head, v_template=head.v_template * 1.01).save(folder / "bundle")
    return folder / "ckpt", folder / "bundle"


@pytest.mark.slow
def test_a_checkpoint_is_used_and_named(deca, photos, tmp_path, other_bundle):
    checkpoint, _ = other_bundle
    code, printed = deca("reconstruct", photos, tmp_path / "out", "--checkpoint", checkpoint, "--workers", 0)
    assert code == 0
    assert "untrained-0" not in printed


@pytest.mark.slow
def test_a_source_that_grows(deca, photos, tmp_path):
    out, options = tmp_path / "out", ("--workers", 0)
    assert deca("reconstruct", photos, out, *options)[0] == 0
    (photos / "9.jpg").write_bytes((photos / "1.jpg").read_bytes())
    code, printed = deca("reconstruct", photos, out, *options)
    assert code == 1
    assert "1 added" in printed
    assert "--extend" in printed
    code, printed = deca("reconstruct", photos, out, *options, "--extend")
    assert code == 0
    assert "5 (1 by this run" in printed


def test_training_from_the_first_step_to_status(deca, tmp_path):
    out, file = tmp_path / "trained", tmp_path / "run.yaml"
    file.write_text("""
        world: {people: 1, images: 2, val_people: 1}
        pretrain: {steps: 1, subjects: 1}
        coarse: {steps: 0}
        detail: {steps: 0}
        validation_batches: 1
    """)
    options = ("world", out, "--recipe", "small", "--config", file, "--workers", 0)
    code, printed = deca("train", *options)
    assert code == 0, printed
    assert f"--checkpoint {out}/model" in printed
    assert "train, pretrain: 1/1 steps, loss" in printed
    code, printed = deca("status", out)
    assert code == 0
    assert "finished, checkpoints 1; validation: loss" in printed
    assert "dlib" in printed
    code, printed = deca("train", *options, "--backbone", "mobilenet_v3_small")
    assert code == 1
    assert 'backbone "dlib" -> "mobilenet_v3_small"' in printed
    (out / "_stages" / "pretrain.json").unlink()
    assert deca("status", out)[0] == 2


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("{tmp}/none", [], "deca ingest"),
        ("world", ["--resume"], "no run to resume"),
        ("world", ["--resume", "--new"], "exclude"),
        ("world", ["--preset", "huge"], "huge"),
        ("world", ["--backbone", "resnet5"], "resnet50"),
        ("world", ["--set", "coarse.images=0"], "coarse.images"),
        ("world", ["--set", "weights.coarse.colour=1"], "no loss named colour"),
        ("world", ["--set", "networks.identity=vggface2"], "networks.identity_weights"),
    ],
)
def test_errors_of_training_come_before_any_work(deca, tmp_path, source, arguments, message):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    few = ("--set", "world.people=8", "--set", "networks.perceptual=random", "--workers", 0)
    code, printed = deca("train", source.format(tmp=tmp_path), tmp_path / "out", *few, *arguments)
    assert code == 1
    assert message in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out" / "_train.json").exists()


def test_yaml_settings(deca, photos, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("units:\n  items_per_unit: 3\nray:\n  workers: 0\n")
    code, printed = deca("plan", photos, tmp_path / "out", "--calibrate", 0, "--config", file)
    assert code == 0
    assert "in 2 units" in printed


@pytest.mark.slow
def test_a_plan_with_its_price_then_the_run_with_its(deca, photos, tmp_path):
    settings = ("--set", "units.items_per_unit=1", "--workers", 0, "--price-per-hour", 3600)
    code, printed = deca("plan", photos, tmp_path / "out", "--calibrate", 2, *settings)
    assert code == 0
    assert "4 in 4 units" in printed
    assert "MB in 4 rows" in printed
    assert "core-hours = " in printed
    assert "at 3600 an hour for all" in printed
    assert "2 images in 2 units" in printed
    code, printed = deca("reconstruct", photos, tmp_path / "out", *settings)
    assert code == 0
    assert "2 run, 2 done before" in printed
    assert "at 3600 an hour" in printed
    summary = json.loads((tmp_path / "out" / "_report" / "summary.json").read_text())
    assert summary["price"] == pytest.approx(summary["core_seconds"], abs=0.02)  # one a second


def test_assets(deca, tmp_path):
    code, printed = deca("assets", "head", tmp_path / "bundle")
    assert code == 0
    assert procedural_head().hash in printed
    assert deca("assets", "show", tmp_path / "bundle")[0] == 0
    code, printed = deca("assets", "import", tmp_path, tmp_path / "flame")
    assert code == 1
    assert "generic_model.pkl" in printed
