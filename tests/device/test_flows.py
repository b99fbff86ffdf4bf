"""Whole runs of every flow that uses a GPU: workers and ranks as they are, on small inputs."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from deca_core import DECA
from deca_core.checkpoint import save_checkpoint
from pipelines.animate import animate
from pipelines.export import export
from pipelines.reconstruct import prepare, reconstruct
from schemas.animate import AnimateConfig
from schemas.annotate import AnnotateConfig
from schemas.evaluate import EvaluateConfig
from schemas.export import ExportConfig
from schemas.ledger import Item
from schemas.reconstruct import COMPILE_FROM, ReconstructConfig
from schemas.train import PRESETS
from tasks.annotate.annotators import load_annotator
from tasks.annotate.annotators.base import Detection
from tasks.annotate.annotators.face_alignment_provider import FAN
from tasks.heads.reconstruct import ReconstructWorker
from tasks.heads.selection import read_heads
from tasks.measure.methods import FaceCrop, load_methods
from tasks.models.loading import GeometryModel, bundle_at
from tasks.training.stage import StageRun
from tasks.units.commits import committed_parts, read_commits, standing_quarantine
from tests.tasks.stored_faces import publish
from tests.tasks.train_runs import job_of, last_state, small_config

HERE = {"ray": {"workers": 0}}
EVERYTHING = ("codes", "displacement", "vertices", "landmarks", "normals", "texture", "mesh", "preview")


def rows(dest: object) -> pa.Table:
    return pq.read_table(committed_parts(str(dest)))


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device")
    publish(str(folder / "faces"), [2, 1], shards=1)
    return folder


@pytest.fixture(scope="module")
def checkpoint(model: DECA, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_checkpoint(model, tmp_path_factory.mktemp("checkpoint") / "small"))


def reconstruct_config(faces: Path, dest: Path, checkpoint: str | None, **changes: Any) -> ReconstructConfig:
    values = {"source": str(faces), "dest": str(dest), "checkpoint": checkpoint, "batch_size": 2, **HERE, **changes}
    return ReconstructConfig.model_validate({"contact_sheet_rows": 2, **values})


# --- reconstruct ------------------------------------------------------------------------------------------------------


def test_reconstruct(faces, checkpoint, tmp_path, device):
    summary = reconstruct(reconstruct_config(faces, tmp_path, checkpoint, precision="bf16"))
    assert (summary.outcome, summary.faces) == ("complete", 3)


def test_reconstruct_everything_and_export(faces, checkpoint, tmp_path, device):
    """Every column and file that a row may have, with consensus and contact sheet; then files of every format."""
    settings = {"precision": "fp32", "outputs": EVERYTHING, "consensus": "identity"}
    summary = reconstruct(reconstruct_config(faces, tmp_path / "there", checkpoint, **settings))
    assert (summary.outcome, summary.identities) == ("complete", 2)
    assert summary.contact_sheet
    found = rows(tmp_path / "there")
    assert set(EVERYTHING) - {"codes", "landmarks", "mesh"} <= set(found.column_names)
    assert all((tmp_path / "there" / name).read_bytes()[:4] == b"glTF" for name in found["mesh_file"].to_pylist())
    formats = {"formats": ("glb", "obj", "ply", "npz"), "dense": True}
    values = {"source": str(tmp_path / "there"), "dest": str(tmp_path / "files"), **formats, **HERE}
    assert export(ExportConfig.model_validate(values)).heads == 3


def test_defaults_follow_the_device(faces, checkpoint, tmp_path, device):
    open_config = reconstruct_config(faces, tmp_path, checkpoint, batch_size=None, precision="fp32")
    config = prepare(open_config)
    assert config.batch_size == 64
    worker = ReconstructWorker(config, items=COMPILE_FROM["cpu"])
    assert worker.threads >= len(os.sched_getaffinity(0))
    assert worker.inference is not None
    assert not worker.inference.compiled  # a GPU is through with as many before it has compiled


def test_fit(faces, tmp_path, device):
    """`deca fit`: landmarks in the place of a network."""
    summary = reconstruct(reconstruct_config(faces, tmp_path, None, codes="landmarks"))
    assert summary.outcome == "complete"


# --- animate ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [None, ("codes", "displacement", "clip", "glb", "npz")], ids=["default", "all"])
def test_animate(faces, checkpoint, tmp_path, device, outputs):
    """A head that smiles, with the default outputs and with all."""
    heads = tmp_path / "heads"
    reconstruct(reconstruct_config(faces, heads, checkpoint))
    [face, *_] = read_heads(str(heads)).face_ids
    values = {
        **{"dest": str(tmp_path / "out"), "identity": (f"{heads}#{face}",), "expression": ("smile",)},
        **{"checkpoint": checkpoint, "size": 64, "fps": 2, **HERE},
        **({} if outputs is None else {"outputs": outputs}),
    }
    summary = animate(AnimateConfig.model_validate(values))
    assert [row.message for row in standing_quarantine(str(tmp_path / "out"))] == []
    assert summary.outcome == "complete"
    [commit] = read_commits(str(tmp_path / "out"))
    assert {Path(file.file).suffix for file in commit.files} >= {".mp4", ".glb"}


# --- evaluate ---------------------------------------------------------------------------------------------------------


def test_the_methods_of_evaluate(checkpoint, tmp_path, device):
    """Codes and detail of every method come back to the CPU, where they are measured."""
    config = EvaluateConfig(source="world", dest=str(tmp_path), checkpoint=checkpoint)
    geometry = GeometryModel(bundle_at(None))
    points = (40 * geometry.flame(*(torch.zeros(1, size) for size in (100, 50, 6))).landmarks2d[0, :, :2] * 100).numpy()
    crop = FaceCrop(Item(0, "x", "x"), np.eye(2, 3), np.zeros((3, 224, 224), np.float32), points, points)
    for method in load_methods(config, geometry):
        codes = method.encode([crop])
        values = [value for _, value in codes.items()] + [method.detail(codes)]
        assert {value.device.type for value in values} == {"cpu"}, method.name


# --- train ------------------------------------------------------------------------------------------------------------

ONE_STEP = {"steps": 1, "subjects": 2, "images": 2}


@pytest.mark.parametrize("stage", ["pretrain", "coarse", "detail"])
def test_a_stage_trains_validates_and_resumes(tmp_path, device, stage):
    """Two steps with a checkpoint, a validation and a sheet after each; the second one of another process."""
    settings = {"checkpoint_every": 1, "validation_batches": 1, stage: ONE_STEP}
    StageRun(job_of(small_config(tmp_path, **settings), stage)).run()
    longer = small_config(tmp_path, **settings | {stage: ONE_STEP | {"steps": 2}})
    again = StageRun(job_of(longer, stage))
    assert again.done == 1
    again.run()
    assert {value.device.type for value in again.model.parameters()} == {"cuda"}
    assert {value.device.type for value in again.mean.values()} == {"cuda"}
    record, state = last_state(tmp_path, stage)
    assert record.step == 2
    assert {value.device.type for value in (*state.weights.values(), *state.optimizer.values())} == {"cpu"}
    assert np.isfinite(record.validation["total"])


def test_the_small_preset_starts_from_dlibs_features(tmp_path, device, monkeypatch):
    """`deca train --preset small`: the backbone's start and the first linear answer, then a step."""
    monkeypatch.setattr("tasks.training.inputs.START_IMAGES", 8)
    monkeypatch.setattr("tasks.training.inputs.SOLVED_IMAGES", 8)
    small = {name: value for name, value in PRESETS["small"].items() if name in ("backbone", "weights", "slow_ends")}
    config = small_config(tmp_path, **small, pretrain=ONE_STEP, coarse=ONE_STEP | {"steps": 0}, precision="bf16")
    run = StageRun(job_of(config, "pretrain"))
    run.run()
    assert run.done == 1
    assert {value.device.type for value in run.model.parameters()} == {"cuda"}


