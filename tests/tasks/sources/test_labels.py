"""Label files: what is read, and what each damaged or hostile one is refused with."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tasks.sources.labels import LabelError, read_identity, read_landmarks, read_mask
from tests.tasks.sources.test_matlab import saved as mat

POINTS = np.random.default_rng(0).uniform(10, 90, (68, 2)).astype(np.float32)


def npy(array, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def txt(points) -> bytes:
    return "\n".join(f"{x} {y}" for x, y in points.tolist()).encode()


def png(array, colours: list[int] | None = None) -> bytes:
    """colours: r, g, b, r, g, b ... of the palette that the array's values are indices of."""
    image = Image.fromarray(array, None if colours is None else "P")
    if colours is not None:
        image.putpalette(colours)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def pts(points, head: str = "version: 1\nn_points: 68\n") -> bytes:
    """As ibug's files: counted from 1."""
    lines = "\n".join(f"{x + 1} {y + 1}" for x, y in points.tolist())
    return f"{head}{{\n{lines}\n}}\n".encode()


PT3D = np.concatenate([POINTS.T, np.full((1, 68), 5.0)])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.npy", npy(POINTS)),
        ("a.npy", npy(POINTS.astype(np.float64))),
        ("a.npy", npy(POINTS[None])),
        ("a.NPY", npy(np.asfortranarray(POINTS))),
        ("a.txt", txt(POINTS)),
        ("a.txt", b"# x, y\n\n" + txt(POINTS).replace(b" ", b", ") + b"\n"),
        ("a.mat", mat(pt3d_68=PT3D, roi=np.ones(4), Illum_Para=np.ones((1, 10)))),
        ("a.mat", mat(pt3d_68=PT3D[:2])),
        ("a.pts", pts(POINTS)),
        ("a.PTS", pts(POINTS, "version: 1.0 \r\nn_points:  68\r\n").replace(b"\n", b"\r\n")),
    ],
    ids=range(10),
)
def test_landmarks_of_every_kind(name, data):
    found = read_landmarks(data, name)
    assert found.shape == (1, 68, 2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], POINTS, rtol=1e-6)


def test_several_faces_and_none():
    assert read_landmarks(npy(np.stack([POINTS, POINTS + 5])), "a.npy").shape == (2, 68, 2)
    assert read_landmarks(npy(np.zeros((0, 68, 2))), "a.npy").shape == (0, 68, 2)


NAN = POINTS.copy()
NAN[7, 1] = np.nan
INFINITE = POINTS.copy()
INFINITE[3] = np.inf


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.npy", npy(POINTS[:67]), "expected 68 points .* found an array 1 x 67 x 2"),
        ("a.npy", npy(np.zeros((68, 3))), "1 x 68 x 3"),
        ("a.npy", npy(np.float32(3)), "one value"),
        ("a.npy", npy(NAN), "point 7 of face 0 is not a number"),
        ("a.npy", npy(INFINITE), "point 3 of face 0"),
        ("a.npy", npy(np.ones((68, 2))), "one line or one place"),
        ("a.npy", npy(POINTS)[:-5], "cut off"),
        ("a.npy", npy(POINTS) + b"more", "cut off or damaged"),
        ("a.npy", b"", "no .npy file"),
        ("a.npy", b"PK\x03\x04" + b"0" * 100, "no .npy file"),
        ("a.npy", npy(np.array([{"a": 1}], object), allow_pickle=True), "it was not opened"),
        ("a.npy", npy(np.array(["x"] * 68)), "it was not opened"),
        ("a.txt", txt(POINTS[:67]), "67 x 2"),
        ("a.txt", b"", "0 x 2"),
        ("a.txt", txt(POINTS) + b"\n1 2 3", "line 69 is not a point"),
        ("a.txt", b"version: 1\n", "line 1 is not a point .*10 characters"),
        ("a.txt", txt(NAN), "point 7"),
        ("a.txt", b"\xff\xfe\x00\x01", "line 1"),
        ("a.mat", mat(other=PT3D), "no variable pt3d_68; it holds other"),
        ("a.mat", mat(pt3d_68=PT3D[:, :67]), r"should be \(3, 68\), it is \(3, 67\)"),
        ("a.mat", mat(pt3d_68=np.full((3, 68), "x", object)), "no real numbers"),
        ("a.mat", b"junk" * 50, "no MATLAB file of level 5"),
        ("a.mat", mat(pt3d_68=PT3D)[:-200], "an element of"),
        ("a.mat", b"", "no MATLAB file of level 5"),
        ("a.pts", pts(POINTS[:66], "version: 1\nn_points: 66\n"), "n_points: 66, where the 68 points of ibug"),
        ("a.pts", pts(POINTS[:67]), "67 x 2"),
        ("a.pts", pts(POINTS)[:-10], "no .pts file"),
        ("a.pts", txt(POINTS), "no .pts file"),
        ("a.pts", pts(POINTS).replace(b"{\n", b"{\n1 2 3\n"), "line 4 is not a point"),
        ("a.pts", pts(NAN), "point 7"),
    ],
    ids=range(30),
)
def test_wrong_landmarks_say_what_is_wrong(name, data, message):
    with pytest.raises(LabelError, match=message) as caught:
        read_landmarks(data, name)
    assert str(caught.value).startswith("a.")


