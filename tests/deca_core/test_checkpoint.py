"""Checkpoints: what was saved comes back exactly, on the right head only, and nothing is executed on the way."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from deca_core import DECA
from deca_core.checkpoint import (
    META_FILE,
    WEIGHTS_FILE,
    CheckpointError,
    checkpoint_hash,
    import_released,
    load_checkpoint,
    save_checkpoint,
)
from tests.deca_core.conftest import Call


@pytest.fixture(scope="module")
def model(mini) -> DECA:
    torch.manual_seed(0)
    made = DECA(mini)
    made.info = {"trained": "yes", "recipe": "test"}
    return made


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    return save_checkpoint(model, tmp_path_factory.mktemp("checkpoints") / "ckpt")


def copy_of(saved: Path, folder: Path, **meta: Any) -> Path:
    """The same weights (linked, not copied) under a changed description."""
    folder.mkdir()
    os.link(saved / WEIGHTS_FILE, folder / WEIGHTS_FILE)
    (folder / META_FILE).write_text(json.dumps({**json.loads((saved / META_FILE).read_text()), **meta}))
    return folder


def released(model: DECA, prefix: str = "", counters: bool = True) -> dict[str, Any]:
    """The dictionary of the released deca_model.tar, optimiser leftovers included."""
    parts = {
        part: {
            f"{prefix}{name}": value
            for name, value in getattr(model, part).state_dict().items()
            if counters or not name.endswith("num_batches_tracked")
        }
        for part in ("E_flame", "E_detail", "D_detail")
    }
    return {**parts, "opt": {"state": {0: {"step": 3}}, "param_groups": []}, "epoch": 7, "batch_size": 8}


def assert_same_weights(a: DECA, b: DECA) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_round_trip(model, saved, mini):
    found = load_checkpoint(saved, bundle=mini)
    assert_same_weights(found, model)
    assert found.info == model.info
    assert found.backbone == model.backbone
    assert not found.training
    assert sorted(path.name for path in saved.iterdir()) == [META_FILE, WEIGHTS_FILE]


def test_round_trip_of_another_backbone(mini, tmp_path):
    torch.manual_seed(1)
    model = DECA(mini, backbone="mobilenet_v3_small")
    found = load_checkpoint(save_checkpoint(model, tmp_path / "small"), mini)
    assert found.backbone == "mobilenet_v3_small"
    assert_same_weights(found, model)


def test_the_hash_names_the_weights(model, saved, tmp_path):
    assert checkpoint_hash(saved) == json.loads((saved / META_FILE).read_text())["weights_sha256"]
    again = save_checkpoint(copy.deepcopy(model).to(memory_format=torch.channels_last), tmp_path / "again")
    assert checkpoint_hash(again) == checkpoint_hash(saved)


def test_an_earlier_checkpoint_is_replaced_and_nothing_is_left_over(model, saved, mini, tmp_path):
    folder = copy_of(saved, tmp_path / "ckpt", info={"trained": "no"})
    save_checkpoint(model, folder)
    assert load_checkpoint(folder, mini).info == model.info
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt"]


@pytest.mark.slow
def test_a_failure_while_saving_leaves_the_earlier_checkpoint(model, saved, tmp_path, monkeypatch):
    folder = copy_of(saved, tmp_path / "ckpt")
    before = checkpoint_hash(folder)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    for target in ("safetensors.torch.save", "deca_core.checkpoint.file_sha256"):
        with monkeypatch.context() as patch:
            patch.setattr(target, full)
            with pytest.raises(OSError, match="no space"):
                save_checkpoint(model, folder)
    rename = Path.rename

    def fails_at_last(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError("no space left on device")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fails_at_last)
        with pytest.raises(OSError, match="no space"):
            save_checkpoint(model, folder)
    assert checkpoint_hash(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt"]


def test_other_folders_are_not_overwritten(model, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        save_checkpoint(model, tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_another_head_is_refused_with_both_named(saved, mini):
    other = dataclasses.replace(mini, name="another", v_template=mini.v_template * 2)
    with pytest.raises(CheckpointError, match=rf"'mini' \({mini.hash[:12]}\).*'another' \({other.hash[:12]}\)"):
        load_checkpoint(saved, other)


@pytest.mark.parametrize(
    ("meta", "pattern"),
    [
        ({"schema_version": 2}, "schema 2"),
        (
            {"backbone": "resnet9000"},
            r"unknown backbone 'resnet9000'; there are resnet50, dlib, mobilenet",
        ),
        ({"weights_sha256": "0" * 64}, "changed or damaged"),
    ],
)
def test_descriptions_that_do_not_fit(saved, mini, tmp_path, meta, pattern):
    with pytest.raises(CheckpointError, match=pattern):
        load_checkpoint(copy_of(saved, tmp_path / "c", **meta), mini)


def test_missing_and_damaged_files(saved, mini, tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint.json.*import_released"):
        load_checkpoint(tmp_path, mini)
    folder = copy_of(saved, tmp_path / "c")
    (folder / META_FILE).write_text("[]")
    with pytest.raises(CheckpointError, match="schema None"):
        load_checkpoint(folder, mini)
    (folder / META_FILE).write_text('{"schema_version": 1}')
    with pytest.raises(CheckpointError, match="lacks backbone, bundle"):
        load_checkpoint(folder, mini)
    (folder / META_FILE).write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(folder, mini)


@pytest.mark.slow
def test_missing_and_unexpected_weights_are_listed(model, mini, tmp_path):
    wrong = DECA(mini)
    del wrong.D_detail.l1
    wrong.E_flame.extra = torch.nn.Linear(1, 1)
    with pytest.raises(CheckpointError, match=r"2 missing: D_detail.l1.0.bias.*2 unexpected: E_flame.extra.bias"):
        load_checkpoint(save_checkpoint(wrong, tmp_path / "c"), mini)


@pytest.mark.parametrize(("prefix", "counters"), [("", True), ("module.", False)])
def test_the_released_file(model, mini, tmp_path, prefix, counters):
    path = tmp_path / "deca_model.tar"
    torch.save(released(model, prefix, counters), path, _use_new_zipfile_serialization=counters)
    folder = import_released(path, tmp_path / "ckpt")
    flame = dataclasses.replace(mini, name="FLAME")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_checkpoint(folder, bundle=flame)
    assert_same_weights(found, model)
    assert found.info["recipe"] == "released"
    with pytest.warns(UserWarning, match="trained on FLAME, used on the head 'mini'"):
        load_checkpoint(folder, bundle=mini)


def test_a_released_file_with_other_weights(model, tmp_path):
    path = tmp_path / "deca_model.tar"
    content = released(model)
    content["D_detail"]["conv_blocks.99.weight"] = torch.zeros(1)
    content["E_flame"]["layers.2.weight"] = torch.zeros(159, 1024)
    del content["E_detail"]["encoder.conv1.weight"]
    torch.save(content, path)
    pattern = (
        r"1 missing: E_detail.encoder.conv1.weight; 1 unexpected: D_detail.conv_blocks.99.weight; "
        r"1 misshapen: E_flame.layers.2.weight \(159, 1024\) instead of \(236, 1024\)"
    )
    with pytest.raises(CheckpointError, match=pattern):
        import_released(path, tmp_path / "ckpt")
    torch.save({"E_flame": {}, "state_dict": {}}, path)
    with pytest.raises(CheckpointError, match=r"no E_detail, D_detail \(it has E_flame, state_dict\)"):
        import_released(path, tmp_path / "ckpt")
    torch.save([1], path)
    with pytest.raises(CheckpointError, match="list"):
        import_released(path, tmp_path / "ckpt")
    assert not (tmp_path / "ckpt").exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "text", "empty"])
def test_released_files_that_would_execute_something_are_refused(tmp_path, kind):
    marker, path = tmp_path / "marker", tmp_path / "deca_model.tar"
    content = {"E_flame": {"encoder.conv1.weight": Call(os.system, f"touch {marker}")}, "E_detail": {}, "D_detail": {}}
    if kind in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    else:
        path.write_bytes({"pickle": pickle.dumps(content), "text": b"<html>sign in</html>", "empty": b""}[kind])
    with pytest.raises(CheckpointError, match=r"deca_model\.tar"):
        import_released(path, tmp_path / "ckpt")
    assert not marker.exists()
    assert not (tmp_path / "ckpt").exists()
    with pytest.raises(CheckpointError, match="no such file"):
        import_released(tmp_path / "absent.tar", tmp_path / "ckpt")
