"""The annotate worker on each provider that has networks of its own: windows, sizes and weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from schemas.annotate import AnnotateConfig
from schemas.faces import annotations_schema
from schemas.ingest import IngestConfig
from schemas.ledger import Item
from schemas.parquet import fixed_values
from tasks.annotate.annotate import AnnotateWorker, CroppedFace, crop_face
from tasks.annotate.annotators import AnnotatorError, facexlib_provider, load_annotator
from tasks.annotate.annotators.geometry import cut
from tasks.annotate.find_faces import DecodedImage, Face
from tasks.sources.discover import discover


def worker(**annotate: object) -> AnnotateWorker:
    return AnnotateWorker(IngestConfig(source="-", dest="-", annotate=AnnotateConfig.model_validate(annotate)))


@pytest.fixture(scope="module")
def off_centre(face) -> tuple[np.ndarray, CroppedFace]:
    """The portrait in the corner of a larger image, and its crop."""
    image = np.full((700, 900, 3), 90, np.uint8)
    image[-face.shape[0] :, -face.shape[1] :] = face
    annotator = load_annotator(AnnotateConfig())
    (found,) = annotator.detect(image)
    points = annotator.landmarks(image, found)
    item = Item(0, "x.png")
    return image, crop_face(DecodedImage(item, image, annotator), Face(item, 0, (900, 700), found, points))


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["dlib", "facexlib"])
def test_the_mask_of_a_window_is_that_of_the_whole_image(provider, mirror, off_centre, monkeypatch):
    # Half of the classes: the skin of an untrained parser then has a share of about one half everywhere.
    monkeypatch.setitem(facexlib_provider.SKIN, "bisenet", tuple(range(10)))
    image, one = off_centre
    found = worker(segment=provider, weights_uri=None if provider == "dlib" else str(mirror))
    ((mask, _),) = found._segment([one])
    whole = found.annotator.segment(image, one.face.landmarks)
    expected = cut(whole, one.transform, len(mask)) >= 128
    assert 0.02 < expected.mean() < 0.98
    assert ((mask > 0) == expected).mean() > 0.999


@pytest.mark.slow
def test_descriptors_of_arcface(mirror, face, tmp_path):
    """Two equal faces go through together and get the answer of one alone; the column has the provider's length."""
    for name in "ab":
        Image.fromarray(face).save(tmp_path / f"{name}.png")
    both = worker(embed="facexlib", weights_uri=str(mirror))
    output = both.process(list(discover(str(tmp_path))))
    assert output.table.schema.equals(annotations_schema(512), check_metadata=True)
    codes = fixed_values(output.table, "embedding")
    points = fixed_values(output.table, "landmarks")[0]
    np.testing.assert_allclose(codes, np.stack([both.annotator.embed(face, points)] * 2), atol=1e-4)


def test_missing_weights_are_an_error_before_any_work(tmp_path: Path):
    """The worker cannot be built: no unit is started."""
    with pytest.raises(AnnotatorError, match=r"parsing_bisenet.pth(.|\n)*recognition_arcface_ir_se50.pth"):
        worker(provider="facexlib", weights_uri=str(tmp_path))
