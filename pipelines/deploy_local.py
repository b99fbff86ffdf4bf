"""A deployment on this machine: `python -m pipelines.deploy_local`, or `make deploy-local`.

Starts a Prefect server, a process work pool and a worker on loopback, deploys everything in prefect.yaml, prints the
addresses and runs until Ctrl-C. All state (Prefect's database, leases, logs) is stored below --folder; no process
outlives this one. Needs the checkout, since prefect.yaml is in it. Docs: docs/deploy.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from deca_core.errors import DecaError
from pipelines.processes import Process, end, family

ROOT = Path(__file__).resolve().parents[1]
PREFECT = (sys.executable, "-m", "prefect", "--no-prompt")
POOL = "local"  # as prefect.yaml says
MARK = "DECA_DEPLOYMENT"  # environment variable of every process of a deployment; its value is the folder
START_SECONDS = 180.0  # a server takes half a minute, more on a busy machine
COMMAND_SECONDS = 300.0


class DeploymentError(DecaError):
    """A part of the deployment failed or did not start."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Deployment:
    """A Prefect server with its pool and worker below `folder`; `with Deployment(folder, port) as deployment`.

    environment: of every process it starts. Raises DeploymentError where a part does not start.
    """

    def __init__(self, folder: Path, port: int, ui: bool = False, limit: int = 1) -> None:
        self.folder, self.port, self.ui, self.limit = folder.resolve(), port, ui, limit
        self.url = f"http://127.0.0.1:{port}"
        self.logs = self.folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.services: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = os.environ | {
            MARK: str(self.folder),
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # The default, leases in memory, ends them with the server, and minutes later the runs that need them.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "DO_NOT_TRACK": "1",
            "DECA_CHECKOUT": str(ROOT),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", "")))),
        }
        self.environment.pop("RAY_ADDRESS", None)

    def __enter__(self) -> Deployment:
        if self.is_up():
            raise DeploymentError(f"{self.url} is taken: stop what listens there, or pass another --port")
        try:
            self.start_server()
            self.prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
            self.prefect("deploy", "--all")
            self.start_worker()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    # --- services ---

    def start_server(self) -> float:
        """Start the server and wait until it answers; return the seconds that took."""
        began = time.monotonic()
        ui = "--ui" if self.ui else "--no-ui"
        command = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(self.port), ui]
        self._start("server", command)
        while not self.is_up():
            self._still_there("server", began)
            time.sleep(0.2)
        return time.monotonic() - began

    def kill_server(self) -> None:
        """SIGKILL, as a lost machine would."""
        self.services["server"].kill()
        self.services.pop("server").wait()

    def start_worker(self) -> None:
        began = time.monotonic()
        limit = ["--limit", str(self.limit)]
        self._start("worker", [*PREFECT, "worker", "start", "--pool", POOL, "--type", "process", *limit])
        while not self.ask("POST", f"/work_pools/{POOL}/workers/filter"):
            self._still_there("worker", began)
            time.sleep(0.5)

    def stop(self) -> int:
        """End everything, the worker first; return how many processes had to be killed."""
        everything = family(MARK, str(self.folder))
        killed = 0
        for name in ("worker", "server"):
            if (service := self.services.pop(name, None)) is not None:
                killed += end({Process.of(service.pid)})
                service.wait()
        return killed + end(everything | family(MARK, str(self.folder)), patience=5.0)

    def is_up(self) -> bool:
        try:
            return httpx.get(f"{self.url}/api/health", timeout=5.0).status_code == 200
        except httpx.TransportError:
            return False

    def _start(self, name: str, command: Sequence[str]) -> None:
        with open(self.logs / f"{name}.log", "ab") as log:
            # A session of its own: Ctrl-C reaches this process alone, which stops them in order.
            self.services[name] = subprocess.Popen(
                command, env=self.environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )

    def _still_there(self, name: str, began: float) -> None:
        ended = self.services[name].poll()
        if ended is not None or time.monotonic() - began > START_SECONDS:
            what = f"ended with {ended}" if ended is not None else f"did not start within {START_SECONDS:.0f} s"
            raise DeploymentError(f"the {name} {what}; see {self.logs / f'{name}.log'}\n{self._tail(name)}")

    def _tail(self, name: str) -> str:
        return "\n".join((self.logs / f"{name}.log").read_text(errors="replace").splitlines()[-15:])

    # --- client ---

    def prefect(self, *arguments: str) -> str:
        """Run a Prefect command and return its output. Raises DeploymentError where it fails."""
        return self.command(*PREFECT, *arguments)

    def command(self, *words: str, **environment: str) -> str:
        """Run a command in the checkout and return its output. Raises DeploymentError where it fails."""
        try:
            done = subprocess.run(
                words,
                env=self.environment | environment,
                cwd=ROOT,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DeploymentError(f"{' '.join(words)} did not end within {COMMAND_SECONDS:.0f} s") from error
        if done.returncode:
            raise DeploymentError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-2000:]}")
        return done.stdout

    def ask(self, method: str, path: str, **body: Any) -> Any:
        """Return the answer of Prefect's REST API. Raises DeploymentError on an error status."""
        answer = httpx.request(method, f"{self.url}/api{path}", json=body or None, timeout=60.0)
        if answer.is_error:
            raise DeploymentError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer.json() if answer.content else None

    def deployments(self) -> dict[str, str]:
        """Return the ids of all deployments by name (flow/deployment)."""
        flows = {flow["id"]: flow["name"] for flow in self.ask("POST", "/flows/filter", limit=200)}
        found = self.ask("POST", "/deployments/filter", limit=200)
        return {f"{flows[one['flow_id']]}/{one['name']}": one["id"] for one in found}


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that the services are stopped in order."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stay(deployment: Deployment) -> None:
    """Print the addresses and an example, then wait for Ctrl-C."""
    names = sorted(deployment.deployments())
    print(f"server   {deployment.url}   (its API: {deployment.url}/api)")
    print(f"worker   of the pool {POOL!r}, {deployment.limit} run at a time")
    print(f"logs     {deployment.logs}")
    print(f"deployed {', '.join(names)}")
    example = json.dumps({"config": {"source": "photos/", "dest": "heads/"}})
    print(f"try      export PREFECT_API_URL={deployment.url}/api")
    print(f"         prefect deployment run reconstruct/adhoc --watch --params '{example}'")
    print("paths are those of the worker: absolute ones, or buckets. Ctrl-C stops everything", flush=True)
    while True:
        for name, service in deployment.services.items():
            if service.poll() is not None:
                raise DeploymentError(f"the {name} ended; see {deployment.logs / f'{name}.log'}")
        time.sleep(1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "deploy-local", help="all state; reused by the next start"
    )
    parser.add_argument("--port", type=int, default=4200)
    parser.add_argument("--limit", type=int, default=1, help="flow runs at a time")
    options = parser.parse_args()
    try:
        with interrupted_by_sigterm():
            print("starting: half a minute to a minute", flush=True)
            with Deployment(options.folder, options.port, ui=True, limit=options.limit) as deployment:
                stay(deployment)
    except KeyboardInterrupt:
        print("stopped", flush=True)
    except DeploymentError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
