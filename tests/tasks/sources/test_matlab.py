"""MATLAB files as scipy writes them, every type and layout, against scipy's own reading; and forged ones."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from scipy import io as matlab

from tasks.sources.matlab import LIMIT, MatlabError, read_array


def saved(compressed: bool = False, **variables: object) -> bytes:
    buffer = io.BytesIO()
    matlab.savemat(buffer, variables, do_compression=compressed)
    return buffer.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
@pytest.mark.parametrize("shape", [(3, 68), (1, 1), (2, 3, 4), (0, 3)])
def test_arrays_as_scipy_reads_them(kind: str, shape: tuple[int, ...], compressed: bool) -> None:
    array = (np.arange(np.prod(shape)).reshape(shape) % 100).astype(kind)
    data = saved(compressed, before={"a": 1.0}, text="abc", x=array, after=np.eye(2))
    expected = matlab.loadmat(io.BytesIO(data))["x"]
    np.testing.assert_array_equal(read_array(data, "x"), expected)
    assert read_array(data, "x").shape == expected.shape


def test_big_endian() -> None:
    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    values = np.arange(6.0).reshape(2, 3)
    parts = [
        (6, struct.pack(">II", 6, 0)),
        (5, struct.pack(">ii", 2, 3)),
        (1, b"x"),
        (9, values.T.astype(">f8").tobytes()),
    ]
    body = b"".join(element(kind, content) for kind, content in parts)
    data = b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + element(14, body)
    np.testing.assert_array_equal(read_array(data, "x"), values)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (saved(y=np.eye(2)), "no variable x; it holds y"),
        (saved(x="text"), "no real numbers"),
        (saved(x=np.eye(2) * 1j), "no real numbers"),
        (saved(x={"a": 1.0}), "no real numbers"),
        (saved(x=np.eye(30))[:-100], "an element of"),
        (b"", "no MATLAB file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(200), "HDF5"),
    ],
)
def test_what_is_no_array_is_named(data: bytes, message: str) -> None:
    with pytest.raises(MatlabError, match=message):
        read_array(data, "x")


def test_a_bomb_ends_at_the_limit() -> None:
    packed = zlib.compress(bytes(LIMIT + 2**20), 9)
    data = saved(x=1.0)[:128] + struct.pack("<II", 15, len(packed)) + packed
    with pytest.raises(MatlabError, match="unpacks to more than"):
        read_array(data, "x")
