"""A local deployment leaves no process behind. The deployment itself: make deploy-test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from pipelines.deploy_local import MARK, DeploymentError
from pipelines.processes import Process, end, family
from tests.deploy.trial import run_trial

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
# Ends at once; its child belongs to nobody and to another session.
ORPHANS = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}], start_new_session=True)"


def test_orphans_of_a_deployment_are_found_and_ended(tmp_path):
    environment = os.environ | {MARK: str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", ORPHANS], env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"up\n"
        parent.wait(30)
        found = family(MARK, str(tmp_path))
        assert len(found) == 1
        assert not family(MARK, f"{tmp_path}-other")
        assert end(found, patience=0.3) == 1  # SIGTERM did not do
    deadline = time.monotonic() + 10
    while (left := family(MARK, str(tmp_path))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def test_a_signal_reaches_no_later_process_of_the_same_number():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"]) as other:
        assert not Process(other.pid, "1").send(signal.SIGKILL)
        assert other.poll() is None
        assert Process.of(other.pid).send(signal.SIGKILL)
        other.wait(10)
        assert not Process.of(other.pid).alive


def test_an_unknown_scene_is_refused(tmp_path):
    with pytest.raises(DeploymentError, match="schedule, killed"):
        run_trial(tmp_path / "trial", ["sched"])
