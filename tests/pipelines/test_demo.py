"""The demo's images: an independent detector finds the faces."""

from __future__ import annotations

from pipelines.demo import IMAGE_SIZE, write_photos
from schemas.annotate import AnnotateConfig
from tasks.annotate.annotators import load_annotator
from tasks.sources.images import decode_image


def test_photos_have_a_face_each(tmp_path):
    folder = write_photos(tmp_path / "photos", subjects=2)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["astronaut.png", "subject-00.jpg", "subject-01.jpg"]
    annotator = load_annotator(AnnotateConfig())
    for name in names:
        image = decode_image((folder / name).read_bytes())
        assert len(annotator.detect(image)) == 1, name
    assert image.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
