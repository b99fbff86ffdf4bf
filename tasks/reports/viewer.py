"""Data of the report's 3D viewer: heads as bases in a few hundred kilobytes, and three.js.

The page poses a head as `FLAME.forward` does, with the first expression components and the jaw's opening free:

    T = neutral + rest * remaining expression + sum_k e_k E_k + (cos a - 1) P_cos + sin a P_sin
    v = (1 - w) T + w (R_x(a) (T - j) + j)

neutral: template and shape; P: pose correctives of the jaw, linear in R - I, whose entries for a turn about x are
cos a - 1 and sin a; w: skinning weight of the jaw; j: its joint, which moves with neutral, rest and e as well.
Positions are 16-bit steps, some 5 um, so the page's vertices are FLAME's up to that.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from deca_core import DECA
from deca_core.assets import AssetBundle
from deca_core.errors import DecaError
from deca_core.export.grid import split_of
from deca_core.export.maps import texture
from deca_core.uv import image_on_uv
from tasks.draw.panels import to_bytes
from tasks.reports.gallery import Shown, data_uri

SLIDERS = 10  # expression components with a slider: the first ones
JAW = 2  # of the joints; its features are those of joints 1..4, nine each
STEPS = 2**15 - 1
TEXTURE_QUALITY = 88
# three.js, MIT, which trimesh carries for its own viewer: a tenth of plotly, whose meshes know no bump maps besides.
VIEWER, LIBRARY = "templates/viewer.zip", "viewer.html.template"
BEGIN, END = "/**\n * @license\n", "}));\n"


class ViewerError(DecaError):
    """The viewer's library is missing."""


@cache
def library() -> str:
    """Return three.js as text, with its licence."""
    package = find_spec("trimesh")  # not imported: only a file of it is wanted
    if package is None or package.origin is None:
        raise ViewerError("trimesh is not installed, and it carries three.js. Run: pip install trimesh")
    with ZipFile(Path(package.origin).with_name("resources") / VIEWER) as archive:
        page = archive.read(LIBRARY).decode()
    begin, marked = page.find(BEGIN), page.find("__esModule")
    end = page.find(END, marked)
    if min(begin, marked, end) < 0 or "Three.js Authors" not in page[begin : begin + 200]:
        raise ViewerError(f"trimesh no longer carries three.js in {VIEWER}. Install the version of requirements.lock")
    return page[begin : end + len(END)].strip()


@dataclass
class Pack:
    """Arrays for a page: 8- and 16-bit integers behind one another, zlib and base64, with a table of where they lie."""

    table: dict[str, dict[str, Any]] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, name: str, values: NDArray[Any], scale: float | None = None) -> None:
        """Integers as they are, or floats in steps of `scale` (a largest value over STEPS)."""
        if scale is not None:
            values = np.rint(np.asarray(values, np.float64) / scale).astype(np.int16)
        data = np.ascontiguousarray(values).tobytes()
        data += bytes(-len(data) % 2)
        kind = values.dtype.name
        self.table[name] = {"at": self.size, "length": values.size, "kind": kind, "scale": scale or 1}
        self.parts.append(data)
        self.size += len(data)

    def metres(self, name: str, values: NDArray[Any]) -> None:
        """Lengths in steps that their largest one fills."""
        self.add(name, values, scale=max(float(np.abs(values).max()), 1e-6) / STEPS)

    def text(self) -> str:
        """Base64 of the whole."""
        return base64.b64encode(zlib.compress(b"".join(self.parts), 9)).decode()


def viewer_data(model: DECA, faces: list[Shown]) -> dict[str, Any] | None:
    """Return the JSON data of the page's script, or None where no face has a head."""
    heads = [face for face in faces if face.codes is not None and face.head is not None]
    if not heads:
        return None
    bundle, pack = model.bundle, Pack()
    _add_head(pack, bundle)
    described = [_add_face(pack, model, face, index) for index, face in enumerate(heads)]
    exp_joint = _jaw_joint(bundle, bundle.exp_basis[:, :, :SLIDERS].transpose(2, 0, 1))
    names = [name.replace("_", " ") for name in bundle.expression_names[:SLIDERS]]
    return {
        "vertices": bundle.num_vertices,
        "sliders": names or [f"expression {number}" for number in range(1, SLIDERS + 1)],
        "joint": exp_joint.tolist(),
        "heads": described,
        "table": pack.table,
        "data": pack.text(),
    }


