"""What is stored in place of a file is named, with the next step; sound files of every kind pass."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save

from deca_core.downloads import check_download, read_tensors
from deca_core.errors import DecaError

PAGE = b"<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title>" + b"x" * 5000
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 434142943\n"


def written(write: Callable[[io.BytesIO], Any]) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


HONEST = {
    "torch zip": written(lambda file: torch.save({"a": torch.zeros(3)}, file)),
    "torch before 1.6": written(
        lambda file: torch.save({"a": torch.zeros(3)}, file, _use_new_zipfile_serialization=False)
    ),
    "pickle 0": pickle.dumps({"v": [1, 2.5]}, protocol=0),
    "pickle 2": pickle.dumps({"v": [1, 2.5]}, protocol=2),
    "npy": written(lambda file: np.save(file, np.zeros(3))),
    "npz": written(lambda file: np.savez(file, a=np.zeros(3))),
    "png": written(lambda file: Image.new("L", (2, 2)).save(file, "PNG")),
    # A header of 60 bytes begins with the character "<".
    "safetensors": save({"a" * 10: np.zeros(1, np.float32)}),
    "safetensors of 60": (60).to_bytes(8, "little")
    + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(60)
    + bytes(4),
    "dlib": b"\x01\x01\x01\rloss_metric_2\x03\n\xd7\xa3\x81\x1c\x03",
}


@pytest.mark.parametrize("kind", HONEST)
def test_honest_files_pass(tmp_path, kind):
    (tmp_path / "file").write_bytes(HONEST[kind])
    check_download(tmp_path / "file", DecaError)


def test_a_mesh_is_text(tmp_path):
    (tmp_path / "head.obj").write_text("v 0 0 0\n")
    check_download(tmp_path / "head.obj", DecaError, text=True)
    with pytest.raises(DecaError, match="a text"):
        check_download(tmp_path / "head.obj", DecaError)


FOREIGN = [
    (b"", "an empty file. Download it again"),
    (PAGE, r"a web page \(it starts with '<!DOCTYPE html>.*Virus scan warning.*Download it again"),
    (b"\xef\xbb\xbf\r\n <?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page.*AccessDenied"),
    (POINTER, r"a Git-LFS pointer, not the file of 434142943 bytes .*git lfs pull"),
    (b"404: Not Found", "a text .*'404: Not Found'.*Download it again"),
    (b'{"message": "Bad credentials"}\n', "a text .*Bad credentials"),
    (HONEST["npz"][:-30], r"a damaged archive: cut short after \d+ bytes"),
]


@pytest.mark.parametrize(("data", "says"), FOREIGN)
def test_what_is_stored_instead_is_named(tmp_path: Path, data, says):
    path = tmp_path / "weights.bin"
    path.write_bytes(data)
    with pytest.raises(DecaError, match=rf"weights\.bin: no weights but {says}"):
        check_download(path, DecaError, "no weights")
    with pytest.raises(DecaError, match=rf"weights\.bin: no PyTorch file but {says}"):
        read_tensors(path, DecaError)


@pytest.mark.parametrize("kind", ["torch zip", "torch before 1.6"])
def test_tensors_cut_anywhere_are_called_damaged(tmp_path, kind):
    data, path = HONEST[kind], tmp_path / "deca_model.tar"
    for end in range(20, len(data) - 1, len(data) // 23):
        path.write_bytes(data[:end])
        # A file that ends within a name of the pickle seems to use another one.
        with pytest.raises(DecaError, match=r"deca_model\.tar: .*(damaged|cut short|publisher)") as caught:
            read_tensors(path, DecaError)
        assert "weights_only" not in str(caught.value)
