"""Hostile tables: Parquet files with images inside, lists of images, tables of identities, labels."""

from __future__ import annotations

import io
import json
import pickle
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.hostile.kinds import GOOD, INGEST, LIMIT_MIB, Ending, Files, jpeg, kind, left_out, quarantined, refused, rows

table = partial(kind, "table")


def parquet(columns: dict[str, Any], metadata: dict[bytes, bytes] | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    made = pa.table(columns)
    pq.write_table(made.replace_schema_metadata(metadata) if metadata else made, buffer, **options)
    return buffer.getvalue()


def one(name: str, ending: Ending, make: Callable[[], bytes], place: str = "t.parquet#image[0]", **more: Any) -> None:
    table(name, ending, place=place, **more)(lambda: {"t.parquet": make()})


def noted(note: bytes) -> Callable[[], bytes]:
    """A table of one face whose Hugging Face note is this."""
    return lambda: parquet({"image": pa.array([jpeg()])}, {b"huggingface": note})


def forged_footer(length: int) -> bytes:
    return parquet({"image": pa.array([jpeg()])})[:-8] + struct.pack("<I", length) + b"PAR1"


WHOLE = "t.parquet"

one("images that are nothing", quarantined("read", "no bytes"), lambda: parquet({"image": pa.array([None, jpeg()])}))
one("images that are text", quarantined("decode", "found text"), lambda: parquet({"image": pa.array([b"four"])}))
one("images that are numbers", left_out(), lambda: parquet({"image": pa.array([1, 2])}), "")
one(
    "an image of 270 MB",
    quarantined("read", "more than the limit"),
    lambda: parquet({"image": [b"x" * (270 * 10**6)]}, compression="none"),
    limit_mib=1100,
)
one(
    "images that are a bomb",
    quarantined("read", "unpack"),
    lambda: parquet({"image": [bytes(2**27)]}, compression="zstd"),
)
one("a note of Hugging Face that is no JSON", rows(), noted(b"{"))
one("a note of Hugging Face that is a list", rows(), noted(b"[1]"))
one("a note of Hugging Face of another form", rows(), noted(json.dumps({"info": {"features": ["image"]}}).encode()))
one("a note of Hugging Face nested without end", rows(), noted(b"[" * 100_000))
one("two columns of one name", quarantined("read", ""), lambda: twice(), WHOLE)
one("a column called with markup", rows(), lambda: parquet({"<b>": [jpeg()]}), "t.parquet#<b>[0]")
one("a column with a dot in its name", rows(), lambda: parquet({"a.b": [jpeg()]}), "t.parquet#a.b[0]")
one("two thousand columns", rows(), lambda: parquet({"image": [jpeg()], **{f"c{n}": [0] for n in range(2000)}}))
one("cut short", quarantined("read", "damaged"), lambda: parquet({"image": [jpeg()]})[:-9], WHOLE)
one("a footer longer than the file", quarantined("read", "damaged"), lambda: forged_footer(2**31 - 1), WHOLE)
one("a page with a flipped byte", quarantined("read", ""), lambda: flipped())
one("noise called Parquet", quarantined("read", "damaged"), lambda: b"PAR1" + b"\x07" * 500 + b"PAR1", WHOLE)


def twice() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array([jpeg()]), pa.array([b"x"])], names=["image", "image"]), buffer)
    return buffer.getvalue()


def flipped() -> bytes:
    data = bytearray(parquet({"image": pa.array([jpeg()])}, compression="zstd"))
    data[4:40] = bytes(36)
    return bytes(data)


# --- lists ------------------------------------------------------------------------------------------------------------

listed = partial(kind, "list")
LONG = "x" * 2_000_000


def a_list(file: str, name: str, ending: Ending, content: str | bytes, place: str = "", *more: str) -> None:
    """A kind of a list, which is the source."""
    data = content.encode() if isinstance(content, str) else content
    arguments = tuple(f"{{source}}/{file}" if argument == "{source}" else argument for argument in INGEST)
    listed(name, ending, place=place, arguments=(*arguments, *more))(lambda: {file: data})


a_list("l.txt", "a line of two million letters", refused("longer than"), f"{GOOD}\n{LONG}\n")
a_list("l.txt", "zero bytes", refused("control characters"), f"{GOOD}\na\0b.jpg\n")
a_list("l.txt", "no text", refused("not UTF-8"), b"\xff\xfe\x00j\x00p\x00g" * 9)
a_list("l.txt", "credentials in a URI", refused("credentials"), f"{GOOD}\nftp://user:planted@host/x.jpg\n")
a_list("l.txt", "a signed URL", refused("credentials"), f"{GOOD}\nhttps://host/x.jpg?X-Amz-Signature=planted\n")
a_list(
    "l.txt",
    "an unknown protocol",
    quarantined("read", "no file system"),
    f"{GOOD}\ngopher://h/x.jpg\n",
    "gopher://h/x.jpg",
)
a_list(
    "l.txt", "a protocol that needs more", quarantined("read", ""), f"{GOOD}\nreference://x.jpg\n", "reference://x.jpg"
)
a_list(
    "l.txt",
    "a chain of protocols",
    quarantined("read", ""),
    f"{GOOD}\nzip://x.jpg::file:///etc/passwd\n",
    "zip://x.jpg::file:///etc/passwd",
)
a_list("l.txt", "a file that is no image", quarantined("decode", "found text"), f"{GOOD}\n/etc/passwd\n", "/etc/passwd")
a_list(
    "l.txt",
    "a path that climbs",
    quarantined("read", "No such file"),
    f"{GOOD}\n{'../' * 64}nothing.jpg\n",  # climbs to the root from any folder
    "/nothing.jpg",
)
a_list("l.csv", "a missing value", refused("line 3: empty"), f"path,age\n{GOOD},3\nNaN,4\n")
a_list("l.csv", "a row that is too short", refused("columns where the header has"), f"age,path\n3,{GOOD}\n4\n")
a_list("l.csv", "an open quotation", refused("l.csv"), f'path\n{GOOD}\n"{LONG}\n')
a_list("l.csv", "no column of paths", refused("no column called"), "a,b\n1,2\n")
a_list(
    "l.csv", "a formula", quarantined("read", "No such file"), f"path\n{GOOD}\n=cmd|'/c calc'!A0\n", "=cmd|'/c calc'!A0"
)
a_list(
    "l.parquet",
    "numbers for paths",
    refused("not text"),
    parquet({"path": [1.5, float("nan")]}),
    "",
    "--set",
    "inputs.uri_column=path",
)
a_list(
    "l.parquet",
    "paths that are no text",
    refused("not UTF-8"),
    parquet({"path": pa.array([b"\xff\xfe"]).view(pa.string())}),
)

