"""Reader of a numeric array in a MATLAB file of level 5 (versions 5 to 7), in plain Python.

scipy reads such files in C, where a forged length may end the process (a fuzzer found it at once): labels come from
strangers, and a death costs the whole unit. Here every length is checked against the bytes that are there, and nothing
is unpacked beyond LIMIT. The format: MathWorks, "MAT-File Format", chapter 1.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deca_core.errors import DecaError

HEADER = 128  # bytes of text, version and byte order before the first element
LIMIT = 64 * 2**20  # bytes of one unpacked variable; 68 points take two kilobytes
MATRIX, COMPRESSED = 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
NUMERIC_CLASSES = range(6, 16)  # double, single and the whole numbers; not cells, structures, objects, text
COMPLEX = 0x0800


class MatlabError(DecaError):
    """A file that is damaged, of another level, or without the array."""


def read_array(data: bytes, name: str) -> NDArray[Any]:
    """Return the numeric array called `name`, in its own shape. Raises MatlabError, which lists what else there is."""
    if data[124:128].endswith(b"IM"):
        order = "<"
    elif data[124:128].endswith(b"MI"):
        order = ">"
    else:
        raise MatlabError("no MATLAB file of level 5 (version 7.3 is HDF5: save it with -v7)")
    found = []
    for kind, content in _elements(data[HEADER:], order):
        if kind == COMPRESSED:
            unpacked = zlib.decompressobj()
            try:
                content = unpacked.decompress(content, LIMIT + 1)
            except zlib.error as error:
                raise MatlabError(f"a variable does not unpack: {error}") from error
            if len(content) > LIMIT:
                raise MatlabError(f"a variable unpacks to more than {LIMIT} bytes")
            kind, content = next(_elements(content, order), (0, b""))
        if kind == MATRIX:
            label, parts, shape = _matrix(content, order)
            if label == name:
                return _numbers(parts, shape, order, name)
            found.append(label)
    raise MatlabError(f"no variable {name}; it holds {', '.join(sorted(found)) or 'nothing'}")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """(type, content) of each data element; a short one has its content in the second half of its tag."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if kind >> 16:
            kind, size, start, after = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        else:
            start = at + 8
            after = start + size + (0 if kind == COMPRESSED else -size % 8)
        if size > len(data) - start or (start == at + 4 and size > 4):
            raise MatlabError(f"an element of {size} bytes where {len(data) - start} are left")
        yield kind, data[start : start + size]
        at = after


def _matrix(content: bytes, order: str) -> tuple[str, list[tuple[int, bytes]], tuple[int, ...]]:
    """(name, elements of the values, shape) of an array; no elements where it is not of real numbers."""
    parts = list(_elements(content, order))
    if len(parts) < 3 or len(parts[0][1]) < 8 or len(parts[1][1]) % 4:
        raise MatlabError("an array without flags, dimensions and name")
    flags = struct.unpack_from(f"{order}I", parts[0][1])[0]
    shape = struct.unpack(f"{order}{len(parts[1][1]) // 4}i", parts[1][1])
    label = parts[2][1].decode("latin1")
    real = flags & 0xFF in NUMERIC_CLASSES and not flags & COMPLEX
    return label, parts[3:] if real else [], shape


def _numbers(parts: list[tuple[int, bytes]], shape: tuple[int, ...], order: str, name: str) -> NDArray[Any]:
    if not parts or parts[0][0] not in NUMBERS:
        raise MatlabError(f"{name} holds no real numbers")
    kind, content = parts[0]
    dtype = np.dtype(f"{order}{NUMBERS[kind]}")
    count = 1
    for side in shape:  # in Python's numbers: no product overflows
        count *= side
    if any(side < 0 for side in shape) or len(shape) > 8 or count * dtype.itemsize != len(content):
        raise MatlabError(f"{name} of shape {shape} does not fill its {len(content)} bytes")
    return np.frombuffer(content, dtype).reshape(shape, order="F")
