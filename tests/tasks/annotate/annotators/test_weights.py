"""Weight files: found, fetched, missing, damaged, of another network, or with something in them that would run."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import urllib.error

import fsspec
import pytest
import torch

from schemas.annotate import AnnotateConfig
from tasks.annotate.annotators import AnnotatorError, face_alignment_provider, facexlib_provider, load_annotator
from tasks.annotate.annotators.dlib_provider import DESCRIPTOR, PREDICTOR, _models_folder
from tasks.annotate.annotators.weights import WeightFile, load_state, locate, pick_device


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine without the libraries' files, a cache and a network; the requested URLs."""
    asked: list[str] = []

    def refuse(url, timeout):
        asked.append(url)
        assert timeout <= 30
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("DECA_CACHE", str(tmp_path / "cache"))
    for module in (face_alignment_provider, facexlib_provider):
        monkeypatch.setattr(module, "_weights_folder", lambda: tmp_path / "library")
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    return asked


ALL = {"provider": "facexlib", "landmarks": "face_alignment", "device": "cpu"}
NAMES = (
    "detection_Resnet50_Final.pth",
    "parsing_bisenet.pth",
    "recognition_arcface_ir_se50.pth",
    "2DFAN4-11f355bf06.pth.tar",
)


def test_everything_missing_is_one_error_with_names_addresses_and_the_mirror(nowhere):
    with pytest.raises(AnnotatorError) as caught:
        load_annotator(AnnotateConfig.model_validate(ALL))
    message = str(caught.value)
    for name in NAMES:
        assert message.count(f"{name}: not found in") == 1
    assert message.count("It comes from https://") == 4
    assert "annotate.weights_uri" in message
    assert "Name or service not known" in message
    assert len(nowhere) == 1  # the first failure is enough


def test_only_the_chosen_steps_need_weights(nowhere):
    with pytest.raises(AnnotatorError) as caught:
        load_annotator(AnnotateConfig(segment="facexlib"))
    assert str(caught.value).count("not found") == 1
    load_annotator(AnnotateConfig())
    assert len(nowhere) == 1


def test_addresses_are_the_library_s_own():
    for name in (*NAMES[:3], "detection_mobilenet0.25_Final.pth", "parsing_parsenet.pth"):
        assert facexlib_provider.weight_url(name).startswith("https://")
        assert facexlib_provider.weight_url(name).endswith(f"/{name}")


def test_a_mirror_is_taken_instead(nowhere, mirror):
    annotator = load_annotator(AnnotateConfig.model_validate({**ALL, "weights_uri": str(mirror)}))
    assert set(NAMES) < set(annotator.versions)
    expected = hashlib.sha256((mirror / NAMES[1]).read_bytes()).hexdigest()[:12]
    assert annotator.versions[NAMES[1]] == expected
    assert nowhere == []


def test_a_mirror_that_lacks_a_file_names_it_and_nothing_is_downloaded(nowhere, mirror, tmp_path):
    part = tmp_path / "part"
    part.mkdir()
    for name in NAMES[:3]:
        (part / name).symlink_to(mirror / name)
    with pytest.raises(
        AnnotatorError, match=r"2DFAN4.*: not found in annotate.weights_uri = .*part.*https://"
    ) as caught:
        load_annotator(AnnotateConfig.model_validate({**ALL, "weights_uri": str(part)}))
    assert "detection" not in str(caught.value)
    assert nowhere == []
    load_annotator(AnnotateConfig(segment="facexlib", weights_uri=str(part)))  # dlib's own files need not be in it


def test_a_mirror_that_cannot_be_read(nowhere):
    with pytest.raises(AnnotatorError, match="weights_uri = nosuch://x cannot be read"):
        load_annotator(AnnotateConfig(weights_uri="nosuch://x"))


def test_a_bucket_is_fetched_once(nowhere, mirror, tmp_path):
    bucket = fsspec.filesystem("memory")
    bucket.pipe_file("/mirror/parsing_bisenet.pth", (mirror / "parsing_bisenet.pth").read_bytes())
    config = AnnotateConfig(segment="facexlib", weights_uri="memory://mirror")
    first = load_annotator(config).versions
    fetched = [path for path in (tmp_path / "cache").rglob("*.pth")]
    times = [path.stat().st_mtime_ns for path in fetched]
    assert load_annotator(config).versions == first
    assert [path.name for path in fetched] == ["parsing_bisenet.pth"]
    assert [path.stat().st_mtime_ns for path in fetched] == times
    bucket.pipe_file("/mirror/parsing_bisenet.pth", b"changed")
    with pytest.raises(AnnotatorError, match="no PyTorch file"):  # the current file of the mirror
        load_annotator(config)


def test_a_file_where_the_library_keeps_it(nowhere, mirror, tmp_path):
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "parsing_bisenet.pth").symlink_to(mirror / "parsing_bisenet.pth")
    assert "parsing_bisenet.pth" in load_annotator(AnnotateConfig(segment="facexlib")).versions
    assert nowhere == []