people = partial(kind, "list", arguments=(*INGEST[:-2], "--set", "identity.table={source}/p.csv"))


def identities(name: str, ending: Ending, content: bytes) -> None:
    people(name, ending, place=GOOD)(lambda: {"p.csv": content})


identities("identities without the columns", refused("p.csv"), b"a,b\n1,2\n")
identities("identities that contradict", refused("is said to be"), f"path,identity\n{GOOD},ann\n{GOOD},ben\n".encode())
identities("identities with zero bytes", refused("p.csv"), b"\0\0\0\0\0")
identities("identities of two million letters", refused("p.csv"), f"path,identity\n{GOOD},{LONG}\n".encode())
identities("identities with markup", rows(), f"path,identity\n{GOOD},<script>alert(1)</script>\n".encode())

# --- labels beside an image ------------------------------------------------------------------------------------------

LABELLED = (*INGEST, "--set", "annotate.landmarks=sidecar", "--set", "annotate.detect=sidecar")
LABELLED += ("--set", "filters.max_yaw=null")  # landmarks on a circle look aside


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def points() -> np.ndarray:
    """68 landmarks that lie where the astronaut's face is, roughly."""
    angle = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    return (np.stack([np.cos(angle), np.sin(angle)], 1) * 45 + [112, 90]).astype(np.float32)


def declared(shape: str, descr: str = "'<f4'") -> bytes:
    """A .npy file that declares a shape and contains no data."""
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(head)) + head


class _Touch:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("touch escaped",)


def label(name: str, ending: Ending, file: str, make: Callable[[], bytes], limit_mib: int = LIMIT_MIB) -> None:
    def files() -> Files:
        return {"x.jpg": jpeg(), file: make(), GOOD.replace(".jpg", ".npy"): npy(points())}

    kind("label", name, ending, place="x.jpg", arguments=LABELLED, limit_mib=limit_mib)(files)


label("landmarks that are not numbers", quarantined("detect", "not a number"), "x.npy", lambda: npy(points() * np.nan))
label("landmarks without end", quarantined("detect", "not a number"), "x.npy", lambda: npy(points() * np.inf))
label("landmarks far away", quarantined("detect", "outside the image"), "x.npy", lambda: npy(points() + 1e5))
label("landmarks in one place", quarantined("detect", "in one line"), "x.npy", lambda: npy(points() * 0))
label("67 landmarks", quarantined("detect", "expected 68"), "x.npy", lambda: npy(points()[1:]))
label("landmarks as a pickle", quarantined("detect", "not opened"), "x.npy", lambda: npy(np.array(_Touch(), object)))
label("a bare pickle as landmarks", quarantined("detect", "no .npy file"), "x.npy", lambda: pickle.dumps(_Touch()))
label("landmarks that declare a terabyte", quarantined("detect", "cut off"), "x.npy", lambda: declared(f"({2**38},)"))
label("landmarks of negative size", quarantined("detect", ""), "x.npy", lambda: declared("(-68, 2)"))
label(
    "landmarks of a type within a type",
    quarantined("detect", ""),
    "x.npy",
    lambda: declared("(68, 2)", "[('a', [('b', 'O')])]"),
)
label(
    "a header that is a program",
    quarantined("detect", ""),
    "x.npy",
    lambda: declared("__import__('os').system('touch escaped')"),
)
label("text with words for numbers", quarantined("detect", "not a point"), "x.txt", lambda: b"1 2\nouter eye\n" * 34)
label("a MATLAB file of noise", quarantined("detect", "no MATLAB file"), "x.mat", lambda: b"\x07" * 4000)
label("a MATLAB file that inflates", quarantined("detect", "unpacks to more"), "x.mat", lambda: matlab_bomb())


def matlab_bomb() -> bytes:
    """A compressed element of level 5 that unpacks to half a gigabyte."""
    from tests.hostile.images import zeros

    packed = zeros(2**29)
    head = b"MATLAB 5.0 MAT-file".ljust(116) + bytes(8) + b"\x00\x01IM"
    return head + struct.pack("<II", 15, len(packed)) + packed
