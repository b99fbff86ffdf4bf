"""The dataset card: what a subject reads on it, what `datasets` reads from it, and that no file name can break out."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image

from schemas.engine import SourceConfig, UnitsConfig
from schemas.faces import (
    ASSIGNMENTS_SCHEMA,
    CURRENT,
    IDENTITIES_SCHEMA,
    FacesVersion,
    ShardFile,
    faces_schema,
)
from schemas.ingest import IngestConfig
from schemas.ledger import Quarantined, StoredFile
from schemas.parquet import fixed_array, write_table
from tasks.people.versions import FacesError
from tasks.reports.card import identity_sizes, is_up_to_date, write_card
from tasks.store.storage import Store, hash_file
from tasks.units.engine import commit_unit
from tasks.units.plan import load_plan
from tasks.units.rounds import open_or_build

HOSTILE = 'a"><script>alert(1)</script>&.jpg'
HOSTILE_PERSON = "<img src=x onerror=alert(2)>"
SIZES = {"ann": 1, "bob": 2, "eve": 2, HOSTILE_PERSON: 12}


def picture(array: np.ndarray, kind: str) -> dict[str, object]:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return {"bytes": buffer.getvalue(), "path": None}


def rows(people: dict[str, int]) -> pa.Table:
    """Faces of made-up subjects: a disc of skin on grey, landmarks on its rim."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:320, :320]
    skin = (x - 160) ** 2 + (y - 160) ** 2 < 80**2
    crop = np.full((320, 320, 3), 128, np.uint8)
    crop[skin] = (224, 172, 140)
    angles = np.linspace(0, 2 * np.pi, 68)
    landmarks = np.stack([160 + 80 * np.cos(angles), 160 + 80 * np.sin(angles)], 1)
    names = [name for name, count in people.items() for _ in range(count)]
    fixed = {"landmarks": landmarks, "crop_transform": np.eye(2, 3), "bbox": np.array([80, 80, 240, 240])}
    columns = []
    for field in (schema := faces_schema(8)):
        if field.name in fixed:
            columns.append(fixed_array(field, np.repeat(fixed[field.name][None], len(names), 0)))
        elif field.name == "embedding":
            columns.append(fixed_array(field, generator.normal(size=(len(names), 8))))
        elif field.name in ("crop", "skin_mask"):
            one = picture(crop, "JPEG") if field.name == "crop" else picture(np.uint8(skin) * 255, "PNG")
            columns.append(pa.array([one] * len(names), field.type))
        elif field.name == "identity_id":
            columns.append(pa.array(names))
        elif pa.types.is_string(field.type):
            text = {"source_uri": HOSTILE, "split": "train", "identity_source": "label"}.get(field.name)
            columns.append(pa.array([text or f"{index:02d}" for index in range(len(names))], field.type))
        else:
            columns.append(pa.array(generator.integers(1, 30, len(names)), field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def put(store: Store, name: str, table: pa.Table) -> StoredFile:
    with store.scratch(name) as path:
        write_table(table, path, row_group=4)
        size, sha256 = hash_file(path)
        store.publish(path, name)
    return StoredFile(file=name, bytes=size, sha256=sha256)


def put_version(store: Store, people: dict[str, int], version: int = 1) -> FacesVersion:
    """A version of two train shards and one empty split."""
    table = rows(people)
    shards = []
    for number, start in enumerate(range(0, len(table), 9)):
        part = table.slice(start, 9)
        file = put(store, f"data/train-{number:05d}-{version:08d}.parquet", part)
        counts = {"rows": len(part), "identities": 1, "rows_sha256": "", "split": "train"}
        shards.append(ShardFile.model_validate({**file.model_dump(), **counts}))
    places = [
        {"identity_id": name, "identity_source": "label", "split": "train", "shard": "", "first_row": 0, "rows": count}
        for name, count in people.items()
    ]
    record = FacesVersion(
        version=version,
        fingerprint=f"{version:064d}",
        annotations="0" * 64,
        config=IngestConfig(source="a", dest="b").model_dump(mode="json", include={"filters", "identity", "shards"}),
        weights={"dlib.landmarks": "1" * 64},
        shards=shards,
        identities_file=put(
            store, f"index/identities-{version}.parquet", pa.Table.from_pylist(places, IDENTITIES_SCHEMA)
        ),
        assignments_file=put(store, "index/assignments.parquet", ASSIGNMENTS_SCHEMA.empty_table()),
        faces=len(table),
        identities=len(people),
        left_out={"eye_distance": 7},
    )
    store.write(CURRENT, record.model_dump_json().encode())
    return record


@pytest.fixture
def faces(tmp_path: Path) -> Store:
    """faces/ of four subjects, and annotations/ whose one image of a hostile name is in quarantine."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / HOSTILE.replace("/", "_")).write_bytes(b"nothing")
    plan = open_or_build(
        str(tmp_path / "out" / "annotations"),
        str(photos),
        config={"flow": "ingest", "annotate": {"provider": "dlib"}},
        source_config=SourceConfig(),
        units=UnitsConfig(),
    )
    [unit] = plan.iter_units()
    commit_unit(plan, unit, None, [Quarantined.of(unit.items[0], "decode", "ImageError", "<b>bold</b>")], 0.0)
    store = Store(tmp_path / "out" / "faces")
    put_version(store, SIZES)
    return store


class Page(HTMLParser):
    """What a browser would make of a page: elements, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_names_stay_text(faces):
    page = Page(Path(write_card(faces.uri)).read_text())
    tags = {tag for tag, _ in page.elements}
    assert "script" not in tags
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert HOSTILE.replace("/", "_") in page.text  # in the quarantine table
    assert HOSTILE_PERSON in page.text  # under a sampled face
    assert "<b>bold</b>" in page.text
    assert HOSTILE in {attributes.get("title") for tag, attributes in page.elements if tag == "img"}
    readme = (Path(faces.uri) / "README.md").read_text()
    assert "<script" not in readme
    assert "onerror" not in readme


def test_page_loads_nothing(faces):
    text = Path(write_card(faces.uri)).read_text()
    page = Page(text)
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/jpeg;base64,")), (tag, attributes[name])
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    policies = [a["content"] for tag, a in page.elements if tag == "meta" and a.get("http-equiv")]
    assert policies[0].startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert [tag for tag, _ in page.elements].count("svg") == 8


def test_page_tells_the_numbers(faces):
    text = Page(Path(write_card(faces.uri)).read_text()).text
    for words in ("eye_distance", "ImageError", "iBUG 300-W", "min_eye_distance: 16.0"):
        assert words in text
    assert identity_sizes(faces.uri) == {
        "1": 1, "2": 2, "3-4": 0, "5-9": 0, "10-19": 1, "20-49": 0, "50-99": 0, "100+": 0
    }  # fmt: skip


def test_same_version_same_bytes_anywhere(faces, tmp_path):
    import shutil

    first = Path(write_card(faces.uri)).read_bytes()
    shutil.copytree(tmp_path / "out", tmp_path / "moved")
    assert Path(write_card(str(tmp_path / "moved" / "faces"))).read_bytes() == first
    assert (tmp_path / "moved/faces/README.md").read_bytes() == (Path(faces.uri) / "README.md").read_bytes()


def test_readme_makes_load_dataset_read_this_version_only(faces, tmp_path):
    import datasets

    people = SIZES | {"zoe": 3}
    put_version(faces, people, 2)
    write_card(faces.uri)
    loaded = datasets.load_dataset(faces.uri, cache_dir=str(tmp_path / "hf"))
    assert {split: len(part) for split, part in loaded.items()} == {"train": sum(people.values())}
    assert isinstance(loaded["train"].features["crop"], datasets.Image)
    assert loaded["train"][0]["crop"].size == (320, 320)
    assert loaded["train"][0]["skin_mask"].size == (320, 320)


def test_card_knows_when_it_is_out_of_date(faces):
    assert not is_up_to_date(faces.uri)
    write_card(faces.uri)
    assert is_up_to_date(faces.uri)
    put_version(faces, SIZES, 2)
    assert not is_up_to_date(faces.uri)
    write_card(faces.uri)
    plan = load_plan(faces.uri.replace("/faces", "/annotations"))
    plan.store.delete(plan.commit_name(0))  # as after a retry, the annotations are others
    assert not is_up_to_date(faces.uri)
    faces.write("README.md", b"# somebody's own page\n")
    assert not is_up_to_date(faces.uri)


def test_faces_without_their_annotations_have_a_card(faces, tmp_path):
    (tmp_path / "out" / "faces").rename(tmp_path / "alone")
    page = Page(Path(write_card(str(tmp_path / "alone"))).read_text())
    assert "Nothing is in quarantine" in page.text
    assert "FAN's weights" in page.text  # any of the models may have taken part


def test_card_of_no_faces(faces):
    put_version(faces, {})
    page = Page(Path(write_card(faces.uri)).read_text())
    assert "No face is in this version" in page.text
    front = yaml.safe_load((Path(faces.uri) / "README.md").read_text().split("---\n")[1])
    assert front["configs"][0]["data_files"] == []


def test_a_missing_shard_is_named(faces):
    faces.delete("data/train-00001-00000001.parquet")
    with pytest.raises(FacesError, match=r"train-00001-.*deca verify"):
        write_card(faces.uri)


def test_no_version_no_card(tmp_path):
    with pytest.raises(FacesError, match="deca ingest"):
        write_card(str(tmp_path))