def test_a_download_is_kept_and_its_hash_checked(nowhere, tmp_path, monkeypatch):
    torch.save({}, kept := io.BytesIO())
    data = kept.getvalue()
    digest = hashlib.sha256(data).hexdigest()[:10]
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(data))
    good = WeightFile(f"net-{digest}.pth", lambda: tmp_path, "facexlib", lambda: "https://example.org/net.pth")
    path = locate([good], None)[good.name]
    assert path.read_bytes() == data
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: pytest.fail("fetched again"))
    assert locate([good], None)[good.name] == path
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(data))
    forged = WeightFile("net-0123456789.pth", lambda: tmp_path, "facexlib", lambda: "https://example.org/net.pth")
    with pytest.raises(AnnotatorError, match="hash is not the 0123456789 of its name"):
        locate([forged], None)
    assert not list(tmp_path.rglob("net-0123456789*"))  # nor a temp file


def test_an_error_page_is_not_kept(nowhere, tmp_path, monkeypatch):
    page = b"<html><title>Sign in</title></html>"
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(page))
    with pytest.raises(AnnotatorError, match=r"https://\S+ answered with a web page .*Sign in"):
        load_annotator(AnnotateConfig(segment="facexlib"))
    left = [path for path in (tmp_path / "cache").rglob("*.pth*") if path.suffix != ".lock"]
    assert not left


@pytest.mark.parametrize("name", [*NAMES, PREDICTOR, DESCRIPTOR])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: b"", "an empty file"),
        (
            lambda data: b"<!DOCTYPE html><html>404",
            r"no (PyTorch file|weight file of dlib) but a web page .*DOCTYPE.*(from https://|with the package)",
        ),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 77\n", "git lfs pull"),
        (lambda data: data[: len(data) // 2], "cut short"),
    ],
)
def test_no_run_begins_with_a_bad_file(nowhere, mirror, tmp_path, name, change, says):
    """Each file in turn: an empty one, an error page, a Git-LFS pointer, and the first half."""
    folder = tmp_path / "bad"
    folder.mkdir()
    for one in NAMES:
        (folder / one).symlink_to(mirror / one)
    for one in (PREDICTOR, DESCRIPTOR):
        (folder / one).symlink_to(_models_folder() / one)
    whole = (folder / name).read_bytes()
    (folder / name).unlink()
    (folder / name).write_bytes(change(whole))
    dlib_only = name in (PREDICTOR, DESCRIPTOR)
    config = AnnotateConfig.model_validate(({} if dlib_only else ALL) | {"weights_uri": str(folder)})
    with pytest.raises(AnnotatorError, match=rf"{name}: .*{says}"):
        load_annotator(config)


def test_weights_of_other_networks_are_found_before_any_work(nowhere, mirror, tmp_path):
    (tmp_path / NAMES[1]).symlink_to(mirror / NAMES[2])
    with pytest.raises(AnnotatorError, match=r"parsing_bisenet.pth: not the weights of BiSeNet"):
        load_annotator(AnnotateConfig(segment="facexlib", weights_uri=str(tmp_path)))
    (tmp_path / PREDICTOR).symlink_to(_models_folder() / "shape_predictor_5_face_landmarks.dat")
    with pytest.raises(AnnotatorError, match=r"it marks 5 points, 68 are needed.*pip install"):
        load_annotator(AnnotateConfig(weights_uri=str(tmp_path)))
    (tmp_path / PREDICTOR).unlink()
    (tmp_path / PREDICTOR).symlink_to(_models_folder() / DESCRIPTOR)
    with pytest.raises(AnnotatorError, match=r"68_face_landmarks.dat: cut short, damaged, or another model's"):
        load_annotator(AnnotateConfig(weights_uri=str(tmp_path)))


def test_a_file_that_would_run_code_does_not(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"weight": Evil()}, protocol=2))
    for name in ("evil.pth", "old.pth"):
        with pytest.raises(AnnotatorError, match="was not loaded"):
            load_state(tmp_path / name, torch.nn.Linear(2, 2))
    assert not (tmp_path / "pwned").exists()


def test_the_weights_of_another_network(tmp_path):
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "other.pth")
    with pytest.raises(AnnotatorError, match="not the weights of Linear"):
        load_state(tmp_path / "other.pth", torch.nn.Linear(2, 2))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(AnnotatorError, match="not the weights of Linear"):
        load_state(tmp_path / "list.pth", torch.nn.Linear(2, 2))


def test_weights_saved_from_several_gpus(tmp_path):
    """Names that begin with `module.`, as RetinaFace's released files have them."""
    made = torch.nn.Linear(2, 2)
    torch.save({f"module.{name}": value for name, value in made.state_dict().items()}, tmp_path / "x.pth")
    loaded = load_state(tmp_path / "x.pth", torch.nn.Linear(2, 2))
    torch.testing.assert_close(loaded.weight.data, made.weight.data)
    assert not loaded.training


@pytest.mark.parametrize(
    ("device", "gpu", "expected"), [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu")]
)
def test_the_gpu_is_used_where_there_is_one(monkeypatch, device, gpu, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert pick_device(device) == expected
