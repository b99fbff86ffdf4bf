"""Images on their side: what the quarantine row says, and where it says nothing."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
from PIL import Image

from schemas.annotate import AnnotateConfig
from schemas.ledger import Item, Quarantined
from tasks.annotate.annotators import Detection, load_annotator
from tasks.annotate.find_faces import FaceFinder
from tasks.annotate.turned import LOOK_SIDE, TURNS, turned_hint
from tasks.sources.images import ORIENTATION_TAG, UPRIGHT, decode_image
from tasks.sources.read import MAX_BYTES


def portrait() -> Image.Image:
    return Image.fromarray(skimage.data.astronaut()).crop((64, 0, 384, 240))


def lying(orientation: int) -> Image.Image:
    """The portrait as a camera stores it that writes this orientation: turning it as EXIF says puts it upright."""
    back = {
        Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
        Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
        Image.Transpose.ROTATE_180: Image.Transpose.ROTATE_180,
    }
    return portrait().transpose(back[UPRIGHT[orientation]])


def reasons(tmp_path, images: dict[str, Image.Image], config: AnnotateConfig, **item: object) -> dict[str, str]:
    for name, image in images.items():
        image.save(tmp_path / name)
    finder, quarantine = FaceFinder(load_annotator(config), config, MAX_BYTES), list[Quarantined]()
    items = [Item(index, str(tmp_path / name), **item) for index, name in enumerate(images)]
    list(finder.find(items, quarantine))
    return {row.uri.rpartition("/")[2]: row.message for row in quarantine}


def test_a_lost_orientation_is_named_and_right(tmp_path):
    images = {f"{orientation}.png": lying(orientation) for orientation in TURNS.values()}
    images |= {"upright.png": portrait(), "coffee.png": Image.fromarray(skimage.data.coffee())}
    found = reasons(tmp_path, images, AnnotateConfig())
    for degrees, orientation in TURNS.items():
        assert found[f"{orientation}.png"].endswith(
            f"; turned by {degrees} degrees clockwise it shows one: is its EXIF orientation ({orientation}) lost? "
            "Turn the file"
        )
    assert found["coffee.png"] == "no face found in the image of 600 x 400 pixels"
    assert "upright.png" not in found
    # What the hint says is what helps: with that orientation in its EXIF the image decodes upright.
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    lying(6).save(tmp_path / "mended.png", exif=exif)
    np.testing.assert_array_equal(decode_image((tmp_path / "mended.png").read_bytes()), np.asarray(portrait()))


def test_no_hint_for_one_face_that_is_tried_again_nor_for_frames(tmp_path):
    found = reasons(tmp_path, {"a.png": lying(3)}, AnnotateConfig(), face_index=0)
    assert found["a.png"] == "no face found in the image of 320 x 240 pixels"


def test_the_surest_turn_wins_and_the_look_is_small():
    seen = []

    def detect(images):
        seen.extend(image.shape for image in images)
        box = (0.0, 0.0, 9.0, 9.0)
        return [[Detection(box, 0.2)], [], [Detection(box, 0.1), Detection(box, 0.9)]]

    hint = turned_hint(np.zeros((3000, 4000, 3), np.uint8), detect)
    assert "turned by 270 degrees" in hint
    assert seen == [
        (LOOK_SIDE, LOOK_SIDE * 3 // 4, 3),
        (LOOK_SIDE * 3 // 4, LOOK_SIDE, 3),
        (LOOK_SIDE, LOOK_SIDE * 3 // 4, 3),
    ]


@pytest.mark.parametrize("size", [(1, 1, 3), (1, 5000, 3)])
def test_a_detector_that_fails_costs_the_hint_only(size):
    def detect(images):
        raise RuntimeError("too small")

    assert turned_hint(np.zeros(size, np.uint8), detect) == ""
