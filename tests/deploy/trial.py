"""The local deployment under faults: `python -m tests.deploy.trial`, or `make deploy-test`; five to ten minutes.

schedule   ingest/nightly, filled in and with a cron of one minute, fires on time and completes
killed     its flow process is killed with SIGKILL in mid-run; the next firing runs the rest and no unit twice
adhoc      `prefect deployment run reconstruct/adhoc --watch` with parameters completes
server     the Prefect server is killed in mid-run and restarted on its database; the run completes undisturbed
nodes      the same on a Ray cluster of two nodes (`ray start`), by RAY_ADDRESS; both nodes work

Server and worker start in a folder with files named like our packages. All images are one public-domain photograph
(scikit-image's astronaut), rotated a little. Every line is printed as it happens, with seconds since the start; a
scene with another outcome raises DeploymentError.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipelines.deploy_local import MARK, ROOT, Deployment, DeploymentError, free_port, interrupted_by_sigterm
from pipelines.processes import Process, cpu_seconds, descendants, end, family, marked

FEW, MANY = 16, 160  # images: a run of seconds, and one of a minute
PER_UNIT = 4
PATIENCE = 600.0  # seconds for one thing to happen
RAY_MEMORY = 80 * 2**20  # bytes of a node's object store: units carry names, not images
# Files in the folder that server and worker start in; flows and Ray's workers must not import them.
SHADOWS = ("tasks.py", "schemas.py", "pipelines.py", "deca_core.py")
DONE = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

Run = dict[str, Any]


def photographs(folder: Path, count: int) -> Path:
    """Write `count` images of one face into a folder, each rotated differently; existing files stay."""
    from PIL import Image
    from skimage import data

    folder.mkdir(exist_ok=True)
    head = Image.fromarray(data.astronaut()).crop((110, 0, 330, 220))
    for index, angle in enumerate(np.linspace(-12, 12, count)):
        path = folder / f"{count}-{index:03}.jpg"
        head.rotate(float(angle), Image.Resampling.BICUBIC).save(path, quality=92)
    return folder


def committed(dest: Path) -> int:
    """Return the number of committed units of a dataset."""
    return len(list((dest / "_commits").glob("*.json")))


class Trial:
    """The scenes, in order, over one deployment."""

    def __init__(self, deployment: Deployment, folder: Path) -> None:
        self.deployment, self.folder = deployment, folder
        self.began = time.monotonic()
        self.ids: dict[str, str] = {}
        self.table: list[tuple[str, str, Run]] = []  # scene, deployment, run

    # --- log and wait ---

    def say(self, words: str) -> None:
        print(f"{time.monotonic() - self.began:6.1f} s  {words}", flush=True)

    def until(self, what: str, look: Callable[[], Any]) -> Any:
        """Poll `look` and return its first true value. Raises DeploymentError after PATIENCE."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if seen := look():
                return seen
            time.sleep(0.5)
        raise DeploymentError(f"{what}: not in {PATIENCE:.0f} s; logs in {self.deployment.logs}")

    def runs(self, name: str) -> list[Run]:
        """Return the flow runs of a deployment, the earliest first."""
        only = {"deployments": {"id": {"any_": [self.ids[name]]}}}
        found: list[Run] = self.deployment.ask("POST", "/flow_runs/filter", **only, sort="EXPECTED_START_TIME_ASC")
        return found

    def run(self, run: Run) -> Run:
        found: Run = self.deployment.ask("GET", f"/flow_runs/{run['id']}")
        return found

    def ended(self, run: Run) -> Run:
        """Wait for the end of a run and return it in its final state."""
        now: Run = self.until(f"the end of {run['name']}", lambda: (one := self.run(run))["state_type"] in DONE and one)
        return now

    def completed(self, scene: str, name: str, run: Run) -> dict[str, str]:
        """Wait for a run's end, which must be Completed, and return the summary in its artifacts."""
        now = self.ended(run)
        self.table.append((scene, name, now))
        if now["state_type"] != "COMPLETED":
            raise DeploymentError(f"{name} {now['name']} ended as {now['state_name']}: {now['state']['message']}")
        artifacts = self.artifacts(run)
        rows = next(json.loads(one["data"]) for key, one in artifacts.items() if key.endswith("-summary"))
        summary = {row["what"]: row["value"] for row in rows}
        progress = next((one["data"] for key, one in artifacts.items() if key.endswith("-progress")), 100.0)
        units = f"{summary['units_run']} units done, {summary['units_skipped']} skipped"
        self.say(f"{name} {now['name']}: {now['state_name']} after {now['total_run_time']:.1f} s; {units}")
        self.say(f"artifacts, read by the API: {', '.join(sorted(artifacts))}; progress {progress:.0f} %")
        if summary["outcome"] != "complete":
            raise DeploymentError(f"{name} {now['name']}: {summary}")
        return summary

    def artifacts(self, run: Run) -> dict[str, Any]:
        found = self.deployment.ask("POST", "/artifacts/filter", artifacts={"flow_run_id": {"any_": [run["id"]]}})
        return {one["key"]: one for one in found}

    def start(self, name: str, config: dict[str, Any], environment: dict[str, str] | None = None) -> Run:
        """`prefect deployment run`; return the run it created."""
        before = {run["id"] for run in self.runs(name)}
        extra = ["--job-variable", f"env={json.dumps(environment)}"] if environment else []
        self.deployment.prefect("deployment", "run", name, "--params", json.dumps({"config": config}), *extra)
        return next(run for run in self.runs(name) if run["id"] not in before)

    def verified(self, dest: Path) -> None:
        """Run `deca verify` and log its output. Raises DeploymentError where it finds a problem."""
        command = (sys.executable, "-c", "from pipelines.cli import main; main()", "verify", str(dest))
        for line in self.deployment.command(*command, PREFECT_API_URL="").splitlines():
            self.say(f"deca verify: {line.replace(str(self.folder), '')}")

    def config(self, source: Path, dest: Path, **more: Any) -> dict[str, Any]:
        units = {"units": {"items_per_unit": PER_UNIT}, "ray": {"workers": 0}}
        return {"source": str(source), "dest": str(dest)} | units | more

    # --- scenes ---

    def fill_in(self, source: Path, dest: Path, cron: str) -> None:
        """Configure ingest/nightly as its description says: source, dest, active, deploy again."""
        given = yaml.safe_load((ROOT / "prefect.yaml").read_text())
        nightly = next(one for one in given["deployments"] if one["name"] == "nightly")
        nightly["schedules"] = [{"cron": cron, "timezone": "UTC", "active": True}]
        nightly["parameters"] = {"config": self.config(source, dest)}
        path = self.folder / "prefect.yaml"
        path.write_text(yaml.safe_dump(given | {"deployments": [nightly]}))
        self.deployment.prefect("deploy", "--all", "--prefect-file", str(path))

    def schedule(self) -> None:
        source, dest = photographs(self.folder / "archive", FEW), self.folder / "people"
        self.fill_in(source, dest, "* * * * *")
        self.say(f"ingest/nightly deployed again with cron '* * * * *' and {FEW} images")
        first = self.until("the first firing", lambda: next(iter(self.fired()), None))
        self.completed("schedule", "ingest/nightly", first)
        due = moment(self.run(first)["expected_start_time"])
        states = self.deployment.ask("GET", f"/flow_run_states/?flow_run_id={first['id']}")
        at = {state["name"]: moment(state["timestamp"]) for state in reversed(states)}  # of several, the first
        taken, ran = ((at[name] - due).total_seconds() for name in ("Pending", "Running"))
        self.say(
            f"due at {due:%H:%M:%S}; the worker took it up at {taken:+.1f} s (it looks ahead), it ran at {ran:+.1f} s"
        )
        if not -15.0 < taken < 30.0:
            raise DeploymentError(f"the schedule fired {taken:.1f} s from its time")

    def fired(self) -> list[Run]:
        """Return the scheduled runs that started; those that overlapped another were cancelled by the limit."""
        not_begun = ("SCHEDULED", "PENDING", "CANCELLED")
        return [run for run in self.runs("ingest/nightly") if run["state_type"] not in not_begun]

    def killed(self) -> None:
        dest = self.folder / "people"
        before = committed(dest / "annotations")
        photographs(self.folder / "archive", MANY)
        self.say(f"{MANY} more images in the archive")
        self.until("five units of the new images", lambda: committed(dest / "annotations") >= before + 5)
        run = self.until("the run that annotates them", lambda: self.running("ingest/nightly"))
        process = self.process_of(run)
        process.send(signal.SIGKILL)
        done = committed(dest / "annotations")
        self.say(f"kill -9 {process.pid}, the flow process of {run['name']}: {done} units are committed")
        lost = self.ended(run)
        self.table.append(("killed", "ingest/nightly", lost))
        self.say(f"ingest/nightly {run['name']}: {lost['state_name']} ({lost['state']['message']:.60}...)")
        if lost["state_type"] != "CRASHED":
            raise DeploymentError(f"{run['name']} lost its process and is {lost['state_name']}")
        following = self.until("the next firing", lambda: self.after(lost))
        summary = self.completed("the next firing", "ingest/nightly", following)
        self.deployment.prefect("deployment", "schedule", "pause", "--all")
        if int(summary["units_skipped"]) != done or int(summary["images"]) != FEW + MANY:
            raise DeploymentError(f"{done} units were committed, the archive has {FEW + MANY} images: {summary}")
        self.until("the end of what else has fired", lambda: not self.running("ingest/nightly"))
        self.verified(dest)

    def after(self, lost: Run) -> Run | None:
        """Return the first firing after a lost run; those that overlapped it were cancelled."""
        later = (
            run for run in self.fired() if moment(run["expected_start_time"]) > moment(lost["expected_start_time"])
        )
        return next((run for run in later if run["state_type"] != "CANCELLED"), None)

    def running(self, name: str) -> Run | None:
        return next((run for run in self.runs(name) if run["state_type"] == "RUNNING"), None)

    def process_of(self, run: Run) -> Process:
        """Return the process that runs a flow: of those started for it, the one with Prefect's engine."""
        for process in marked("PREFECT__FLOW_RUN_ID", run["id"]):
            if b"prefect.engine" in process.command:
                return process
        raise DeploymentError(f"no process of {run['name']}")

    def adhoc(self) -> None:
        source, dest = photographs(self.folder / "few", FEW), self.folder / "heads"
        config = json.dumps({"config": self.config(source, dest, precision="fp32")})
        self.say("prefect deployment run reconstruct/adhoc --watch --params ...")
        self.deployment.prefect("deployment", "run", "reconstruct/adhoc", "--watch", "--params", config)
        self.completed("adhoc", "reconstruct/adhoc", self.runs("reconstruct/adhoc")[-1])
        self.verified(dest)

    def server(self) -> None:
        source, dest = photographs(self.folder / "many", MANY), self.folder / "others"
        run = self.start("ingest/adhoc", self.config(source, dest))
        self.until("some units", lambda: committed(dest / "annotations") >= 3)
        self.deployment.kill_server()
        at_death = committed(dest / "annotations")
        self.say(f"kill -9 of the Prefect server, with {at_death} units of {run['name']} committed")
        self.until("commits without a server", lambda: committed(dest / "annotations") >= at_death + 2)
        seconds = self.deployment.start_server()
        now = self.run(run)
        self.say(
            f"server there again, {seconds:.1f} s after its start, on the same database: {run['name']} is"
            f" {now['state_name']}, {committed(dest / 'annotations')} units committed by now"
        )
        if now["state_type"] != "RUNNING":
            raise DeploymentError("the run was over too soon for this scene: more images (MANY) are needed")
        lease = now["state"]["state_details"]["deployment_concurrency_lease_id"]
        self.deployment.ask("POST", f"/v2/concurrency_limits/leases/{lease}/renew", lease_duration=300)
        self.say("its lease on the deployment's concurrency limit can be renewed: the restarted server has it")
        summary = self.completed("server", "ingest/adhoc", run)
        if int(summary["units_skipped"]) or int(summary["images"]) != MANY:
            raise DeploymentError(f"not in one go: {summary}")
        self.verified(dest)

    def nodes(self) -> None:
        source = photographs(self.folder / "many", MANY)
        faces, heads = self.folder / "on-ray", self.folder / "heads-on-ray"
        with ray_nodes(self.deployment, self.folder) as (address, raylets):
            self.say(f"ray start --head and ray start --address {address}, one CPU each")
            self.on_both(raylets, "ingest/adhoc", self.config(source, faces) | {"ray": {}}, address)
            config = self.config(faces, heads, precision="fp32", compile=False) | {"ray": {}}
            self.on_both(raylets, "reconstruct/adhoc", config, address)
        self.verified(faces)
        self.verified(heads)

    def on_both(self, raylets: Raylets, name: str, config: dict[str, Any], address: str) -> None:
        """Run a deployment on Ray and check that workers of each node have computed."""
        run = self.start(name, config, {"RAY_ADDRESS": address})
        seen: dict[Process, tuple[str, float, int]] = {}  # worker: node, processor seconds, most bytes
        while (now := self.run(run))["state_type"] not in DONE:
            seen |= {one: (node, *usage(one)) for node, one in units_workers(raylets) if one.alive}
            time.sleep(0.5)
        self.completed("nodes", name, now)
        for node in raylets:
            mine = [(seconds, peak) for where, seconds, peak in seen.values() if where == node]
            spent, most = sum(one[0] for one in mine), max((one[1] for one in mine), default=0)
            self.say(
                f"node {node}: {len(mine)} worker(s), {spent:.1f} s of a processor, at most {most / 2**20:.0f} MiB"
            )
            if spent < 1.0:
                raise DeploymentError(f"node {node} did not work")


