"""`deca reconstruct --show`: the sheet beside the image, and what it refuses."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from pipelines.cli import main
from tests.pipelines.conftest import astronaut


@pytest.fixture
def deca(monkeypatch, capfd):
    """Runs `deca ...`: (exit code, what it printed)."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["deca", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capfd.readouterr()
        return int(end.value.code), printed.out + printed.err

    return run


def test_show_writes_the_sheet_beside_the_image(deca, tmp_path):
    astronaut().save(tmp_path / "photo.jpg", quality=95)
    code, printed = deca("reconstruct", tmp_path / "photo.jpg", "--show")
    assert code == 0, printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.jpg", "photo.jpg.deca.png"]
    assert "photo.jpg.deca.png" in printed
    sheet = np.asarray(Image.open(tmp_path / "photo.jpg.deca.png"))
    assert sheet.shape[1] == 6 * 228 - 4  # image, landmarks, mesh, shape, detail, displacement
    assert sheet.std() > 20


def test_show_takes_one_image_with_a_face(deca, tmp_path):
    Image.new("RGB", (100, 100), "teal").save(tmp_path / "wall.jpg")
    code, printed = deca("reconstruct", tmp_path, "--show")
    assert code == 1
    assert "--show takes one image" in printed
    code, printed = deca("reconstruct", tmp_path / "wall.jpg", "--show")
    assert code == 1
    assert "nothing to show (detect: no face found" in printed
    assert not (tmp_path / "wall.jpg.deca.png").exists()
    code, printed = deca("reconstruct", tmp_path / "wall.jpg")
    assert code == 1
    assert "DEST is missing" in printed
