"""docs/howto/flame.md as it stands: from the files as their official tools write them to a GLB, in three commands."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from deca_core import DECA
from deca_core.assets import load_bundle
from deca_core.checkpoint import checkpoint_hash, import_released, load_checkpoint
from tests.deca_core.assets.flame_format import write_flame_files, write_released
from tests.deca_core.conftest import mini_bundle
from tests.pipelines.conftest import astronaut

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "flame.md"


@pytest.fixture(scope="module")
def files(golden, tmp_path_factory) -> Path:
    """The folder of step 1, over the small head of the golden files; the networks are DECA's own."""
    head = golden("mini_head.npz")
    folder = write_flame_files(tmp_path_factory.mktemp("user") / "licensed-files", head)
    torch.manual_seed(0)
    return write_released(folder, DECA(mini_bundle(head)))


def three_commands() -> list[str]:
    block = re.search(r"^ *```sh\n(.*?)```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert block is not None
    return [line.strip() for line in block[1].splitlines() if line.strip()]


@pytest.mark.slow
def test_from_the_folder_to_a_glb(files, deca, monkeypatch, ray_cluster):
    monkeypatch.chdir(files.parent)
    astronaut().save("photo.jpg", quality=95)
    lines = three_commands()
    assert [line.split()[1] for line in lines] == ["assets", "reconstruct", "export"]
    for line in lines:
        code, printed = deca(*shlex.split(line)[1:])
        assert code == 0, f"{line}\n{printed}"
        assert "UNTRAINED" not in printed
    bundle = load_bundle("licensed")
    part = next(Path("heads").glob("part-*.parquet"))
    assert pq.read_table(part, columns=["checkpoint"]).to_pydict()["checkpoint"] == [checkpoint_hash("licensed")]
    (glb,) = Path("meshes").rglob("head.glb")
    assert glb.read_bytes()[:4] == b"glTF"
    _, shown = deca("assets", "show", "licensed/")
    assert re.search(rf"{bundle.hash}.*{checkpoint_hash('licensed')} \(bound to this bundle\)", shown, re.DOTALL)
    assert bundle.albedo_mean is not None
    assert load_checkpoint("licensed", bundle).backbone == "resnet50"
    # moved as a whole, the rows still find it
    Path("licensed").rename("moved")
    code, printed = deca("export", "heads/", "again/", "--workers", 0)
    assert code == 1
    assert "--checkpoint" in printed
    assert deca("export", "heads/", "again/", "--workers", 0, "--checkpoint", "moved")[0] == 0
    assert next(Path("again").rglob("head.glb")).read_bytes() == glb.read_bytes()


@pytest.fixture(scope="module")
def licensed(files, tmp_path_factory) -> Path:
    from deca_core.licensed import import_licensed

    folder = tmp_path_factory.mktemp("imported") / "licensed"
    assert import_licensed(files, folder).bundle.hash == load_bundle(folder).hash
    return folder


def test_another_bundle_is_refused_with_both_hashes(files, licensed, deca, golden, tmp_path):
    other = dataclasses.replace(mini_bundle(golden("mini_head.npz")), name="FLAME")
    other.save(tmp_path / "other")
    for command in ("reconstruct", "evaluate"):
        models = ("--checkpoint", licensed, "--bundle", tmp_path / "other")
        code, printed = deca(command, tmp_path, tmp_path / "out", *models)
        assert code == 1
        assert load_bundle(licensed).hash[:12] in printed
        assert other.hash[:12] in printed
    assert not [path for path in tmp_path.rglob("out/**/*") if path.is_file()]


@pytest.mark.parametrize(
    "command",
    [
        "reconstruct {photos} {out} --checkpoint {unbound}",
        "plan {photos} {out} --checkpoint {unbound}",
        "evaluate {photos} {out} --checkpoint {unbound}",
        "animate {out} --identity {photos}/a.jpg --expression smile --checkpoint {unbound}",
        "train world {out} --start {unbound} --preset small --set backbone=resnet50",
    ],
)
def test_unbound_weights_never_run_on_the_embedded_head(files, deca, tmp_path, unbound, command):
    (tmp_path / "photos").mkdir()
    astronaut().save(tmp_path / "photos" / "a.jpg")
    places = {"photos": tmp_path / "photos", "out": tmp_path / "out", "unbound": unbound}
    code, printed = deca(*shlex.split(command.format_map(places)))
    assert code == 1
    assert "'FLAME', bound to no bundle" in printed
    assert "deca assets import FOLDER CHECKPOINT" in printed
    assert not list((tmp_path / "out").rglob("*.parquet"))


@pytest.fixture(scope="module")
def unbound(files, tmp_path_factory) -> Path:
    """What earlier versions made of the release's file."""
    return import_released(files / "deca_model.tar", tmp_path_factory.mktemp("earlier") / "ckpt")


@pytest.mark.slow
def test_unbound_weights_with_a_bundle_run_and_are_warned_of(licensed, unbound, deca, tmp_path):
    astronaut().save(tmp_path / "a.jpg")
    models = ("--checkpoint", unbound, "--bundle", licensed)
    code, printed = deca(
        "plan", tmp_path / "a.jpg", tmp_path / "out", "--calibrate", 0, *models, "-s", "precision=fp32"
    )
    assert code == 0
    assert "bound to no bundle: whether" in printed


@pytest.mark.slow
def test_the_released_weights_are_trained_further_on_their_own_head(licensed, tmp_path):
    from pipelines.train import settle
    from schemas.train import TrainConfig

    config = {"source": "world", "dest": str(tmp_path), "start": str(licensed)}
    assert settle(TrainConfig.model_validate(config)).bundle == str(licensed)


@pytest.mark.slow
def test_a_checkpoint_in_a_bucket_brings_its_bundle(licensed, s3):
    import fsspec

    from schemas.reconstruct import ReconstructConfig
    from tasks.models.loading import bundle_at, bundle_for, load_model

    uri = s3.uri("models/licensed")
    fsspec.filesystem("s3").put(str(licensed), uri, recursive=True)
    assert bundle_for(None, uri) == uri
    assert bundle_at(uri).hash == load_bundle(licensed).hash
    config = ReconstructConfig(source="a", dest="b", checkpoint=uri, bundle=bundle_for(None, uri))
    assert load_model(config).bundle.hash == load_bundle(licensed).hash
