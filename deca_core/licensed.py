"""Import of the FLAME and DECA downloads into one folder that is both bundle and checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deca_core.assets.bundle import AssetBundle
from deca_core.assets.flame_files import ALBEDO, read_flame
from deca_core.checkpoint import RELEASED_FILE, import_released
from deca_core.checkpoint_meta import META_FILE, CheckpointError, head_of

FLAME_VERTICES = 5023
TEXTURE_SPACE = "FLAME_texture.npz"


@dataclass(frozen=True)
class Licensed:
    """Result of an import: the bundle, and notes for the user."""

    bundle: AssetBundle
    notes: list[str]


def import_licensed(src_dir: str | Path, out_dir: str | Path) -> Licensed:
    """The bundle of the licensed files in `src_dir`, and with deca_model.tar among them the released weights, bound to
    it by hash: one folder `out_dir`, which appears complete or not at all and may be moved as a whole.

    Raises BundleError and CheckpointError naming the file and what is wrong with it.
    """
    source, target = Path(src_dir), Path(out_dir)
    bundle, weights = read_flame(source), source / RELEASED_FILE
    notes = []
    if bundle.albedo_mean is None and (source / TEXTURE_SPACE).is_file():
        notes.append(
            f"{TEXTURE_SPACE} is not taken: it holds colours of photographs with their lighting. Albedo comes from "
            f"{ALBEDO}, which the BFM_to_FLAME converter makes"
        )
    if weights.is_file():
        import_released(weights, target, bundle)
        if bundle.num_vertices != FLAME_VERTICES:
            notes.append(
                f"the head has {bundle.num_vertices} vertices and FLAME {FLAME_VERTICES}: the released weights were "
                "trained on FLAME, and their codes mean something else on another head"
            )
        return Licensed(bundle, notes)
    if (target / META_FILE).is_file() and head_of(target)["hash"] != bundle.hash:
        raise CheckpointError(
            f"{target}: holds a checkpoint of another bundle ({str(head_of(target)['hash'])[:12]}, this one is "
            f"{bundle.hash[:12]}). Give another folder, or put {RELEASED_FILE} into {source} and import both"
        )
    bundle.save(target)
    notes.append(
        f"{source} has no {RELEASED_FILE}: this is a head without weights. With it in the folder, import again"
    )
    return Licensed(bundle, notes)
