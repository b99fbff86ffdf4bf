"""The albedo model over FLAME's atlas, as BFM_to_FLAME (FLAME_albedo_from_BFM.npz) and AlbedoMM write it."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from deca_core.assets.bundle import NUM_TEX, UV_SIZE, BundleError
from deca_core.downloads import AGAIN, check_download

CONVERTED = "FLAME_albedo_from_BFM.npz of the BFM_to_FLAME converter"
# The mean of an albedo model, in [0, 1]: its largest value, and how far below zero interpolation may take it.
BRIGHTEST, DARKEST = (0.05, 1.5), -0.1
# A component's root mean square over the texels: some hundredths in an albedo of 0 to 1, several in one of 0 to 255.
STRONGEST = 2.0


def read_albedo(path: Path) -> dict[str, NDArray[np.float32]]:
    """Mean (3, 256, 256) and first 50 components (50, 3, 256, 256) of the albedo model, RGB, by AssetBundle's names.

    The file contains MU and PC over square textures of S x S texels, row by row, each blue, green, red, in [0, 1]: MU
    (S*S*3,), (1, S*S*3), (S*S*3, 1) or (S, S, 3); PC (S*S*3, K) or (S, S, 3, K); any floats, C or Fortran order. Other
    arrays (specMU) are left out. PC takes over a gigabyte: it is read in strips, and only the texels and components
    that stay are kept.

    Raises BundleError naming the file, what it contains and what is wanted.
    """
    check_download(path, BundleError)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_names({name.removesuffix(".npy") for name in archive.namelist()}, path)
            mean = _texels(archive, "MU", path, 1)[0]
            basis = _texels(archive, "PC", path, NUM_TEX)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise BundleError(f"{path}: a damaged archive ({error}). {AGAIN}, or convert the albedo again") from error
    _check_values(mean, basis, path)
    return {"albedo_mean": mean, "albedo_basis": basis}


def nearest(size: int) -> NDArray[np.int64]:
    """Which of `size` rows stand for the 256 of a UV map: floor, as the released code's interpolation."""
    return np.arange(UV_SIZE) * size // UV_SIZE


def _check_names(names: set[str], path: Path) -> None:
    if {"MU", "PC"} <= names:
        return
    if {"mean", "tex_dir"} <= names:
        raise BundleError(
            f"{path}: this is FLAME's texture space (FLAME_texture.npz with mean and tex_dir: colours of photographs, "
            f"with their lighting, 0 to 255), no albedo model. Needed is {CONVERTED}; without it leave the file out: "
            "renderings are then grey"
        )
    raise BundleError(
        f"{path}: without MU and PC (it has {', '.join(sorted(names)) or 'nothing'}). Needed is {CONVERTED}"
    )


def _check_values(mean: NDArray[np.float32], basis: NDArray[np.float32], path: Path) -> None:
    """Refuse what would be imported as albedo and is none: NaN, zeros, values of 0..255."""
    for key, values in (("MU", mean), ("PC", basis)):
        if not np.isfinite(values).all():
            raise BundleError(f"{path}: {key} holds NaN or infinity. Needed is {CONVERTED}, converted again")
        if not values.any():
            raise BundleError(f"{path}: {key} is zero everywhere: a conversion that failed? Needed is {CONVERTED}")
    low, high = float(mean.min()), float(mean.max())
    if low < DARKEST or not BRIGHTEST[0] <= high <= BRIGHTEST[1]:
        scaled = "; divide MU and PC by 255" if high > BRIGHTEST[1] else ""
        raise BundleError(f"{path}: MU lies in {low:.3g} to {high:.3g}, the mean albedo in 0 to 1 is wanted{scaled}")
    strength = np.sqrt(np.einsum("kchw,kchw->k", basis, basis) / mean.size)
    if strength.max() > STRONGEST:
        raise BundleError(
            f"{path}: component {strength.argmax()} of PC changes the albedo by {strength.max():.3g} (root mean "
            "square); components of an albedo in 0 to 1 are wanted, which change it by less than 1: divide PC by 255?"
        )


def _texels(archive: zipfile.ZipFile, key: str, path: Path, components: int) -> NDArray[np.float32]:
    """The first components of one array of the archive as (components, 3, 256, 256) RGB maps."""
    with archive.open(f"{key}.npy") as stream:
        shape, fortran, dtype = _npy_header(stream, f"{path}: {key}")
        side, count = _layout(shape, key)
        if not side or count < components or dtype.kind != "f":
            wanted = (
                f"N x {components} or more, or S x S x 3 x {components} or more" if key == "PC" else "N or S x S x 3"
            )
            raise BundleError(
                f"{path}: {key} has shape {shape} and type {dtype}, expected floats {wanted}, where N = S * S * 3"
            )
        rows, columns = nearest(side), nearest(side)
        kept = np.empty((components, UV_SIZE, UV_SIZE, 3), np.float32)
        if fortran or count == 1:  # one component after the other
            for component in range(components):
                texture = _read(stream, dtype, side * side * 3, path)
                upright = fortran and len(shape) > 2
                texture = texture.reshape((side, side, 3), order="F" if upright else "C")
                kept[component] = texture[rows][:, columns]
        else:
            for row in range(side):
                strip = _read(stream, dtype, side * 3 * count, path).reshape(side, 3, count)
                if (targets := np.flatnonzero(rows == row)).size:
                    kept[:, targets] = strip[columns, :, :components].transpose(2, 0, 1)[:, None]
    return np.ascontiguousarray(kept[..., ::-1].transpose(0, 3, 1, 2))


def _layout(shape: tuple[int, ...], key: str) -> tuple[int, int]:
    """Side of the texture and number of components of an array; side 0: it is none."""
    if key == "MU":
        shape = (*shape, 1) if len(shape) in (1, 3) else shape[::-1] if shape[:1] == (1,) else shape
    if len(shape) not in (2, 4) or (key == "MU" and shape[-1] != 1):
        return 0, 0
    *texture, count = shape
    values = int(np.prod(texture, dtype=object))
    side = round((values / 3) ** 0.5)
    fits = side * side * 3 == values and (len(texture) == 1 or tuple(texture) == (side, side, 3))
    return side if fits else 0, count


def _npy_header(stream: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except Exception as error:  # foreign bytes, as in unpickle.py
        raise BundleError(f"{name} is not a readable array ({error})") from error
    return shape, fortran, dtype


def _read(stream: IO[bytes], dtype: np.dtype, count: int, path: Path) -> NDArray:
    data = stream.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise BundleError(f"{path}: cut short. {AGAIN}")
    return np.frombuffer(data, dtype)
