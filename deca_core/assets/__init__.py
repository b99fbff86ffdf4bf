"""Heads for the method: a bundle folder, the licensed FLAME files, or the embedded procedural head."""

from deca_core.assets.bundle import AssetBundle, BundleError, load_bundle
from deca_core.assets.flame_files import import_flame
from deca_core.assets.procedural import procedural_head

__all__ = ["AssetBundle", "BundleError", "import_flame", "load_bundle", "procedural_head"]