def test_a_huge_declared_array_takes_no_memory():
    """The header asks for 10 TB; it is compared with the bytes that are there."""
    real = npy(np.zeros((1, 68, 2)))
    at = real.index(b"(1, 68, 2), }")
    header = real[:at] + b"(9999999999, 68, 2), }" + real[at + 22 :]
    with pytest.raises(LabelError, match="cut off or damaged"):
        read_landmarks(header, "a.npy")


def test_the_first_pixel_of_a_pts_file_is_one():
    """300-W's coordinates are MATLAB's: the centre of the first pixel is (1, 1) there and (0, 0) here."""
    written = "\n".join(["1 1", "2 3", *["40.5 17.25"] * 66])
    found = read_landmarks(f"version: 1\nn_points: 68\n{{\n{written}\n}}".encode(), "a.pts")
    assert found[0, :3].tolist() == [[0, 0], [1, 2], [39.5, 16.25]]


HALF = np.zeros((20, 30), np.uint8)
HALF[5:15, 8:20] = 1
SOFT = HALF * 255  # with a rim of every grey
SOFT[4, 8:20], SOFT[15, 8:20] = np.linspace(1, 127, 12), np.linspace(20, 100, 12)
SOFT[5, 8:20] = np.linspace(128, 254, 12)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("m.png", png(HALF * 255)),
        ("m.png", png(HALF)),
        ("m.png", png(HALF * 200 + 20)),
        ("m.png", png((HALF * 255)[..., None].repeat(3, axis=2))),
        ("m.png", png(SOFT)),
        ("m.png", png(HALF.astype(bool))),
        ("m.png", png(HALF.astype(np.uint16) * 65535)),
        ("m.png", png(HALF.astype(np.uint16) * 255)),
        ("m.png", png(HALF.astype(np.uint16))),
        ("m.png", png(HALF, [0, 0, 0, 255, 255, 255])),
        ("m.png", png(1 - HALF, [255, 255, 255, 0, 0, 0])),  # black and white count, not their places
        ("m.png", png(HALF * 2, [0, 0, 0, 9, 9, 200, 255, 255, 255])),  # nor what is not used
        ("m.png", png(HALF, [0, 0, 0, 0, 128, 0])),  # the first class of a coloured map
        ("m.npy", npy(HALF)),
        ("m.npy", npy(HALF.astype(bool))),
        ("m.npy", npy(HALF.astype(np.float32) * 0.9)),
        ("m.npy", npy(HALF.astype(np.int64) * 255)),
        ("m.npy", npy(HALF.astype(np.uint16) * 65535)),
        ("m.npy", npy(SOFT)),
        ("m.npy", npy(SOFT.astype(np.float32))),
        ("m.npy", npy(HALF * 15.0)),  # as DECA's training data: above 0.5, to 15
        ("m.npy", npy(HALF * np.linspace(0.6, 15, 30, dtype=np.float16))),
        ("m.npy", npy(HALF * 1.04 - 0.02)),  # resampled with overshoot
    ],
    ids=range(23),
)
def test_masks_whose_values_are_unambiguous(name, data):
    mask = read_mask(data, name)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, HALF * 255)


CLASSES = np.zeros((20, 30), np.uint8)
CLASSES[2:18, 2:28] = np.arange(26) % 19  # every class of a map of 19
FACE_PARTS = {  # the order in which each data set numbers them, from 1
    "celebamask-hq": "skin nose eye_g l_eye r_eye l_brow r_brow l_ear r_ear "
    "mouth u_lip l_lip hair hat ear_r neck_l neck cloth",
    "face-parsing": "skin l_brow r_brow l_eye r_eye eye_g l_ear r_ear ear_r "
    "nose mouth u_lip l_lip neck neck_l cloth hair hat",
}
SKIN_PARTS = {"skin", "nose", "l_brow", "r_brow", "u_lip", "l_lip"}


