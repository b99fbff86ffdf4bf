"""Reading pickles without executing them: FLAME's model, landmark embedding, network weights, object arrays in `.npy`.

A pickle is a program that calls whatever it names. Here every name it may mention gives an inert class that only
records its arguments and state; anything else is refused. When the program has ended, `_resolve` turns the records
into numpy arrays, scipy matrices, tensors and plain containers, checking sizes against the bytes that are there.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from deca_core.assets.bundle import BundleError
from deca_core.downloads import AGAIN, check_download

PLAIN_DTYPE = re.compile(r"[<>|=]?[biufcSUO]\d{0,8}")


class UnpickleError(BundleError):
    """A pickle that is damaged, or that names something other than arrays, matrices, tensors and containers."""


class ChumpyValue:
    """Stand-in for a `chumpy` object (a differentiable array of the library that wrote FLAME): its state.

    name: "chumpy.ch.Ch" and the like; state: its attributes by name.
    """

    def __init__(self, name: str, state: dict[str, Any]) -> None:
        self.name = name
        self.state = state

    def array(self) -> np.ndarray:
        """The value, which leaves keep as `x` and some writers as `r`. Raises UnpickleError for formulas."""
        for key in ("x", "r"):
            value = self.state.get(key)
            if isinstance(value, ChumpyValue):
                return value.array()
            if isinstance(value, np.ndarray):
                return value
        raise UnpickleError(
            f"{self.name} holds a formula, not a value (it has {', '.join(sorted(self.state)) or 'nothing'})"
        )


def load_pickle(path: Path) -> Any:
    """The content of a pickle (also Python 2's); containers, numpy arrays, scipy matrices, tensors, ChumpyValue.

    Raises UnpickleError naming the file and what was refused.
    """
    check_download(path, UnpickleError)
    return _load(path, path.read_bytes())


def load_npy(path: Path) -> Any:
    """The content of a `.npy` file: an array, or, where it is an object array of one element, that element.

    Raises UnpickleError naming the file and what was refused.
    """
    check_download(path, UnpickleError)
    data = path.read_bytes()
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
            version
        ]
        shape, _, dtype = read_header(stream)
    except Exception as error:  # foreign bytes: numpy parses the header as Python's text and raises what that raises
        raise UnpickleError(f"{path}: not a readable .npy file ({type(error).__name__}: {error})") from error
    if dtype.hasobject:
        content = _load(path, data[stream.tell() :])
        return content.item() if isinstance(content, np.ndarray) and content.shape == () else content
    if math.prod(shape) * dtype.itemsize > len(data) - stream.tell():
        raise UnpickleError(
            f"{path}: cut short: the header declares {shape} {dtype}, the file has {len(data)} bytes. {AGAIN}"
        )
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:  # a version of the format that only its body is asked for
        raise UnpickleError(f"{path}: not a readable .npy file ({error})") from error


def _load(path: Path, data: bytes) -> Any:
    try:
        return _Resolver().resolve(_InertUnpickler(io.BytesIO(data), encoding="latin1").load())
    except UnpickleError as error:
        raise UnpickleError(f"{path}: {error}") from error
    except RecursionError as error:
        raise UnpickleError(f"{path}: nested too deeply for arrays") from error
    except EOFError as error:
        raise UnpickleError(f"{path}: damaged: cut short after {len(data)} bytes. {AGAIN}") from error
    except Exception as error:  # foreign bytes: the unpickler raises whatever it stumbles over
        cause = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise UnpickleError(f"{path}: damaged, cut short or not a pickle ({cause}). {AGAIN}") from error


class _Record:
    """One object of the pickle: the arguments it was made with, then state and items as they arrive."""

    maker: Callable[[_Record], Any]
    name: str
    args: tuple[Any, ...]
    state: Any
    items: dict[Any, Any]

    def __new__(cls, *args: Any) -> _Record:  # not __init__: pickles may make objects without calling it
        record = super().__new__(cls)
        record.args, record.state, record.items = args, None, {}
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value


# The unpickler written in Python: its memo is a dict, where the C one lets a forged index allocate gigabytes.
class _InertUnpickler(pickle._Unpickler):
    """Gives a new, inert class for each name on the list: a program that tampers with it tampers with nothing else."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    read: Callable[[int], bytes]  # of the file, and
    append: Callable[[Any], None]  # to the stack: both set while loading

    def load_bytearray8(self) -> None:
        """Python's own takes memory for the declared length before it looks at what is there."""
        (size,) = struct.unpack("<Q", self.read(8))
        data = self.read(size)
        if len(data) != size:
            raise UnpickleError(f"damaged: {len(data)} bytes where {size} are declared")
        self.append(bytearray(data))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        maker = MAKERS.get(full)
        if maker is None and re.fullmatch(r"chumpy(\.\w+)+", full):
            maker = _chumpy
        if maker is None:
            raise UnpickleError(f"refused: it wants to use {full}, which arrays do not need; nothing was executed")
        return type("Inert", (_Record,), {"maker": staticmethod(maker), "name": full})

    def persistent_load(self, pid: Any) -> Any:
        raise UnpickleError("refused: it refers to objects outside the file; nothing was executed")


class _Resolver:
    """Records to values, each once: shared parts stay shared, cycles are refused."""

    def __init__(self) -> None:
        self._done: dict[int, tuple[Any, Any]] = {}  # id to (raw, resolved); raw is kept so that its id stays taken
        self._open: set[int] = set()

    def resolve(self, value: Any) -> Any:
        if not isinstance(value, _Record | dict | list | tuple | set | frozenset):
            return value
        key = id(value)
        if key in self._done:
            return self._done[key][1]
        if key in self._open:
            raise UnpickleError("refused: it contains itself")
        self._open.add(key)
        result = self._convert(value)
        self._done[key] = value, result
        self._open.discard(key)
        return result

    def _convert(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self.resolve(key): self.resolve(element) for key, element in value.items()}
        if not isinstance(value, _Record):
            return type(value)(self.resolve(element) for element in value)
        resolved = type(value)(*(self.resolve(argument) for argument in value.args))
        resolved.state, resolved.items = self.resolve(value.state), self.resolve(value.items)
        return resolved.maker(resolved)


def _array(record: _Record) -> np.ndarray:
    """numpy's `_reconstruct`: an empty array, then state (version, shape, dtype, Fortran order, raw bytes or list)."""
    _, shape, dtype, fortran, raw = record.state
    return _from_bytes(raw, dtype, shape, "F" if fortran else "C")


def _array_from_buffer(record: _Record) -> np.ndarray:
    raw, dtype, shape, order = record.args
    return _from_bytes(raw, dtype, shape, order)


def _scalar(record: _Record) -> Any:
    dtype, raw = record.args
    return _from_bytes(raw, dtype, (), "C")[()]


def _from_bytes(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(dtype, np.dtype) or order not in ("C", "F") or not _is_shape(shape):
        raise UnpickleError("damaged: an array without a sound type or shape")
    if dtype.hasobject:
        if not isinstance(raw, list) or len(raw) != math.prod(shape):
            raise UnpickleError("damaged: an object array whose elements do not fill its shape")
        array = np.empty(len(raw), object)
        array[:] = raw
    else:
        data = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2 wrote bytes as text
        if not isinstance(data, bytes | bytearray) or len(data) != math.prod(shape) * dtype.itemsize:
            raise UnpickleError(f"damaged: an array of shape {shape} whose bytes do not fill it")
        array = np.frombuffer(data, dtype)
    return array.reshape(shape, order=order)


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, tuple) and len(shape) <= 8 and all(isinstance(side, int) and side >= 0 for side in shape)


def _dtype(record: _Record) -> np.dtype:
    text = record.args[0]
    if not isinstance(text, str) or not PLAIN_DTYPE.fullmatch(text):
        raise UnpickleError("refused: an array type other than numbers, text and objects")
    swapped = bool(record.state) and record.state[1] == (">" if np.little_endian else "<")
    return np.dtype(text).newbyteorder("S") if swapped else np.dtype(text)


def _sparse(record: _Record) -> Any:
    """A scipy matrix through its checking constructor, so that indices cannot point outside."""
    from scipy import sparse

    kind = record.name.rsplit(".", 1)[1][:3]
    state = record.state
    shape = state.get("_shape", state.get("shape"))
    if not _is_shape(shape):
        raise UnpickleError(f"damaged: a sparse matrix of shape {shape}")
    if kind == "coo":
        rows, columns = state["coords"] if "coords" in state else (state["row"], state["col"])
        return sparse.coo_matrix((state["data"], (rows, columns)), shape=shape)
    make = sparse.csc_matrix if kind == "csc" else sparse.csr_matrix
    matrix = make((state["data"], state["indices"], state["indptr"]), shape=shape)
    matrix.check_format(full_check=True)
    return matrix


def _reconstructed(record: _Record) -> Any:
    """`copyreg._reconstructor(class, object, None)`: how protocols 0 and 1 make objects."""
    made = record.args[0]()
    made.state = record.state
    return made.maker(made)


def _storage(record: _Record) -> Any:
    """All numbers of a tensor's storage, flat. It is a pickle of its own, which torch reads without executing it."""
    import torch

    with warnings.catch_warnings():  # that storages are about to change is nothing the user can act on
        warnings.simplefilter("ignore")
        try:
            storage = torch.load(io.BytesIO(record.args[0]), weights_only=True, map_location="cpu")
        except pickle.UnpicklingError as error:
            raise UnpickleError("refused: a tensor that holds more than numbers; nothing was executed") from error
        return torch.empty(0, dtype=storage.dtype).set_(storage)


def _tensor(record: _Record) -> Any:
    import torch

    numbers, offset, size, stride = record.args[:4]
    if not isinstance(numbers, torch.Tensor) or not _is_shape(size) or not _is_shape(stride):
        raise UnpickleError("damaged: a tensor without storage or shape")
    if math.prod(size) > len(numbers):  # strides of zero could repeat a number without end
        raise UnpickleError(f"damaged: a tensor of shape {size} on {len(numbers)} stored numbers")
    return numbers.as_strided(size, stride, offset).clone()


def _encoded(record: _Record) -> bytes:
    text, encoding = record.args
    if encoding != "latin1" or not isinstance(text, str):
        raise UnpickleError(f"refused: bytes encoded as {encoding!r}")
    return text.encode("latin1")


def _chumpy(record: _Record) -> ChumpyValue:
    return ChumpyValue(record.name, record.state if isinstance(record.state, dict) else {})


def _mapping(record: _Record) -> dict[Any, Any]:
    return {**dict(*record.args), **record.items}


def _no_value(record: _Record) -> Any:
    """A class that is only mentioned, as an argument of another record."""
    raise UnpickleError(f"refused: a bare {record.name}; nothing was executed")


def _empty_bytes(record: _Record) -> bytes:
    if record.args:
        raise UnpickleError("refused: bytes() of something; nothing was executed")
    return b""


# Everything a pickle may name, and what becomes of it.
MAKERS: dict[str, Callable[[_Record], Any]] = {
    "numpy.dtype": _dtype,
    "numpy.ndarray": _no_value,
    "collections.OrderedDict": _mapping,
    "_codecs.encode": _encoded,
    "builtins.object": _no_value,
    "__builtin__.object": _no_value,
    "__builtin__.bytes": _empty_bytes,
    "copyreg._reconstructor": _reconstructed,
    "copy_reg._reconstructor": _reconstructed,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _storage,
}
for _core in ("numpy.core", "numpy._core"):
    MAKERS[f"{_core}.multiarray._reconstruct"] = _array
    MAKERS[f"{_core}.multiarray.scalar"] = _scalar
    MAKERS[f"{_core}.numeric._frombuffer"] = _array_from_buffer
for _kind in ("csc", "csr", "coo"):
    for _module in ("scipy.sparse", f"scipy.sparse.{_kind}", f"scipy.sparse._{_kind}"):
        MAKERS[f"{_module}.{_kind}_matrix"] = MAKERS[f"{_module}.{_kind}_array"] = _sparse
