"""The reconstruct flow on real faces: rows, quarantine, resume, retry, readers, S3, Prefect."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from deca_core.checkpoint import SHIPPED, checkpoint_hash
from pipelines.reconstruct import reconstruct
from pipelines.status import status_report
from pipelines.summaries import summary_lines
from pipelines.unit_flow import stored_config
from schemas.parquet import fixed_values
from schemas.reconstruct import ReconstructConfig
from tasks.heads.consensus import ConsensusError
from tasks.sources.endings import left_out_words
from tasks.sources.images import readable_endings
from tasks.units.commits import committed_parts, read_commits, standing_quarantine
from tasks.units.verify import verify
from tests.pipelines.conftest import astronaut, encoded, write_photos

HERE = {"ray": {"workers": 0}, "precision": "fp32"}


def config(source: object, dest: object, **changes: object) -> ReconstructConfig:
    values = {"source": str(source), "dest": str(dest), "units": {"items_per_unit": 2}, **HERE, **changes}
    return ReconstructConfig.model_validate(values)


def part_hashes(dest: str) -> dict[int, str | None]:
    return {commit.unit: commit.sha256 for commit in read_commits(dest)}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """The four photographs, reconstructed undisturbed; tests only read it."""
    folder = tmp_path_factory.mktemp("done")
    assert reconstruct(config(write_photos(folder / "photos"), folder / "out")).outcome == "complete"
    return folder / "out"


def test_rows_of_a_small_archive(done):
    table = pq.read_table(committed_parts(str(done)))
    assert table.num_rows == 4
    for name, shape in {
        "shape": (100,),
        "tex": (50,),
        "exp": (50,),
        "pose": (6,),
        "cam": (3,),
        "light": (9, 3),
    }.items():
        assert fixed_values(table, name).shape == (4, *shape)
    assert fixed_values(table, "detail").shape == (4, 128)
    displacement = fixed_values(table, "displacement")
    assert displacement.shape == (4, 256, 256)
    assert np.abs(displacement).max() <= 0.01
    assert set(table["checkpoint"].to_pylist()) == {checkpoint_hash(SHIPPED)}
    landmarks = fixed_values(table, "landmarks")[0]
    assert 60 < landmarks[:, 0].mean() < 160  # the face is in the middle of the image of 220 pixels
    assert (done / "_report" / "contact_sheet.png").is_file()
    summary = json.loads((done / "_report" / "summary.json").read_text())
    assert summary["trained"] is True
    assert summary["faces"] == 4


def test_stored_displacement_is_the_models_to_half_a_step(done):
    import torch

    from deca_core import Codes
    from tasks.models.loading import load_model

    settings = stored_config(str(done), ReconstructConfig)
    table = pq.read_table(committed_parts(str(done)))
    codes = Codes(**{name: torch.from_numpy(fixed_values(table, name).copy()) for name, _ in Codes.zeros().items()})
    with torch.inference_mode():
        expected = load_model(settings).displacement(codes)[:, 0].numpy()
    step = float(table.schema.field("displacement").metadata[b"scale"])
    assert np.abs(fixed_values(table, "displacement") - expected).max() <= step


def test_second_run_does_nothing(done):
    before = {path: path.stat().st_mtime_ns for path in done.rglob("part-*")}
    settings = (done / "_config.json").read_bytes()
    again = reconstruct(config(done.parent / "photos", done))
    assert (again.units_run, again.units_skipped, again.faces) == (0, 2, 4)
    assert {path: path.stat().st_mtime_ns for path in done.rglob("part-*")} == before
    assert (done / "_config.json").read_bytes() == settings


def test_every_kind_of_trouble_ends_as_rows_or_in_quarantine(trouble, tmp_path):
    folder, expected = trouble
    summary = reconstruct(config(folder, tmp_path / "out"))
    assert summary.outcome == "partial"
    rows = pq.read_table(committed_parts(summary.dest), columns=["source_uri"])["source_uri"].to_pylist()
    ended = {name: f"faces {rows.count(f'{folder}/{name}')}" for name in expected if f"{folder}/{name}" in rows}
    for row in standing_quarantine(summary.dest):
        assert row.message
        ended[row.uri.removeprefix(f"{folder}/")] = row.stage
    # A member that would climb out of the archive is only a name here: nothing is ever unpacked.
    ended = {name: ending for name, ending in ended.items() if "escape" not in name}
    assert ended == expected
    assert not (folder.parent / "escape.jpg").exists()


@pytest.mark.slow
def test_endings_and_what_is_left_out(tmp_path):
    """One image as seven kinds of file: six are read, the seventh is left out and makes the outcome partial."""
    folder, dest = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for name, kind in {
        "1.jpg": "JPEG",
        "2.jfif": "JPEG",
        "3.jpe": "JPEG",
        "4.avif": "AVIF",
        "5.jp2": "JPEG2000",
    }.items():
        (folder / name).write_bytes(encoded(astronaut(), kind))
    (folder / "6.PPM").write_bytes(encoded(astronaut(), "PPM"))
    for name in ("7.heic", "8.cr2", "notes.md", "labels.json"):
        (folder / name).write_bytes(b"x")
    summary = reconstruct(config(folder, dest))
    assert (summary.outcome, summary.images, summary.faces) == ("partial", 6, 6)
    left_out = {".cr2": 1} if ".heic" in readable_endings() else {".cr2": 1, ".heic": 1}
    assert summary.images_left_out == left_out
    line = ("images left out", left_out_words(left_out))
    assert line in summary_lines(summary, reconstruct.lines)
    assert line in status_report(str(dest)).lines()
    assert not status_report(str(dest)).complete
    chosen = {"inputs": {"extensions": ["jpg", "jfif"]}}
    summary = reconstruct(config(folder, tmp_path / "chosen", **chosen))
    assert (summary.outcome, summary.images, summary.images_left_out) == ("complete", 2, {})


def test_images_without_identities_have_no_consensus(done):
    """The rows stay, and the error names the command that assigns identities."""
    settings = config(done.parent / "photos", done, existing="resume", consensus="identity", price_per_hour=2.5)
    with pytest.raises(ConsensusError, match="deca ingest"):
        reconstruct(settings)
    assert len(list(read_commits(str(done)))) == 2
    assert not (done / "consensus").exists()


@pytest.mark.slow
def test_upright_and_rotated_images_give_the_same_landmarks(trouble, tmp_path):
    folder, _ = trouble
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in ("rotated.jpg", "ü.jpg"):
            path.unlink()
    reconstruct(config(folder, tmp_path / "out"))
    table = pq.read_table(committed_parts(str(tmp_path / "out")))
    upright, rotated = fixed_values(table, "landmarks")
    assert np.abs(upright - rotated).max() < 3  # two JPEG encodings of one image


@pytest.mark.parametrize("reader", ["pandas", "duckdb", "datasets"])
def test_foreign_readers_open_the_parts(done, reader, tmp_path):
    parts = committed_parts(str(done))
    if reader == "pandas":
        import pandas

        frame = pandas.concat([pandas.read_parquet(part) for part in parts])
        assert len(frame) == 4
        assert frame["displacement"].iloc[0].shape == (65536,)
    elif reader == "duckdb":
        import duckdb

        query = "select count(*), min(len(displacement)), min(len(shape)) from read_parquet(?)"
        assert duckdb.connect().execute(query, [parts]).fetchone() == (4, 65536, 100)
    else:
        import datasets

        loaded = datasets.load_dataset("parquet", data_files=parts, split="train", cache_dir=str(tmp_path / "hf"))
        assert len(loaded) == 4
        assert len(loaded[0]["detail"]) == 128


def deca(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """The console command as a process of its own."""
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", *map(str, arguments)]
    env = os.environ | {"PREFECT_API_URL": ""} | environment
    return subprocess.Popen(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def test_kill_of_worker_and_driver_then_the_same_bytes_on_s3(photos, tmp_path, s3):
    """Ray workers and driver die by kill -9 in mid-run; the next run ends with the bytes of an undisturbed one."""
    import fsspec

    for index, path in enumerate(sorted(photos.iterdir())):
        for copy in range(3):
            data = encoded(Image.open(path).resize((200 + copy, 200 + copy)), "JPEG")
            fsspec.filesystem("s3").pipe_file(s3.uri(f"kill/in/{index}-{copy}.jpg"), data)
    source = s3.uri("kill/in")
    calm = reconstruct(config(source, tmp_path / "calm"))
    assert calm.faces == 12

    dest = s3.uri("kill/out")
    options = ("--set", "units.items_per_unit=2", "--set", "ray.workers=2", "--precision", "fp32")  # as `config`
    run = deca("reconstruct", source, dest, *options)
    killed = set()
    deadline = time.monotonic() + 200
    while run.poll() is None and time.monotonic() < deadline:
        workers = worker_pids()
        done = len(fsspec.filesystem("s3", use_listings_cache=False).glob(s3.uri("kill/out/_commits/*")))
        if not killed and workers:
            killed.add(min(workers))
            os.kill(min(workers), signal.SIGKILL)  # while it builds its models or works its first unit
        if killed and done >= 1:
            os.killpg(run.pid, signal.SIGKILL)
            break
        time.sleep(0.1)
    assert run.wait(30) == -signal.SIGKILL
    while workers & worker_pids() and time.monotonic() < deadline:  # one may be committing its last unit
        time.sleep(0.1)
    committed = len(list(read_commits(dest)))
    assert 1 <= committed < 6

    final = reconstruct(config(source, dest))
    assert (final.outcome, final.units_skipped, final.faces) == ("complete", committed, 12)
    assert part_hashes(dest) == part_hashes(str(tmp_path / "calm"))
    assert verify(dest).ok


def worker_pids() -> set[int]:
    """Processes of Ray actors that run the engine's units."""
    found = set()
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and b"ray::_Runner" in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.mark.slow
def test_unreadable_object_is_quarantined_and_retried(s3, tmp_path):
    """An archived object: the store answers 403 to reading it, until it is restored."""
    import boto3

    client = boto3.client("s3", endpoint_url=s3.endpoint)
    good, other = encoded(astronaut(), "JPEG"), encoded(astronaut().rotate(3), "JPEG")
    client.put_object(Bucket=s3.bucket, Key="denied/a.jpg", Body=good, StorageClass="GLACIER")
    client.put_object(Bucket=s3.bucket, Key="denied/b.jpg", Body=other)
    dest = str(tmp_path / "out")
    summary = reconstruct(config(s3.uri("denied"), dest))
    assert (summary.faces, summary.quarantined) == (1, {"read": 1})
    [row] = standing_quarantine(dest)
    assert row.uri.endswith("denied/a.jpg")
    first_part = part_hashes(dest)[0]

    retry = stored_config(dest, ReconstructConfig).model_copy(update={"existing": "retry"})
    again = reconstruct(retry)
    assert (again.units_run, again.faces, again.quarantined) == (1, 1, {"read": 1})
    assert standing_quarantine(dest)[0].attempts == 2

    client.put_object(Bucket=s3.bucket, Key="denied/a.jpg", Body=good)
    mended = reconstruct(retry)
    assert (mended.outcome, mended.units_run, mended.faces) == ("complete", 1, 2)
    assert part_hashes(dest)[0] == first_part
    assert verify(dest).ok


def test_prefect_flow_leaves_artifacts(photos, tmp_path, prefect_harness):
    from prefect.client.orchestration import get_client

    from pipelines import flows

    untrained = config(photos, tmp_path / "out", checkpoint="untrained")
    state = flows.reconstruct(untrained, return_state=True)
    assert state.is_completed()
    with get_client(sync_client=True) as client:
        artifacts = {artifact.key: artifact for artifact in client.read_latest_artifacts()}
    assert artifacts["reconstruct-progress"].data == 100
    assert {"reconstruct-summary", "reconstruct-untrained"} <= set(artifacts)
    again = flows.reconstruct(untrained)
    assert (again.units_run, again.faces) == (0, 4)


def test_prefect_flow_validates_its_parameters(prefect_harness):
    from prefect.exceptions import ParameterTypeError

    from pipelines import flows

    with pytest.raises(ParameterTypeError, match="colour"):
        flows.reconstruct({"source": "a", "dest": "b", "colour": "red"})
