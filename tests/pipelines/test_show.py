"""`deca reconstruct --show`: the sheet beside the image, and what it refuses."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tests.pipelines.conftest import astronaut


def test_show_writes_the_sheet_beside_the_image(deca, tmp_path):
    astronaut().save(tmp_path / "photo.jpg", quality=95)
    code, printed = deca("reconstruct", tmp_path / "photo.jpg", "--show")
    assert code == 0, printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.jpg", "photo.jpg.deca.png"]
    assert "photo.jpg.deca.png" in printed
    sheet = np.asarray(Image.open(tmp_path / "photo.jpg.deca.png"))
    assert sheet.shape[1] == 6 * 228 - 4  # image, landmarks, mesh, shape, detail, displacement
    assert sheet.std() > 20


def test_an_image_without_a_face_has_nothing_to_show(deca, tmp_path):
    Image.new("RGB", (100, 100), "teal").save(tmp_path / "wall.jpg")
    code, printed = deca("reconstruct", tmp_path / "wall.jpg", "--show")
    assert code == 1
    assert "nothing to show (detect: no face found" in printed
    assert not (tmp_path / "wall.jpg.deca.png").exists()
