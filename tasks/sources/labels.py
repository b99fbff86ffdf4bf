"""Reading of label files: landmarks (.npy .txt .mat .pts), masks (.png .npy), identities (.txt). Nothing is executed.

What a file declares is checked against what it holds before memory is taken for it.
"""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deca_core.errors import DecaError
from schemas.annotate import MAP_CLASSES, SKIN_CLASSES, LabelMap
from tasks.sources.images import MAX_PIXELS, ImageError, decode_values
from tasks.sources.matlab import MatlabError, read_array

POINTS = 68
MAT_VARIABLE = "pt3d_68"
RELEASED_TOP = 15  # the largest value of float masks that were published for the released training code
CLASSES_TOP = 31  # the largest number that is more likely a class than the rim of a soft mask
MaskValues = LabelMap | tuple[int, ...] | None
NAME_LIMIT = 200  # characters of an identity: a longer line is a file of another kind


class LabelError(DecaError):
    """A label that is missing or does not fit its image; costs that image or face only."""


def read_landmarks(data: bytes, name: str) -> NDArray[np.float32]:
    """Return the faces of a label file, (faces, 68, 2) in pixels, pixel centres at whole coordinates from 0.

    Raises LabelError where the count, the shape or a value is wrong.
    """
    suffix = name.rpartition(".")[2].lower()
    points = {"npy": _npy, "txt": _txt, "mat": _mat, "pts": _pts}[suffix](data, name)
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


def read_mask(data: bytes, name: str, max_pixels: int = MAX_PIXELS, values: MaskValues = None) -> NDArray[np.uint8]:
    """Return a skin mask (H, W): 255 skin, 0 else.

    values: the classes of a label map that are skin; None: the file says it itself (see `_by_itself`). Raises
    LabelError where it does not, or holds none of the classes.
    """
    if name.lower().endswith(".npy"):
        mask = _npy(data, name)
        if mask.ndim != 2 or mask.size == 0:
            raise LabelError(f"{name}: expected a mask (height, width), found an array {_shape(mask)}")
        if not np.isfinite(mask).all():
            raise LabelError(f"{name}: the mask holds values that are not numbers")
    else:
        try:
            mask = decode_values(data, max_pixels=max_pixels)
        except ImageError as error:
            raise LabelError(f"{name}: {error}") from error
    skin = _by_itself(mask, name) if values is None else _chosen(mask, name, values)
    return skin * np.uint8(255)


def _by_itself(mask: NDArray[Any], name: str) -> NDArray[np.bool_]:
    """Return where a mask is skin that says by type and values how it is meant.

    0 and 1 (bool, or floats between them): above a half. Floats to 15: above 0.5, as the released training code reads
    its masks. 0 to 255 and 0 to 65535: the upper half. Anything else may be classes, and is refused.
    """
    found = np.unique(mask)
    low, high = float(found[0]), float(found[-1])
    floats = mask.dtype.kind == "f"
    if low > -0.5 and high <= (RELEASED_TOP if floats else 1):  # resampling carries floats a little below 0
        return mask > 0.5
    for full in (255, 65535):
        between = found[(found > 0) & (found < full)]
        classes = high == full and between.size and between[-1] <= CLASSES_TOP  # 255: "ignore"
        if low >= 0 and full / 2 < high <= full and not classes:
            return mask >= (full + 1) / 2
    raise LabelError(
        f"{name}: {mask.dtype} values {_listed(found)} do not say what is skin; 0 and 1, 0 to 255, 0 to 65535 and "
        "floats above 0.5 do. For classes: --new --set annotate.sidecar.mask_values=[1,2] "
        f"(or {', '.join(SKIN_CLASSES)})"
    )


def _chosen(mask: NDArray[Any], name: str, values: LabelMap | tuple[int, ...]) -> NDArray[np.bool_]:
    """Return where a label map has one of the classes that are skin."""
    found, wanted = np.unique(mask), SKIN_CLASSES[values] if isinstance(values, str) else values
    said = f"annotate.sidecar.mask_values={values if isinstance(values, str) else list(values)}"
    if mask.dtype.kind == "f" and (found % 1).any():
        raise LabelError(f"{name}: {said} is about classes, and this mask holds {_listed(found)}, no whole numbers")
    if isinstance(values, str) and (found[0] < 0 or found[-1] >= MAP_CLASSES):
        raise LabelError(
            f"{name}: {said} numbers classes from 0 to {MAP_CLASSES - 1}, and this map holds {_listed(found)}"
        )
    if found.any() and not np.isin(found, wanted).any():
        raise LabelError(
            f"{name}: none of the classes {list(wanted)} that are skin by {said}: it holds {_listed(found)}"
        )
    return np.isin(mask, wanted)


def _listed(found: NDArray[Any]) -> str:
    """Distinct values in a few words."""
    if len(found) <= 8:
        return ", ".join(f"{value:g}" for value in found.tolist())
    first = ", ".join(f"{value:g}" for value in found[:6].tolist())
    return f"{first}, ... {found[-1]:g} ({len(found)} values)"


def read_identity(data: bytes, name: str) -> str:
    """Return an identity label: the stripped first line of a UTF-8 text. Raises LabelError."""
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
    return _lines(data.decode("utf-8", "replace").splitlines(), name, first=1)


def _pts(data: bytes, name: str) -> NDArray[Any]:
    """ibug's format, as 300-W, HELEN, LFPW and AFW have it: MATLAB's pixels, whose first centre is (1, 1)."""
    head, _, rest = data.decode("utf-8", "replace").partition("{")
    points, closed, _ = rest.partition("}")
    count = re.fullmatch(r"\s*version:\s*[\d.]+\s+n_points:\s*(\d{1,9})\s*", head)
    if count is None or not closed:
        raise LabelError(f"{name}: no .pts file: `version: 1`, `n_points: {POINTS}` and points in braces are expected")
    if int(count[1]) != POINTS:
        raise LabelError(f"{name}: n_points: {count[1]}, where the {POINTS} points of ibug are expected")
    return _lines(points.splitlines(), name, first=head.count("\n") + 1) - 1


def _lines(lines: list[str], name: str, first: int) -> NDArray[Any]:
    """Points `x y`, one a line; first: number of the first line in the file."""
    rows = []
    for number, line in enumerate(lines, start=first):
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
