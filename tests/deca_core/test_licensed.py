"""The licensed folder: what is made of it, what it replaces, and the messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deca_core import DECA
from deca_core.assets import load_bundle
from deca_core.checkpoint import CheckpointError, load_checkpoint
from deca_core.checkpoint_meta import head_of
from deca_core.licensed import import_licensed
from tests.deca_core.assets.flame_format import write_flame_files, write_released


@pytest.fixture(scope="module")
def model(mini) -> DECA:
    torch.manual_seed(0)
    return DECA(mini)


@pytest.fixture
def flame(tmp_path, golden) -> Path:
    return write_flame_files(tmp_path / "files", golden("mini_head.npz"))


def test_one_folder_has_both_and_they_match(flame, model, tmp_path):
    """Onto a bundle that an earlier import left, as when the weights are downloaded later."""
    out = tmp_path / "licensed"
    first = import_licensed(flame, out)
    assert sorted(path.name for path in out.iterdir()) == ["bundle.json", "bundle.safetensors"]
    assert [note for note in first.notes if "no deca_model.tar" in note]
    import_licensed(write_released(flame, model), out)
    bundle = load_bundle(out)
    assert bundle.albedo_mean is not None
    assert head_of(out) == {"name": "FLAME", "hash": bundle.hash}
    found = load_checkpoint(out, bundle).state_dict()
    learned = [name for name in model.state_dict() if name.partition(".")[0] in ("E_flame", "E_detail", "D_detail")]
    assert all(torch.equal(found[name], model.state_dict()[name]) for name in learned)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files", "licensed"]
    # and once more, onto itself
    assert import_licensed(flame, out).bundle.hash == bundle.hash


@pytest.mark.slow
def test_other_files_in_the_target_are_not_lost(flame, model, tmp_path):
    out = tmp_path / "licensed"
    import_licensed(write_released(flame, model), out)
    (flame / "deca_model.tar").unlink()
    (flame / "FLAME_albedo_from_BFM.npz").unlink()
    with pytest.raises(CheckpointError, match=r"holds a checkpoint of another bundle .*deca_model.tar"):
        import_licensed(flame, out)
    load_checkpoint(out, load_bundle(out))
    write_released(flame, model)
    before = sorted(path.name for path in flame.iterdir())
    with pytest.raises(CheckpointError, match="exists and is not a checkpoint"):
        import_licensed(flame, flame)
    assert sorted(path.name for path in flame.iterdir()) == before


@pytest.mark.slow
def test_another_topology_and_the_texture_space_are_reported(flame, model, tmp_path):
    (flame / "FLAME_texture.npz").write_bytes(b"")
    write_released(flame, model)
    (flame / "FLAME_albedo_from_BFM.npz").unlink()
    notes = " ".join(import_licensed(flame, tmp_path / "out").notes)
    assert "FLAME_texture.npz is not taken" in notes
    assert "576 vertices and FLAME 5023" in notes


def test_weights_of_other_numbers_of_components_are_named(flame, model, tmp_path):
    write_released(flame, model)
    content = torch.load(flame / "deca_model.tar", weights_only=True)
    for name, columns in (("weight", (286, 1024)), ("bias", (286,))):
        content["E_flame"][f"layers.2.{name}"] = torch.zeros(columns)
    torch.save(content, flame / "deca_model.tar")
    with pytest.raises(CheckpointError, match=r"286 codes, a bundle takes 236 \(shape 100, tex 50, exp 50"):
        import_licensed(flame, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_error_page_for_the_weights(flame, tmp_path):
    (flame / "deca_model.tar").write_text("<!DOCTYPE html><title>Google Drive - Virus scan warning</title>")
    with pytest.raises(CheckpointError, match=r"deca_model.tar: no PyTorch file but a web page .*Virus scan"):
        import_licensed(flame, tmp_path / "out")


def test_a_pointer_in_place_of_stored_files(flame, model, tmp_path):
    from deca_core.assets import BundleError

    out = tmp_path / "licensed"
    import_licensed(write_released(flame, model), out)
    bundle = load_bundle(out)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (out / "model.safetensors").write_text(pointer)
    with pytest.raises(CheckpointError, match=r"model.safetensors: a Git-LFS pointer.*git lfs pull"):
        load_checkpoint(out, bundle)
    (out / "bundle.safetensors").write_text(pointer)
    with pytest.raises(BundleError, match=r"bundle.safetensors: a Git-LFS pointer.*git lfs pull"):
        load_bundle(out)
    assert json.loads((out / "checkpoint.json").read_text())["bundle"]["hash"] == bundle.hash
