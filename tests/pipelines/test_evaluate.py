"""The evaluate flow from a world on disk to its report; resuming, refusing, retrying."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from deca_core import DECA
from deca_core.assets import procedural_head
from deca_core.checkpoint import save_checkpoint
from pipelines.evaluate import evaluate
from pipelines.synth import synth
from schemas.evaluate import EvaluateConfig, EvaluateSummary
from schemas.world import SynthConfig
from tasks.units.commits import committed_parts
from tasks.units.plan import PlanConflict
from tasks.units.reasons import NoRowsError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    torch.manual_seed(0)
    model = DECA(procedural_head(), backbone="mobilenet_v3_small")
    return str(save_checkpoint(model, tmp_path_factory.mktemp("checkpoint") / "small"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Two subjects, two images of each, in tars."""
    dest = tmp_path_factory.mktemp("world")
    world = {"identities": 2, "images_per_identity": 2, "size": 160, "seed": 8, "max_yaw": 20.0, "layout": "tar"}
    synth(SynthConfig.model_validate({**world, "dest": str(dest), "ray": {"workers": 0}}))
    return dest


def run(source: Path, dest: Path, checkpoint: str, **changes: object) -> EvaluateSummary:
    values = {"source": str(source), "dest": str(dest), "checkpoint": checkpoint, "ray": {"workers": 0}}
    return evaluate(EvaluateConfig.model_validate({**values, "units": {"items_per_unit": 2}, **changes}))


@pytest.fixture(scope="module")
def done(archive, checkpoint, tmp_path_factory) -> tuple[Path, EvaluateSummary]:
    dest = tmp_path_factory.mktemp("evaluations")
    return dest, run(archive, dest, checkpoint)


def test_rows_figures_and_page(done):
    dest, summary = done
    assert (summary.outcome, summary.pictures, summary.trained) == ("complete", 4, False)
    table = pq.read_table(committed_parts(str(dest)))
    assert table["method"].to_pylist() == ["model", "mean face", "landmark fit"] * 4
    model, mean, fit = summary.methods
    pooled = np.concatenate([row for row in table["scan_mm"].to_pylist()[0::3]])
    assert model.scan.median == pytest.approx(float(np.median(pooled)), rel=1e-6)
    assert (mean.pictures, mean.shape_within_mm, mean.shape_ratio) == (4, 0.0, None)
    assert mean.metrics["psnr_db"].pictures == 4
    stored = json.loads((dest / "_report/summary.json").read_text())
    assert stored["methods"][1]["scan"]["median"] == pytest.approx(mean.scan.median)
    page = (dest / "_report/report.html").read_text()
    assert page.count("<svg") == 2
    assert "UNTRAINED NETWORK" in page
    assert f"{mean.scan.median:.3f}" in page
    assert f"{fit.scan.median:.3f}" in page
    assert "NaN" not in page
    outside = re.sub(r'xmlns(:xlink)?="[^"]*"|PUBLIC "[^>]*', "", page)
    assert not re.search(r'(src|href)="(?!#|data:)', outside)


def test_again_there_is_nothing_to_do_and_another_question_is_refused(done, archive, checkpoint):
    dest, summary = done
    again = run(archive, dest, checkpoint)
    assert (again.units_run, again.units_skipped) == (0, 2)
    assert again.methods == summary.methods
    with pytest.raises(PlanConflict, match="landmarks"):
        run(archive, dest, checkpoint, landmarks="annotator")
    with pytest.raises(PlanConflict, match="baselines"):
        run(archive, dest, checkpoint, baselines=["mean face"])


def test_a_benchmark_without_one_readable_image_fails(archive, checkpoint, tmp_path):
    world = tmp_path / "world"
    shutil.copytree(archive, world)
    [tar] = (world / "photos").iterdir()
    time = tar.stat().st_mtime_ns
    tar.write_bytes(tar.read_bytes().replace(b"\xff\xd8\xff", b"\0\0\0"))
    os.utime(tar, ns=(time, time))
    with pytest.raises(NoRowsError, match="nothing came of 4 images: 4 x decode"):
        run(world, tmp_path / "out", checkpoint)
    assert not (tmp_path / "out/_report").exists()


@pytest.mark.slow
def test_a_lost_image_is_named_and_comes_back_with_a_retry(archive, checkpoint, done, tmp_path):
    world = tmp_path / "world"
    shutil.copytree(archive, world)
    [tar] = (world / "photos").iterdir()
    good, time = tar.read_bytes(), tar.stat().st_mtime_ns
    start = good.index(b"\xff\xd8\xff")
    tar.write_bytes(good[:start] + b"\0" * 64 + good[start + 64 :])
    os.utime(tar, ns=(time, time))
    spoilt = run(world, tmp_path / "out", checkpoint)
    assert (spoilt.outcome, spoilt.quarantined) == ("partial", {"decode": 1})
    assert spoilt.methods[0].pictures == 3
    # Image 2 was to be animated by the lost one: counted as missing, not invented.
    assert spoilt.methods[0].metrics["transfer_mm"].pictures == 2
    assert "decode 1" in (tmp_path / "out/_report/report.html").read_text()
    tar.write_bytes(good)
    os.utime(tar, ns=(time, time))
    healed = run(world, tmp_path / "out", checkpoint, existing="retry")
    assert (healed.outcome, healed.units_run) == ("complete", 1)
    whole = done[1].methods[0]
    assert healed.methods[0].scan.median == pytest.approx(whole.scan.median, rel=1e-6)
    assert healed.methods[0].metrics["nme"].mean == pytest.approx(whole.metrics["nme"].mean, rel=1e-6)
