"""Reading of label files: landmarks (.npy, .txt, .mat), masks (.png, .npy), identities (.txt). Nothing is executed.

What a file declares is checked against what it holds before memory is taken for it.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deca_core.errors import DecaError
from tasks.annotators.matlab import MatlabError, read_array
from tasks.images import MAX_PIXELS, ImageError, decode_image

POINTS = 68
MAT_VARIABLE = "pt3d_68"
NAME_LIMIT = 200  # characters of an identity: a longer line is a file of another kind


class LabelError(DecaError):
    """A label that is missing or does not fit its picture; costs that picture or face only."""


def read_landmarks(data: bytes, name: str) -> NDArray[np.float32]:
    """The faces of a label file, (faces, 68, 2) in pixels, pixel centres at whole coordinates from 0.

    Raises LabelError where the count, the shape or a value is wrong.
    """
    suffix = name.rpartition(".")[2].lower()
    points = {"npy": _npy, "txt": _txt, "mat": _mat}[suffix](data, name)
    if points.ndim == 2:
        points = points[None]
    if points.ndim != 3 or points.shape[1:] != (POINTS, 2):
        raise LabelError(f"{name}: expected {POINTS} points (x, y) for each face, found an array {_shape(points)}")
    points = points.astype(np.float32)
    bad = np.argwhere(~np.isfinite(points).all(axis=2))
    if len(bad):
        face, point = bad[0].tolist()
        raise LabelError(f"{name}: point {point} of face {face} is not a number ({len(bad)} such points)")
    flat = np.flatnonzero(np.ptp(points, axis=1).min(axis=1) <= 0)
    if len(flat):
        raise LabelError(f"{name}: the {POINTS} points of face {flat[0]} lie in one line or one place")
    return points


def read_mask(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """A skin mask (H, W): 255 skin, 0 else. Files hold 0 and 1, False and True, or 0 to 255 cut at 128."""
    if name.lower().endswith(".npy"):
        mask = _npy(data, name)
        if mask.ndim != 2 or mask.size == 0:
            raise LabelError(f"{name}: expected a mask (height, width), found an array {_shape(mask)}")
        if not np.isfinite(mask).all():
            raise LabelError(f"{name}: the mask holds values that are not numbers")
    else:
        try:
            mask = decode_image(data, max_pixels=max_pixels)[..., 0]
        except ImageError as error:
            raise LabelError(f"{name}: {error}") from error
    skin = mask > 0.5 if mask.max() <= 1 else mask >= 128
    return skin * np.uint8(255)


def read_identity(data: bytes, name: str) -> str:
    """Who is in a picture: the first line of a UTF-8 text, without the blanks around it. Raises LabelError."""
    try:
        identity = data.decode("utf-8-sig").partition("\n")[0].strip()
    except UnicodeDecodeError as error:
        raise LabelError(f"{name}: an identity is expected as UTF-8 text ({error})") from error
    if not identity:
        raise LabelError(f"{name}: the first line is empty, an identity is expected there")
    if len(identity) > NAME_LIMIT or not identity.isprintable():
        raise LabelError(
            f"{name}: the first line ({len(identity)} characters) is no identity: printable text up to {NAME_LIMIT} "
            "characters is"
        )
    return identity


def _npy(data: bytes, name: str) -> NDArray[Any]:
    file = io.BytesIO(data)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(file)
        shape, _, dtype = readers[version](file)
    except Exception as error:  # foreign bytes: numpy parses the header as Python's text and raises what that raises
        raise LabelError(f"{name}: no .npy file ({type(error).__name__}: {error})") from error
    if dtype.kind not in "biuf":
        raise LabelError(f"{name}: an array of numbers is expected, this one holds {dtype}; it was not opened")
    need, have = dtype.itemsize * int(np.prod(shape, dtype=object)), len(data) - file.tell()
    if need != have:
        raise LabelError(f"{name}: cut off or damaged: {have} bytes where the array {shape} of {dtype} needs {need}")
    file.seek(0)
    return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def _txt(data: bytes, name: str) -> NDArray[Any]:
    rows = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), start=1):
        fields = line.partition("#")[0].replace(",", " ").split()
        if not fields:
            continue
        try:
            x, y = (float(field) for field in fields)
        except ValueError as error:
            raise LabelError(f"{name}: line {number} is not a point `x y` ({len(line)} characters)") from error
        rows.append((x, y))
    return np.array(rows, np.float64).reshape(-1, 2)


def _mat(data: bytes, name: str) -> NDArray[Any]:
    """AFLW2000's `pt3d_68`, (3, 68) x, y, z with y down; z is left out."""
    try:
        loaded = read_array(data, MAT_VARIABLE)
    except MatlabError as error:
        raise LabelError(f"{name}: {error}") from error
    if loaded.shape not in ((2, POINTS), (3, POINTS)):
        raise LabelError(f"{name}: {MAT_VARIABLE} should be (3, {POINTS}), it is {loaded.shape}")
    points: NDArray[Any] = loaded[:2].T
    return points


def _shape(array: NDArray[Any]) -> str:
    return " x ".join(map(str, array.shape)) or "of one value"
