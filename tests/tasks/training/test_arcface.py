"""facexlib's ArcFace behind the protocol of the identity loss: its file, its features, its refusals."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from deca_core.recognition import RecognitionError
from tasks.training.arcface import ARCFACE_FILE, ArcFace, load_arcface


def test_refusals(tmp_path):
    with pytest.raises(RecognitionError, match=ARCFACE_FILE):
        load_arcface(tmp_path)
    (tmp_path / ARCFACE_FILE).write_bytes(b"not weights")
    with pytest.raises(RecognitionError, match=r"ir_se50\.pth: a text \(it starts with 'not weights'\)"):
        load_arcface(tmp_path)
    torch.save({"other": torch.zeros(1)}, tmp_path / ARCFACE_FILE)
    with pytest.raises(RecognitionError, match="not the weights of facexlib's ArcFace"):
        load_arcface(tmp_path)


def test_arcface(tmp_path):
    """The library's own network, saved under its own file name, gives the same features through the protocol."""
    from facexlib.recognition.arcface_arch import Backbone

    torch.manual_seed(0)
    original = Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se").eval()
    torch.save(original.state_dict(), tmp_path / ARCFACE_FILE)
    network = load_arcface(tmp_path)
    assert isinstance(network, ArcFace)
    assert network.name.startswith("arcface-ir-se50-")
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(
        memory_format=torch.channels_last
    )
    with torch.inference_mode():
        found = network.features(images)
        bgr = images[:, [2, 1, 0], 10:214, 10:214] * 2 - 1
        small = functional.interpolate(bgr, (112, 112), mode="bilinear", antialias=True)
        torch.testing.assert_close(found, original(small.contiguous()))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
