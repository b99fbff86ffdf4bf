"""Datasets that an earlier version wrote (tests/stored) open, resume, extend and verify with this one."""

from __future__ import annotations

import io
from pathlib import Path

import boto3
import pytest
from PIL import Image, ImageOps

from tasks.people.versions import current
from tasks.units.commits import committed_parts
from tasks.units.plan import load_plan
from tasks.units.verify import status, verify

pytestmark = pytest.mark.slow

STORED = Path(__file__).resolve().parents[1] / "stored"
UNITS = ("world/truth.parquet", "people/annotations", "heads", "frames", "figures", "meshes", "moving")


@pytest.fixture(scope="module")
def stored(s3):
    """The bucket as it was; URI of the folder with all datasets."""
    client = boto3.client("s3", endpoint_url=s3.endpoint)
    for path in STORED.rglob("*"):
        if path.is_file():
            client.put_object(Bucket=s3.bucket, Key=f"stored/{path.relative_to(STORED)}", Body=path.read_bytes())
    return s3.uri("stored")


def test_every_dataset_opens_and_verifies(stored):
    for name in UNITS:
        found = verify(f"{stored}/{name}")
        assert found.ok, (name, found.problems)
        assert status(f"{stored}/{name}").pending == 0
    faces = current(f"{stored}/people/faces")
    assert (faces.faces, faces.identities) == (3, 2)


def test_commands_resume_without_work_and_extend(stored, s3, deca):
    """Run in the order in which the datasets depend on one another."""
    before = {name: committed_parts(f"{stored}/{name}") for name in UNITS}
    plans = {name: load_plan(f"{stored}/{name}").fingerprint for name in UNITS}
    local = ("--workers", 0)

    def run(*arguments: object, code: int = 0) -> None:
        ended, printed = deca(*arguments, *local)
        assert ended == code, printed

    size = ("--identities", 2, "--images-per-identity", 2, "--size", 256)
    run("synth", f"{stored}/world", *size)
    evaluated = ("evaluate", f"{stored}/world", f"{stored}/figures", "--checkpoint", "untrained")
    run(*evaluated)

    client = boto3.client("s3", endpoint_url=s3.endpoint)
    photo = Image.open(STORED / "world/photos/000001/000.jpg")
    buffer = io.BytesIO()
    ImageOps.mirror(photo).save(buffer, "JPEG", quality=95)
    client.put_object(Bucket=s3.bucket, Key="stored/world/photos/000001/002.jpg", Body=buffer.getvalue())
    run(
        "ingest", f"{stored}/world/photos", f"{stored}/people", "--pattern", "{identity}/{image}", code=2
    )  # one image without a face stays in quarantine
    faces = current(f"{stored}/people/faces")
    assert (faces.version, faces.faces, faces.identities) == (2, 4, 2)

    rows = ("--checkpoint", "untrained", "--set", "precision=fp32")
    run("reconstruct", f"{stored}/people/faces", f"{stored}/heads", *rows, "--resume")
    run("animate", f"{stored}/moving", "--resume")

    clip = (STORED / "clips/a.mp4").read_bytes()
    client.put_object(Bucket=s3.bucket, Key="stored/clips/b.mp4", Body=clip)
    run("reconstruct", f"{stored}/clips/*.mp4", f"{stored}/frames", "--set", "video.fps=25", *rows, "--extend")
    assert status(f"{stored}/frames").rows == 12
    first = ("--format", "npz", "--where", "frame == 0")
    run("export", f"{stored}/frames", f"{stored}/meshes", *first, "--extend")
    assert status(f"{stored}/meshes").rows == 2

    for name in UNITS:
        assert verify(f"{stored}/{name}").ok, name
        assert load_plan(f"{stored}/{name}").fingerprint == plans[name]
        assert set(before[name]) <= set(committed_parts(f"{stored}/{name}"))
