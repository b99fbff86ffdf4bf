"""A cluster of two nodes, one of which does not see the folder of the data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from tests.conftest import S3Endpoint
from tests.ray_nodes import ROOT, SECOND, Nodes, namespaces, token, two_nodes
from tests.tasks.store.test_node_cache import Bucket

pytestmark = [
    pytest.mark.engines,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(namespaces()), reason=namespaces() or ""),
]

SCRIPT = """
import json, sys
from functools import partial
from pipelines.reconstruct import reconstruct
from schemas.engine import RayConfig, UnitsConfig
from schemas.reconstruct import ReconstructConfig
from tasks.units.engine import run_units
from tasks.units.rounds import open_or_build
from tests.tasks.weighed import WeighedWorker

four = RayConfig(workers=4, cpus_per_worker=0.5, attempts=2)

def units(source, dest, weights):
    plan = open_or_build(dest, source, units=UnitsConfig(items_per_unit=2))
    summary = run_units(plan, partial(WeighedWorker, weights=weights), four)
    return {"rows": summary.rows, "failed": summary.units_failed}

def flow(**settings):
    return reconstruct(ReconstructConfig.model_validate(settings)).outcome

for call in json.loads(sys.argv[1]):
    try:
        said = eval(call)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    print("SAID", json.dumps(said), flush=True)
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that both nodes see, and `data`, which the second does not."""
    folder = tmp_path_factory.mktemp("nodes")
    made = {name: folder / name for name in ("data", "shared", "logs", "temp-1", "temp-2", "cache-1", "cache-2")}
    for place in made.values():
        place.mkdir()
    return made


@pytest.fixture(scope="module")
def cluster(places: dict[str, Path], s3: S3Endpoint) -> Iterator[tuple[Nodes, dict[str, str]]]:
    """The cluster, and the environment of a driver on its head."""
    first = {**token(), "TMPDIR": str(places["temp-1"]), "DECA_CACHE": str(places["cache-1"])}
    second = {"TMPDIR": str(places["temp-2"]), "DECA_CACHE": str(places["cache-2"])}
    with two_nodes(places["logs"], first, second, [places["data"]]) as nodes:
        yield nodes, {**os.environ, **first, "RAY_ADDRESS": nodes.address, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def drive(cluster: tuple[Nodes, dict[str, str]]) -> Callable[..., list[object]]:
    """What a driver on the head says to each call, or the error that it ends with."""

    def said(*calls: str) -> list[object]:
        ran = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps(calls)],
            env=cluster[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        lines = [json.loads(line[5:]) for line in ran.stdout.splitlines() if line.startswith("SAID ")]
        assert len(lines) == len(calls), ran.stdout
        return lines

    return said


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with Bucket.running() as server:
        yield server


def write_images(uri: str, count: int, special: dict[int, bytes]) -> str:
    for number in range(count):
        with fsspec.open(f"{uri}/{number:03d}.jpg", "wb") as file:
            file.write(special.get(number, b"") + b"picture %d" % number)
    return uri


def left(places: dict[str, Path]) -> list[str]:
    """Temp files of ours on both nodes, and in their caches."""
    roots = [places[name] for name in ("temp-1", "temp-2", "cache-1", "cache-2")]
    return [str(path) for root in roots for path in root.rglob(".deca-*")]


def test_paths_that_one_node_does_not_see(drive, places, s3, bucket) -> None:
    for name in ("photos", "model"):
        (places["data"] / name).mkdir()
    write_images(str(places["data"] / "photos"), 2, {})
    (places["data"] / "model" / "checkpoint.json").write_text("{}")
    bucketed = write_images(s3.uri("nodes/refused"), 8, {})
    data, out = places["data"], s3.uri("nodes/refused-out")
    dest, source, checkpoint, engine = drive(
        f"flow(source={bucketed!r}, dest='{data}/out')",
        f"flow(source='{data}/photos/*.jpg', dest={out!r})",
        f"flow(source={bucketed!r}, dest={out!r}, checkpoint='{data}/model')",
        f"units({bucketed!r}, '{data}/units', {bucket.uri!r})",  # without a flow, each worker looks for itself
    )
    for said, setting, path in (
        (dest, "dest", f"{data}/out"),
        (source, "source", f"{data}/photos"),
        (checkpoint, "checkpoint", f"{data}/model"),
        (engine, "dest", f"{data}/units"),
    ):
        assert "SharedPathError" in said
        assert f"{setting} = {data}" in said
        assert f": node {SECOND} (127.0.0.2, Ray's " in said
        assert f"there is no {path}" in said
        assert "the URI of a bucket" in said
    assert engine.startswith("WorkerStartError")
    assert not (data / "out").exists()
    assert not fsspec.filesystem("s3").exists(out)


def test_a_share_that_both_nodes_see(drive, places, bucket) -> None:
    (places["shared"] / "photos").mkdir()
    source = write_images(str(places["shared"] / "photos"), 8, {})
    (said,) = drive(f"units({source!r}, '{places['shared']}/out', {bucket.uri!r})")
    assert said == {"rows": 8, "failed": 0}
    assert not list(places["shared"].rglob(".deca-*"))


def test_weights_come_once_a_node_and_the_killed_leave_nothing(drive, places, s3, bucket) -> None:
    source = write_images(s3.uri("nodes/in"), 16, {5: b"kill", 12: b"kill"})
    (said,) = drive(f"units({source!r}, {s3.uri('nodes/out')!r}, {bucket.uri!r})")
    assert said == {"rows": 12, "failed": 2}  # two units of two images killed two workers each
    assert bucket.asked["GET"] == 2
    for name in ("cache-1", "cache-2"):
        assert len([path for path in places[name].glob("fetched/*/weights.pth")]) >= 1
    assert left(places) == []
