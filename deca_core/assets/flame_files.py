"""FLAME's and DECA's licensed files into an AssetBundle. Pickles among them are read, never executed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from deca_core.assets.albedo import nearest, read_albedo
from deca_core.assets.bundle import NUM_EXP, NUM_JOINTS, NUM_SHAPE, PARENTS, UV_SIZE, AssetBundle, BundleError
from deca_core.assets.unpickle import ChumpyValue, load_npy, load_pickle
from deca_core.downloads import AGAIN, check_download

MODEL, EMBEDDING, TEMPLATE = "generic_model.pkl", "landmark_embedding.npy", "head_template.obj"
FACE_MASK, FACE_EYE_MASK, DISPLACEMENT = "uv_face_mask.png", "uv_face_eye_mask.png", "fixed_displacement_256.npy"
ALBEDO = "FLAME_albedo_from_BFM.npz"
REQUIRED = (MODEL, EMBEDDING, TEMPLATE, FACE_MASK, FACE_EYE_MASK, DISPLACEMENT)

# FLAME keeps 300 identity components in front of the 100 of expression.
EXP_START = 300


def import_flame(src_dir: str | Path, out_dir: str | Path) -> AssetBundle:
    """Read the licensed files of `src_dir` and save them as a bundle folder `out_dir`; returns the bundle.

    Raises BundleError as `read_flame` does.
    """
    bundle = read_flame(src_dir)
    bundle.save(out_dir)
    return bundle


def read_flame(src_dir: str | Path) -> AssetBundle:
    """The bundle that the licensed files of `src_dir` make.

    Needed: generic_model.pkl (FLAME 2020; flame.is.tue.mpg.de after registration) and, from DECA's data folder,
    landmark_embedding.npy, head_template.obj, uv_face_mask.png, uv_face_eye_mask.png, fixed_displacement_256.npy.
    Optional: FLAME_albedo_from_BFM.npz (made by the BFM_to_FLAME converter); without it faces are rendered grey.

    Raises BundleError naming the file and what is wrong with it. No pickle is executed.
    """
    source = Path(src_dir)
    missing = [name for name in REQUIRED if not (source / name).is_file()]
    if missing:
        raise BundleError(
            f"{source}: missing {', '.join(missing)}. {MODEL} comes with FLAME 2020, the other files lie in the data "
            "folder of the DECA release. Put them into one folder and run: deca assets import FOLDER BUNDLE"
        )
    files = [*REQUIRED, *([ALBEDO] if (source / ALBEDO).is_file() else [])]
    model = _model(source / MODEL)
    uv, uv_faces = _template(source / TEMPLATE, model["faces"])
    arrays = {
        **model,
        "uv": uv,
        "uv_faces": uv_faces,
        **_landmarks(source / EMBEDDING),
        "face_mask": _mask(source / FACE_MASK),
        "face_eye_mask": _mask(source / FACE_EYE_MASK),
        "fixed_displacement": _expect(
            load_npy(source / DISPLACEMENT), (UV_SIZE, UV_SIZE), source / DISPLACEMENT, "map"
        ),
    }
    if ALBEDO in files:
        arrays |= read_albedo(source / ALBEDO)
    cast: dict[str, Any] = {
        name: array.astype(np.int64 if array.dtype.kind in "iu" else np.float32) for name, array in arrays.items()
    }
    hashes = ", ".join(f"{name} {_sha256(source / name)[:12]}" for name in files)
    return AssetBundle(name="FLAME", source=f"imported, sha256: {hashes}", **cast)


def _model(path: Path) -> dict[str, np.ndarray]:
    """eq. 1's arrays from FLAME's pickle."""
    content = load_pickle(path)
    if not isinstance(content, dict):
        raise BundleError(f"{path}: holds a {type(content).__name__}, expected FLAME's dictionary of arrays")

    def entry(key: str, *shape: int | None) -> np.ndarray:
        return _entry(content, key, shape, path)

    v_template = entry("v_template", None, 3)
    v = len(v_template)
    basis = entry("shapedirs", v, 3, None)
    if basis.shape[2] < EXP_START + NUM_EXP:
        raise BundleError(
            f"{path}: shapedirs has {basis.shape[2]} components, expected 400 (300 identity, 100 expression). "
            "This is not FLAME 2017 or 2020: download the generic model"
        )
    # The root's parent -1 is often stored unsigned.
    parents = tuple(int(parent) for parent in entry("kintree_table", 2, NUM_JOINTS)[0].astype(np.int32))
    if parents != PARENTS:
        raise BundleError(f"{path}: kintree_table gives the parents {parents}, expected FLAME's {PARENTS}")
    return {
        "v_template": v_template,
        "shape_basis": basis[:, :, :NUM_SHAPE],
        "exp_basis": basis[:, :, EXP_START : EXP_START + NUM_EXP],
        "pose_basis": entry("posedirs", v, 3, 9 * (NUM_JOINTS - 1)),
        "joint_regressor": entry("J_regressor", NUM_JOINTS, v),
        "skin_weights": entry("weights", v, NUM_JOINTS),
        "faces": entry("f", None, 3).astype(np.int64),
    }


def _landmarks(path: Path) -> dict[str, np.ndarray]:
    """Barycentric landmarks; the file holds a pickled dictionary, some of it as torch tensors."""
    content = load_npy(path)
    if not isinstance(content, dict):
        raise BundleError(f"{path}: holds a {type(content).__name__}, expected the dictionary of landmark embeddings")
    # The full set is stored with a leading batch axis.
    shapes: dict[str, tuple[int, ...]] = {"static": (51,), "dynamic": (79, 17), "full": (1, 68)}
    arrays = {}
    for kind, shape in shapes.items():
        faces = _entry(content, f"{kind}_lmk_faces_idx", shape, path).astype(np.int64)
        bary = _entry(content, f"{kind}_lmk_bary_coords", (*shape, 3), path)
        arrays[f"{kind}_landmark_faces"] = faces[0] if kind == "full" else faces
        arrays[f"{kind}_landmark_bary"] = bary[0] if kind == "full" else bary
    return arrays


def _entry(content: dict[Any, Any], key: str, shape: tuple[int | None, ...], path: Path) -> np.ndarray:
    """One array of a pickled dictionary, whatever library it was written with."""
    if key not in content:
        raise BundleError(f"{path}: no {key} (it has {', '.join(sorted(map(str, content))) or 'nothing'})")
    value = content[key]
    if isinstance(value, ChumpyValue):
        value = value.array()
    _expect(value, shape, path, key)  # before a sparse matrix is made dense
    if hasattr(value, "toarray"):  # scipy.sparse
        value = value.toarray()
    elif hasattr(value, "numpy"):  # torch
        value = value.numpy()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        raise BundleError(f"{path}: {key} is a {type(value).__name__}, expected an array of numbers")
    return value


def _expect(array: Any, shape: tuple[int | None, ...], path: Path, name: str) -> Any:
    """The array, if it has the shape; None allows any length."""
    found = tuple(getattr(array, "shape", ()))
    if len(found) != len(shape) or any(side not in (None, other) for side, other in zip(shape, found, strict=True)):
        expected = " x ".join("N" if side is None else str(side) for side in shape)
        raise BundleError(f"{path}: {name} has shape {found}, expected {expected}")
    return array


def _template(path: Path, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Texture coordinates (U, 2) and texture triangles (F, 3) of the Wavefront file, in the model's face order."""
    check_download(path, BundleError, text=True)
    uv: list[tuple[float, float]] = []
    corners: list[list[str]] = []
    for number, line in enumerate(path.read_text(encoding="latin1").splitlines(), start=1):
        words = line.split()
        try:
            if words[:1] == ["vt"]:
                uv.append((float(words[1]), float(words[2])))
            elif words[:1] == ["f"]:
                if len(words) != 4:
                    raise ValueError(f"a face of {len(words) - 1} corners")
                if not any("/" in word for word in words):
                    raise BundleError(
                        f"{path}, line {number}: faces without texture coordinates ({line.strip()!r}), as in "
                        f"MICA's file of this name. Take {TEMPLATE} from the data folder of the DECA release"
                    )
                corners.append([corner.split("/")[axis] for corner in words[1:] for axis in (0, 1)])
        except (ValueError, IndexError) as error:
            raise BundleError(
                f"{path}, line {number}: expected triangles with texture coordinates ({error})"
            ) from error
    try:
        index = np.array(corners, dtype=np.int64).reshape(-1, 3, 2) - 1
    except ValueError as error:
        raise BundleError(f"{path}: faces need vertex/texture indices ({error})") from error
    if len(index) != len(faces) or (index[..., 0] != faces).any():
        same = min(len(index), len(faces))
        different = np.flatnonzero((index[:same, :, 0] != faces[:same]).any(axis=1))
        where = f"face {different[0]} differs first" if len(different) else f"{len(index)} faces against {len(faces)}"
        where += ": cut short?" if not len(different) and len(index) < len(faces) else ""
        raise BundleError(
            f"{path}: its faces are not those of {MODEL} ({where}). Take both from the same release; an editor that "
            "saves the template may reorder them"
        )
    return np.array(uv), index[..., 1]


def _mask(path: Path) -> np.ndarray:
    """First channel of a UV mask in [0, 1], nearest neighbour to 256 x 256."""
    from PIL import Image, UnidentifiedImageError

    check_download(path, BundleError)
    try:
        with Image.open(path) as image:
            values = np.asarray(image.convert("RGB"))[..., 0]
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise BundleError(f"{path}: not a readable image ({error}). {AGAIN}") from error
    rows, columns = nearest(values.shape[0]), nearest(values.shape[1])
    return values[rows][:, columns].astype(np.float32) / 255


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
