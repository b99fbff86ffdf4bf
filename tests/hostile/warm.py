"""What a trial's process finds loaded already: the program and its models, by one small run of everything."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
os.environ["OMP_NUM_THREADS"] = "1"

import torch

from pipelines.ingest import ingest
from schemas.ingest import IngestConfig
from tests.hostile.kinds import GOOD, jpeg

torch.set_num_threads(1)
with tempfile.TemporaryDirectory(prefix="deca-warm-") as _folder:
    (Path(_folder) / "source").mkdir()
    (Path(_folder) / "source" / GOOD).write_bytes(jpeg())
    _settings = {"identity": {"method": "none"}, "ray": {"workers": 0}}
    ingest(IngestConfig.model_validate({"source": f"{_folder}/source", "dest": f"{_folder}/dest", **_settings}))
