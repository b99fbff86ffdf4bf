"""`procedural_head`: the head that comes with the code, built on first use and kept in a cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from deca_core.assets.bundle import SCHEMA_VERSION, AssetBundle, BundleError, load_bundle

GENERATOR = Path(__file__).parent / "head"


def procedural_head() -> AssetBundle:
    """The procedural head: same arrays and format as FLAME, same bytes on every call and in every process.

    Built in a few seconds, then read from `$DECA_CACHE` (default `~/.cache/deca`), in a folder named after the
    generator's version. A damaged cache is rebuilt; where the folder cannot be written, the head is built in memory.

    >>> procedural_head().shape_basis.shape[1:]  # doctest: +SKIP
    (3, 100)
    """
    return _cached(str(cache_folder()))


def cache_folder() -> Path:
    """Where this version's head is kept; need not exist."""
    root = os.environ.get("DECA_CACHE") or Path.home() / ".cache" / "deca"
    return Path(root).expanduser() / f"procedural-head-{generator_version()}"


@lru_cache(maxsize=1)
def generator_version() -> str:
    """First 12 hex digits of a SHA-256 over the generator's source: another generator never reads this one's cache."""
    digest = hashlib.sha256(f"schema {SCHEMA_VERSION}".encode())
    for path in sorted(GENERATOR.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


@lru_cache(maxsize=2)
def _cached(folder: str) -> AssetBundle:
    target = Path(folder)
    if target.is_dir():
        try:
            return load_bundle(target)
        except (BundleError, OSError):
            pass  # damaged or half deleted: built again and replaced below
    from deca_core.assets.head import build_head

    bundle = build_head(f"deca procedural head, generator {generator_version()}")
    try:
        _publish(bundle, target)
    except OSError:
        return bundle  # a read-only or full cache costs a rebuild next time, nothing else
    return bundle


def _publish(bundle: AssetBundle, target: Path) -> None:
    """Write beside the target and rename, so that readers see a whole bundle or none.

    Of several processes that build at once the last one wins; all of them write the same bytes.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        bundle.save(work / "new")
        if target.exists():
            target.rename(work / "old")
        try:
            (work / "new").rename(target)
        except OSError:
            # Another process has just published its own, identical one.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
