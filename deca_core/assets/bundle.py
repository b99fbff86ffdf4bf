"""The asset bundle: every array the method needs that is not learned, in FLAME's format, under one hash.

On disk a bundle is a folder with `bundle.safetensors` (the arrays) and `bundle.json` (names, provenance, hash).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deca_core.downloads import check_download
from deca_core.errors import DecaError

SCHEMA_VERSION = 1
ARRAYS_FILE, META_FILE = "bundle.safetensors", "bundle.json"

NUM_SHAPE, NUM_EXP, NUM_TEX, NUM_JOINTS = 100, 50, 50, 5
NUM_LANDMARKS, NUM_CONTOUR, NUM_CONTOUR_BINS = 68, 17, 79
UV_SIZE = 256  # texels on a side of every UV map of the method
PARENTS = (-1, 0, 1, 1, 1)  # of root, neck, jaw, left eye, right eye

FACE = 0.5  # of the face mask: what counts as face

Float = NDArray[np.float32]
Int = NDArray[np.int64]


class BundleError(DecaError):
    """A bundle that is missing, damaged, of another schema, or whose arrays do not fit one another."""


@dataclass(frozen=True, eq=False)
class AssetBundle:
    """A head model in FLAME's format (Li et al. 2017), its UV atlas, landmarks, masks and albedo model.

    V vertices, F faces, U texture coordinates; lengths in metres; UV with u to the right and v up, both in [0, 1].
    """

    name: str  # for display: "procedural-head", "FLAME 2020"
    source: str  # where it comes from: generator version or the imported files

    # Geometry, eq. 1
    v_template: Float  # (V, 3)
    shape_basis: Float  # (V, 3, 100) metres per unit coefficient
    exp_basis: Float  # (V, 3, 50)
    pose_basis: Float  # (V, 3, 36) for (R - I) of the joints 1..4, flattened row by row
    joint_regressor: Float  # (5, V)
    skin_weights: Float  # (V, 5), rows sum to 1
    faces: Int  # (F, 3) counter-clockwise seen from outside

    # UV atlas: uv_faces has the same face order as faces
    uv: Float  # (U, 2)
    uv_faces: Int  # (F, 3)

    # Landmarks as barycentric points on faces; 17 contour points + 51 inner points
    static_landmark_faces: Int  # (51,)
    static_landmark_bary: Float  # (51, 3)
    dynamic_landmark_faces: Int  # (79, 17) contour by yaw in degrees: 0..39, then -1..-39
    dynamic_landmark_bary: Float  # (79, 17, 3)
    full_landmark_faces: Int  # (68,)
    full_landmark_bary: Float  # (68, 3)

    # UV maps, row 0 at the top (v = 1)
    face_mask: Float  # (256, 256) in [0, 1]
    face_eye_mask: Float  # (256, 256) in [0, 1]
    fixed_displacement: Float  # (256, 256) metres

    # Albedo model, RGB; None where the licensed texture space was not given
    albedo_mean: Float | None = None  # (3, 256, 256) in [0, 1]
    albedo_basis: Float | None = None  # (50, 3, 256, 256)

    # Names of the expression components, where they have any
    expression_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check()

    @property
    def num_vertices(self) -> int:
        return len(self.v_template)

    @property
    def face_vertices(self) -> Int:
        """Vertices of the skin of the face: those whose corner in the atlas is on the face mask."""
        size = len(self.face_mask)
        column, row = (np.clip(axis * size, 0, size - 1).astype(int) for axis in (self.uv[:, 0], 1 - self.uv[:, 1]))
        on_mask = self.face_mask[row, column] > FACE
        return np.unique(self.faces[on_mask[self.uv_faces]])

    @property
    def hash(self) -> str:
        """SHA-256 over every array (name, shape, dtype, bytes): two bundles with one hash give the same heads."""
        digest = hashlib.sha256()
        for name, array in sorted(self.arrays().items()):
            digest.update(f"{name}{array.shape}{array.dtype.str}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by field name, contiguous; albedo only where present."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: np.ascontiguousarray(value) for name, value in fields.items() if isinstance(value, np.ndarray)}

    def save(self, folder: str | Path) -> Path:
        """Write the bundle as a folder; returns the folder. An existing bundle there is replaced."""
        from safetensors.numpy import save

        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        (target / ARRAYS_FILE).write_bytes(save(self.arrays()))
        meta = {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "source": self.source,
            "hash": self.hash,
            "expression_names": list(self.expression_names),
        }
        (target / META_FILE).write_text(json.dumps(meta, indent=2) + "\n")
        return target

    def _check(self) -> None:
        v, f, t = self.num_vertices, len(self.faces), UV_SIZE
        expected: dict[str, tuple[int, ...]] = {
            "v_template": (v, 3),
            "shape_basis": (v, 3, NUM_SHAPE),
            "exp_basis": (v, 3, NUM_EXP),
            "pose_basis": (v, 3, 9 * (NUM_JOINTS - 1)),
            "joint_regressor": (NUM_JOINTS, v),
            "skin_weights": (v, NUM_JOINTS),
            "faces": (f, 3),
            "uv": (len(self.uv), 2),
            "uv_faces": (f, 3),
            "static_landmark_faces": (NUM_LANDMARKS - NUM_CONTOUR,),
            "static_landmark_bary": (NUM_LANDMARKS - NUM_CONTOUR, 3),
            "dynamic_landmark_faces": (NUM_CONTOUR_BINS, NUM_CONTOUR),
            "dynamic_landmark_bary": (NUM_CONTOUR_BINS, NUM_CONTOUR, 3),
            "full_landmark_faces": (NUM_LANDMARKS,),
            "full_landmark_bary": (NUM_LANDMARKS, 3),
            "face_mask": (t, t),
            "face_eye_mask": (t, t),
            "fixed_displacement": (t, t),
            "albedo_mean": (3, t, t),
            "albedo_basis": (NUM_TEX, 3, t, t),
        }
        for name, array in self.arrays().items():
            if array.shape != expected[name]:
                raise BundleError(f"bundle {self.name!r}: {name} has shape {array.shape}, expected {expected[name]}")
            if array.dtype != (np.int64 if array.dtype.kind in "iu" else np.float32):
                raise BundleError(f"bundle {self.name!r}: {name} is {array.dtype}, expected float32 or int64")
            if array.dtype == np.float32 and not np.isfinite(array).all():
                raise BundleError(f"bundle {self.name!r}: {name} holds NaN or infinity")
        limits = {"faces": v, "uv_faces": len(self.uv)}
        limits |= {f"{kind}_landmark_faces": f for kind in ("static", "dynamic", "full")}
        for name, limit in limits.items():
            index = getattr(self, name)
            if index.size and not 0 <= index.min() <= index.max() < limit:
                raise BundleError(
                    f"bundle {self.name!r}: {name} points outside 0..{limit - 1} ({index.min()}..{index.max()})"
                )
        if (self.albedo_mean is None) != (self.albedo_basis is None):
            raise BundleError(f"bundle {self.name!r}: albedo_mean and albedo_basis come together or not at all")


def check_folder(folder: Path) -> None:
    """BundleError where a folder lacks a file of a bundle, or has something else in its place."""
    for name in (META_FILE, ARRAYS_FILE):
        if not (folder / name).is_file():
            raise BundleError(
                f"{folder}: no {name}. A bundle is a folder with {META_FILE} and {ARRAYS_FILE}. "
                "Run: deca assets import FLAME_FILES BUNDLE, or deca assets head BUNDLE for the procedural head"
            )
        check_download(folder / name, BundleError, text=name == META_FILE)


def load_bundle(folder: str | Path) -> AssetBundle:
    """Read a bundle folder written by `AssetBundle.save` or `import_flame`; its hash is checked.

    Raises BundleError when a file is missing, the schema is another one, or the arrays are not those that were saved.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    source = Path(folder)
    check_folder(source)
    try:
        meta = json.loads((source / META_FILE).read_text())
        arrays = load_file(source / ARRAYS_FILE)
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise BundleError(f"{source}: damaged bundle ({error}). Make it again with: deca assets import") from error
    if meta.get("schema_version") != SCHEMA_VERSION:
        raise BundleError(
            f"{source}: bundle schema {meta.get('schema_version')}, this version reads {SCHEMA_VERSION}. "
            "Make it again with: deca assets import"
        )
    try:
        bundle = AssetBundle(
            name=meta["name"], source=meta["source"], expression_names=tuple(meta["expression_names"]), **arrays
        )
    except (KeyError, TypeError) as error:
        raise BundleError(f"{source}: incomplete bundle ({error}). Make it again with: deca assets import") from error
    if bundle.hash != meta["hash"]:
        raise BundleError(f"{source}: the arrays do not match the recorded hash; the folder was changed or damaged")
    return bundle
