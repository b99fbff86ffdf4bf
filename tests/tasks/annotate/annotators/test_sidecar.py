"""Labels beside images: in folders, buckets and archives, for one face and several, with and without a detector."""

from __future__ import annotations

import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from pydantic import ValidationError

from deca_world.lens import encode_jpeg
from schemas.annotate import AnnotateConfig, SidecarConfig
from schemas.engine import SourceConfig
from schemas.ledger import Item
from tasks.annotate.annotators import AnnotatorError, Detection, LabelError, load_annotator
from tasks.annotate.annotators.sidecar import SidecarAnnotator
from tasks.annotate.find_faces import FaceFinder
from tasks.sources.discover import discover
from tasks.sources.read import MAX_BYTES
from tests.tasks.annotate.annotators.test_skin import drawn_face
from tests.tasks.sources.archives import JAPANESE, shift_jis_zip, write_tar, write_zip
from tests.tasks.sources.test_labels import npy, png, pts, txt

IMAGE, POINTS = drawn_face(120)
JPEG = encode_jpeg(IMAGE, 95)
MASK = np.zeros((120, 120), np.uint8)
MASK[30:90, 40:80] = 255
SIDECAR = AnnotateConfig(provider="sidecar")


def files() -> dict[str, bytes]:
    """Name to content of a small labelled archive."""
    moved = npy(np.stack([POINTS * 0.3, POINTS * 0.5 + 50]))
    return {
        "a.jpg": JPEG,
        "a.npy": npy(POINTS),
        "a_mask.png": png(MASK),
        "sub/b.jpg": JPEG,
        "sub/b.txt": txt(POINTS + 1),
        "sub/two.jpg": JPEG,
        "sub/two.npy": moved,
        "c.jpg": JPEG,
    }


def in_folder(root: Path) -> str:
    for name, data in files().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


def in_bucket(root: Path) -> str:
    bucket = fsspec.filesystem("memory")
    for name, data in files().items():
        bucket.pipe_file(f"/{root.name}/{name}", data)
    return f"memory://{root.name}"


def in_zip(root: Path) -> str:
    return str(write_zip(root / "all.zip", files(), zipfile.ZIP_DEFLATED))


def in_tar(root: Path, mode: str = "w", name: str = "all.tar") -> str:
    return str(write_tar(root / name, [(f"./{member}", data) for member, data in files().items()], mode))


def items_of(source: str) -> dict[str, Item]:
    """The planned images by their own name."""
    found = discover(source, SourceConfig(exclude=("*_mask.png",)))
    return {item.source_uri.rpartition("/")[2].rpartition("#")[2]: item for item in found}


@pytest.mark.parametrize("place", [in_folder, in_bucket, in_zip, in_tar])
def test_labels_are_found_beside_the_image(tmp_path, place):
    items = items_of(place(tmp_path))
    annotator = load_annotator(SIDECAR)
    at_a = annotator.for_item(items["a.jpg"])
    (face,) = at_a.detect(IMAGE)
    np.testing.assert_array_equal(at_a.landmarks(IMAGE, face), POINTS)
    np.testing.assert_allclose(face.bbox, [*(POINTS.min(0) + 0.5), *(POINTS.max(0) + 0.5)])
    np.testing.assert_array_equal(at_a.segment(IMAGE, POINTS), MASK)
    at_b = annotator.for_item(items["b.jpg"])
    np.testing.assert_allclose(at_b.landmarks(IMAGE, at_b.detect(IMAGE)[0]), POINTS + 1, rtol=1e-6)
    with pytest.raises(LabelError, match=r"no mask beside .*b.jpg: looked for b_mask.png, b_mask.npy"):
        at_b.segment(IMAGE, POINTS)
    with pytest.raises(LabelError, match=r"no landmarks beside .*c.jpg: looked for c.npy, c.txt, c.mat"):
        annotator.for_item(items["c.jpg"]).detect(IMAGE)


def test_a_packed_tar_is_refused_with_the_way_out(tmp_path):
    items = items_of(in_tar(tmp_path, "w:gz", "all.tar.gz"))
    with pytest.raises(LabelError, match=r"packed tar are not supported.*as \.tar or \.zip"):
        load_annotator(SIDECAR).for_item(items["a.jpg"]).detect(IMAGE)


