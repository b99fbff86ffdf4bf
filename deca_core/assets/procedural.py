"""`procedural_head`: the head that comes with the code, built on first use and kept in a cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from deca_core.assets.bundle import SCHEMA_VERSION, AssetBundle, BundleError, load_bundle

NAME = "procedural-head"  # of the bundle
GENERATOR = Path(__file__).parent / "head"


def procedural_head() -> AssetBundle:
    """The procedural head: same arrays and format as FLAME, same bytes on every call and in every process.

    Built in a few seconds with nothing but numpy, then read from `$DECA_CACHE` (default `~/.cache/deca`), in a folder
    named after the generator's version. A damaged cache is rebuilt. Where the folder cannot be written, or safetensors
    is not installed, the head is built in memory.

    >>> procedural_head().shape_basis.shape[1:]
    (3, 100)
    """
    return _cached(str(cache_folder()))


def cache_folder() -> Path:
    """Cache folder of this version's head; need not exist."""
    return cache_root() / f"procedural-head-{generator_version()}"


def cache_root() -> Path:
    """The cache folder for what can be recomputed: `$DECA_CACHE`, else `deca` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get("DECA_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "deca"


@lru_cache(maxsize=1)
def generator_version() -> str:
    """First 12 hex digits of a SHA-256 over the generator's source: another generator never reads this one's cache."""
    digest = hashlib.sha256(f"schema {SCHEMA_VERSION}".encode())
    for path in sorted(GENERATOR.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


@lru_cache(maxsize=2)
def _cached(folder: str) -> AssetBundle:
    if find_spec("safetensors") is None:
        return _build()
    target = Path(folder)
    if target.is_dir():
        try:
            return load_bundle(target)
        except (BundleError, OSError):
            # Damaged or half deleted: it is rebuilt.
            shutil.rmtree(target, ignore_errors=True)
    bundle = _build()
    try:
        _publish(bundle, target)
    except OSError:
        # A read-only or full cache costs the next process a rebuild, nothing else.
        return bundle
    return bundle


def _build() -> AssetBundle:
    from deca_core.assets.head import build_head

    return build_head(f"deca procedural head, generator {generator_version()}")


def _publish(bundle: AssetBundle, target: Path) -> None:
    """Write beside the target and rename, so that readers see a whole bundle or none.

    Of several processes that build at once the first one wins; the others would have written the same bytes.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        bundle.save(work / "bundle").rename(target)
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
