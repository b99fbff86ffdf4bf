"""The licensed files, written as their authors did but for a small head, into a bundle; and what can be wrong."""

from __future__ import annotations

import io
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deca_core.assets import BundleError, import_flame, load_bundle
from deca_core.assets.albedo import read_albedo
from deca_core.assets.flame_files import ALBEDO, REQUIRED
from tests.deca_core.assets.flame_format import (
    albedo,
    fake_chumpy,
    flame_model,
    landmark_embedding,
    mask,
    python2_pickle,
    template,
    write_flame_files,
)
from tests.deca_core.conftest import Call, mini_bundle

Head = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def head(golden) -> Head:
    return golden("mini_head.npz")


@pytest.fixture
def files(tmp_path, head) -> Path:
    return write_flame_files(tmp_path / "flame", head)


def rewrite_model(folder: Path, head: Head, **changes: np.ndarray | None) -> None:
    with fake_chumpy() as ch:
        content = {**flame_model(head, ch), **changes}
        data = python2_pickle({key: value for key, value in content.items() if value is not None})
    (folder / "generic_model.pkl").write_bytes(data)


def refused(folder: Path, pattern: str) -> None:
    with pytest.raises(BundleError, match=pattern):
        import_flame(folder, folder.parent / "out")
    assert not (folder.parent / "out").exists()


def test_every_array_lands_in_its_place(files, head, tmp_path):
    bundle = import_flame(files, tmp_path / "bundle")
    face = mask(256).astype(np.float32) / 255
    fixed = np.linspace(-1e-3, 1e-3, 256 * 256, dtype=np.float32).reshape(256, 256)
    expected = mini_bundle(head, face_mask=face, face_eye_mask=1 - face, fixed_displacement=fixed).arrays()
    found = bundle.arrays()
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-7, err_msg=name)
    assert bundle.name == "FLAME"
    assert all(name in bundle.source for name in REQUIRED)
    assert load_bundle(tmp_path / "bundle").hash == bundle.hash


def test_the_imported_head_moves_as_the_reference_does(files, head, golden, tmp_path):
    """From the downloaded files to posed vertices: the released code's answers."""
    import torch

    from deca_core.flame import FLAME

    reference = golden("posed_head.npz")
    model = FLAME(import_flame(files, tmp_path / "bundle"))
    posed = model(*(torch.from_numpy(reference[name]) for name in ("shape", "exp", "pose")))
    np.testing.assert_allclose(posed.vertices, reference["vertices"], atol=1e-5)


def test_dense_regressor_small_masks_and_palette_masks(files, head, tmp_path):
    sparse = import_flame(files, tmp_path / "a")
    rewrite_model(files, head, J_regressor=head["J_regressor"])
    Image.fromarray(mask(256)).convert("P").save(files / "uv_face_mask.png")
    Image.fromarray(mask(64)).save(files / "uv_face_eye_mask.png")
    dense = import_flame(files, tmp_path / "b")
    np.testing.assert_array_equal(dense.joint_regressor, sparse.joint_regressor)
    np.testing.assert_array_equal(dense.face_mask, sparse.face_mask)
    np.testing.assert_array_equal(dense.face_eye_mask[::4, ::4], mask(64).astype(np.float32) / 255)


@pytest.mark.parametrize("size", [16, 256, 300])
@pytest.mark.parametrize("order", ["C", "F"])
def test_albedo_is_taken_by_nearest_texel_and_turned_to_rgb(files, tmp_path, size, order):
    mean, basis = albedo(size, 53)
    np.savez(files / ALBEDO, MU=mean, PC=np.asarray(basis, order=order), specMU=mean)
    bundle = import_flame(files, tmp_path / "bundle")
    nearest = np.arange(256) * size // 256
    texture = mean.reshape(size, size, 3)[np.ix_(nearest, nearest)][..., ::-1].transpose(2, 0, 1)
    np.testing.assert_allclose(bundle.albedo_mean, texture, rtol=1e-6)
    component = basis[:, 49].reshape(size, size, 3)[np.ix_(nearest, nearest)][..., ::-1].transpose(2, 0, 1)
    np.testing.assert_array_equal(bundle.albedo_basis[49], component)
    assert ALBEDO in bundle.source