def test_several_faces_largest_first_each_with_its_own_landmarks(tmp_path):
    items = items_of(in_folder(tmp_path))
    annotator = load_annotator(SIDECAR).for_item(items["two.jpg"])
    large, small = annotator.detect(IMAGE)
    np.testing.assert_allclose(annotator.landmarks(IMAGE, large), POINTS * 0.5 + 50, rtol=1e-6)
    np.testing.assert_allclose(annotator.landmarks(IMAGE, small), POINTS * 0.3, rtol=1e-6)
    one = load_annotator(AnnotateConfig(provider="sidecar", max_faces=1)).for_item(items["two.jpg"])
    assert one.detect(IMAGE) == [large]


def test_labels_go_to_the_face_that_a_detector_found(tmp_path):
    items = items_of(in_folder(tmp_path))
    annotator = load_annotator(AnnotateConfig(landmarks="sidecar")).for_item(items["two.jpg"])
    x0, y0, x1, y1 = (POINTS.min(0) * 0.3).tolist() + (POINTS.max(0) * 0.3).tolist()
    loose = Detection((x0 - 3, y0 - 5, x1 + 2, y1 + 1), 0.4)
    np.testing.assert_allclose(annotator.landmarks(IMAGE, loose), POINTS * 0.3, rtol=1e-6)
    with pytest.raises(LabelError, match=r"no labels for the face at .*2 labelled faces lie elsewhere"):
        annotator.landmarks(IMAGE, Detection((100, 0, 119, 10), 1.0))


def test_a_mask_of_another_size(tmp_path):
    items = items_of(in_folder(tmp_path))
    annotator = load_annotator(SIDECAR).for_item(items["a.jpg"])
    with pytest.raises(LabelError, match=r"a_mask.png: the mask has 120 x 120 pixels, the image 120 x 100"):
        annotator.segment(IMAGE[:100], POINTS)


def test_landmarks_of_ibug(tmp_path):
    (item,) = discover(str(write_zip(tmp_path / "all.zip", {"p/x.jpg": JPEG, "p/x.pts": pts(POINTS)})))
    config = AnnotateConfig(provider="sidecar", sidecar=SidecarConfig(landmarks=("{stem}.pts",)))
    annotator = load_annotator(config).for_item(item)
    np.testing.assert_allclose(annotator.landmarks(IMAGE, annotator.detect(IMAGE)[0]), POINTS, atol=1e-4)


def test_a_label_map_is_read_with_the_setting(tmp_path):
    in_folder(tmp_path)
    (tmp_path / "a_mask.png").write_bytes(png(np.where(MASK, 10, 17).astype(np.uint8)))  # nose and hair
    item = items_of(str(tmp_path))["a.jpg"]
    config = AnnotateConfig(provider="sidecar", sidecar=SidecarConfig(mask_values="face-parsing"))
    np.testing.assert_array_equal(load_annotator(config).for_item(item).segment(IMAGE, POINTS), MASK)
    with pytest.raises(LabelError, match=r"a_mask.png: .*values 10, 17 .*--set annotate.sidecar.mask_values"):
        load_annotator(SIDECAR).for_item(item).segment(IMAGE, POINTS)


def test_labels_outside_the_image(tmp_path):
    items = items_of(in_folder(tmp_path))
    with pytest.raises(LabelError, match=r"lies outside the image of 20 x 20 pixels"):
        load_annotator(SIDECAR).for_item(items["a.jpg"]).detect(IMAGE[:20, :20])


def test_a_parallel_folder_and_full_names(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "photos" / "x.y.jpg").write_bytes(JPEG)
    (tmp_path / "labels" / "x.y.jpg.npy").write_bytes(npy(POINTS))
    (tmp_path / "labels" / "x.y.npy").write_bytes(npy(MASK))
    config = SidecarConfig(landmarks=("../labels/{name}.npy",), mask=("../labels/{stem}.npy",))
    (item,) = discover(str(tmp_path / "photos"))
    annotator = load_annotator(AnnotateConfig(provider="sidecar", sidecar=config)).for_item(item)
    assert len(annotator.detect(IMAGE)) == 1
    np.testing.assert_array_equal(annotator.segment(IMAGE, POINTS), MASK)


def test_each_image_has_its_own_labels_and_reads_them_once(tmp_path, monkeypatch):
    items = items_of(in_folder(tmp_path))
    reads: list[str] = []
    monkeypatch.setattr(
        "tasks.annotate.annotators.sidecar.read_item",
        lambda item, limit: reads.append(item.uri) or Path(item.uri).read_bytes(),
    )
    annotator = load_annotator(SIDECAR)
    for name in ("a.jpg", "b.jpg"):
        bound = annotator.for_item(items[name])
        bound.landmarks(IMAGE, bound.detect(IMAGE)[0])
    assert [Path(uri).name for uri in reads if Path(uri).exists()] == ["a.npy", "b.txt"]


