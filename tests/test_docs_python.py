"""Run every Python block of the documentation: a page's blocks in order, in one namespace, in a folder of its own.

The folder holds only what the page names (PLACES). Datasets come from the flows. Licensed files are stand-ins in the
formats of their official tools, over a small head.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from deca_core import DECA
from deca_core.assets import AssetBundle
from pipelines.reconstruct import reconstruct
from schemas.reconstruct import ReconstructConfig
from tests.deca_core.conftest import mini_bundle
from tests.golden import load as load_golden
from tests.pipelines.conftest import astronaut
from tests.test_docs import PAGES, PYTHON, relative
from tests.test_results import flows

Make = Callable[[Path], object]  # puts one thing where a page expects it
Names = dict[str, Any]


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page, without the indent of a surrounding list."""
    found = PYTHON.findall(page.read_text())
    return ["\n".join(line.removeprefix(indent) for line in block.splitlines()) for indent, block in found]


# --- what pages name --------------------------------------------------------------------------------------------------


def linked(folder: Callable[[], str]) -> Make:
    """Link a dataset that a flow made once for all pages."""
    return lambda place: place.symlink_to(folder(), target_is_directory=True)


def photo(place: Path) -> None:
    astronaut().save(place, quality=95)


def crop(place: Path) -> None:
    astronaut().resize((224, 224)).save(place)


def heads_of_photo(place: Path) -> None:
    """What `deca reconstruct photo.jpg heads` writes."""
    run(source=str(place.parent / "photo.jpg"), dest=str(place))


def run(**values: Any) -> str:
    settings = {"precision": "fp32", "contact_sheet_rows": 0, "ray": {"workers": 0}, **values}
    return reconstruct(ReconstructConfig.model_validate(settings)).dest


@cache
def consensus_heads() -> str:
    """Heads of one subject that share a shape."""
    return run(source=flows().people(), dest=str(flows().folder / "consensus"), consensus="identity")


@cache
def video_heads() -> str:
    """Heads of three frames of a video."""
    folder = flows().folder / "frames"
    folder.mkdir()
    for number in range(3):
        astronaut().rotate(number).save(folder / f"{number}.jpg", quality=95)
    return run(source=str(folder), dest=str(flows().folder / "video"), video={"fps": 25})


def in_bucket(place: Path) -> None:
    """The same heads as s3://bucket/heads of moto's S3, whose endpoint is in the environment."""
    import boto3
    import fsspec

    boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).create_bucket(Bucket="bucket")
    fsspec.filesystem("s3").put(flows().reconstruct(), "bucket/heads", recursive=True)


def small_head() -> AssetBundle:
    return mini_bundle(load_golden("mini_head.npz"))


def bundle(place: Path) -> None:
    """A stand-in for FLAME: the small head of the golden files, which is in FLAME's format."""
    small_head().save(place)


def released(place: Path) -> None:
    """A stand-in for deca_model.tar: untrained weights under the release's names."""
    model, parts = DECA(small_head()), ("E_flame", "E_detail", "D_detail")
    torch.save({name: getattr(model, name).state_dict() for name in parts}, place)


LICENSED: dict[str, Make] = {"bundle": bundle, "deca_model.tar": released}
OUT: dict[str, Make] = {"out": linked(lambda: flows().reconstruct())}
PEOPLE: dict[str, Make] = {"people": linked(lambda: flows().people())}
PLACES: dict[str, dict[str, Make]] = {
    "docs/annotators.md": {"photo.jpg": photo},
    "docs/datasets/animations.md": {"moving": linked(lambda: flows().animate())},
    "docs/datasets/annotations.md": PEOPLE,
    "docs/datasets/assignments.md": PEOPLE,
    "docs/datasets/commits.md": OUT,
    "docs/datasets/consensus.md": {"out": linked(consensus_heads)},
    "docs/datasets/evaluations.md": {"figures": linked(lambda: flows().evaluate())},
    "docs/datasets/exports.md": {"exported": linked(lambda: flows().export())},
    "docs/datasets/faces.md": PEOPLE,
    "docs/datasets/identities.md": PEOPLE,
    "docs/datasets/items.md": OUT,
    "docs/datasets/quarantine.md": OUT,
    "docs/datasets/reconstructions.md": OUT,
    "docs/datasets/tracks.md": {"out": linked(video_heads)},
    "docs/datasets/truth.md": {"world": linked(lambda: flows().world())},
    "docs/export.md": {"crop.png": crop},
    "docs/howto/bucket.md": {"bucket": in_bucket},
    "docs/howto/look.md": {"heads": linked(lambda: flows().reconstruct())},
    "docs/ingest.md": {"out": linked(lambda: flows().people())},
    "docs/models.md": LICENSED,
    "docs/python.md": {"photo.jpg": photo, "heads": heads_of_photo},
    "docs/reconstruct.md": {"out": linked(consensus_heads)},
}
# Engines that a page needs, by the name of their fixture.
ENGINES = {"docs/howto/bucket.md": "s3", "docs/ingest.md": "ray_cluster"}
WITH_BLOCKS = [page for page in PAGES if blocks(page)]


# --- results ----------------------------------------------------------------------------------------------------------


def check_python(names: Names, printed: str, text: str) -> None:
    assert re.search(r"\n```\n(\{.*?\})\n```", text, re.DOTALL).group(1) in printed  # type: ignore[union-attr]
    assert float(re.search(r"lie (\d+) pixels", printed).group(1)) < 30  # type: ignore[union-attr]
    assert 5 < float(re.search(r"moved: (\d+) mm", printed).group(1)) < 40  # type: ignore[union-attr]
    assert Path("head.glb").read_bytes()[:4] == b"glTF"
    with av.open("talk.mp4") as clip:
        assert len(list(clip.decode(video=0))) == 10
    assert torch.allclose(names["codes"].exp, names["heads"].codes.exp, atol=0.02)


def check_export(names: Names, printed: str, text: str) -> None:
    assert Path("head.glb").read_bytes()[:4] == b"glTF"


def check_models(names: Names, printed: str, text: str) -> None:
    assert names["model"].backbone == "resnet50"
    assert Path("copy/model.safetensors").is_file()


CHECKS: dict[str, Callable[[Names, str, str], None]] = {
    "docs/python.md": check_python,
    "docs/export.md": check_export,
    "docs/models.md": check_models,
}


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=relative)
def test_the_blocks_of_a_page_run(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    name = relative(page)
    if name in ENGINES:
        request.getfixturevalue(ENGINES[name])
    for thing, make in PLACES.get(name, {}).items():
        make(tmp_path / thing)
    monkeypatch.chdir(tmp_path)
    names: Names = {}
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), names)
    CHECKS.get(name, lambda *_: None)(names, capsys.readouterr().out, page.read_text())
