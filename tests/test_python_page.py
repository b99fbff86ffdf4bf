"""docs/python.md as it stands: every block, one after the other, on a real photograph."""

from __future__ import annotations

import re
from pathlib import Path

import av
import pytest
import torch

from pipelines.reconstruct import reconstruct
from schemas.reconstruct import ReconstructConfig
from tests.pipelines.conftest import astronaut

PAGE = Path(__file__).resolve().parents[1] / "docs" / "python.md"


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGE.read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) > 4
    monkeypatch.chdir(tmp_path)
    astronaut().save("photo.jpg", quality=95)
    reconstruct(
        ReconstructConfig.model_validate(
            {"source": "photo.jpg", "dest": "heads", "precision": "fp32", "ray": {"workers": 0}}
        )
    )
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    assert re.search(r"\n```\n(\{.*?\})\n```", text, re.DOTALL).group(1) in printed  # type: ignore[union-attr]
    assert float(re.search(r"lie (\d+) pixels", printed).group(1)) < 30  # type: ignore[union-attr]
    assert 5 < float(re.search(r"moved: (\d+) mm", printed).group(1)) < 40  # type: ignore[union-attr]
    assert Path("head.glb").read_bytes()[:4] == b"glTF"
    with av.open("talk.mp4") as clip:
        assert len(list(clip.decode(video=0))) == 10
    codes, again = names["codes"], names["heads"]
    assert torch.allclose(codes.exp, again.codes.exp, atol=0.02)  # type: ignore[attr-defined]
