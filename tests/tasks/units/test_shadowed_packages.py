"""Files of a user's folder that have the names of our packages: workers and ranks import ours all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.store.storage import Store
from tasks.training.checkpoints import list_checkpoints
from tasks.units.verify import status

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
from schemas.engine import RayConfig
from schemas.train import TrainRayConfig
from tasks.units.engine import run_units
from tasks.units.rounds import open_or_build
from tasks.training.ranks import train_stage
from tests.tasks.conftest import HashWorker
from tests.tasks.train_runs import job_of, small_config

for workers in (0, 1):
    plan = open_or_build(f"out-{workers}", "photos")
    print("units", run_units(plan, HashWorker, RayConfig(workers=workers)).units_run)
config = small_config("trained", coarse={"steps": 1, "subjects": 2, "images": 2})
print("step", train_stage(job_of(config), TrainRayConfig(workers=1, max_failures=0)).step)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_names_of_our_packages_in_the_working_directory(photos: Callable[..., Path], tmp_path: Path) -> None:
    photos(3)
    for name in ("tasks.py", "pipelines.py", "schemas/__init__.py", "deca_core/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise ImportError('a file of the user')\n")
    ran = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT],  # -P: as in an installed script, this folder is not on sys.path
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    assert ran.stdout.split("units ", 1)[1].split() == ["1", "units", "1", "step", "1"]
    for workers in (0, 1):  # relative paths are those of the working directory, on Ray too
        assert status(str(tmp_path / f"out-{workers}")).rows == 3
    assert list_checkpoints(Store(str(tmp_path / "trained")), "coarse")[-1].step == 1
