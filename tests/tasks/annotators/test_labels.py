"""Label files: what is read, and what each damaged or hostile one is refused with."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy import io as matlab

from tasks.annotators.labels import LabelError, read_identity, read_landmarks, read_mask

POINTS = np.random.default_rng(0).uniform(10, 90, (68, 2)).astype(np.float32)


def npy(array, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def mat(**variables) -> bytes:
    buffer = io.BytesIO()
    matlab.savemat(buffer, variables)
    return buffer.getvalue()


def txt(points) -> bytes:
    return "\n".join(f"{x} {y}" for x, y in points.tolist()).encode()


def png(array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


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
    ],
    ids=range(8),
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
    ],
    ids=range(24),
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


HALF = np.zeros((20, 30), np.uint8)
HALF[5:15, 8:20] = 1


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("m.png", png(HALF * 255)),
        ("m.png", png(HALF)),
        ("m.png", png(HALF * 200 + 20)),
        ("m.png", png((HALF * 255)[..., None].repeat(3, axis=2))),
        ("m.npy", npy(HALF)),
        ("m.npy", npy(HALF.astype(bool))),
        ("m.npy", npy(HALF.astype(np.float32) * 0.9)),
        ("m.npy", npy(HALF.astype(np.int64) * 255)),
    ],
    ids=range(8),
)
def test_masks_of_every_kind(name, data):
    mask = read_mask(data, name)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, HALF * 255)


def test_a_palette_or_one_bit_mask():
    buffer = io.BytesIO()
    Image.fromarray(HALF * 255).convert("1").save(buffer, "PNG")
    np.testing.assert_array_equal(read_mask(buffer.getvalue(), "m.png"), HALF * 255)


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
    ],
    ids=range(6),
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
    with pytest.raises(LabelError, match=f"^who.txt: .*{message}"):
        read_identity(data, "who.txt")


def test_an_identity_is_the_first_line():
    assert read_identity("Zoë  K.\r\nborn 1990".encode(), "who.txt") == "Zoë  K."
    assert read_identity(b"x" * 200, "who.txt") == "x" * 200
