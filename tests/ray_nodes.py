"""A Ray cluster of two nodes on this machine, the second of which may see other file systems than the first."""

from __future__ import annotations

import os
import secrets
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.processes import descendants
from tests.chaos.processes import kill

MEMORY = 128 * 2**20  # bytes of each node's object store
PATIENCE = 180.0  # seconds; a node starts in five where nothing else runs
SECOND = "second-node"  # hostname of the second node
ROOT = Path(__file__).resolve().parents[1]


def namespaces() -> str | None:
    """Why no process with mounts and a hostname of its own can be started here; None where it can."""
    try:
        tried = subprocess.run(
            ["unshare", "--mount", "--uts", "true"], stderr=subprocess.PIPE, text=True, check=False, timeout=30
        )
    except FileNotFoundError:
        return "needs unshare (package util-linux)"
    return None if tried.returncode == 0 else f"needs the right to unshare mounts, as root has: {tried.stderr.strip()}"


@dataclass(frozen=True)
class Nodes:
    """A running cluster."""

    address: str
    raylets: dict[str, int]  # process ids by node: "head", SECOND

    def workers(self, title: bytes) -> dict[int, str]:
        """Node by process id of Ray's worker processes whose title begins so, such as b"ray::_Runner"."""
        found = {}
        for node, raylet in self.raylets.items():
            for pid in descendants(raylet):
                try:
                    if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(title):
                        found[pid] = node
                except (FileNotFoundError, ProcessLookupError):
                    continue
        return found


@contextmanager
def two_nodes(
    folder: Path, environment: Mapping[str, str], second: Mapping[str, str], hidden: Sequence[Path]
) -> Iterator[Nodes]:
    """Start the cluster, one CPU a node; end it afterwards.

    folder: for logs. second: more of the environment of the second node alone. hidden: folders in whose place the
    second node sees empty ones.
    """
    port, temporary = _free_port(), tempfile.mkdtemp(prefix="r", dir="/tmp")
    address = f"127.0.0.1:{port}"
    common = ["--num-cpus=1", "--num-gpus=0", f"--object-store-memory={MEMORY}", "--disable-usage-stats", "--block"]
    common += [f"--temp-dir={temporary}", "--dashboard-agent-listen-port=0"]
    head = ["--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false"]
    head += [f"--ray-client-server-port={_free_port()}"]
    start = [sys.executable, "-m", "ray.scripts.scripts", "start"]
    mounts = [f"mount -t tmpfs tmpfs {shlex.quote(str(place))}" for place in hidden]
    join = shlex.join([*start, f"--address={address}", "--node-ip-address=127.0.0.2", *common])
    aside = ["unshare", "--mount", "--uts", "sh", "-c", " && ".join([f"hostname {SECOND}", *mounts, f"exec {join}"])]
    environment = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
    started: list[subprocess.Popen[bytes]] = []
    raylets = {}
    try:
        for name, command, own in (("head", [*start, *head, *common], {}), (SECOND, aside, second)):
            with (folder / f"ray-{name}.log").open("wb") as log:
                node = subprocess.Popen(
                    command,
                    env={**environment, **own},
                    cwd=ROOT,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            started.append(node)
            raylets[name] = _raylet(node, folder / f"ray-{name}.log")
        yield Nodes(address, raylets)
    finally:
        family = [pid for node in started for pid in (node.pid, *descendants(node.pid))]
        for pid in family:
            kill(pid)
        for node in started:
            node.wait()
        subprocess.run(["rm", "-rf", temporary], check=False)


def token() -> dict[str, str]:
    """Environment of nodes and drivers that show one another a token."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _raylet(node: subprocess.Popen[bytes], log: Path) -> int:
    """The raylet that `ray start --block` has started."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and node.poll() is None:
        for pid in descendants(node.pid):
            try:
                if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"/raylet"):
                    return pid
            except (FileNotFoundError, ProcessLookupError):
                continue
        time.sleep(0.2)
    raise AssertionError(f"no raylet: {log.read_text()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
