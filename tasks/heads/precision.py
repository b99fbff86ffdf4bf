"""The fastest precision of the networks on this machine: measured once in some seconds, then cached.

    <cache>/precision/<hash of the key>.json    the key, and what was measured

The key holds processor, torch, threads, weights, bundle, and the code that measures. A damaged file, or one of another
key, is ignored. DECA_PRECISION_CACHE=off neither reads nor writes one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import torch

from deca_core.assets.procedural import cache_root
from deca_core.inference import Choice, Deviation, Precision, choose_precision
from schemas.reconstruct import BATCH_SIZE, ReconstructConfig
from tasks.models.loading import bundle_at, load_model, weights_hash
from tasks.store.scratch import scratch_name
from tasks.units.draft import code_version
from tasks.units.ray_cluster import holds_gpus, on_worker

VARIABLE, OFF = "DECA_PRECISION_CACHE", "off"


@dataclass(frozen=True)
class DeviceSettings:
    """Settings that follow a worker's device; choice: only for precision auto."""

    device: str
    batch_size: int
    choice: Choice | None = None
    remembered: bool = False  # the choice comes from the cache


def worker_settings(config: ReconstructConfig) -> DeviceSettings:
    """The settings on a worker's machine, whose device may differ from the driver's.

    Raises EngineError where no worker answers.
    """
    if config.precision != "auto" and not holds_gpus(config.ray):  # nothing to measure on a known device
        return DeviceSettings("cpu", config.batch_size or BATCH_SIZE["cpu"])
    return on_worker(partial(local_settings, config), config.ray)


def local_settings(config: ReconstructConfig) -> DeviceSettings:
    """The settings for the device of this process."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch_size = config.batch_size or BATCH_SIZE[device]
    if config.precision != "auto":
        return DeviceSettings(device, batch_size)
    return DeviceSettings(device, batch_size, *fastest_precision(config))


def fastest_precision(config: ReconstructConfig) -> tuple[Choice, bool]:
    """(choice of `choose_precision` for the run's model with a worker's threads, whether it comes from the cache)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    remembers = os.environ.get(VARIABLE, "").lower() != OFF
    key = {
        "machine": _machine(device),
        "torch": torch.__version__,
        "threads": str(config.ray.threads),
        "weights": weights_hash(config),
        "bundle": bundle_at(config.bundle).hash,
        "code": code_version(choose_precision.__module__),
    }
    if remembers and (known := _recall(key)):
        return known, True
    threads = torch.get_num_threads()
    torch.set_num_threads(config.ray.threads)
    try:
        choice = choose_precision(load_model(config), device)
    finally:
        torch.set_num_threads(threads)
    if remembers:
        _remember(key, choice)
    return choice, False


def _machine(device: str) -> str:
    """Name of the GPU, or of the CPU with its instruction sets, which a virtual one may lack."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    fields = {"model name": platform.machine(), "flags": ""}  # `platform.processor` starts a process
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        fields |= {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = hashlib.sha256(" ".join(sorted(fields["flags"].split())).encode()).hexdigest()[:12]
    return f"{fields['model name']}, {torch.backends.cpu.get_cpu_capability()}, flags {flags}"


def _file(key: dict[str, str]) -> Path:
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return cache_root() / "precision" / f"{name}.json"


def _recall(key: dict[str, str]) -> Choice | None:
    try:
        stored = json.loads(_file(key).read_text())
        found = stored["found"]
        deviations = {name: Deviation(**values) for name, values in found["deviations"].items()}
        choice = Choice(found["precision"], {name: float(ms) for name, ms in found["milliseconds"].items()}, deviations)
        return choice if stored["key"] == key and choice.precision in get_args(Precision) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _remember(key: dict[str, str], choice: Choice) -> None:
    """Write the cache file atomically; does nothing where the folder cannot be written."""
    file = _file(key)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_name(scratch_name(file.name))
        scratch.write_text(json.dumps({"key": key, "found": asdict(choice)}, indent=2))
        scratch.replace(file)