SCENES = ("schedule", "killed", "adhoc", "server", "nodes")


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)


# --- Ray's nodes ------------------------------------------------------------------------------------------------------

Raylets = dict[str, Process]  # by node


@contextmanager
def ray_nodes(deployment: Deployment, folder: Path) -> Iterator[tuple[str, Raylets]]:
    """Start a Ray cluster of two nodes of one CPU each on loopback; yield its address and each node's raylet."""
    port, temporary = free_port(), f"/tmp/deca-ray-{os.getpid()}"  # sockets below it have names of at most 107 bytes
    address = f"127.0.0.1:{port}"
    common = ["--node-ip-address=127.0.0.1", "--num-cpus=1", "--num-gpus=0", f"--object-store-memory={RAY_MEMORY}"]
    common += ["--disable-usage-stats", "--block", f"--temp-dir={temporary}"]
    head = ["--head", f"--port={port}", "--include-dashboard=false", f"--ray-client-server-port={free_port()}"]
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start"]
    started: list[subprocess.Popen[bytes]] = []
    environment = deployment.environment | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    raylets: Raylets = {}
    try:
        for name, options in (("head", head), ("second", [f"--address={address}"])):
            log = open(deployment.logs / f"ray-{name}.log", "wb")  # noqa: SIM115 the process owns it from here on
            node = subprocess.Popen(
                [*ray, *options, *common, f"--dashboard-agent-listen-port={free_port()}"],
                env=environment,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            started.append(node)
            raylets[name] = _raylet(node)
        yield address, raylets
    finally:
        end({Process.of(pid) for node in started for pid in [node.pid, *descendants(node.pid)]})
        for node in started:
            node.wait()
        subprocess.run(["rm", "-rf", temporary], check=False)


def _raylet(node: subprocess.Popen[bytes]) -> Process:
    """Return the raylet that `ray start --block` has started, once it takes workers."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and node.poll() is None:
        for pid in descendants(node.pid):
            if (process := Process.of(pid)).command.split(b"\0")[0].endswith(b"/raylet"):
                time.sleep(3.0)  # until it has registered
                return process
        time.sleep(0.2)
    raise DeploymentError(f"ray start ended with {node.poll()}")


def units_workers(raylets: Raylets) -> Iterator[tuple[str, Process]]:
    """Yield (node, process) of the actors that run units now."""
    for node, raylet in raylets.items():
        for pid in descendants(raylet.pid):
            if (process := Process.of(pid)).command.startswith(b"ray::_Runner"):
                yield node, process


def usage(process: Process) -> tuple[float, int]:
    """Return the processor seconds and the peak bytes of memory of a process; 0 each once it is gone."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0, 0
    peak = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
    return cpu_seconds(process.pid), peak


# --- the trial -------------------------------------------------------------------------------------------------------


def run_trial(folder: Path, only: Sequence[str] | None = None) -> None:
    """Start a deployment below a folder, run the scenes (all, or `only`), print the log and a table of the runs."""
    unknown = set(only or ()) - set(SCENES)
    if unknown:
        raise DeploymentError(f"--only {','.join(sorted(unknown))}: there are {', '.join(SCENES)}")
    (folder / "data").mkdir(parents=True)
    deployment = Deployment(folder / "deployment", free_port(), limit=2)
    for name in SHADOWS:
        (deployment.folder / name).write_text("raise ImportError('a file of the user, not the package')\n")
    # Nodes and drivers of a Ray cluster authenticate with a token (docs/deploy.md).
    deployment.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    trial = Trial(deployment, folder / "data")
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, {os.cpu_count()} cores", flush=True)
    try:
        with deployment:
            trial.ids = deployment.deployments()
            trial.say(f"server, pool and worker are up; deployed: {', '.join(sorted(trial.ids))}")
            for scene in only or SCENES:
                trial.say(f"--- {scene}")
                getattr(trial, scene)()
    except (DeploymentError, KeyboardInterrupt):
        for log in sorted(deployment.logs.glob("*.log")):
            print(f"=== {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-25:]), file=sys.stderr)
        raise
    left = family(MARK, str(deployment.folder))
    trial.say(f"everything stopped; processes left: {len(left)}")
    print(f"\n{'scene':<16} {'deployment':<18} {'run':<24} {'state':<10} {'seconds':>7}")
    for scene, name, run in trial.table:
        print(f"{scene:<16} {name:<18} {run['name']:<24} {run['state_name']:<10} {run['total_run_time']:>7.1f}")
    if left:
        raise DeploymentError(f"left running: {sorted(process.pid for process in left)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda names: names.split(","), help=f"some of {','.join(SCENES)}")
    options = parser.parse_args()
    try:
        with (
            interrupted_by_sigterm(),
            tempfile.TemporaryDirectory(prefix="deca-deploy-", ignore_cleanup_errors=True) as folder,
        ):
            run_trial(Path(folder), options.only)
    except DeploymentError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