def test_labels_need_for_item():
    with pytest.raises(AnnotatorError, match="for_item"):
        SidecarAnnotator(SIDECAR).detect(IMAGE)


def test_one_bad_label_costs_one_image(tmp_path):
    """Up to the landmarks: 67 points and NaNs are quarantined with their reason."""
    nan = POINTS.copy()
    nan[5] = np.nan
    for name, label in {"a": npy(POINTS), "b": npy(POINTS[:67]), "c": npy(nan), "d": None, "e": npy(POINTS)}.items():
        (tmp_path / f"{name}.jpg").write_bytes(JPEG)
        if label is not None:
            (tmp_path / f"{name}.npy").write_bytes(label)
    quarantine: list = []
    finder = FaceFinder(load_annotator(SIDECAR), SIDECAR, MAX_BYTES)
    faces = [face for found in finder.find(list(discover(str(tmp_path))), quarantine) for _, face in found]
    assert [Path(face.item.uri).name for face in faces] == ["a.jpg", "e.jpg"]
    np.testing.assert_array_equal(faces[0].landmarks, POINTS)
    assert [(Path(row.uri).name, row.stage, row.error) for row in quarantine] == [
        (f"{name}.jpg", "detect", "LabelError") for name in "bcd"
    ]
    assert "67" in quarantine[0].message
    assert "point 5 of face 0 is not a number" in quarantine[1].message


def test_an_identity_beside_the_image_whatever_provider_does_the_steps(tmp_path):
    in_folder(tmp_path)
    (tmp_path / "a.identity.txt").write_text("  Ada Lovelace \nanything\n")
    (tmp_path / "sub" / "b.identity.txt").write_bytes(b"\xef\xbb\xbfn\xc3\xa9e\r\n")
    (tmp_path / "c.name.txt").write_text("7")
    items = items_of(str(tmp_path))
    patterns = ("{stem}.identity.txt", "{stem}.name.txt")
    sidecar = SidecarAnnotator(AnnotateConfig(sidecar=SidecarConfig(identity=patterns)))
    found = {name: sidecar.for_item(item).identity() for name, item in items.items()}
    assert found == {"a.jpg": "Ada Lovelace", "b.jpg": "née", "c.jpg": "7", "two.jpg": None}
    assert SidecarAnnotator(AnnotateConfig()).for_item(items["a.jpg"]).identity() is None


def test_an_identity_inside_an_archive(tmp_path):
    (item,) = discover(str(write_zip(tmp_path / "all.zip", {"p/x.jpg": JPEG, "p/x.txt": b"Ada\n"})))
    config = AnnotateConfig(sidecar=SidecarConfig(identity=("{stem}.txt",)))
    assert SidecarAnnotator(config).for_item(item).identity() == "Ada"


def test_labels_in_a_zip_with_names_of_another_encoding(tmp_path):
    """The image is planned under its Japanese name; the label beside it is found all the same."""
    path = shift_jis_zip(tmp_path / "all.zip", {JAPANESE: JPEG, JAPANESE[:-3] + "txt": b"Hanako"})
    (item,) = discover(str(path), SourceConfig(zip_encoding="cp932"))
    config = AnnotateConfig(sidecar=SidecarConfig(identity=("{stem}.txt",)))
    assert item.member == JAPANESE
    assert SidecarAnnotator(config).for_item(item).identity() == "Hanako"


@pytest.mark.parametrize(
    "wrong",
    [
        {"landmarks": ["x.npy"]},
        {"landmarks": ["{stem}.pkl"]},
        {"mask": []},
        {"masks": []},
        {"identity": ["identity.txt"]},
        {"identity": ["{stem}.json"]},
        {"mask_values": []},
        {"mask_values": [-1]},
        {"mask_values": "celeba"},
    ],
)
def test_patterns_are_checked(wrong):
    with pytest.raises(ValidationError):
        SidecarConfig.model_validate(wrong)


def test_a_text_file_means_points_or_a_subject_not_both():
    both = SidecarConfig(identity=("{stem}.txt",))
    with pytest.raises(ValidationError, match=r"\{stem\}.txt is named for landmarks and for identity"):
        AnnotateConfig(provider="sidecar", sidecar=both)
    assert AnnotateConfig(segment="sidecar", sidecar=both).sidecar == both
