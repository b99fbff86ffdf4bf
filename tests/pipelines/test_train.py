"""The train flow: three stages end to end, resuming, refusing, starting over, kill -9, faces/, using the model."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deca_core.checkpoint import WEIGHTS_FILE
from pipelines.reconstruct import reconstruct
from pipelines.status import TrainStatus, status_report
from pipelines.summaries import summary_lines
from pipelines.train import train
from schemas.reconstruct import ReconstructConfig
from schemas.train import STAGES, TrainConfig
from tasks.people.versions import FacesError, read_version
from tasks.store.storage import Store
from tasks.training.records import FOLDER, MODEL, list_checkpoints, stored_plan
from tasks.training.report import CURVES, SHEETS, read_metrics
from tasks.units.plan import CONFIG, PlanError
from tasks.units.progress import TerminalProgress
from tests.tasks.stored_faces import publish
from tests.tasks.train_runs import OFF, small_config

ROOT = Path(__file__).resolve().parents[2]
ONE = {
    "pretrain": {"steps": 1, "subjects": 2, "images": 1},
    "coarse": {"steps": 2, "subjects": 1, "images": 2},
    "detail": {"steps": 1, "subjects": 1, "images": 2},
}
QUICK = {**ONE, "validation_batches": 1}

# A driver that dies as the coarse stage begins, after pretrain is finished.
KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
from pipelines.train import train
from tests.pipelines.test_train import QUICK
from tests.tasks.train_runs import small_config

def die(progress):
    if progress.stage == "coarse":
        os.kill(os.getpid(), signal.SIGKILL)

train(small_config(sys.argv[1], **QUICK), die)
"""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run through all stages; tests only read it."""
    dest: Path = tmp_path_factory.mktemp("trained")
    assert train(small_config(dest, **QUICK)).stages_run == list(STAGES)
    return dest


def contents(dest: Path) -> dict[str, bytes]:
    return {str(path.relative_to(dest)): path.read_bytes() for path in dest.rglob("*") if path.is_file()}


def model_of(dest: Path) -> bytes:
    return (dest / MODEL / WEIGHTS_FILE).read_bytes()


def test_all_stages_write_checkpoints_curves_sheets_and_a_model(done: Path) -> None:
    from PIL import Image

    store = Store(done)
    for stage in STAGES:
        assert list_checkpoints(store, stage)[-1].step == ONE[stage]["steps"]
        steps, validations = read_metrics(store, stage)
        assert [row["step"] for row in steps] == list(range(1, ONE[stage]["steps"] + 1))
        assert [row["step"] for row in validations] == [0, ONE[stage]["steps"]]
        assert all(0 < row["nme"] < 1 for row in validations)
        sheet = np.asarray(Image.open(io.BytesIO(store.read(SHEETS.format(stage=stage)))))
        assert sheet[30:].std() > 10
    assert Image.open(io.BytesIO(store.read(CURVES))).width > 1000
    # E_c is frozen in the detail stage, so its landmarks stay; before, it learns.
    nme = [row["nme"] for stage in ("coarse", "detail") for row in read_metrics(store, stage)[1]]
    assert nme[0] != nme[1]
    assert nme[1] == pytest.approx(nme[2], abs=0.01)  # other validation images, of the same subjects


def test_the_same_run_again_does_nothing(done: Path) -> None:
    before = contents(done)
    assert train(small_config(done, **QUICK)).stages_run == []
    after = contents(done)
    assert after.pop("_report/summary.json") != before.pop("_report/summary.json")
    assert after == before


@pytest.mark.slow
def test_the_next_run_deletes_what_a_pruning_left(tmp_path: Path) -> None:
    """As after a listing that was older than the last checkpoints; how many are kept may change from run to run."""
    settings = {**QUICK, "pretrain": OFF, "detail": OFF, "checkpoint_every": 1}
    train(small_config(tmp_path, **settings, keep_last=2, keep_best=0))
    assert [record.step for record in list_checkpoints(Store(tmp_path), "coarse")] == [1, 2]
    assert train(small_config(tmp_path, **settings, keep_last=1, keep_best=0)).stages_run == []
    assert [record.step for record in list_checkpoints(Store(tmp_path), "coarse")] == [2]
    assert not list((tmp_path / FOLDER).rglob("00000001/*"))


def test_other_settings_are_refused_and_named(done: Path) -> None:
    with pytest.raises(PlanError, match=r"coarse\.lr 0\.0001 -> 0\.5.*--resume.*--new"):
        train(small_config(done, **{**QUICK, "coarse": {**ONE["coarse"], "lr": 0.5}}))


def test_resume_keeps_the_stored_settings(tmp_path: Path) -> None:
    only = {"pretrain": ONE["pretrain"], "coarse": {"steps": 0, "subjects": 1, "images": 1}}
    train(small_config(tmp_path, **only))
    finished = model_of(tmp_path)
    other = small_config(tmp_path, seed=9, existing="resume", pretrain={**ONE["pretrain"], "steps": 7})
    summary = train(other)
    assert summary.stages_run == []
    assert summary.stages["pretrain"]["steps"] == 1
    assert model_of(tmp_path) == finished
    # --new with the other settings starts over.
    restarted = other.model_copy(update={"existing": "new", "pretrain": small_config(tmp_path, **only).pretrain})
    assert train(restarted).stages_run[0] == "pretrain"
    assert model_of(tmp_path) != finished
    assert json.loads((tmp_path / CONFIG).read_text())["seed"] == 9


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no run to resume"):
        train(small_config(tmp_path, existing="resume"))


def test_a_driver_killed_between_stages_resumes(done: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    died = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, env=environment, check=False)
    assert died.returncode == -signal.SIGKILL
    report = status_report(str(tmp_path))
    assert isinstance(report, TrainStatus)
    assert not report.complete
    lines = dict(report.lines())
    assert lines["pretrain"].startswith("finished, checkpoints 1; validation")
    assert lines["coarse"] == "step 0 of 2"
    assert lines["model"].startswith("not yet")
    assert train(small_config(tmp_path, **QUICK)).stages_run == ["coarse", "detail"]
    assert model_of(tmp_path) == model_of(done)
    assert status_report(str(tmp_path)).complete


@pytest.mark.slow
def test_faces_of_an_ingest_at_the_version_the_run_began_with(tmp_path: Path) -> None:
    faces, dest = tmp_path / "people" / "faces", tmp_path / "trained"
    publish(str(faces), [3] * 4)
    settings = {"source": str(tmp_path / "people"), "coarse": ONE["coarse"], "validation_batches": 1}
    train(small_config(dest, **settings))
    stored = stored_plan(Store(dest))
    assert stored is not None
    assert read_version(str(faces), 1).fingerprint in stored.inputs["data"]
    publish(str(faces), [3] * 5, version=2)
    again = train(small_config(dest, **settings))
    assert (again.stages_run, again.fingerprint) == ([], stored.fingerprint)
    with pytest.raises(PlanError, match=r"data \S+ -> "):
        train(small_config(dest, **settings, version=2))


def test_a_source_without_faces_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(FacesError, match=r"deca ingest"):
        train(small_config(tmp_path / "trained", source=str(tmp_path / "nothing")))
    assert not (tmp_path / "trained" / FOLDER).exists()


@pytest.mark.slow
def test_reconstruct_uses_the_trained_model(done: Path, photos: Path, tmp_path: Path) -> None:
    config = ReconstructConfig.model_validate(
        {"source": str(photos), "dest": str(tmp_path), "checkpoint": str(done / MODEL), "ray": {"workers": 0}}
    )
    summary = reconstruct(config)
    assert summary.faces == 4
    assert summary.trained


def test_progress_says_loss_speed_waiting_and_the_time_left(tmp_path: Path) -> None:
    stream = io.StringIO()
    with TerminalProgress("train", stream) as progress:
        summary = train(small_config(tmp_path, coarse=ONE["coarse"]), progress)
    first, *_, last = stream.getvalue().splitlines()
    assert first.startswith("train, coarse: 1/2 steps, loss ")
    assert " images/s, " in first
    assert first.endswith(" left")
    assert last.startswith("train, coarse: 2/2 steps, loss ")
    assert last.endswith("waiting for data")
    lines = dict(summary_lines(summary))
    assert lines["use it"].endswith(f"--checkpoint {tmp_path}/model")


def test_given_settings_win_over_presets() -> None:
    places = {"source": "world", "dest": "out", "preset": "small"}
    config = TrainConfig.model_validate({**places, "coarse": {"steps": 7}, "weights": {"detail": {"mrf": 0}}})
    preset = TrainConfig.model_validate(places)
    assert config.coarse == preset.coarse.model_copy(update={"steps": 7})
    assert config.weights == {**preset.weights, "detail": {"mrf": 0.0}}
    assert config.backbone == "dlib"
    assert TrainConfig(source="world", dest="out").detail.steps == 250_000
    # Spelled out, the same settings are the same run.
    spelled = TrainConfig.model_validate({**preset.model_dump(), "preset": "paper"})
    assert spelled.plan_config() == preset.plan_config()


def test_prefect_flow_leaves_artifacts(done: Path, prefect_harness: None) -> None:
    from prefect.client.orchestration import get_client

    from pipelines import flows

    state = flows.train(small_config(done, **QUICK), return_state=True)
    assert state.is_completed()
    with get_client(sync_client=True) as client:
        artifacts = {artifact.key: artifact for artifact in client.read_latest_artifacts()}
    assert f"[curves]({done}/{CURVES})" in artifacts["train-report"].data
    summary = {row["what"]: row["value"] for row in json.loads(artifacts["train-summary"].data)}
    assert summary["model"] == f"{done}/{MODEL}"