def test_a_diverging_batch_is_stored(tmp_path, device):
    run = StageRun(job_of(small_config(tmp_path)))
    run.batch = next(iter(run.data)).to(device)
    assert run._save_batch().endswith(".safetensors")


# --- annotators -------------------------------------------------------------------------------------------------------


def test_facexlib_and_face_alignment(tmp_path, device):
    """Detection, parsing, embedding and landmarks by networks of random weights."""
    from face_alignment.models import FAN as face_alignment_network
    from facexlib.detection.retinaface import RetinaFace
    from facexlib.parsing import BiSeNet
    from facexlib.recognition.arcface_arch import Backbone

    networks = {
        "detection_mobilenet0.25_Final.pth": lambda: RetinaFace("mobile0.25", device="cpu"),
        "parsing_bisenet.pth": lambda: BiSeNet(num_class=19),
        "recognition_arcface_ir_se50.pth": lambda: Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se"),
        FAN: lambda: face_alignment_network(4),
    }
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        for name, build in networks.items():
            torch.save(build().state_dict(), tmp_path / name)
    steps = {"detect": "facexlib", "segment": "facexlib", "embed": "facexlib", "landmarks": "face_alignment"}
    settings = {**steps, "weights_uri": str(tmp_path), "facexlib": {"detector": "mobile0.25"}, "min_score": 0.0}
    annotator = load_annotator(AnnotateConfig.model_validate({**settings, "max_faces": 1}))
    image = np.full((96, 96, 3), 128, np.uint8)
    [found] = annotator.detect(image)
    points = annotator.landmarks(image, Detection((20, 20, 80, 80), 1.0))
    assert (len(found.bbox), points.shape) == (4, (68, 2))
    spread = (30 + 40 * np.random.default_rng(0).random((68, 2))).astype(np.float32)
    assert annotator.segment(image, spread).shape == (96, 96)
    assert annotator.embed(image, spread).shape == (512,)
