"""Pickles of head models are read; pickles that would do anything else are refused and do nothing."""

from __future__ import annotations

import builtins
import collections
import io
import os
import pickle
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from deca_core.assets.unpickle import ChumpyValue, UnpickleError, load_npy, load_pickle
from tests.deca_core.assets.flame_format import chumpy_array, fake_chumpy, python2_pickle
from tests.deca_core.conftest import Call

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def read(folder: Path, data: bytes) -> Any:
    path = folder / "some.pkl"
    path.write_bytes(data)
    return load_pickle(path)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_of_every_protocol(tmp_path, protocol):
    content = {
        "f8": np.linspace(0, 1, 6).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big-endian": np.arange(4, dtype=">i4"),
        "bool": np.array([True, False]),
        "text": np.array(["a", "bc"]),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.float32(2.5),
        "boxed": np.array([{"a": 1}, [2, np.ones(2)]], dtype=object),
        "plain": [1, (2.5, "x", b"y", b"", None, True)],
    }
    found = read(tmp_path, pickle.dumps(content, protocol=protocol))
    for key in ("f8", "fortran", "big-endian", "bool", "text", "empty"):
        np.testing.assert_array_equal(found[key], content[key])
        assert found[key].dtype == content[key].dtype
    assert found["scalar"] == 2.5
    assert found["boxed"][0] == {"a": 1}
    np.testing.assert_array_equal(found["boxed"][1][1], [1, 1])
    assert found["plain"] == content["plain"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", [sparse.csc_matrix, sparse.csr_matrix, sparse.coo_matrix, sparse.csc_array])
def test_sparse_matrices(tmp_path, kind, protocol):
    dense = np.array([[0, 1.5, 0], [2, 0, 0]])
    np.testing.assert_array_equal(read(tmp_path, pickle.dumps(kind(dense), protocol=protocol)).toarray(), dense)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
@pytest.mark.filterwarnings("error")
def test_tensors(tmp_path, protocol, dtype):
    base = torch.arange(24).reshape(4, 6).to(dtype)
    content = {"whole": base, "view": base[1:, ::2], "transposed": base.T}
    found = read(tmp_path, pickle.dumps(content, protocol=protocol))
    for key, expected in content.items():
        assert torch.equal(found[key], expected)
        assert found[key].dtype == dtype


def test_bytearrays_come_back_and_declare_nothing_that_is_not_there(tmp_path):
    """Python's own reader takes memory for the declared length first: a kilobyte could ask for gigabytes."""
    assert read(tmp_path, pickle.dumps([bytearray(b"abc"), bytearray(300)], protocol=5)) == [b"abc", bytes(300)]
    with pytest.raises(UnpickleError, match="1 bytes where 9007199254740992 are declared"):
        read(tmp_path, b"\x80\x05\x96" + struct.pack("<Q", 2**53) + b".")


def test_ordered_dictionaries_and_shared_parts(tmp_path):
    shared = np.arange(3)
    content = collections.OrderedDict([("b", shared), ("a", shared)])
    found = read(tmp_path, pickle.dumps(content))
    assert list(found) == ["b", "a"]
    assert found["a"] is found["b"]


def test_python2_pickles_with_chumpy(tmp_path):
    """As FLAME's authors wrote them: latin-1 text for bytes, old module paths, differentiable arrays."""
    value = np.random.default_rng(0).standard_normal((20, 3))
    with fake_chumpy() as ch:
        formula = ch()
        formula.__dict__ |= {"a": chumpy_array(ch, value), "idxs": 3}
        outer = ch()
        outer.__dict__ |= {"r": chumpy_array(ch, value)}
        content = {"v": chumpy_array(ch, value), "J": sparse.csc_matrix(value), "formula": formula, "outer": outer}
        data = python2_pickle(content)
    assert b"numpy.core" in data
    found = read(tmp_path, data)
    assert isinstance(found["v"], ChumpyValue)
    np.testing.assert_array_equal(found["v"].array(), value)
    np.testing.assert_array_equal(found["outer"].array(), value)
    np.testing.assert_array_equal(found["J"].toarray(), value)
    with pytest.raises(UnpickleError, match=r"chumpy\.ch\.Ch holds a formula.*a, idxs"):
        found["formula"].array()


def test_npy_files_plain_and_boxed(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(load_npy(path), np.arange(6.0).reshape(2, 3))
    np.save(path, np.array({"a": torch.ones(2)}, dtype=object), allow_pickle=True)
    assert torch.equal(load_npy(path)["a"], torch.ones(2))


# Attacks: each would create the file `marker` if anything of it were executed.


def npy(payload: bytes) -> bytes:
    """The payload as the content of an object array's file."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": ()})
    return stream.getvalue() + payload


def build_on_class(marker: str) -> bytes:
    """Tries to hang os.system on an allowed class as its way to take state."""
    return (
        b"cnumpy\ndtype\n(NU"
        + b"\x04dict}\x8c\x0c__setstate__cos\nsystem\nst"
        + b"b(S'touch "
        + marker.encode()
        + b"'\nt."
    )


ATTACKS: dict[str, Callable[[str], bytes]] = {
    "os.system": lambda marker: pickle.dumps(Call(os.system, f"touch {marker}")),
    "python 2 text": lambda marker: f"cos\nsystem\n(S'touch {marker}'\ntR.".encode(),
    "eval": lambda marker: pickle.dumps(Call(builtins.eval, f"open({marker!r}, 'w')")),
    "exec of python 2": lambda marker: f"c__builtin__\nexec\n(S\"open('{marker}', 'w')\"\ntR.".encode(),
    "open": lambda marker: pickle.dumps(Call(builtins.open, marker, "w")),
    "Popen": lambda marker: pickle.dumps(Call(subprocess.Popen, ["touch", marker])),
    "INST": lambda marker: f"(S'touch {marker}'\nios\nsystem\n.".encode(),
    "OBJ": lambda marker: f"(cos\nsystem\nS'touch {marker}'\no.".encode(),
    "inside an object array": lambda marker: pickle.dumps(np.array([Call(os.system, f"touch {marker}")], dtype=object)),
    "as an array's state": lambda marker: pickle.dumps({"v": [np.ones(2), Call(os.system, f"touch {marker}")]}),
    "through numpy": lambda marker: (
        f"cnumpy.testing._private.utils\nrunstring\n(S\"open('{marker}', 'w')\"\n}}tR.".encode()
    ),
    "through copyreg": lambda marker: f"ccopy_reg\n_reconstructor\n(cos\nsystem\nS'touch {marker}'\nNtR.".encode(),
    "through reconstruct": lambda marker: (
        f"cnumpy.core.multiarray\n_reconstruct\n(cos\nsystem\n(S'touch {marker}'\ntS'b'\ntR.".encode()
    ),
    "through a torch storage": lambda marker: pickle.dumps(
        Call(torch.storage._load_from_bytes, pickle.dumps(Call(os.system, f"touch {marker}")))
    ),
    "through a saved torch storage": lambda marker: pickle.dumps(
        Call(torch.storage._load_from_bytes, saved_by_torch(Call(os.system, f"touch {marker}")))
    ),
    "attribute of an allowed module": lambda marker: (
        b"\x80\x04\x8c\x05numpy\x8c\x0ef2py.os.system\x93\x8c" + bytes([len(marker)]) + marker.encode() + b"\x85R."
    ),
    "BUILD on a class": build_on_class,
}


def saved_by_torch(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("boxed", [False, True], ids=["pickle", "npy"])
def test_attacks_are_refused_and_do_nothing(tmp_path, attack, boxed):
    marker = tmp_path / "marker"
    data = ATTACKS[attack](str(marker))
    path = tmp_path / "evil"
    path.write_bytes(npy(data) if boxed else data)
    with pytest.raises(UnpickleError, match="evil: ") as caught:
        (load_npy if boxed else load_pickle)(path)
    assert not marker.exists()
    if attack in ("os.system", "Popen", "eval", "through numpy"):
        assert "refused: it wants to use" in str(caught.value)


@pytest.mark.parametrize("attack", ["os.system", "python 2 text", "open", "INST", "OBJ", "inside an object array"])
def test_the_attacks_work_on_the_ordinary_unpickler(tmp_path, attack):
    """Otherwise the test above could not fail."""
    marker = tmp_path / "marker"
    pickle.loads(ATTACKS[attack](str(marker)))  # noqa: S301 - our own payload, which touches a file
    assert marker.exists()


def test_chumpy_names_execute_nothing_either(tmp_path):
    """Any class of chumpy is taken, as an empty shell: a dotted name that would lead to os.system leads nowhere."""
    marker = tmp_path / "marker"
    command = f"touch {marker}".encode()
    data = b"\x80\x04\x8c\x06chumpy\x8c\x0cch.os.system\x93\x8c" + bytes([len(command)]) + command + b"\x85R."
    assert isinstance(read(tmp_path, data), ChumpyValue)
    assert not marker.exists()


def test_one_hostile_file_cannot_change_how_the_next_is_read(tmp_path):
    poison = b"\x80\x02cnumpy\ndtype\nN}U\x05makerI1\ns\x86b."  # slot state sets attributes on the class itself
    with pytest.raises(UnpickleError):
        read(tmp_path, poison)
    np.testing.assert_array_equal(read(tmp_path, pickle.dumps(np.arange(3))), [0, 1, 2])


ARRAY = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
F8 = b"cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R"


@pytest.mark.parametrize(
    "data",
    [
        ARRAY + b"(K\x01J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86" + F8 + b"\x89U\x08" + bytes(8) + b"tb.",  # a huge shape
        ARRAY + b"(K\x01J\xff\xff\xff\xff\x85" + F8 + b"\x89U\x08" + bytes(8) + b"tb.",  # a negative one
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",  # bytes of a terabyte
        b"\x80\x02" + b"(" * 10 + b".",
        b"\x80\x02]q\x00h\x00a.",  # a list that contains itself
        b"]" * 5000 + b"a" * 4999 + b".",  # nested 5000 deep
        b"Pelsewhere\n.",
        b"\x82\x01.",  # extension registry
        b"",
        b"not a pickle at all",
        pickle.dumps(np.arange(10))[:-20],
        b"cnumpy\ndtype\n(U\x0cf8,(1000000)f8K\x00K\x01tR.",
        pickle.dumps({"x": np.dtype([("a", "f8")])}),
        b"cnumpy\nndarray\n)R.",
    ],
)
def test_damaged_and_oversized_pickles_are_errors(tmp_path, data):
    with pytest.raises(UnpickleError):
        read(tmp_path, data)


def test_a_forged_memo_index_or_frame_takes_no_memory(tmp_path):
    assert read(tmp_path, b"\x80\x02]r\xfe\xff\xff\xff.") == []  # memo entry number 4 billion
    assert read(tmp_path, b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.") is None  # a frame of an exabyte


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    storage = torch.ones(4).__reduce_ex__(2)[1][0]
    for size, stride, offset in (((10**6,), (0,), 0), ((2, 2), (100, 1), 0), ((4,), (1,), 10**9), ((4,), (1,), -1)):
        forged = Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, collections.OrderedDict())
        with pytest.raises(UnpickleError):
            read(tmp_path, pickle.dumps(forged))


def test_a_sparse_matrix_that_points_outside_is_refused(tmp_path):
    matrix = sparse.csc_matrix(np.eye(3))
    matrix.indices[0] = 10**6
    with pytest.raises(UnpickleError):
        read(tmp_path, pickle.dumps(matrix))


@pytest.mark.parametrize("shape", [(10**7, 10**6), (4,)])
def test_a_cut_npy_file_is_refused_before_memory_is_taken(tmp_path, shape):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    (tmp_path / "x.npy").write_bytes(stream.getvalue() + bytes(8))
    with pytest.raises(UnpickleError, match="cut short"):
        load_npy(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x07\x00")
    with pytest.raises(UnpickleError, match="not a readable"):
        load_npy(tmp_path / "x.npy")


def test_a_version_of_npy_that_numpy_does_not_know_is_named(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    data = bytearray((tmp_path / "a.npy").read_bytes())
    data[7] = 116  # the minor number of the format's version
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(UnpickleError, match=r"a\.npy: not a readable"):
        load_npy(tmp_path / "a.npy")
