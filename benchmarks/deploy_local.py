"""A deployment on this machine: `python -m benchmarks.deploy_local`, or with --check the proof that it works.

Starts a Prefect server, a process work pool and a worker on loopback, deploys all of prefect.yaml, prints the addresses
and stays until Ctrl-C. All state (Prefect's database, leases, logs) lies below --folder; nothing runs on afterwards.

--check does with it what a deployment goes through (benchmarks/deploy_trial.py: a schedule that fires, an ad-hoc run, a
server that is killed, a flow process that is killed, a Ray cluster of two nodes) and prints what happened with times:
five to eight minutes. Docs: docs/deploy.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from tests.chaos.processes import descendants

ROOT = Path(__file__).resolve().parents[1]
PREFECT = (sys.executable, "-m", "prefect", "--no-prompt")
POOL = "local"  # as prefect.yaml says
MARK = "DECA_DEPLOYMENT"  # in the environment of everything that belongs to a deployment: its folder
START_SECONDS = 180.0  # a server takes half a minute, more on a busy machine
STOP_SECONDS = 20.0  # before what does not end by itself is killed
COMMAND_SECONDS = 300.0


class DeploymentError(Exception):
    """A part of the deployment that does not do what it should."""


class Process(NamedTuple):
    """A process that no later one can be taken for."""

    pid: int
    born: str  # clock ticks since boot; empty: there was none

    @classmethod
    def of(cls, pid: int) -> Process:
        return cls(pid, _stat(pid)[19])

    @property
    def alive(self) -> bool:
        fields = _stat(self.pid)
        return fields[0] not in ("", "Z") and fields[19] == self.born

    @property
    def seconds(self) -> float:
        """Of a processor, so far; 0 once it is gone."""
        fields = _stat(self.pid)
        return (int(fields[11] or 0) + int(fields[12] or 0)) / os.sysconf("SC_CLK_TCK")

    @property
    def peak(self) -> int:
        """Most bytes of memory it ever held; 0 once it is gone."""
        try:
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)

    @property
    def command(self) -> bytes:
        try:
            return Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return b""

    def send(self, number: int) -> bool:
        """Whether there was somebody to get the signal."""
        if not self.alive:
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def _stat(pid: int) -> list[str]:
    """The kernel's line on a process from its state on, empty fields where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return [""] * 20


def marked(name: str, value: str) -> set[Process]:
    """Living processes that were started with an environment variable: nobody can be missed for a changed parent."""
    wanted, found = f"{name}={value}".encode(), set()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            inherited = wanted in (folder / "environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if inherited and (process := Process.of(int(folder.name))).alive:
            found.add(process)
    return found


def family(name: str, value: str) -> set[Process]:
    """`marked`, and what descends from them: a process that renames itself may overwrite its environment."""
    parents = marked(name, value)
    children = {Process.of(pid) for parent in parents for pid in descendants(parent.pid)}
    return parents | {child for child in children if child.alive}


def end(processes: set[Process], patience: float = STOP_SECONDS) -> int:
    """SIGTERM, and SIGKILL for what is left after `patience` seconds; how many that were."""
    for process in processes:
        process.send(signal.SIGTERM)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and any(process.alive for process in processes):
        time.sleep(0.1)
    return sum(process.send(signal.SIGKILL) for process in processes)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Deployment:
    """A Prefect server with its pool and worker below `folder`; `with Deployment(folder, port) as deployment`.

    environment: what everything of it is started with. Raises DeploymentError where a part does not come up.
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
            # In memory, the default, leases die with the server, and with them, minutes later, the runs that hold them.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "DO_NOT_TRACK": "1",
            "DECA_CHECKOUT": str(ROOT),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", "")))),
        }
        self.environment.pop("RAY_ADDRESS", None)

    def __enter__(self) -> Deployment:
        if self.is_up():
            raise DeploymentError(f"{self.url} is taken: stop what listens there, or give another --port")
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
        """Start it and wait until it answers; the seconds that took."""
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
        """End everything, the worker first; how many processes had to be killed."""
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
            what = f"ended with {ended}" if ended is not None else f"did not come up in {START_SECONDS:.0f} s"
            raise DeploymentError(f"the {name} {what}; look at {self.logs / f'{name}.log'}\n{self._tail(name)}")

    def _tail(self, name: str) -> str:
        return "\n".join((self.logs / f"{name}.log").read_text(errors="replace").splitlines()[-15:])

    # --- client ---

    def prefect(self, *arguments: str) -> str:
        """What a command of Prefect's prints. DeploymentError where it fails."""
        return self.command(*PREFECT, *arguments)

    def command(self, *words: str, **environment: str) -> str:
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
        if done.returncode:
            raise DeploymentError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-2000:]}")
        return done.stdout

    def ask(self, method: str, path: str, **body: Any) -> Any:
        """The answer of Prefect's REST API. DeploymentError where it refuses."""
        answer = httpx.request(method, f"{self.url}/api{path}", json=body or None, timeout=60.0)
        if answer.is_error:
            raise DeploymentError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer.json() if answer.content else None

    def deployments(self) -> dict[str, str]:
        """Ids by name as commands take it: flow/deployment."""
        flows = {flow["id"]: flow["name"] for flow in self.ask("POST", "/flows/filter", limit=200)}
        found = self.ask("POST", "/deployments/filter", limit=200)
        return {f"{flows[one['flow_id']]}/{one['name']}": one["id"] for one in found}


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM as Ctrl-C: what was started is stopped."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stay(deployment: Deployment) -> None:
    """Say where everything is, and wait for Ctrl-C."""
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
                raise DeploymentError(f"the {name} ended; look at {deployment.logs / f'{name}.log'}")
        time.sleep(1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "deploy-local", help="all state; kept from start to start"
    )
    parser.add_argument("--port", type=int, default=4200)
    parser.add_argument("--limit", type=int, default=1, help="flow runs at a time")
    parser.add_argument("--check", action="store_true", help="prove it, in a temporary folder and on a free port")
    parser.add_argument("--only", help="with --check: some of its scenes, by comma")
    options = parser.parse_args()
    try:
        with interrupted_by_sigterm():
            if options.check:
                from benchmarks.deploy_trial import run_trial

                with tempfile.TemporaryDirectory(prefix="deca-deploy-", ignore_cleanup_errors=True) as folder:
                    run_trial(Path(folder), options.only.split(",") if options.only else None)
                return
            print("starting: half a minute to a minute", flush=True)
            with Deployment(options.folder, options.port, ui=True, limit=options.limit) as deployment:
                stay(deployment)
    except KeyboardInterrupt:
        print("stopped", flush=True)
    except DeploymentError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
