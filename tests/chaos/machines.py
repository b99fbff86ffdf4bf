"""Services that some faults need: an S3 endpoint, two Ray nodes, a Prefect server, a small disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.deploy_local import Deployment, free_port
from pipelines.processes import descendants
from tests.chaos.processes import ENVIRONMENT, ROOT, Run, kill, named
from tests.chaos.proxy import Proxy

BUCKET = "chaos"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class Bucket:
    """A bucket of moto's S3 server, behind a faulty network."""

    def __init__(self, endpoint: str | None = None) -> None:
        """endpoint: of a running server; None starts one."""
        import boto3
        from moto.server import ThreadedMotoServer

        self.server = None if endpoint else ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        if self.server:
            self.server.start()
            host, port = self.server.get_host_and_port()
            endpoint = f"http://{host}:{port}"
        self.endpoint = endpoint or ""
        self.before = {name: os.environ.get(name) for name in (*CREDENTIALS, "AWS_ENDPOINT_URL")}
        os.environ.update(CREDENTIALS | {"AWS_ENDPOINT_URL": self.endpoint})  # the suite itself bypasses the proxy
        boto3.client("s3", endpoint_url=self.endpoint).create_bucket(Bucket=BUCKET)
        self.proxy = Proxy(self.endpoint)

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a command behind the faulty network."""
        return CREDENTIALS | {"AWS_ENDPOINT_URL": self.proxy.endpoint}

    def close(self) -> None:
        self.proxy.close()
        if self.server:
            self.server.stop()
        for name, value in self.before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


class Nodes:
    """A Ray cluster of two nodes with a core each, on this machine; the second one can be killed."""

    def __init__(self) -> None:
        self.environment, self.handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
        os.environ.update(ENVIRONMENT)  # its workers inherit it
        from ray.cluster_utils import Cluster

        self.options: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
        self.cluster = Cluster(
            initialize_head=True, head_node_args={**self.options, "include_dashboard": False}, shutdown_at_exit=True
        )
        self.join()

    def join(self) -> None:
        """Start the second node. Restores the SIGTERM handler, which every node replaces by Ray's."""
        self.second = self.cluster.add_node(**self.options)
        self.cluster.wait_for_nodes()
        signal.signal(signal.SIGTERM, self.handler)

    def workers(self) -> list[int]:
        """Return the processes of the actors that run units or train."""
        return named(descendants(os.getpid()), "ray::_Runner", "ray::RayTrainWorker", "ray::_RayTrainWorker")

    def lose(self) -> None:
        """kill -9 of everything on the second node, as if its machine was lost."""
        for process in [entry for entries in self.second.all_processes.values() for entry in entries]:
            for pid in (process.process.pid, *descendants(process.process.pid)):
                kill(pid)

    def mend(self) -> None:
        """Replace the lost second node."""
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.join()

    def close(self) -> None:
        self.cluster.shutdown()
        os.environ.clear()
        os.environ.update(self.environment)


class Prefect:
    """A Prefect server of its own, with its own database."""

    def __init__(self) -> None:
        self.deployment = Deployment(Path(tempfile.mkdtemp(prefix="deca-prefect-")), free_port())
        self.environment = self.deployment.environment | ENVIRONMENT
        self.environment["PREFECT_API_URL"] = f"{self.deployment.url}/api"
        try:
            self.deployment.start_server()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.deployment.stop()
        shutil.rmtree(self.deployment.folder, ignore_errors=True)


class Plain(Run):
    """A command in a new process, with its imports: Prefect reads its settings while it loads."""

    def __init__(self, arguments: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        with open(log, "a") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from pipelines.cli import main; main()", *arguments],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.pid, self.log, self.code = self.process.pid, log, None

    def poll(self) -> int | None:
        return self.process.poll()

    def wait(self, seconds: float = 300.0) -> int:
        return self.process.wait(seconds)


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount a file system of `size` bytes. Raises PermissionError where this user must not mount one."""
    folder.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", *options], capture_output=True, check=False).returncode
    ):
        raise PermissionError("no right to mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def enlarge(folder: Path, size: int) -> None:
    """Enlarge a small disk, as if files had been removed."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
