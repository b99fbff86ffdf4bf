"""Checks of downloaded files: error pages, Git-LFS pointers, empty and truncated files are named before reading."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

POINTER = b"version https://git-lfs"
ZIP = b"PK\x03\x04"
START = 512  # bytes that are inspected
NOTE = 1024  # bytes: a text shorter than this in the place of data is a server's answer ("404: Not Found")

AGAIN = "Download it again"
# How torch names a global that its weights-only unpickler refuses.
GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def check_download(path: str | Path, error: type[Exception], expected: str = "", text: bool = False) -> None:
    """Raise `error` where a file plainly has other content than expected, naming what was found and the next step.

    path: an existing file. expected: what it should be, as in "no PyTorch file". text: a text file is expected.
    """
    if found := wrong_content(path, text):
        raise error(f"{path}: {f'{expected} but ' if expected else ''}{found}")


def wrong_content(path: str | Path, text: bool = False) -> str | None:
    """Description of a file's unexpected content, and the next step; None where the first bytes look as expected."""
    source = Path(path)
    size = source.stat().st_size
    with source.open("rb") as file:
        start = file.read(START)
    if start.startswith(ZIP) and not zipfile.is_zipfile(source):
        return f"a damaged archive: cut short after {size} bytes, its end is missing. {AGAIN}"
    return _instead(start, size, text)


def read_tensors(path: str | Path, error: type[Exception]) -> Any:
    """Content of a `torch.save` file, on the CPU: tensors, numbers, text and containers. Nothing in it is executed.

    Raises `error` for anything else, without torch's advice to execute it.
    """
    import torch

    check_download(path, error, "no PyTorch file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        if named := GLOBAL.search(str(problem)):
            raise error(
                f"{path}: not a readable file of weights: it wants to use {named[1]}, which tensors do not need, and "
                "was not loaded; nothing was executed. Take the file from its publisher"
            ) from problem
        raise error(f"{path}: not a readable file of weights: damaged or no PyTorch file. {AGAIN}") from problem
    except Exception as problem:  # foreign bytes: torch raises whatever it stumbles over
        cause = " ".join(str(problem).split())[:160] or type(problem).__name__
        raise error(f"{path}: not a readable file of weights: damaged or cut short ({cause}). {AGAIN}") from problem


def _instead(start: bytes, size: int, text: bool) -> str | None:
    """`wrong_content` as far as the first bytes tell."""
    if not size:
        return f"an empty file. {AGAIN}"
    if start.startswith(POINTER):
        real = re.search(rb"\nsize (\d+)", start)
        whole = f" of {real[1].decode()} bytes" if real else ""
        return f"a Git-LFS pointer, not the file{whole} that it stands for. Run in its repository: git lfs pull"
    said = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if re.match(rb"<[!?A-Za-z][^\0]*$", said):  # numbers hold zeros among their first bytes, pages none
        return f"a web page (it starts with {_quoted(said)}): an error or a sign-in. {AGAIN}, signed in, with a browser"
    if not text and size < NOTE and re.fullmatch(rb"[\t\r\n -~]+", start) and not said.rstrip().endswith(b"."):
        return f"a text (it starts with {_quoted(said)}): a server's answer? {AGAIN}"
    return None


def _quoted(start: bytes) -> str:
    return repr(" ".join(start[:100].decode("latin1").split()))