def as_json(data: dict[str, Any]) -> str:
    """Return JSON that cannot close its script element."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _add_head(pack: Pack, bundle: AssetBundle) -> None:
    """What all faces share: triangles over UV corners, expression components, the jaw."""
    split = split_of(bundle)  # vertices cut along the seams of the atlas
    small = np.uint16 if len(split.vertex) < 2**16 else np.uint32
    pack.add("triangles", split.faces.ravel().astype(small))
    pack.add("corner", split.vertex.astype(small))
    pack.add("faces", bundle.faces.ravel().astype(small))
    pack.add("uv", bundle.uv[split.uv].ravel().clip(0, 1), scale=1 / STEPS)
    for index in range(SLIDERS):
        pack.metres(f"exp{index}", bundle.exp_basis[:, :, index].ravel())
    features = bundle.pose_basis[:, :, 9 * (JAW - 1) : 9 * JAW].astype(np.float64)  # of R - I, row by row
    pack.metres("jaw_cos", (features[:, :, 4] + features[:, :, 8]).ravel())
    pack.metres("jaw_sin", (features[:, :, 7] - features[:, :, 5]).ravel())
    pack.add("jaw", bundle.skin_weights[:, JAW], scale=1 / STEPS)


def _jaw_joint(bundle: AssetBundle, offsets: NDArray[Any]) -> NDArray[np.float64]:
    """Where offsets of vertices (...,V,3) move the joint of the jaw, (...,3)."""
    return np.einsum("v,...vc->...c", bundle.joint_regressor[JAW].astype(np.float64), offsets.astype(np.float64))


def _add_face(pack: Pack, model: DECA, face: Shown, index: int) -> dict[str, Any]:
    """The vertices, the wrinkles and the skin of one face; what else the page says of it."""
    assert face.codes is not None
    bundle = model.bundle
    shape, exp = face.codes.shape[0].numpy(), face.codes.exp[0].numpy()
    neutral = bundle.v_template + bundle.shape_basis @ shape
    rest = bundle.exp_basis[:, :, SLIDERS:] @ exp[SLIDERS:]
    pack.metres(f"neutral{index}", neutral.ravel())
    pack.metres(f"rest{index}", rest.ravel())
    wrinkled = face.displacement is not None
    if face.displacement is not None:
        fixed, mask = bundle.fixed_displacement, bundle.face_eye_mask
        masked = (face.displacement - fixed) * mask + fixed  # eq. 10
        pack.metres(f"relief{index}", np.flipud(masked).ravel())  # the page counts v from below
    return {
        "name": face.face_id,
        "source": face.source,
        "thumbnail": face.panels.get("image") or face.panels["shape"],
        "skin": data_uri(_skin(model, face), TEXTURE_QUALITY),
        "relief": wrinkled,
        "exp": [round(float(value), 4) for value in exp[:SLIDERS]],
        "jaw": round(float(face.codes.jaw[0, 0]), 4),
        "joint": _jaw_joint(bundle, neutral).tolist(),
        "rest_joint": _jaw_joint(bundle, rest).tolist(),
    }


@torch.inference_mode()
def _skin(model: DECA, face: Shown) -> Image.Image:
    """The base colour of an export: the image where it shows skin, the albedo elsewhere."""
    assert face.codes is not None
    assert face.head is not None
    image = None
    if face.crop is not None:
        image = image_on_uv(model.atlas, face.head.projected, torch.from_numpy(face.crop)[None])
    return Image.fromarray(to_bytes(texture(model, face.codes, face.head, image)[0].numpy()))
