"""Writes the files of the FLAME and DECA downloads from the small head of the golden files, as their authors did."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import sparse


class Python2Pickler(pickle._Pickler):
    """Protocol 2 as Python 2 wrote it: text and bytes are one thing."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012 - the base class has it so

    def save_text(self, value: str | bytes) -> None:
        data = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(b"U" + bytes([len(data)]) if len(data) < 256 else b"T" + struct.pack("<i", len(data)))
        self.write(data)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_text


def python2_pickle(value: Any) -> bytes:
    """Old module names included."""
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(value)
    data = stream.getvalue()
    for new, old in ((b"cnumpy._core.", b"cnumpy.core."), (b"cscipy.sparse._csc ", b"cscipy.sparse.csc ")):
        data = data.replace(new, old)
    return data.replace(b"cscipy.sparse._csc\n", b"cscipy.sparse.csc\n")


@contextlib.contextmanager
def fake_chumpy() -> Iterator[Any]:
    """A `chumpy` that exists only while a file is written; gives its `Ch` class."""
    package, module = types.ModuleType("chumpy"), types.ModuleType("chumpy.ch")
    ch = type("Ch", (), {"__module__": "chumpy.ch"})
    package.ch, module.Ch = module, ch  # type: ignore[attr-defined]
    sys.modules |= {"chumpy": package, "chumpy.ch": module}
    try:
        yield ch
    finally:
        del sys.modules["chumpy"], sys.modules["chumpy.ch"]


def chumpy_array(ch: Any, value: np.ndarray) -> Any:
    made = ch()
    made.__dict__ |= {"x": value, "_status": "new", "_dirty_vars": [], "_itr": None}
    return made


def flame_model(head: dict[str, np.ndarray], ch: Any) -> dict[str, Any]:
    """generic_model.pkl's dictionary: chumpy arrays, a sparse regressor, unsigned faces and tree."""
    return {
        "v_template": chumpy_array(ch, head["v_template"]),
        "shapedirs": chumpy_array(ch, head["shapedirs"].astype(np.float64)),
        "posedirs": np.asfortranarray(head["posedirs"].astype(np.float64)),
        "J_regressor": sparse.csc_matrix(head["J_regressor"]),
        "weights": chumpy_array(ch, head["weights"]),
        "kintree_table": head["kintree_table"].astype(np.int64).astype(np.uint32),
        "f": head["faces"].astype(np.uint32),
        "bs_type": "lrotmin",
        "bs_style": "lbs",
    }


def landmark_embedding(head: dict[str, np.ndarray]) -> dict[str, Any]:
    """landmark_embedding.npy's dictionary: some arrays, some tensors."""
    arrays: dict[str, Any] = {key: head[key] for key in head if "_lmk_" in key}
    for key in ("dynamic_lmk_faces_idx", "dynamic_lmk_bary_coords"):
        arrays[key] = torch.from_numpy(arrays[key])
    return arrays


def template(head: dict[str, np.ndarray], faces: np.ndarray | None = None) -> str:
    faces = head["faces"] if faces is None else faces
    lines = ["# head", *(f"v {x} {y} {z}" for x, y, z in head["v_template"].tolist())]
    lines += [f"vt {u!r} {v!r}" for u, v in head["uv"].tolist()]
    lines += ["usemtl skin", *("f " + " ".join(f"{i + 1}/{i + 1}" for i in face) for face in faces.tolist())]
    return "\n".join(lines) + "\n"


def mask(size: int) -> np.ndarray:
    """A mask without symmetry; its 256 x 256 version is every (size / 256)th texel."""
    y, x = np.mgrid[:size, :size] * 256 // size
    return ((y * 2 + x) % 256).astype(np.uint8)


def albedo(size: int, components: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    mean = rng.uniform(0, 1, (1, size * size * 3))
    return mean, rng.standard_normal((size * size * 3, components)).astype(np.float32)


def write_flame_files(folder: Path, head: dict[str, np.ndarray]) -> Path:
    """The six required files; `write_released` adds albedo and weights."""
    folder.mkdir(exist_ok=True)
    with fake_chumpy() as ch:
        (folder / "generic_model.pkl").write_bytes(python2_pickle(flame_model(head, ch)))
    boxed = np.array(landmark_embedding(head), dtype=object)
    np.save(folder / "landmark_embedding.npy", boxed, allow_pickle=True)
    (folder / "head_template.obj").write_text(template(head))
    Image.fromarray(np.stack([mask(512)] * 3, axis=-1)).save(folder / "uv_face_mask.png")
    Image.fromarray(255 - mask(512)).save(folder / "uv_face_eye_mask.png")
    np.save(folder / "fixed_displacement_256.npy", np.linspace(-1e-3, 1e-3, 256 * 256).reshape(256, 256))
    return folder


def write_released(folder: Path, model: Any) -> Path:
    """The albedo as BFM_to_FLAME's col_to_tex.py saves it, and DECA's weights as its trainer saves a `model`.

    Both encoders count their batches in one tensor, as they do where one network was made from the other.
    """
    mean, basis = albedo(64, 199)
    np.savez(folder / "FLAME_albedo_from_BFM.npz", MU=mean.reshape(-1), PC=basis.astype(np.float64) * 0.02)
    parts = {part: getattr(model, part).state_dict() for part in ("E_flame", "E_detail", "D_detail")}
    for name in parts["E_flame"]:
        if name.endswith("num_batches_tracked"):
            parts["E_detail"][name] = parts["E_flame"][name]
    optimiser = torch.optim.Adam(model.D_detail.parameters(), lr=1e-4, amsgrad=False)
    for parameter in model.D_detail.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    content = {**parts, "opt": optimiser.state_dict(), "global_step": 20000, "batch_size": 6}
    torch.save(content, folder / "deca_model.tar", _use_new_zipfile_serialization=False)
    return folder
