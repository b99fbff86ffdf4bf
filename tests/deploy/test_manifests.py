"""The Kubernetes manifests: against Kubernetes' own schemas, and what refers to what.

KubeRay's schema comes with its operator and with no package, so the fields of a RayCluster are those of the models here
(written from KubeRay's API types, v1, the fields that every release since 1.0 knows); its pod templates are checked by
Kubernetes' schema, its parameters against the options of the Ray that is installed.
"""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any, Literal

import pytest
import ray
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = {
    f"{path.name}:{index}": manifest
    for path in sorted((ROOT / "deploy/k8s").glob("*.yaml"))
    for index, manifest in enumerate(yaml.safe_load_all(path.read_text()))
}
KUBERNETES = "1.31"
SECRETS = {"deca-storage", "deca-prefect", "deca-ray"}  # made by hand (docs/deploy.md), never written here
CLUSTER = next(manifest for manifest in MANIFESTS.values() if manifest["kind"] == "RayCluster")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: str = Field(pattern=r"^[a-z]([-a-z0-9]{0,48}[a-z0-9])?$")
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Group(Strict):
    rayStartParams: dict[str, str]
    template: dict[str, Any]


class HeadGroup(Group):
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"


class WorkerGroup(Group):
    groupName: str
    replicas: int = Field(ge=0)
    minReplicas: int = Field(ge=0)
    maxReplicas: int = Field(ge=1)
    numOfHosts: int = Field(default=1, ge=1)


class ClusterSpec(Strict):
    rayVersion: str
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]
    enableInTreeAutoscaling: bool = False
    suspend: bool = False


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]


def check(manifest: dict[str, Any]) -> None:
    """Raises what the validators raise."""
    validate = pytest.importorskip("kubernetes_validate").validate
    if manifest["apiVersion"].startswith("ray.io/"):
        RayCluster.model_validate(manifest)
        for group in groups(manifest):
            pod = {
                "apiVersion": "v1",
                "kind": "PodTemplate",
                "metadata": {"name": "pod"},
                "template": group["template"],
            }
            validate(pod, KUBERNETES, strict=True)
    else:
        validate(manifest, KUBERNETES, strict=True)


def pods(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Pod templates of a manifest."""
    if manifest["kind"] == "RayCluster":
        return [group["template"] for group in groups(manifest)]
    return [manifest["spec"]["template"]] if "template" in manifest.get("spec", {}) else []


ALL_PODS = [(name, pod) for name, manifest in MANIFESTS.items() for pod in pods(manifest)]
CONTAINERS = [(name, container) for name, pod in ALL_PODS for container in pod["spec"]["containers"]]


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_fit_their_schemas(name):
    check(MANIFESTS[name])


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ("spec", "replicaz"), 1),
        ("Deployment", ("spec", "template", "spec", "containers", 0, "envFrom"), {"secretRef": "deca-storage"}),
        ("Service", ("spec", "ports", 0, "port"), "api"),
        ("Job", ("spec", "podFailurePolicy", "rules", 0, "onExitCodes", "values"), ["two"]),
        ("RayCluster", ("spec", "workerGroupSpecs", 0, "rayStartParams", "num-cpus"), 8),
        ("RayCluster", ("spec", "workerGroupSpecs", 0, "groupname"), "cpu"),
        ("RayCluster", ("spec", "headGroupSpec", "template", "spec", "containers", 0, "imagez"), "deca"),
    ],
)
def test_the_check_finds_what_it_is_for(kind, path, value):
    from jsonschema import ValidationError as SchemaError

    manifest = copy.deepcopy(next(one for one in MANIFESTS.values() if one["kind"] == kind))
    inner = manifest
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises((ValidationError, SchemaError)):
        check(manifest)


def test_ray_is_the_one_that_is_locked_and_takes_these_parameters():
    from ray.scripts.scripts import start

    assert CLUSTER["spec"]["rayVersion"] == ray.__version__
    options = {option.removeprefix("--") for parameter in start.params for option in parameter.opts}
    for group in groups(CLUSTER):
        assert set(group["rayStartParams"]) <= options


def test_addresses_name_the_services_that_there_are():
    config = next(manifest["data"] for manifest in MANIFESTS.values() if manifest["kind"] == "ConfigMap")
    head = next(port for _, one in CONTAINERS if one["name"] == "ray-head" for port in one["ports"])
    assert config["RAY_ADDRESS"] == f"{CLUSTER['metadata']['name']}-head-svc:{head['containerPort']}"
    service = next(manifest for manifest in MANIFESTS.values() if manifest["kind"] == "Service")
    port = service["spec"]["ports"][0]["port"]
    assert config["PREFECT_API_URL"] == f"http://{service['metadata']['name']}:{port}/api"
    raylet = int(CLUSTER["spec"]["workerGroupSpecs"][0]["rayStartParams"]["node-manager-port"])
    for _, container in CONTAINERS:
        if container["name"] == "ray-worker":
            assert container["livenessProbe"]["tcpSocket"]["port"] == raylet


@pytest.mark.parametrize(("name", "container"), CONTAINERS, ids=lambda value: value if isinstance(value, str) else "")
def test_containers_are_confined_and_hold_no_secret(name, container):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert container["image"] == f"deca-pipeline:{version}"
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["resources"]["limits"]["memory"]
    secrets = [entry["secretRef"]["name"] for entry in container.get("envFrom", []) if "secretRef" in entry]
    for entry in container.get("env", []):
        if any(word in entry["name"] for word in ("KEY", "SECRET", "TOKEN", "PASSWORD", "AUTH_STRING", "CONNECTION_")):
            assert "value" not in entry, entry["name"]
        if "valueFrom" in entry:
            secrets.append(entry["valueFrom"]["secretKeyRef"]["name"])
    assert set(secrets) <= SECRETS
    assert not any(manifest["kind"] == "Secret" for manifest in MANIFESTS.values())


@pytest.mark.parametrize(("name", "pod"), ALL_PODS, ids=lambda value: value if isinstance(value, str) else "")
def test_pods_run_as_the_image_user(name, pod):
    security = pod["spec"]["securityContext"]
    assert security["runAsNonRoot"] is True
    assert f"--uid {security['runAsUser']} " in (ROOT / "deploy/Dockerfile").read_text()
    assert pod["spec"]["automountServiceAccountToken"] is False