@pytest.mark.parametrize(
    "stored",
    [
        ("m.png", png(CLASSES)),
        ("m.png", png(CLASSES, [37 * index % 256 for index in range(57)])),
        ("m.png", png(CLASSES, [index // 3 for index in range(57)])),
        ("m.png", png(CLASSES.astype(np.uint16))),
        ("m.npy", npy(CLASSES.astype(np.int64))),
        ("m.npy", npy(CLASSES.astype(np.float32))),
    ],
    ids=range(6),
)
@pytest.mark.parametrize("numbering", ["celebamask-hq", "ffhq", "face-parsing"])
def test_label_maps_by_name(stored, numbering):
    parts = FACE_PARTS["celebamask-hq" if numbering == "ffhq" else numbering].split()
    skin = np.isin(CLASSES, [number for number, part in enumerate(parts, start=1) if part in SKIN_PARTS])
    name, data = stored
    np.testing.assert_array_equal(read_mask(data, name, values=numbering), skin * np.uint8(255))
    with pytest.raises(
        LabelError, match=r"values 0, 1, 2, 3, 4, 5, ... 18 \(19 values\) .*mask_values=.*celebamask-hq"
    ):
        read_mask(data, name)


def test_label_maps_by_numbers():
    with_void = np.where(CLASSES == 18, 255, CLASSES).astype(np.uint8)
    np.testing.assert_array_equal(read_mask(png(with_void), "m.png", values=(3, 7)) > 0, np.isin(CLASSES, (3, 7)))
    assert read_mask(png(HALF * 0), "m.png", values=(3,)).max() == 0
    assert read_mask(npy(HALF > 0), "m.npy", values="ffhq").sum() == 255 * HALF.sum()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(HALF * 255), "celebamask-hq numbers classes from 0 to 18, and this map holds 0, 255"),
        (png(HALF * 18), r"none of the classes \[1, 2, 6, 7, 11, 12\] .* it holds 0, 18"),
        (png(HALF.astype(np.uint16) * 300), "0, 300"),
    ],
    ids=range(3),
)
def test_a_setting_that_does_not_fit_the_map(data, message):
    with pytest.raises(LabelError, match=f"m.png: .*{message}"):
        read_mask(data, "m.png", values="celebamask-hq")
    with pytest.raises(LabelError, match="no whole numbers"):
        read_mask(npy(HALF * 0.5), "m.npy", values=(1,))


def test_an_empty_mask_is_a_mask():
    assert read_mask(png(HALF * 0), "m.png").max() == 0


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("m.npy", npy(np.zeros((3, 4, 2))), "expected a mask .* 3 x 4 x 2"),
        ("m.npy", npy(np.full((3, 4), np.nan)), "not numbers"),
        ("m.npy", npy(np.zeros((0, 4))), "0 x 4"),
        ("m.png", b"", "0 bytes"),
        ("m.png", b"<html>", "HTML"),
        ("m.png", png(HALF)[:40], "m.png: "),
        ("m.npy", npy(HALF * 15), r"uint8 values 0, 15 do not say what is skin"),
        ("m.png", png(HALF * 2, [0, 0, 0, 128, 0, 0, 128, 128, 128]), "values 0, 2 do not"),  # a grey class
        ("m.npy", npy(HALF * 0 + 7), "values 7 do not"),
        ("m.npy", npy(HALF * 18.0), "values 0, 18 do not"),
        ("m.npy", npy(HALF * 12.0 - 4), "values -4, 8 do not"),  # scores of a network
        ("m.npy", npy(HALF.astype(np.int16) - 1), "values -1, 0 do not"),
        ("m.npy", npy(HALF.astype(np.int32) * 1000), "values 0, 1000 do not"),
        ("m.png", png(np.where(CLASSES > 9, 255, CLASSES).astype(np.uint8)), "255 .*classes"),
        ("m.png", png(np.stack([HALF * 255, HALF, HALF], axis=2)), "coloured pixels"),
        ("m.png", png(np.stack([HALF * 255] * 4, axis=2)), "transparent pixels"),
    ],
    ids=range(16),
)
def test_wrong_masks_say_what_is_wrong(name, data, message):
    with pytest.raises(LabelError, match=message):
        read_mask(data, name)


def test_a_mask_with_too_many_pixels():
    with pytest.raises(LabelError, match="the limit is 100 pixels"):
        read_mask(png(HALF), "m.png", max_pixels=100)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the first line is empty"),
        (b" \t\r\nAda\n", "the first line is empty"),
        (b"\xff\xd8\xff\xe0", "UTF-8"),
        (b"\x00\x01\x02", "printable text"),
        (b"x" * 201, "up to 200 characters"),
    ],
    ids=range(5),
)
def test_wrong_identities_say_what_is_wrong(data, message):
    with pytest.raises(LabelError, match=f"^name.txt: .*{message}"):
        read_identity(data, "name.txt")


def test_an_identity_is_the_first_line():
    assert read_identity("Zoë  K.\r\nborn 1990".encode(), "name.txt") == "Zoë  K."
    assert read_identity(b"x" * 200, "name.txt") == "x" * 200
