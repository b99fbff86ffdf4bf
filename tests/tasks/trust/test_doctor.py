"""What `deca doctor` finds: a good machine, servers that do not answer, places, versions that break things."""

from __future__ import annotations

import importlib.metadata
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.trust import doctor
from tasks.trust.doctor import Finding, examine


def find(findings: Iterator[Finding], what: str) -> Finding:
    return next(one for one in findings if one.what == what)


@pytest.fixture
def closed() -> str:
    """host:port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_this_machine_is_fit() -> None:
    findings = list(examine(environment={}))
    assert [one.what for one in findings if one.state == "bad"] == []
    assert {"python", "packages", "processors", "gpu", "annotator weights", "own weights", "prefect", "ray"} <= {
        one.what for one in findings
    }
    assert all(one.fix for one in findings if one.state == "bad")


@pytest.mark.parametrize(("name", "state"), [("Linux", "good"), ("Darwin", "note"), ("Windows", "bad")])
def test_systems(name: str, state: str) -> None:
    found = doctor._system(name)
    assert (found.state, bool(found.fix)) == (state, state != "good")


def test_servers_that_do_not_answer_come_with_a_fix(closed: str) -> None:
    environment = {"PREFECT_API_URL": f"http://{closed}/api", "RAY_ADDRESS": closed}
    prefect, ray = (find(examine(environment=environment), name) for name in ("prefect", "ray"))
    assert (prefect.state, ray.state) == ("bad", "bad")
    assert "prefect server start" in prefect.fix
    assert ray.fix == f"ray status --address {closed}"


def test_servers_that_answer(closed: str) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert find(examine(environment={"RAY_ADDRESS": address}), "ray").state == "good"
        assert find(examine(environment={"RAY_ADDRESS": f"ray://{address}"}), "ray").state == "good"


def test_places(tmp_path: Path, s3) -> None:
    local = find(examine([str(tmp_path / "new/dest")], {}), str(tmp_path / "new/dest"))
    assert "not there yet, writable" in local.detail
    bucket = s3.uri("doctor")
    assert find(examine([bucket], {}), bucket).state == "good"
    assert find(examine([bucket], {"AWS_PROFILE": "x"}), "credentials for s3://").detail == "from AWS_PROFILE"
    assert find(examine([bucket], {}), "credentials for s3://").state == "note"


def test_no_secret_is_shown(s3) -> None:
    secret = {"AWS_ACCESS_KEY_ID": "planted-id", "AWS_SECRET_ACCESS_KEY": "planted-secret"}
    assert "planted" not in repr(list(examine([s3.uri("doctor")], secret)))


def test_versions_that_break_prefect_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    others = {"fastapi": "0.151.0", "sqlalchemy": "2.0.40", "ray": "2.61.0"}
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: others.get(name) or real(name))
    findings = list(examine(environment={}))
    assert "'fastapi<0.151'" in find(iter(findings), "fastapi").fix
    assert not [one for one in findings if one.what == "sqlalchemy"]
    packages = find(iter(findings), "packages")
    assert (packages.state, packages.fix.startswith("ray:")) == ("note", True)
