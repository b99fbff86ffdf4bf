"""OBJ with its material (Wavefront), binary PLY (Turk 1994) and NPZ: meshes for programs that know no skeleton."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deca_core.export.mesh import ExportError, Float, Mesh, require_finite

MATERIAL = "skin"


def obj(mesh: Mesh, name: str, library: str | None = None) -> bytes:
    """The text of an OBJ file: positions, texture coordinates, normals and faces that index them.

    Metres to a tenth of a micrometre. Vertices are not cut at seams, so the surface stays as closed as it is.
    library: file name of the material, beside this one.
    """
    head = [f"# {name}: metres, y up", *([f"mtllib {library}"] if library else []), f"o {name}"]
    # Nine numbers a face: position/texture/normal of each corner, from 1.
    corners = np.stack([mesh.faces, mesh.uv_faces, mesh.faces], axis=2) + 1
    parts = [
        "\n".join(head) + "\n",
        _lines("v %.7f %.7f %.7f\n", mesh.vertices),
        _lines("vt %.6f %.6f\n", mesh.uv),
        _lines("vn %.4f %.4f %.4f\n", mesh.normals),
        f"usemtl {MATERIAL}\n" if library else "",
        _lines("f %d/%d/%d %d/%d/%d %d/%d/%d\n", corners.reshape(len(corners), 9)),
    ]
    return "".join(parts).encode()


def _lines(pattern: str, rows: NDArray[Any]) -> str:
    return (pattern * len(rows)) % tuple(rows.ravel().tolist())


def mtl(texture: str, normals: str, displacement: str, limit: float) -> bytes:
    """The material of an OBJ file: file names of its images; displacement maps span [-limit, limit] metres."""
    return f"""# Metres of displacement = value / 65535 * {2 * limit:.9g} - {limit:.9g}, along the normal
newmtl {MATERIAL}
Ka 0 0 0
Kd 1 1 1
Ks 0.04 0.04 0.04
Ns 20
illum 2
map_Kd {texture}
map_Bump {normals}
norm {normals}
disp -mm {-limit:.9g} {2 * limit:.9g} {displacement}
""".encode()


def ply(mesh: Mesh, colours: NDArray[np.uint8] | None = None) -> bytes:
    """A binary PLY file with normals, and colours (N,3) uint8 of the vertices where given. Raises ExportError."""
    if colours is not None and (colours.shape != mesh.vertices.shape or colours.dtype != np.uint8):
        raise ExportError(
            f"ply: colours are {colours.dtype} {colours.shape}, expected uint8 {mesh.vertices.shape}: one a vertex"
        )
    fields = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    if colours is not None:
        fields += [(name, "u1") for name in ("red", "green", "blue")]
    rows = np.zeros(len(mesh.vertices), fields)
    for names, values in ((("x", "y", "z"), mesh.vertices), (("nx", "ny", "nz"), mesh.normals)):
        for column, name in enumerate(names):
            rows[name] = values[:, column]
    if colours is not None:
        for column, name in enumerate(("red", "green", "blue")):
            rows[name] = colours[:, column]
    triangles = np.zeros(len(mesh.faces), [("count", "u1"), ("corners", "<i4", 3)])
    triangles["count"], triangles["corners"] = 3, mesh.faces
    kinds = {"<f4": "float", "u1": "uchar"}
    head = [
        "ply",
        "format binary_little_endian 1.0",
        "comment metres, y up",
        f"element vertex {len(rows)}",
        *(f"property {kinds[kind]} {name}" for name, kind in fields),
        f"element face {len(triangles)}",
        "property list uchar int vertex_indices",
        "end_header\n",
    ]
    return "\n".join(head).encode() + rows.tobytes() + triangles.tobytes()


def vertex_colours(mesh: Mesh, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours (N,3) of the vertices: the texel of image (T,T,3) that one of their texture coordinates is on."""
    height, width = image.shape[:2]
    coordinate = np.zeros(len(mesh.vertices), np.int64)
    coordinate[mesh.faces] = mesh.uv_faces
    u, v = mesh.uv[coordinate].T
    rows = np.clip(((1 - v) * height).astype(int), 0, height - 1)
    columns = np.clip((u * width).astype(int), 0, width - 1)
    return np.asarray(image[rows, columns])


def npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays by name as NumPy's compressed archive; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict(arrays))  # type: ignore[arg-type]
    return buffer.getvalue()


def npz_arrays(mesh: Mesh, dense: Mesh | None, displacement: Float, codes: Mapping[str, Float]) -> dict[str, Any]:
    """Arrays of a head's NPZ file: coarse mesh, dense mesh where asked for, displacement (256,256), codes.

    Raises ExportError for what is not finite.
    """
    require_finite("npz", displacement=displacement, **codes)
    meshes = {"": mesh} | ({} if dense is None else {"dense_": dense})
    arrays = {f"{begin}{name}": value for begin, one in meshes.items() for name, value in vars(one).items()}
    return arrays | {"displacement": displacement} | dict(codes)
