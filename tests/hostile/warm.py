"""Loads the program and its models, by one small run, into the process that trials are forked from."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def warm() -> None:
    sys.dont_write_bytecode = True
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["DECA_CACHE"] = os.environ.get("DECA_CACHE") or str(Path.home() / ".cache" / "deca")  # HOME will differ
    import torch

    import pipelines.cli  # noqa: F401
    from deca_core.assets import procedural_head
    from pipelines.ingest import ingest
    from schemas.ingest import IngestConfig
    from tests.hostile.kinds import GOOD, jpeg

    torch.set_num_threads(1)
    procedural_head()
    with tempfile.TemporaryDirectory(prefix="deca-warm-") as folder:
        source = Path(folder) / "source"
        source.mkdir()
        (source / GOOD).write_bytes(jpeg())
        settings = {"annotate": {"dlib": {"max_upsample": 1}}, "identity": {"method": "none"}, "ray": {"workers": 0}}
        ingest(IngestConfig.model_validate({"source": str(source), "dest": f"{folder}/dest", **settings}))


warm()
