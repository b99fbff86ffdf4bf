"""Flows while Prefect's server restarts, and the deployments of prefect.yaml on a real server."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
import yaml

from pipelines.deploy_local import free_port
from schemas.ingest import IngestConfig
from schemas.progress import UnitProgress
from schemas.train import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def progress(done: int) -> UnitProgress:
    return UnitProgress(done, 10, done, 10, done, 0, 1.0, 1.0, None)


def served(port: int):
    """Point Prefect's client at a port."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    return temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"})


def harness_url() -> str:
    from prefect.settings import get_current_settings

    return str(get_current_settings().api.url)


def test_a_server_that_is_away_costs_no_run(monkeypatch):
    from pipelines import flows

    said: list[logging.LogRecord] = []
    listener = logging.Handler(logging.WARNING)
    monkeypatch.setattr(listener, "emit", said.append)
    flows.logger.addHandler(listener)
    artifact = flows.ProgressArtifact("some-progress")
    with served(free_port()):
        for done in range(11):
            artifact(progress(done))
    flows.logger.removeHandler(listener)
    assert len(said) == 2  # of eleven, the first and the last
    assert all("the run continues" in record.getMessage() for record in said)


@pytest.mark.slow
def test_a_report_waits_for_a_server_that_comes_back(prefect_harness, monkeypatch):
    from prefect.artifacts import create_markdown_artifact
    from prefect.client.orchestration import get_client

    from pipelines import flows

    monkeypatch.setattr(flows, "AGAIN_SECONDS", 0.2)
    port, real = free_port(), int(harness_url().rpartition(":")[2].partition("/")[0])
    back = threading.Thread(target=forward_one, args=(port, real, 1.0))
    back.start()
    began = time.monotonic()
    with served(port):
        flows.report(create_markdown_artifact, "here again", key="came-back")
    assert time.monotonic() - began > 0.9
    back.join(10)
    with get_client(sync_client=True) as client:
        assert "here again" in [artifact.data for artifact in client.read_latest_artifacts()]


def forward_one(port: int, real: int, after: float) -> None:
    """Leave `port` closed for a while; then forward one connection to `real`."""
    time.sleep(after)
    with socket.create_server(("127.0.0.1", port)) as server:
        inward, _ = server.accept()
        with inward, socket.create_connection(("127.0.0.1", real)) as outward:
            ways = [threading.Thread(target=pump, args=way) for way in ((inward, outward), (outward, inward))]
            for way in ways:
                way.start()
            for way in ways:
                way.join(10)


def pump(source: socket.socket, target: socket.socket) -> None:
    source.settimeout(3)
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


def test_what_the_server_refuses_is_an_error(prefect_harness):
    from prefect.artifacts import create_markdown_artifact
    from prefect.exceptions import PrefectHTTPStatusError

    from pipelines.flows import report

    with pytest.raises((PrefectHTTPStatusError, ValueError)):
        report(create_markdown_artifact, "text", key="Not A Key")


@pytest.mark.parametrize(
    ("flow", "scheduled", "kind"), [("ingest", "nightly", IngestConfig), ("train", "weekly", TrainConfig)]
)
def test_scheduled_deployments_have_settings_of_their_flow(flow, scheduled, kind):
    mine = {entry["name"]: entry for entry in DEPLOYMENTS if entry["entrypoint"].endswith(f":{flow}")}
    assert set(mine) == {scheduled, "adhoc"}
    kind.model_validate(mine[scheduled]["parameters"]["config"])
    assert mine[scheduled]["schedules"][0]["active"] is False


def test_all_deployments_are_taken_by_a_server_that_checks_their_parameters(prefect_harness):
    """`prefect deploy --all` for real: entrypoints load, schedules parse, runs are refused what flows do not know."""
    import httpx

    from pipelines.deploy_local import POOL, PREFECT

    url = harness_url()
    environment = os.environ | {"PREFECT_API_URL": url, "DECA_CHECKOUT": str(ROOT), "PYTHONPATH": str(ROOT)}
    httpx.post(f"{url}/work_pools/", json={"name": POOL, "type": "process"}).raise_for_status()
    done = subprocess.run([*PREFECT, "deploy", "--all"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    names = {flow["id"]: flow["name"] for flow in httpx.post(f"{url}/flows/filter", json={}).json()}
    there = {
        (names[one["flow_id"]], one["name"]): one for one in httpx.post(f"{url}/deployments/filter", json={}).json()
    }
    flow = {"ablate": "evaluate"}  # the others are called as their functions are
    for entry in DEPLOYMENTS:
        function = entry["entrypoint"].rpartition(":")[2]
        one = there.pop((flow.get(function, function), entry["name"]))
        assert one["work_pool_name"] == POOL
        assert one["concurrency_limit"] == 1 or one["global_concurrency_limit"]["limit"] == 1
        assert one["pull_steps"] == [{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}]
        assert not any(schedule["active"] for schedule in one["schedules"])
        assert "config" in one["parameter_openapi_schema"]["required"]
        run = httpx.post(
            f"{url}/deployments/{one['id']}/create_flow_run", json={"parameters": {"config": {"colour": 1}}}
        )
        assert run.status_code in (409, 422), run.text
        assert "colour" in run.text
    assert not there
