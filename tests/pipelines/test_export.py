"""`deca export` from a photograph to files, and the command's errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pygltflib
import pytest

from pipelines.export import export
from pipelines.reconstruct import reconstruct
from schemas.export import ExportConfig
from schemas.reconstruct import ReconstructConfig
from tests.deca_core.export.test_gltf import validated
from tests.pipelines.conftest import astronaut, encoded


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reconstructions of one photograph of the astronaut."""
    folder = tmp_path_factory.mktemp("astronaut")
    (folder / "photos").mkdir()
    (folder / "photos" / "one.jpg").write_bytes(encoded(astronaut(), "JPEG", quality=92))
    values = {"source": f"{folder}/photos", "dest": f"{folder}/heads", "precision": "fp32", "contact_sheet_rows": 0}
    assert reconstruct(ReconstructConfig.model_validate({**values, "ray": {"workers": 0}})).faces == 1
    return folder / "heads"


def test_a_photograph_becomes_a_valid_file_and_a_row(deca, heads, tmp_path):
    code, said = deca("export", heads, tmp_path / "out", "--workers", 0)
    assert code == 0, said
    assert "1 as glb" in said
    assert "1 from the picture" in said
    [glb] = (tmp_path / "out").rglob("*.glb")
    assert validated([glb])[0]["messages"] == []
    assert deca("status", tmp_path / "out")[0] == 0
    code, said = deca("verify", tmp_path / "out")
    assert (code, "0 problems" in said) == (0, True)
    # The photograph goes, the head stays.
    photo = heads.parent / "photos" / "one.jpg"
    kept = photo.read_bytes()
    photo.unlink()
    code, said = deca("export", heads, tmp_path / "gone", "--workers", 0, "--format", "obj")
    photo.write_bytes(kept)
    assert code == 0
    assert "1 from the albedo" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--id", "nobody"], "no face, image or identity 'nobody'"),
        (["--where", "det_score > 99"], "matches 'det_score > 99'"),
        (["--where", "import os"], "cannot be read"),
        (["--dense"], "Add obj, ply or npz"),
        (["--format", "glb,fbx"], "formats.1"),
        (["--checkpoint", "untrained"], "do not fit"),
        (["--expressions", "60"], "less than or equal to 50"),
    ],
)
def test_one_clear_line_before_any_work(deca, heads, tmp_path, options, words):
    code, said = deca("export", heads, tmp_path / "out", "--workers", 0, *options)
    assert code == 1
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "files").exists()


@pytest.mark.slow
def test_heads_that_are_all_gone_end_as_failed(deca, heads, tmp_path):
    source, out = tmp_path / "heads", tmp_path / "out"
    shutil.copytree(heads, source)
    planned = ExportConfig.model_validate({"source": str(source), "dest": str(out), "ray": {"workers": 0}})
    export.freeze_plan(planned, export.weights(planned))
    for part in source.glob("part-*"):
        part.unlink()
    code, said = deca("export", source, out, "--workers", 0, "--resume")
    assert (code, "nothing came of 1 head: 1 x read" in said) == (1, True)


def sparse_targets(folder: Path) -> set[bool]:
    """Whether the smallest morph target of each GLB file below names only what it moves."""
    files = [pygltflib.GLTF2().load_binary(str(path)) for path in folder.rglob("*.glb")]
    return {any(one.sparse is not None for one in gltf.accessors) for gltf in files}


@pytest.mark.slow
def test_targets_are_dense_in_new_plans_and_sparse_in_earlier_ones(deca, heads, tmp_path):
    def said(*options: object) -> str:
        code, words = deca("export", heads, tmp_path / "out", "--workers", 0, *options)
        return f"{code} {words}"

    assert said().startswith("0")
    assert sparse_targets(tmp_path / "out") == {False}
    assert "config sparse false -> true" in said("--sparse")
    assert said("--sparse", "--new").startswith("0")
    assert sparse_targets(tmp_path / "out") == {True}
    for name, inside in (("_plan.json", "config"), ("_config.json", None)):  # as they were written before
        record = json.loads((tmp_path / "out" / name).read_text())
        del (record[inside] if inside else record)["sparse"]
        (tmp_path / "out" / name).write_text(json.dumps(record))
    for again in ([], ["--extend"]):
        assert said(*again).startswith("0")
    shutil.rmtree(tmp_path / "out" / "_commits")
    assert said("--resume").startswith("0")
    assert sparse_targets(tmp_path / "out") == {True}


def test_a_place_without_heads_is_named(deca, tmp_path):
    code, said = deca("export", tmp_path / "nowhere", tmp_path / "out")
    assert (code, "no plan at" in said) == (1, True)


@pytest.mark.slow
def test_prefect_flow_gives_the_summary(heads, tmp_path, prefect_harness):
    from pipelines import flows

    summary = flows.export(
        ExportConfig.model_validate(
            {"source": str(heads), "dest": str(tmp_path / "out"), "formats": ["npz"], "ray": {"workers": 0}}
        )
    )
    assert (summary.outcome, summary.heads, summary.files) == ("complete", 1, 1)


@pytest.mark.slow
def test_exports_on_ray_are_those_of_one_process(heads, tmp_path, ray_cluster):

    for name, workers in (("here", 0), ("ray", 1)):
        values = {"source": str(heads), "dest": str(tmp_path / name), "ray": {"workers": workers}}
        assert export(ExportConfig.model_validate(values)).heads == 1
    [one], [other] = (sorted((tmp_path / name).rglob("*.glb")) for name in ("here", "ray"))
    assert one.read_bytes() == other.read_bytes()
