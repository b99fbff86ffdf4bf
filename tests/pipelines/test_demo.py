"""The demo's pictures: a detector written elsewhere finds the faces in them."""

from __future__ import annotations

from pipelines.demo import IMAGE_SIZE, write_photos
from schemas.annotate import AnnotateConfig
from tasks.annotate.annotators import load_annotator
from tasks.sources.images import decode_image


def test_photos_hold_a_face_each(tmp_path):
    folder = write_photos(tmp_path / "photos", subjects=2)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["astronaut.png", "subject-00.jpg", "subject-01.jpg"]
    annotator = load_annotator(AnnotateConfig())
    for name in names:
        picture = decode_image((folder / name).read_bytes())
        assert len(annotator.detect(picture)) == 1, name
    assert picture.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
