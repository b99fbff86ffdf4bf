"""Starts commands as forks of one process that has the program and its models loaded, so that no fault costs an import.

`python -m tests.chaos.nursery JOBS` reads one JSON line per run and answers with the child's process id, then its exit
code. The child leads a session of its own, as a command in a terminal does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

READ_TIMEOUT = 1.5  # seconds that a child's S3 client waits for an answer; its default of 15 makes timeouts slow


def warm(jobs: Sequence[str]) -> None:
    """Load everything that these jobs import, by small runs."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    import s3fs  # noqa: F401

    import pipelines.cli  # noqa: F401
    from pipelines.ingest import ingest
    from schemas.ingest import IngestConfig
    from schemas.train import TrainConfig
    from tests.chaos.jobs import STEP, TRAIN, UPRIGHT, jpeg

    with tempfile.TemporaryDirectory(prefix="deca-warm-") as folder:
        source = Path(folder) / "source"
        for subject in ("ann", "bob"):
            (source / subject).mkdir(parents=True)
            for number in range(2):
                (source / subject / f"{number}.jpg").write_bytes(jpeg(UPRIGHT))
        here = {"source": str(source), "annotate": {"dlib": {"max_upsample": 1}}, "ray": {"workers": 0}}
        named = {"identity": {"pattern": "{identity}/{image}"}, "shards": {"val_fraction": 0.2}}
        ingest(IngestConfig.model_validate({**here, **named, "dest": f"{folder}/faces"}))
        if "reconstruct" in jobs:
            from pipelines.reconstruct import reconstruct
            from schemas.reconstruct import ReconstructConfig

            reconstruct(ReconstructConfig.model_validate({**here, "dest": f"{folder}/fit", "codes": "landmarks"}))
        if "train" in jobs:
            from pipelines.train import train

            places = {"source": f"{folder}/faces", "dest": f"{folder}/train", "pretrain": {**STEP, "steps": 1}}
            train(TrainConfig.model_validate({**TRAIN, **places, "ray": {"workers": 0}}))


def run(request: dict[str, Any]) -> int:
    """Run the command in this process, with its output to the log; return its exit code."""
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(request["environment"])
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    import s3fs

    from pipelines import cli
    from tests.chaos.inject import Injection, apply

    s3fs.S3FileSystem.read_timeout = READ_TIMEOUT
    for console, stream in ((cli.console, sys.stdout), (cli.errors, sys.stderr)):
        console.file, console._width = stream, 100_000
    if request["injection"]:
        apply(Injection(**request["injection"]))
    sys.argv = ["deca", *request["arguments"]]
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        if ray := sys.modules.get("ray"):
            ray.shutdown()
    return 0


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # models print while they load
    sys.dont_write_bytecode = True
    warm(sys.argv[1:])
    answers.write("ready\n")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = 70
            try:
                code = run(json.loads(line))
            except KeyboardInterrupt:  # before the command starts
                code = 130
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(code)
        answers.write(f"{child}\n")
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")


if __name__ == "__main__":
    main()