def test_the_albedo_basis_is_read_in_strips(tmp_path):
    """A 512 x 512 basis of which 50 of 60 components stay: far less memory than the file."""
    path = tmp_path / ALBEDO
    shape = (512 * 512 * 3, 60)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, side in (("MU", (1, shape[0])), ("PC", shape)):
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": side})
                for _ in range(512):
                    stream.write(np.full(side[0] * side[1] // 512, 0.5, "<f4").tobytes())
    tracemalloc.start()
    read_albedo(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    kept = 256 * 256 * 3 * 50 * 4
    assert peak < 2.5 * kept < 4 * shape[0] * shape[1]


def test_missing_files_are_listed_with_their_origin(files):
    for name in ("head_template.obj", "generic_model.pkl"):
        (files / name).unlink()
    refused(files, r"missing generic_model.pkl, head_template.obj. .*FLAME 2020.*deca assets import")


def test_a_missing_array_is_named(files, head):
    rewrite_model(files, head, posedirs=None)
    refused(files, r"generic_model.pkl: no posedirs \(it has J_regressor")


@pytest.mark.parametrize(
    ("key", "change", "pattern"),
    [
        ("shapedirs", lambda a: a[:, :, :310], "shapedirs has 310 components"),
        ("weights", lambda a: a[:, :4], r"weights has shape \(576, 4\), expected 576 x 5"),
        ("J_regressor", lambda a: a[:, :7], r"J_regressor has shape \(5, 7\), expected 5 x 576"),
        ("kintree_table", lambda a: a[:, ::-1], "kintree_table gives the parents"),
        ("v_template", lambda a: np.where(a == a[0, 0], np.nan, a), "v_template holds NaN"),
        ("v_template", lambda a: np.array(["a"]), "v_template has shape"),
        ("weights", lambda a: a.astype("U9"), "weights is a ndarray, expected an array of numbers"),
    ],
)
def test_misshapen_arrays_are_named(files, head, key, change: Callable, pattern):
    rewrite_model(files, head, **{key: change(head[key])})
    refused(files, pattern)


def test_a_template_of_another_topology(files, head):
    swapped = head["faces"].copy()
    swapped[[4, 5]] = swapped[[5, 4]]
    (files / "head_template.obj").write_text(template(head, swapped))
    refused(files, "face 4 differs first")
    (files / "head_template.obj").write_text(template(head, head["faces"][:-1]))
    refused(files, r"1057 faces against 1058")


@pytest.mark.parametrize(
    ("line", "pattern"),
    [
        ("f 1/1 2/2 3/3 4/4", "line .*a face of 4 corners"),
        ("f 1 2 3", "line .*faces without texture coordinates .*'f 1 2 3'.*MICA.*DECA release"),
        ("f 1//1 2//2 3//3", "need vertex/texture indices"),
        ("vt 0.5", "line .*texture coordinates"),
    ],
)
def test_a_template_that_cannot_be_used(files, line, pattern):
    with (files / "head_template.obj").open("a") as file:
        file.write(line + "\n")
    refused(files, f"head_template.obj.*{pattern}")


def test_damaged_masks_maps_and_albedo(files, tmp_path):
    np.save(files / "fixed_displacement_256.npy", np.zeros((128, 128)))
    refused(files, r"fixed_displacement_256.npy: map has shape \(128, 128\), expected 256 x 256")
    np.save(files / "fixed_displacement_256.npy", np.zeros((256, 256)))
    np.savez(files / ALBEDO, MU=np.zeros((1, 48)), PC=np.zeros((48, 49)))
    refused(files, "PC has shape .48, 49.")
    np.savez(files / ALBEDO, MU=np.zeros((1, 48)))
    refused(files, "without MU and PC")
    (files / ALBEDO).write_bytes(b"PK\x03\x04 nothing")
    refused(files, "damaged")
    (files / ALBEDO).unlink()
    (files / "uv_face_mask.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    refused(files, "uv_face_mask.png: not a readable image")


@pytest.mark.parametrize("name", [*REQUIRED, ALBEDO])
def test_what_a_download_left_instead_is_named(files, name):
    for data, says in ((b"<html>Sign in</html>", "a web page"), (b"", "an empty file")):
        (files / name).write_bytes(data)
        refused(files, f"{name}: {says} .*Download it again" if data else f"{name}: {says}. Download it again")
    (files / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    refused(files, f"{name}: a Git-LFS pointer, not the file of 5 bytes .*git lfs pull")


@pytest.mark.parametrize("name", REQUIRED)
def test_files_cut_short_are_named(files, name):
    data = (files / name).read_bytes()
    (files / name).write_bytes(data[: len(data) * 2 // 3])
    refused(files, f"{name}.*(cut short|truncated|corners)")


def test_a_landmark_off_the_mesh(files, head):
    content = landmark_embedding(head)
    content["static_lmk_faces_idx"] = content["static_lmk_faces_idx"] + 5000
    np.save(files / "landmark_embedding.npy", np.array(content, dtype=object), allow_pickle=True)
    refused(files, "static_landmark_faces points outside")


def evil(kind: str, marker: Path) -> bytes:
    touch = Call(os.system, f"touch {marker}")
    payload = pickle.dumps({"v_template": touch})
    if kind == "pickle":
        return payload
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.array(touch, dtype=object), allow_pickle=True)
    if kind == "npy":
        return stream.getvalue()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("MU.npy", "PC.npy"):
            file.writestr(name, stream.getvalue())
    return archive.getvalue()


@pytest.mark.parametrize("name", [*REQUIRED, ALBEDO])
@pytest.mark.parametrize("kind", ["pickle", "npy", "npz"])
def test_no_file_can_execute_anything(files, tmp_path, name, kind):
    """Each file in turn is replaced by a pickle that would create a file, as such, in an array and in an archive."""
    marker = tmp_path / "marker"
    (files / name).write_bytes(evil(kind, marker))
    refused(files, name)
    assert not marker.exists()
